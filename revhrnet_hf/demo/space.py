"""The page as a Space of the Hugging Face Hub: a folder that `huggingface-cli upload --repo-type space` can send as it is."""

import re
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

import revhrnet_hf

from ..errors import CheckpointError
from ..evaluation import load_checkpoint
from ..files import write_folder
from ..report.hub import stage_model

APP = '''"""The page of this Space: {title}."""

from revhrnet_hf.demo.page import build_page, load_segmenter, serve

CHECKPOINTS = {checkpoints}
EXAMPLES = {examples}

serve(build_page([load_segmenter(checkpoint) for checkpoint in CHECKPOINTS], EXAMPLES), host=None)
'''

README = """---
{front_matter}---

Drop a picture, and each of its pixels gets a class. Written by `scripts/demo.py --export_space`; `python app.py` serves the same
page on your own machine, after `pip install -r requirements.txt gradio=={gradio}`.
"""

GIT_ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def export_space(folder: Path, checkpoints: Sequence[str | Path], examples: Sequence[Path] = ()) -> None:
    """Writes a Space: the page, this package, the versions installed here, checkpoints that are folders here, example pictures.

    Args:
        folder: to write; it must not exist, or be empty. It is there whole or not at all.
        checkpoints: one or two; of a folder is copied what a push would send, a Hub name is loaded by the Space.
        examples: pictures to copy.

    Raises:
        CheckpointError: the folder is in use, or a checkpoint cannot be loaded.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder: give another one")
    for checkpoint in checkpoints:
        load_checkpoint(checkpoint)
    write_folder(folder, lambda fresh: _fill(fresh, [str(checkpoint) for checkpoint in checkpoints], examples))


def _fill(folder, checkpoints, examples):
    # The page calls a checkpoint by the last two parts of its place.
    local = {
        name: "/".join(["checkpoints", str(number), *Path(name).resolve().parts[-2:]])
        for number, name in enumerate(checkpoints, start=1)
        if Path(name).is_dir()
    }
    for name, place in local.items():
        with TemporaryDirectory(prefix="revhrnet_space_") as staged:
            stage_model(Path(name), Path(staged))
            shutil.copytree(staged, folder / place)
    places = [_copy(path, folder / "examples" / f"{number}_{path.name}", folder) for number, path in enumerate(examples, start=1)]
    package = Path(revhrnet_hf.__file__).parent
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    title = "Semantic segmentation"
    names = [local.get(name, name) for name in checkpoints]
    _write(folder / "app.py", APP.format(title=title, checkpoints=repr(names), examples=repr(places)))
    _write(folder / "requirements.txt", "\n".join(requirements()) + "\n")
    _write(folder / ".gitattributes", GIT_ATTRIBUTES)
    front_matter = {
        "title": title,
        "emoji": "🛣️",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
    }
    hub_names = [name for name in checkpoints if name not in local]
    if hub_names:
        front_matter["models"] = hub_names
    text = yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True)
    _write(folder / "README.md", README.format(front_matter=text, gradio=version("gradio")))


def requirements() -> list[str]:
    """What this package needs, each at the version that is installed here; Gradio's is the Space's `sdk_version`."""
    needed = [re.match(r"[\w.-]+", line)[0] for line in requires("revhrnet_hf") if "extra ==" not in line]
    return [f"{name}=={version(name)}" for name in needed]


def _copy(source, target, root):
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)
    return target.relative_to(root).as_posix()


def _write(path, text):
    path.write_text(text, encoding="utf-8")
