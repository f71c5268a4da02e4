"""Loading a checkpoint to use it, and comparing its classes with a dataset's."""

import logging
import re
from pathlib import Path

import torch
from huggingface_hub import constants, get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError, StrictDataclassError
from huggingface_hub.utils import build_hf_headers
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.utils import CONFIG_NAME

from ..data.label_space import LabelSpace, classes_of_names
from ..data.translation import are_joined, sources_of
from ..errors import CheckpointError, RecipeError, first_few, first_line, strict_reason
from ..io import BEST, LAST, LOG_FILE
from ..models.high_resolution import HighResolutionPreTrainedModel

logger = logging.getLogger(__name__)


def find_checkpoint(given: str | Path) -> str:
    """The checkpoint that a user means: a folder, of a run's output folder its `best`, which a note says, or a name on the Hub.

    Raises:
        CheckpointError: the output folder holds no `best`; the message names the checkpoints that it has.
    """
    folder = Path(given).expanduser()
    if not folder.is_dir():
        return str(given)
    if (folder / CONFIG_NAME).is_file():
        return str(folder)
    if (folder / BEST / CONFIG_NAME).is_file():
        logger.info("%s is the output folder of a run: its checkpoint with the best scores is used, %s", given, folder / BEST)
        return str(folder / BEST)
    _refuse_run_without_best(folder)
    return str(folder)


def _refuse_run_without_best(folder: Path) -> None:
    """Raises a CheckpointError if the folder is a run's, or a chain's, that has not scored its last stage yet."""
    others = sorted(
        path.parent for path in folder.glob(f"*/{CONFIG_NAME}") if re.fullmatch(rf"{LAST}|checkpoint-\d+", path.parent.name)
    )
    stages = sorted(path.parent for path in folder.glob(f"[0-9]*_*/{BEST}/{CONFIG_NAME}"))
    if not others and not stages and not (folder / LOG_FILE).is_file():
        return
    there = f"; it holds {first_few([*stages, *others])}" if others or stages else ""
    raise CheckpointError(
        f"the run in {folder} has no checkpoint {BEST}, because it has not been scored yet{there}: resume it, or name a "
        "checkpoint"
    )


def load_checkpoint(checkpoint: str | Path, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False):
    """Loads a model for semantic segmentation and its image processor: any model that Transformers knows, not only ours.

    Args:
        checkpoint: a folder written by `save_pretrained`, a run's output folder (see `find_checkpoint`), or a name on the Hub.
        dtype: of the weights.
        trust_remote_code: run Python files that come with the checkpoint if neither Transformers nor this package knows its
            architecture. Without it such a checkpoint is an error; there is no question on the terminal.

    Returns:
        The model, in eval mode on the CPU, and the image processor.

    Raises:
        CheckpointError: there is no such folder or Hub name, or the checkpoint lacks files or weights.
    """
    checkpoint = find_checkpoint(checkpoint)
    _check_is_there(checkpoint)
    try:
        image_processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
        model, loaded = AutoModelForSemanticSegmentation.from_pretrained(
            checkpoint, dtype=dtype, output_loading_info=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        reason = " ".join(strict_reason(error).split()) if isinstance(error, StrictDataclassError) else first_line(error)
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"the checkpoint {checkpoint} brings Python code of its own, which loading it would run: read its *.py files, "
                "then give --trust_remote_code if you trust them (init_from of a recipe runs none)"
            ) from error
        advice = "" if Path(checkpoint).is_dir() else "; there is no folder of that name, so it was looked for on the Hub"
        raise CheckpointError(f"cannot load the checkpoint {checkpoint}: {reason}{advice}") from error
    # Transformers has filled these with random numbers.
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise CheckpointError(
            f"the checkpoint {checkpoint} lacks {len(missing)} of the model's weights ({', '.join(missing[:3])}, …): "
            "it is incomplete, or was not trained for semantic segmentation"
        )
    return model, image_processor


def load_for_inference(
    checkpoint: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    trust_remote_code: bool = False,
    compiled: bool = False,
):
    """As `load_checkpoint`, and made as fast as its label maps allow: networks of this package are optimized for inference.

    Args:
        checkpoint, trust_remote_code: as in `load_checkpoint`.
        device: where the model runs.
        dtype: of the weights. Networks of this package are loaded in float32 and optimized before they get it.
        compiled: whether to compile the model with `torch.compile`, with dynamic shapes. The first image then takes minutes, and
            so does the first that is much smaller, for whose maps PyTorch has other convolutions.

    Returns:
        The model, which can neither be trained nor saved, and the image processor.

    Raises:
        CheckpointError: as in `load_checkpoint`.
        RecipeError: the model is to be compiled, and there is no compiler that works.
    """
    if compiled:
        check_compiler(device)
    model, image_processor = load_checkpoint(checkpoint, trust_remote_code=trust_remote_code)
    if isinstance(model, HighResolutionPreTrainedModel):
        model.optimize_for_inference(dtype)
    model.to(device=device, dtype=dtype)
    if compiled:
        logger.info("compiling with the first image, which takes minutes; so does the first that is much smaller")
        # `forward` and not the module: hooks, such as the demo's time limit, are called outside of what is compiled.
        model.forward = torch.compile(model.forward, dynamic=True)
    return model, image_processor


def check_compiler(device: torch.device | str) -> None:
    """Raises a RecipeError unless `torch.compile` works on a device; for CPUs it needs a C++ compiler, for GPUs Triton."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second

    try:
        torch.compile(torch.sin, fullgraph=True)(torch.zeros(8, device=device))
    except TorchDynamoException as error:
        needed = "a C++ compiler (such as g++, or the one that CXX names)" if torch.device(device).type == "cpu" else "Triton"
        raise RecipeError(
            f"--compile needs {needed}, and torch.compile does not work here ({first_line(error)}): install it, or leave "
            "--compile out"
        ) from error


def class_sources(config, label_space: LabelSpace, dataset_name: str) -> list[list[int]] | None:
    """Which of a model's classes count as each class of a dataset, by the tables and equal names by which training transfers a
    classifier.

    Returns:
        None if both have the same classes; else for each class of the dataset its partners among the model's classes (see
        data/translation.py). A class without a partner is never predicted.

    Raises:
        CheckpointError: no class of the dataset has a partner.
    """
    names = [config.id2label[class_id] for class_id in range(config.num_labels)]
    if _difference(names, label_space.names) is None:
        return None
    theirs = classes_of_names(names)
    equal = {name.casefold() for name in names} & {name.casefold() for name in label_space.names}
    if equal or are_joined(theirs, label_space):
        return sources_of(theirs, label_space)
    raise _no_partner(names, label_space.names, dataset_name)


def format_sources(config, label_space: LabelSpace, sources: list[list[int]]) -> str:
    """A model's classes that count as each class of a dataset, as lines of text.

    Args:
        config: the model's config.
        label_space: of the dataset.
        sources: of `class_sources`.
    """
    lines = [f"The checkpoint has other classes ({config.num_labels}); each class of {label_space.name!r} is made of:"]
    for name, of in zip(label_space.names, sources, strict=True):
        partners = " + ".join(config.id2label[class_id] for class_id in of)
        lines.append(f"  {name} = {partners or 'nothing: it is never predicted'}")
    return "\n".join(lines)


def check_same_classes(config, names, dataset_name: str) -> None:
    """Raises a CheckpointError unless a model has a dataset's classes: the same number, with the same names in the same order.

    Case does not matter. Transformers' placeholders (`LABEL_0` …) match every name.

    Args:
        config: the model's config, with `id2label`.
        names: the dataset's class names in the order of their ids.
        dataset_name: the dataset's name in the message.
    """
    own_names = [config.id2label[class_id] for class_id in range(config.num_labels)]
    if difference := _difference(own_names, names, dataset_name):
        raise CheckpointError(
            f"{difference}: choose a checkpoint that was trained on these classes, or the dataset it was trained on"
        )


def _difference(own_names, names, dataset_name: str = "the dataset") -> str | None:
    """How a checkpoint's class names differ from a dataset's; None where they are the same."""
    if len(own_names) != len(names):
        return (
            f"the checkpoint has {len(own_names)} classes ({_listed(own_names)}), but {dataset_name} has {len(names)} "
            f"({_listed(names)})"
        )
    for class_id, (own_name, name) in enumerate(zip(own_names, names, strict=True)):
        if own_name.casefold() != name.casefold() and not re.fullmatch(r"LABEL_\d+", own_name):
            return f"class {class_id} is {own_name!r} in the checkpoint, but {name!r} in {dataset_name}"
    return None


def _no_partner(own_names, names, dataset_name: str) -> CheckpointError:
    return CheckpointError(
        f"none of the checkpoint's {len(own_names)} classes ({_listed(own_names)}) is among the {len(names)} of {dataset_name} "
        f"({_listed(names)}): no names are equal, and no table joins the two. Choose a checkpoint that was trained on some of "
        "these classes"
    )


def _check_is_there(checkpoint):
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(f"the folder {checkpoint} holds no config.json: give the folder that `save_pretrained` wrote")
    elif path.exists():
        raise CheckpointError(f"{checkpoint} is a file: give the checkpoint's folder")
    elif _is_path(checkpoint):
        raise CheckpointError(f"there is no checkpoint folder {checkpoint}")
    else:
        _check_hub_answers(checkpoint)


def _is_path(checkpoint):
    """Whether a name can only be a path, so that there is no need to ask the Hub for it."""
    is_hub_name = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", checkpoint)
    return not is_hub_name or ("/" in checkpoint and Path(checkpoint).parent.is_dir())


def _check_hub_answers(name):
    """One request, without the minute of retries that each of Transformers' requests makes where there is no connection."""
    if constants.is_offline_mode() or isinstance(try_to_load_from_cache(name, CONFIG_NAME), str):
        return
    try:
        get_session().head(hf_hub_url(name, CONFIG_NAME), headers=build_hf_headers(), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HTTPError as error:
        raise CheckpointError(
            f"there is no checkpoint folder {name}, and the Hub, where a model may have that name, cannot be reached: {error}"
        ) from error


def _listed(names, most=4):
    names = list(names)
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
