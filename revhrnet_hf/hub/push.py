"""Pushing a checkpoint to the Hub: its files are collected in a folder of their own, checked, loaded, and sent in one commit.

It sends the weights, the configuration, the code that loads them without this package, the image processor, the card, the recipe,
versions and scores, example images, and the curves of training. It leaves out what only a resumed run needs (the optimizer,
averages) and what identifies the machine: paths in the recipe, the host in the names of TensorBoard's files.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers.dynamic_module_utils import get_relative_import_files

from .. import models
from ..errors import HubError, first_line
from ..io import PICKLES, read_values, without_folders
from .examples import EXAMPLES, own_examples
from .leaks import leaks_of
from .model_card import missing_from_card, write_model_card

SENT = (
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "README.md",
    "recipe.yaml",
    "versions.json",
    "scores*.json",
    "*.png",
)
LARGE = 2**20  # bytes; files above are sent one by one, before the commit

CURVES = "tensorboard"  # beside the checkpoint's folder, and in the repository

# Parts of names of environment variables that a checkpoint's code must not see.
SECRET_NAMES = ("TOKEN", "SECRET", "KEY", "PASSWORD", "CREDENTIAL", "AUTH", "COOKIE")

# In a fresh process without this package: the model, its processor and a small image.
LOADING = """
import sys
sys.modules["revhrnet_hf"] = None
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
folder = sys.argv[1]
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
model, loaded = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
if loaded["missing_keys"]:
    sys.exit(f"weights are missing: {sorted(loaded['missing_keys'])[:3]}")
with torch.no_grad():
    outputs = model(**processor(images=[Image.new("RGB", (96, 64), (90, 120, 60))], return_tensors="pt"))
if not torch.isfinite(outputs.logits).all():
    sys.exit("its logits are not finite")
processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 96)])
"""


def push_checkpoint(
    checkpoint: str | Path,
    name: str,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = print,
) -> str | None:
    """Send a checkpoint to the Hub in one commit, after checking every file.

    Args:
        checkpoint: a folder that training or `save_pretrained` has written; it is not changed.
        name: of the repository, `NAMESPACE/NAME`, or `NAME` in one's own namespace. One that holds a model of this kind gets a
            further commit.
        private: make the repository private.
        revision: branch to send to, created if it does not exist; by default the main one.
        dry_run: collect and check everything, and send nothing; this needs neither network nor token.
        trust_remote_code: run and send Python files of the checkpoint that differ from this package's.
        say: called with each line of the report.

    Returns:
        The commit's address; None with `dry_run`.

    Raises:
        HubError: a file must not be sent, or the checkpoint does not load; there is no token; the name is taken or not allowed;
            or the connection was lost: then the message says which files had been sent.
    """
    checkpoint = Path(checkpoint)
    if not (checkpoint / "config.json").is_file():
        raise HubError(f"{checkpoint} is no checkpoint's folder: it holds no config.json")
    _check_name(name)
    api = None
    if not dry_run:
        api, name = _log_in(name)
    with TemporaryDirectory(prefix="revhrnet_push_") as staged:
        staged = Path(staged)
        left_out = stage(checkpoint, staged, name, trust_remote_code)
        check_staged(staged)
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        say(f"checked, to be sent to {name}{f' ({revision})' if revision else ''}:")
        for path in files:
            say(f"  {path.relative_to(staged)}  {path.stat().st_size / 1000:,.1f} kB")
        if left_out:
            say(f"left out: {', '.join(left_out)}")
        if dry_run:
            say("nothing was sent (dry run)")
            return None
        return _send(api, name, staged, files, private, revision, say)


def stage(checkpoint: Path, staged: Path, name: str, trust_remote_code: bool = False) -> list[str]:
    """Collect the files to send in the empty folder `staged`: those of `stage_model`, and the curves of the run."""
    left_out = stage_model(checkpoint, staged, name, trust_remote_code)
    if (checkpoint.parent / CURVES).is_dir():
        copy_curves(checkpoint.parent / CURVES, staged / CURVES)
    return left_out


def stage_model(checkpoint: Path, staged: Path, name: str | None = None, trust_remote_code: bool = False) -> list[str]:
    """Collect the files of a checkpoint that others need in the empty folder `staged`, with links to the weights.

    Returns:
        The names of the checkpoint's files that are left out.

    Raises:
        HubError: there are pickles in the checkpoint's folder, a link that leads out of it, or code that is not this package's
            (unless `trust_remote_code`).
        CheckpointError: a settings file (JSON, YAML) is damaged.
        DataError: an example image cannot be read.
    """
    pickles = sorted(path.name for path in checkpoint.iterdir() if path.suffix.lower() in PICKLES)
    if pickles:
        raise HubError(
            f"{checkpoint} holds {', '.join(pickles)}: pickles are not sent, because loading them can run any code. Weights "
            "belong into model.safetensors (save_pretrained); remove the rest"
        )
    chosen = {path for pattern in SENT for path in checkpoint.glob(pattern) if path.is_file()} | model_code(checkpoint)
    chosen |= set(own_examples(checkpoint))
    _check_links(checkpoint, chosen)
    if not trust_remote_code:
        check_model_code(checkpoint)
    for path in chosen:
        target = staged / path.relative_to(checkpoint)
        if path.suffix == ".safetensors":
            target.symlink_to(path.resolve())  # large, and sent as it is
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    recipe = staged / "recipe.yaml"
    if recipe.exists():
        settings = read_values(recipe, yaml.safe_load)
        recipe.write_text(yaml.safe_dump(without_folders(settings), sort_keys=False), encoding="utf-8")
    write_model_card(staged, name)
    sent = {checkpoint / path.relative_to(checkpoint).parts[0] for path in chosen}
    return sorted(path.name for path in checkpoint.iterdir() if path not in sent)


def model_code(checkpoint: Path) -> set[Path]:
    """The Python files that run when the checkpoint is loaded with `trust_remote_code`.

    Its JSON files name them under `auto_map`; they import siblings.
    """
    files = set()
    for name in ("config.json", "preprocessor_config.json"):
        path = checkpoint / name
        if not path.is_file():
            continue
        # A reference to another repository, `someone/else--modeling.Class`, is no file here.
        references = [text for text in _texts(read_values(path).get("auto_map")) if "--" not in text]
        files |= {checkpoint / f"{reference.rpartition('.')[0]}.py" for reference in references}
    files = {path for path in files if path.is_file()}
    for path in tuple(files):
        files |= {checkpoint / Path(sibling).name for sibling in get_relative_import_files(path)}
    return files


def _texts(value: object) -> Iterator[str]:
    """Every text in a value of JSON: an Auto class may have one reference, or several by backend."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)


def check_model_code(checkpoint: Path) -> None:
    """Raise a HubError unless the checkpoint's code equals this package's, byte by byte."""
    own = Path(models.__file__).parent
    differing = sorted(
        path.name
        for path in model_code(checkpoint)
        if not (own / path.name).is_file() or (own / path.name).read_bytes() != path.read_bytes()
    )
    if differing:
        raise HubError(
            f"{', '.join(differing)} in {checkpoint} differ from this package's code (written by another version of it, or by "
            "somebody else), and loading the checkpoint would run them: load it with this package and save it again "
            "(from_pretrained, save_pretrained), or read them and give --trust_remote_code"
        )


def _check_links(checkpoint: Path, files: set[Path]) -> None:
    """Raise a HubError for a link out of the checkpoint's folder: nobody would expect its target to be sent.

    The Hub's own cache consists of links into a folder `blobs` beside its `snapshots`.
    """
    cache = checkpoint.resolve().parents[1:2]
    blobs = [folder / "blobs" for folder in cache if checkpoint.resolve().parent.name == "snapshots"]
    for path in sorted(files):
        target = path.resolve()
        if target.parent not in (checkpoint.resolve(), checkpoint.resolve() / EXAMPLES, *blobs):
            raise HubError(
                f"{path} is a link out of the checkpoint's folder, to {target}: put the file itself there if it is meant"
            )


def copy_curves(source: Path, target: Path) -> None:
    """Copy only the curves from a run's TensorBoard files, which also hold the host's name and paths in the settings."""
    # Imported here, because they take a second and nothing else needs them.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    logs = {path.parent for path in source.rglob("events.out.tfevents.*")}
    for log in sorted(logs):
        events = EventAccumulator(str(log), size_guidance={"scalars": 0}).Reload()
        tags = events.Tags()["scalars"]
        if not tags:
            continue
        folder = target / log.relative_to(source)
        with SummaryWriter(str(folder)) as writer:
            for tag in tags:
                for event in events.Scalars(tag):
                    writer.add_scalar(tag, event.value, event.step, event.wall_time)
        (written,) = folder.glob("events.out.tfevents.*")
        started = int(events.FirstEventTimestamp())
        written.rename(folder / f"events.out.tfevents.{started}.revhrnet")


def check_staged(staged: Path, outcome: str = "nothing was sent") -> None:
    """Raise a HubError that lists everything in the folder `staged` that must not be published, and everything that is missing.

    Args:
        staged: holds what is to be published.
        outcome: how the message begins.
    """
    files = (path for path in sorted(staged.rglob("*")) if path.is_file())
    problems = [problem for path in files for problem in leaks_of(path, path.relative_to(staged))]
    advice = "complete README.md, or remove it to have it written"
    problems += [f"the card lacks {what}: {advice}" for what in missing_from_card(staged)]
    if not list(staged.glob("model*.safetensors")):
        problems.append("there is no model.safetensors")
    if not problems:  # loading takes seconds, the rest does not
        problems += _loading_fails(staged)
    if problems:
        raise HubError(f"{outcome}: " + "; ".join(problems))


def _loading_fails(staged: Path) -> list[str]:
    with TemporaryDirectory(prefix="revhrnet_load_") as home:
        # Without tokens: those in the environment are removed, those in files are not found under another HF_HOME.
        secret = {name for name in os.environ if any(word in name.upper() for word in SECRET_NAMES)}
        environment = {name: value for name, value in os.environ.items() if name not in secret}
        environment |= {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": home}
        finished = subprocess.run(
            [sys.executable, "-c", LOADING, str(staged.resolve())], capture_output=True, text=True, env=environment, cwd=home
        )
    if finished.returncode == 0:
        return []
    said = (finished.stderr.strip().splitlines() or ["no reason was given"])[-1]
    return [f"it does not load in a fresh process without this package: {said}"]


def _check_name(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise HubError(f"{name!r} is no name of a repository: {error}") from error


def check_ready(name: str) -> None:
    """Raise a HubError if a push to `name` cannot succeed, as far as this machine can tell without a request."""
    _check_name(name)
    _token()


def _token() -> str:
    token = get_token()
    if token is None:
        raise HubError(
            "there is no token for the Hub: make one with write access at https://huggingface.co/settings/tokens, then run "
            "`hf auth login` or set HF_TOKEN"
        )
    return token


def _log_in(name: str) -> tuple[HfApi, str]:
    """The Hub's client for the token's user, and the name with its namespace."""
    api = HfApi(token=_token(), library_name="revhrnet_hf")
    with _hub_errors("nothing was sent"):
        user = api.whoami()["name"]
    return api, name if "/" in name else f"{user}/{name}"


def _send(api: HfApi, name: str, staged: Path, files: list[Path], private: bool, revision: str | None, say) -> str:
    with _hub_errors("nothing was sent"):
        _claim(api, name, private, read_values(staged / "config.json"), say)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
    operations = [CommitOperationAdd(path.relative_to(staged).as_posix(), str(path)) for path in files]
    sent = []
    for path, operation in zip(files, operations, strict=True):
        if path.stat().st_size > LARGE:
            with _hub_errors(_so_far(name, sent)):
                api.preupload_lfs_files(name, [operation], revision=revision)
            sent.append(path.name)
            say(f"sent {path.name}")
    unknown = "; the last request was the commit itself: if it arrived, all of it is there"
    with _hub_errors(_so_far(name, sent) + unknown):
        commit = api.create_commit(name, operations, commit_message="Checkpoint by revhrnet_hf", revision=revision)
    say(f"all is there: {commit.commit_url}")
    return commit.commit_url


def _claim(api: HfApi, name: str, private: bool, config: dict, say) -> None:
    """Create the repository, unless one exists that holds a model of the same kind.

    Raises:
        HubError: the repository holds something else, or is public although a private one is wanted.
    """
    try:
        there = api.model_info(name)
    except RepositoryNotFoundError:
        api.create_repo(name, private=private)
        say(f"made the repository {name}" + (" (private)" if private else ""))
        return
    if private and not there.private:
        raise HubError(f"{name} is there already and public: make it private on the Hub, or choose another name")
    held = {file.rfilename for file in there.siblings or ()} - {".gitattributes", "README.md"}
    kind = None
    if "config.json" in held:
        kind = read_values(Path(api.hf_hub_download(name, "config.json"))).get("model_type")
    if held and kind != config["model_type"]:
        what = f"a {kind}" if kind else "something else"
        raise HubError(f"the name {name} is taken: the repository holds {what}, no {config['model_type']}; choose another name")
    say(f"{name} is there already: it gets a further commit")


def _so_far(name: str, sent: list[str]) -> str:
    """The state of the Hub, for the message of an error that happens now."""
    had = f"{', '.join(sent)} had been sent (the Hub keeps that)" if sent else "no large file had been sent"
    return f"{had}, no commit was made, so {name} shows none of it; the checkpoint here is as it was: run the same command again"


@contextmanager
def _hub_errors(so_far: str) -> Iterator[None]:
    """Turn errors of the Hub and the network into a HubError that ends with what has been sent so far."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError(f"HF_HUB_OFFLINE is set, so the Hub is not asked: unset it. So far: {so_far}") from error
    except (HTTPError, OSError, RuntimeError) as error:
        cause = _http_error(error)
        if cause is None:
            raise
        raise HubError(f"{_advice(cause)}. So far: {so_far}") from error


def _http_error(error: BaseException | None) -> BaseException | None:
    """The first network error among an error and its causes, because the client sometimes wraps it."""
    while error is not None and not isinstance(error, HTTPError | ConnectionError):
        error = error.__cause__
    return error


def _advice(error: BaseException) -> str:
    if not isinstance(error, HfHubHTTPError):
        return f"the connection to the Hub was lost ({type(error).__name__}: {error})"
    status, said = error.response.status_code, error.server_message or first_line(error)
    if status == 401:
        return f"the Hub does not accept the token ({said}): run `hf auth login` again"
    if status == 403:
        return f"this token may not write there ({said}): choose another namespace, or a token with write access to it"
    if status == 409:
        return f"the name is taken ({said}): choose another one"
    return f"the Hub refused with status {status} ({said})"
