"""What a study trains: every network with every variation and seed, after a search for each network's learning rate."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from revhrnet_hf.errors import RecipeError, did_you_mean
from revhrnet_hf.training.network import ARCHITECTURES
from revhrnet_hf.training.recipe import OF_THE_RUN, Recipe, checked, read_chain, read_mapping

RUNS, TUNING = "runs", "tuning"  # folders of the runs whose results are shown, and of those that try a learning rate
PLAIN = "plain"  # the variation of a study that has none
GROUPS = ("networks", "variations")  # the fields of a study that hold recipe fields by name
SETTINGS = (*GROUPS, "settings", "tuning")  # those that are mappings
MAX_NAME = 200  # bytes of a folder's name
RATES = "learning_rates"  # of the study, or of a network that has its own
FIXED = {"trackers": [], "log_images": 0, "keep_checkpoints": 1, "eval_at_start": False}
"""Settings of every run; besides, each is evaluated after its last epoch only, so that no epoch is selected by its score."""


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        network, variation: their names in the study.
        seed: of the run.
        recipes: one for each stage.
        folder: relative to the study's output folder.
    """

    network: str
    variation: str
    seed: int
    recipes: Sequence[Recipe]
    folder: str

    @property
    def recipe(self) -> Recipe:
        """Of the last stage, from which the result comes."""
        return self.recipes[-1]

    @property
    def is_tuning(self) -> bool:
        """Whether it tries a learning rate."""
        return Path(self.folder).parts[0] == TUNING


@dataclass
class Study:
    """A study file.

    Attributes:
        title: for tables and figures.
        recipe: name or file of the recipe that all runs share. Of a chain, the settings below hold for all stages.
        networks: the recipe's fields that make each network. It may have `learning_rates` of its own, for example further ones,
            where the best of the others was the first or the last.
        settings: the recipe's fields in which all runs differ from `recipe`.
        variations: the recipe's fields of each variation, such as fewer images.
        seeds: each network is trained with each of them.
        learning_rates: the best of them is chosen for each network, by its score in a run with the settings `tuning`.
        tuning: must train and score on parts of the training split, or the choice would use the images of the result.
        baseline: the network that others are compared with.
        classes: whose IoU the table shows.
        interval_block: number of consecutive images that are drawn together for the interval of a difference; see
            `bootstrap_intervals`.
    """

    title: str
    recipe: str
    networks: dict[str, dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    variations: dict[str, dict[str, Any]] = field(default_factory=lambda: {PLAIN: {}})
    seeds: list[int] = field(default_factory=lambda: [0])
    learning_rates: list[float] = field(default_factory=list)
    tuning: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    classes: list[str] = field(default_factory=list)
    interval_block: int = 1

    def __post_init__(self):
        self._check_types()
        for name in ("networks", "variations", "seeds"):
            if not getattr(self, name):
                raise RecipeError(f"The study has no {name}")
        if self.interval_block < 1:
            raise RecipeError(f"The study's interval_block must be positive, got {self.interval_block}")
        if self.baseline is not None and self.baseline not in self.networks:
            raise RecipeError(f"The baseline {self.baseline!r} is not among the networks: {', '.join(self.networks)}")
        if self.tuned() and len(read_chain(self.recipe, {**self.settings, **self.tuning})) > 1:
            raise RecipeError(f"{self.recipe} is a chain: {RATES} are searched for recipes of a single stage only")
        self._check_overridden()
        runs = self.any_runs()
        self._check_tuning({_without_part(run.recipe.eval_split) for run in runs})
        for run in (*self.tuning_runs(), *runs):
            if run.recipe.architecture not in ARCHITECTURES:
                hint = did_you_mean(run.recipe.architecture, ARCHITECTURES)
                raise RecipeError(f"{run.network}: there is no architecture {run.recipe.architecture!r}{hint}")
        _check_folders(run.folder for run in (*self.tuning_runs(), *runs))

    def _check_types(self) -> None:
        """Raises a RecipeError for a value of another type than its field's; text such as 1e-3 is a number."""
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if name in SETTINGS:
                _check_mapping(name, value)
            else:
                setattr(self, name, checked(f"The study's {name}", kind, value))
        for group in GROUPS:
            # An entry that changes nothing may be empty in the file, and YAML reads a name such as 92 as a number.
            entries = {str(name): {} if value is None else value for name, value in getattr(self, group).items()}
            for name, value in entries.items():
                _check_mapping(f"{group}.{name}", value)
            setattr(self, group, entries)
        for name, value in self.networks.items():
            if {RATES, "learning_rate"} <= value.keys():
                raise RecipeError(f"The network {name!r} has both learning_rate and {RATES}: leave one out")
            if RATES in value:
                rates = checked(f"{RATES} of the network {name!r}", get_type_hints(type(self))[RATES], value[RATES])
                self.networks[name] = {**value, RATES: rates}

    def _check_overridden(self) -> None:
        """Raises a RecipeError for a setting that would have no effect, because the study itself sets it."""
        groups = {f"{group}.{name}": entry for group in GROUPS for name, entry in getattr(self, group).items()}
        for where, entry in {"settings": self.settings, "tuning": self.tuning, **groups}.items():
            if "seed" in entry:
                raise RecipeError(f"The study's {where} has a seed: give the study's seeds")
            if RATES in entry and not where.startswith("networks."):
                raise RecipeError(f"The study's {where} has {RATES}: they belong to the study or to a network")
            if self.tuned() and "learning_rate" in entry and not where.startswith(("networks.", "settings")):
                raise RecipeError(
                    f"The study's {where} has a learning_rate, but that of {self.tuned()[0]!r} is chosen from {RATES}"
                )

    def _check_tuning(self, scored: set[str]) -> None:
        """Raises a RecipeError if a learning rate would be chosen on a whole split, or on a part of one of those in `scored`.

        Whether two parts of a split overlap is not looked at.
        """
        whole = "give tuning both train_split and eval_split, parts of the training split, such as train[:80%] and train[80%:]"
        for recipe in (run.recipe for run in self.tuning_runs()):
            if not ("[" in recipe.train_split and "[" in recipe.eval_split):
                raise RecipeError(f"learning_rates are to be chosen on images that no result is taken from: {whole}")
            if _without_part(recipe.eval_split) in scored:
                raise RecipeError(f"The tuning's eval_split {recipe.eval_split!r} is a part of the split of the results: {whole}")

    @classmethod
    def from_yaml(cls, path: str | Path) -> "Study":
        """Raises a RecipeError for a file that cannot be read, an unknown field, or recipe fields that do not fit."""
        content = read_mapping(Path(path), f"the study {path}")
        known = {setting.name: setting for setting in fields(cls)}
        if not {"title", "recipe", "networks"} <= content.keys():
            raise RecipeError(f"The study {path} must be a mapping with title, recipe and networks")
        for name in content:
            if name not in known:
                raise RecipeError(f"Unknown field {name!r} in the study {path}{did_you_mean(str(name), known)}")
        try:
            return cls(**content)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error

    def tuned(self) -> list[str]:
        """The networks whose learning rate is searched: those that do not give one."""
        return [name for name, settings in self.networks.items() if self.rates_of(name) and "learning_rate" not in settings]

    def rates_of(self, network: str) -> list[float]:
        """The learning rates that a network which is `tuned` tries."""
        return self.networks[network].get(RATES, self.learning_rates)

    def tuning_runs(self) -> list[Run]:
        """One run for each network and learning rate."""
        return [
            self._run(name, f"lr {rate:g}", self.seeds[0], {**self.tuning, "learning_rate": rate}, TUNING)
            for name in self.tuned()
            for rate in self.rates_of(name)
        ]

    def runs(self, rates: Mapping[str, float]) -> list[Run]:
        """The runs whose results are shown, seed by seed, so that a table of an unfinished study compares like with like.

        Args:
            rates: the learning rate of each network that is `tuned`; networks without one are left out.
        """
        return [
            self._run(name, variation, seed, extra | ({"learning_rate": rates[name]} if name in rates else {}), RUNS)
            for seed in self.seeds
            for variation, extra in self.variations.items()
            for name in self.networks
            if name in rates or name not in self.tuned()
        ]

    def any_runs(self) -> list[Run]:
        """As `runs`, with any learning rate for the networks whose own is not chosen yet."""
        return self.runs(dict.fromkeys(self.tuned(), 0.001))

    def check_classes(self, known: Iterable[str]) -> None:
        """Raises a RecipeError for a class of the table that is not among the known ones."""
        known = dict.fromkeys(known)
        for name in self.classes:
            if name not in known:
                raise RecipeError(
                    f"The study's classes have {name!r}{did_you_mean(name, known)}, and its datasets have {', '.join(known)}"
                )

    def _run(self, network: str, variation: str, seed: int, extra: Mapping[str, Any], kind: str) -> Run:
        own = {name: value for name, value in self.networks[network].items() if name != RATES}
        settings = {**FIXED, **self.settings, **own, **extra, "seed": seed}
        try:
            recipes = [replace(recipe, eval_every=recipe.epochs) for recipe in read_chain(self.recipe, settings)]
        except RecipeError as error:
            where = f"network {network!r}" + (f", variation {variation!r}" if variation != PLAIN else "")
            raise RecipeError(f"{where}: {error}") from error
        folder = Path(kind, _file_name(network), _file_name(variation), f"seed_{seed}")
        return Run(network, variation, seed, recipes, str(folder))


def _check_mapping(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise RecipeError(f"The study's {name} must be a mapping, got {value!r}")


def _check_folders(folders: Iterable[str]) -> None:
    """Raises a RecipeError if two runs have the same folder, or one that not every file system can have."""
    folders = list(folders)
    for folder in folders:
        if max(len(part.encode()) for part in Path(folder).parts) > MAX_NAME:
            raise RecipeError(f"The folder {folder} would have too long a name: shorten those of networks and variations")
    # On some systems capitals make no difference.
    for folder, count in Counter(map(str.casefold, folders)).items():
        if count > 1:
            raise RecipeError(
                f"{count} runs of the study get the same folder {folder}: give each network, variation, seed and learning rate "
                "once, with names that differ in letters or digits"
            )


def _without_part(split: str) -> str:
    """The name of the whole split: train of train[:80%]."""
    return split.partition("[")[0]


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text).strip("_.") or "_"


def scored_on(recipe: Mapping[str, Any]) -> tuple[str | None, ...]:
    """What the classes in a run's scores depend on, of its recipe's fields."""
    return tuple(recipe.get(name) for name in ("dataset", "loader", "label_space", "image_column", "label_column"))


def same_settings(run: Run, result: Mapping[str, Any]) -> str | None:
    """How the settings of a run differ from those that its result was made with; None if they are the same.

    A field that is newer than the result had its default value then.
    """
    said = [_changed(run.recipe, result["recipe"])]
    if "earlier_recipes" in result:  # results of earlier versions do not say
        said += _changed_stages(run.recipes[:-1], result["earlier_recipes"])
    return "; ".join(filter(None, said)) or None


def _changed_stages(recipes: Sequence[Recipe], recorded: Sequence[Mapping[str, Any]]) -> list[str]:
    """The changes in the stages before the last one."""
    if len(recipes) != len(recorded):
        return [f"the number of stages was {len(recorded) + 1}, is {len(recipes) + 1}"]
    changes = (_changed(recipe, before) for recipe, before in zip(recipes, recorded, strict=True))
    return [f"in stage {number} {changed}" for number, changed in enumerate(changes, 1) if changed]


def _changed(recipe: Recipe, recorded: Mapping[str, Any]) -> str:
    now, then = asdict(recipe), {**asdict(Recipe(recipe.dataset)), **recorded}
    changed = [name for name in now if name not in OF_THE_RUN and then[name] != now[name]]
    return "; ".join(f"{name} was {then[name]!r}, is {now[name]!r}" for name in changed)
