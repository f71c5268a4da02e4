"""A chain of stages, each on a dataset of its own, each starting from the best checkpoint of the stage before."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data import LabelSpace, label_space_of
from ..errors import RecipeError, RevHRNetError
from .agreement import SharedErrors
from .data import DataDirs, Sets, epoch_batches, folders_by_name, load_sets
from .dataset_checks import refuse_unlabelled
from .dataset_names import check_one_loader
from .log import check_trackers
from .network import outline_of_model
from .optimisation import build_optimizer
from .output_dir import BEST, begin_anew, claim_output_dir, refuse_second_run
from .processes import TIMEOUT, start_processes
from .recipe import Recipe
from .trainer import Stage
from .transfer import sources_of_rows


def data_dirs_by_name(given: list[str], recipes: list[Recipe]) -> dict[str, Path]:
    """Each dataset's folder, from `NAME=DIR …`, or from one folder where all stages train on one dataset.

    Raises:
        RecipeError: a dataset has no folder or two folders, a folder is given for a dataset that no stage trains on, or a name
            stands for two datasets.
    """
    datasets = [dataset for recipe in recipes for dataset in recipe.datasets]
    check_one_loader(datasets)
    names = list(dict.fromkeys(dataset.name for dataset in datasets))
    pairs = [text.partition("=") for text in given if text.partition("=")[0] in names and "=" in text]
    if not pairs and len(given) == 1 and len(names) == 1:
        return {names[0]: Path(given[0])}
    folders = {name: folder for name, _, folder in pairs}
    if len(pairs) != len(given) or len(folders) != len(pairs) or set(folders) != set(names):
        wanted = " ".join(f"{name}=DIR" for name in names)
        raise RecipeError(f"--data_dir {' '.join(given)} does not give each dataset of the recipe one folder: give {wanted}")
    return {name: Path(folder) for name, folder in folders.items()}


def stage_dir(output_dir: Path, recipes: list[Recipe], position: int) -> Path:
    """The folder of the stage at `position` (from 0): the last one's, the chain's result, is the output folder itself."""
    return output_dir if position == len(recipes) - 1 else output_dir / f"{position + 1}_{recipes[position].dataset}"


def bank_folder(bank_dir: str | Path | None, recipes: list[Recipe], position: int) -> Path | None:
    """The folder of the feature bank of the stage at `position` (from 0); None: in the stage's own folder."""
    if bank_dir is None or len(recipes) == 1:
        return None if bank_dir is None else Path(bank_dir)
    return Path(bank_dir) / f"{position + 1}_{recipes[position].dataset}"


def beginning_from(best: Path | None, recipe: Recipe) -> Recipe:
    """The recipe of the stage after one with this best checkpoint, from which it begins unless it says `init_from`.

    Args:
        best: None for the first stage.
    """
    return recipe if best is None or recipe.init_from is not None else replace(recipe, init_from=str(best))


def run_chain(
    recipes: list[Recipe],
    data_dirs: DataDirs,
    output_dir: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    timeout: float = TIMEOUT,
    bank_dir: str | Path | None = None,
) -> list[dict[str, Any] | None]:
    """Train stage after stage; with `resume`, finished stages are skipped and an interrupted one is resumed.

    A stage starts from the best checkpoint of the stage before, unless its recipe says `init_from`.

    Args:
        recipes: one a stage.
        data_dirs: folder of each dataset by name.
        output_dir: of the last stage; the stages before it write into its folders `1_DATASET`, `2_DATASET`, …
        timeout: as for `Stage`.
        bank_dir: folder of the feature bank; of a chain, of its stages' banks. Not given: in the stages' output folders.

    Returns:
        The last scores of each stage; None for a stage that was finished before.

    Raises:
        DataError, RecipeError, CheckpointError: as for `Stage`; all stages are checked before the first begins, but for weights
            and images that would have to be read.
    """
    accelerator = start_processes(recipes[0], timeout)
    errors = SharedErrors(accelerator, timeout)
    with errors.together():
        folders, sets = check_chain(recipes, data_dirs, Path(output_dir), resume, overwrite, bank_dir, accelerator.num_processes)
    results = []
    for position, (recipe, folder) in enumerate(zip(recipes, folders, strict=True)):
        best = folders[position - 1] / BEST if position > 0 else None
        recipe = beginning_from(best, recipe)
        if len(recipes) > 1:
            accelerator.print(f"stage {position + 1} of {len(recipes)}: {recipe.dataset}, in {folder}")
        if best is not None and recipe.init_from != str(best):
            accelerator.print(f"this stage begins from {recipe.init_from}, as its init_from says, and not from the stage before")
        with _overwriting(recipes[1:], folders[1:], errors) if overwrite and position == 0 else nullcontext():
            stage = Stage(recipe, data_dirs, folder, resume, overwrite, timeout, bank_folder(bank_dir, recipes, position), sets)
        sets = None  # later stages look at their data anew: it may be days until they begin
        results.append(stage.run())
        del stage  # before the next one's network is made
    return results


@contextmanager
def _overwriting(recipes: list[Recipe], folders: list[Path], errors: SharedErrors) -> Iterator[None]:
    """Deletes the old runs of the later stages once the first stage is made, which has no way back then either.

    Otherwise a chain that is killed after that and resumed would find later stages finished. No other run is at work in their
    folders, which are locked meanwhile.
    """
    is_main, locks = errors.accelerator.is_main_process, {}
    with ExitStack() as stack:
        with errors.together():
            for recipe, folder in zip(recipes, folders, strict=True):
                if is_main and folder.exists():
                    _, lock = claim_output_dir(folder, recipe, resume=False, overwrite=True)
                    locks[folder] = stack.enter_context(lock)
        yield
        with errors.together():
            for folder, lock in locks.items():
                begin_anew(folder, lock)


def check_chain(
    recipes: list[Recipe],
    data_dirs: DataDirs,
    output_dir: Path,
    resume: bool,
    overwrite: bool,
    bank_dir: str | Path | None = None,
    num_processes: int = 1,
) -> tuple[list[Path], Sets | None]:
    """Makes the checks of all stages that take little time; errors as for `run_chain`.

    Returns:
        The stages' folders, and the first stage's splits, so that they need not be listed again, which takes minutes for a large
        dataset; None in their place for a single stage, which makes these checks when it begins.
    """
    if bank_dir is not None and not any(recipe.feature_bank for recipe in recipes):
        raise RecipeError("--bank_dir is for a feature bank, and the recipe has none: give feature_bank, or leave it out")
    if len({recipe.precision for recipe in recipes}) > 1:
        raise RecipeError("All stages of a chain have the same precision: Accelerate keeps it for the whole process")
    folders = [stage_dir(output_dir, recipes, position) for position in range(len(recipes))]
    for folder in folders:
        refuse_second_run(folder, resume, overwrite)
    return folders, _check_stages(recipes, data_dirs, folders, num_processes) if len(recipes) > 1 else None


def _check_stages(recipes: list[Recipe], data_dirs: DataDirs, folders: list[Path], num_processes: int) -> Sets:
    """Returns the first stage's splits."""
    first = before = None
    for position, recipe in enumerate(recipes):
        try:
            stage = _Outline.of_stage(recipe, data_dirs, num_processes)
            if before is not None and recipe.init_from is None:
                stage.check_begins_from(before, folders[position - 1] / BEST)
        except RevHRNetError as error:
            raise type(error)(f"stage {position + 1} of {len(recipes)}, {recipe.dataset}: {error}") from error
        first, before = first or stage, stage
    return first.sets


class _Outline(NamedTuple):
    """The splits and classes of a stage, and the shapes of its network's weights."""

    recipe: Recipe
    sets: Sets
    label_space: LabelSpace
    weights: dict[str, torch.Tensor]

    @classmethod
    def of_stage(cls, recipe: Recipe, data_dirs: DataDirs, num_processes: int) -> "_Outline":
        """Makes the checks of a `Stage` that need neither weights nor all label maps."""
        check_trackers(recipe.trackers)
        sets = train_sets, eval_set = load_sets(recipe, folders_by_name(recipe, data_dirs))
        label_space = label_space_of(eval_set)
        refuse_unlabelled(eval_set, f"{recipe.dataset}:{recipe.eval_split}", label_space.ignore_index)
        epoch_batches(recipe, train_sets, num_processes)
        network = outline_of_model(recipe, label_space)
        build_optimizer(network, recipe)
        return cls(recipe, sets, label_space, network.state_dict())

    def check_begins_from(self, before: "_Outline", best: Path) -> None:
        """Raises a RecipeError if the stage cannot begin from the best checkpoint of the stage before."""
        sources_of_rows(
            before.weights,
            before.label_space.names,
            self.weights,
            self.label_space,
            str(best),
            self.recipe.transfer_classifier,
        )
