"""The page as a Space of the Hugging Face Hub: a folder that `hf upload --repo-type space` can send as it is."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import files, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

import revhrnet_hf

from ..errors import CheckpointError, HubError
from ..evaluation import load_checkpoint
from ..hub.leaks import leaks_of
from ..hub.push import stage_model
from ..images import read_image
from ..io import refuse_used_folder, write_folder

APP = '''"""The page of this Space: {title}."""

from revhrnet_hf.demo.page import build_page, load_segmenter, serve

CHECKPOINTS = {checkpoints}
EXAMPLES = {examples}

serve(build_page([load_segmenter(checkpoint{trust}) for checkpoint in CHECKPOINTS], EXAMPLES), host=None)
'''

README = """---
{front_matter}---

Drop an image, and each of its pixels gets a class. Written by `revhrnet demo --export_space`; `python app.py` serves the same
page on your own machine, after `pip install -r requirements.txt gradio=={gradio}`.
"""

GIT_ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def export_space(
    folder: Path, checkpoints: Sequence[str | Path], examples: Sequence[Path] = (), trust_remote_code: bool = False
) -> None:
    """Write a Space: the page, this package, the versions that are installed here, local checkpoints, example images.

    Args:
        folder: to write; it must not exist, or be empty. It is there whole or not at all.
        checkpoints: one or two. Of a folder, the files that a push would send are copied; the Space loads a Hub name itself.
        examples: images to copy, without their metadata.
        trust_remote_code: run and copy Python files of a checkpoint that differ from this package's; the Space runs them too.

    Raises:
        CheckpointError: the folder is in use, or a checkpoint cannot be loaded.
        HubError: something in it must not be published; see `stage_model` and leaks.py.
    """
    refuse_used_folder(folder)
    for checkpoint in checkpoints:
        load_checkpoint(checkpoint, trust_remote_code=trust_remote_code)
    names = [str(checkpoint) for checkpoint in checkpoints]
    write_folder(folder, lambda fresh: _fill(fresh, names, examples, trust_remote_code))


def _fill(folder, checkpoints, examples, trust_remote_code):
    # The page shows the last two parts of a checkpoint's path as its title.
    local = {
        name: "/".join(["checkpoints", str(number), *_public_parts(Path(name).resolve())])
        for number, name in enumerate(checkpoints, start=1)
        if Path(name).is_dir()
    }
    for name, place in local.items():
        with TemporaryDirectory(prefix="revhrnet_space_") as staged:
            stage_model(Path(name), Path(staged), trust_remote_code=trust_remote_code)
            shutil.copytree(staged, folder / place)
    places = [f"examples/{_copy_image(path, folder / 'examples', number)}" for number, path in enumerate(examples, start=1)]
    title = "Semantic segmentation"
    names = [local.get(name, name) for name in checkpoints]
    trust = ", trust_remote_code=True" if trust_remote_code else ""
    _write(folder / "app.py", APP.format(title=title, checkpoints=repr(names), examples=repr(places), trust=trust))
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
    _check(folder)
    _copy_package(folder)


def _public_parts(checkpoint: Path) -> tuple[str, ...]:
    """The folder's name, with the run's name before `best` or `last`; the parent of any other folder may be private."""
    return checkpoint.parts[-2:] if checkpoint.name in ("best", "last") else checkpoint.parts[-1:]


def _check(folder: Path) -> None:
    """Raise a HubError that lists files that must not be published; the package itself is not in the folder yet."""
    written = (path for path in sorted(folder.rglob("*")) if path.is_file())
    if problems := [problem for path in written for problem in leaks_of(path, path.relative_to(folder))]:
        raise HubError("no Space was written: " + "; ".join(problems))


def _copy_package(folder: Path) -> None:
    """Copy this package's own files, as they were installed or are in its git checkout, without other files beside them."""
    package = Path(revhrnet_hf.__file__).parent
    for path in package_files(package):
        target = folder / package.name / path.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def package_files(package: Path) -> list[Path]:
    """The files that belong to this package.

    Raises:
        CheckpointError: neither git nor the installation lists them.
    """
    # In a checkout, git lists them (elsewhere it prints nothing); the list of an editable installation may be out of date.
    found = []
    if shutil.which("git"):
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=package, capture_output=True, text=True)
        found = [package / name for name in listed.stdout.split("\0") if name]
    if not found:
        recorded = [Path(file.locate()).resolve() for file in files("revhrnet_hf") or ()]
        found = [path for path in recorded if package.resolve() in path.parents and path.suffix != ".pyc"]
    found = [path for path in found if path.is_file()]
    if not found:
        raise CheckpointError(f"nothing lists the files of the package in {package}: install it, or use its git checkout")
    return found


def requirements() -> list[str]:
    """The packages that this one needs, at the versions that are installed here; Gradio's is the Space's `sdk_version`.

    The local part of a version (`+cpu`) is left out: the package index, from which a Space installs, has none of these.
    """
    needed = [re.match(r"[\w.-]+", line)[0] for line in requires("revhrnet_hf") if "extra ==" not in line]
    return [f"{name}=={version(name).partition('+')[0]}" for name in needed]


def _copy_image(source: Path, folder: Path, number: int) -> str:
    """Copy an image as a viewer shows it, without metadata, which may tell where and by whom it was taken; returns its name."""
    folder.mkdir(exist_ok=True)
    lossy = source.suffix.lower() in (".jpg", ".jpeg")
    target = folder / f"{number}_{source.stem}{'.jpg' if lossy else '.png'}"
    image = read_image(source)
    image.info.clear()
    image.save(target, **({"format": "JPEG", "quality": 95} if lossy else {"format": "PNG"}))
    return target.name


def _write(path, text):
    path.write_text(text, encoding="utf-8")
