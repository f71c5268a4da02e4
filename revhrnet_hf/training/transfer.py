"""The initial weights of a stage from a checkpoint for other classes: classifier rows come from classes with the same meaning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.label_space import Classes, LabelSpace, classes_of_names
from ..data.translation import sources_of
from ..errors import DataError, RecipeError, first_few
from ..evaluation import load_checkpoint

CLASSIFIER = ("head.3.weight", "head.3.bias")  # the last convolution, one row a class
OCR_CLASSIFIER = ("head.classifier.", "head.regions.3.")  # likewise, with head: ocr
AUXILIARY = "auxiliary_head."  # also one row a class; a checkpoint and a stage may have them or not


@dataclass
class Transfer:
    """The checkpoint that a stage began with.

    Attributes:
        checkpoint: the folder or Hub name.
        rows: class of the new classifier → classes of the old one; the new row starts from the mean of their rows, or is random
            where there are none.
        history: of the checkpoint's training, stage by stage (its config's `training_history`).
    """

    checkpoint: str
    rows: dict[str, list[str]]
    history: list[dict[str, Any]]

    def __str__(self) -> str:
        lines = [f"weights of {self.checkpoint}; the classifier's rows:"]
        lines += [f"  {name} ← {' + '.join(of) or 'random'}" for name, of in self.rows.items()]
        return "\n".join(lines)


def transfer(model, label_space: LabelSpace, checkpoint: str, with_classifier: bool = True) -> Transfer:
    """Fill `model` with a checkpoint's weights; of the classifier, with rows of the corresponding classes (data/translation.py).

    Args:
        model: freshly made, for the classes of `label_space`; classifier rows of classes without a partner stay random.
        checkpoint: a folder or Hub name of the same network, for any classes.
        with_classifier: False leaves the whole classifier random.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        RecipeError: it is of another network; the first differing tensor is named.
    """
    before, _ = load_checkpoint(checkpoint)
    expected = model.state_dict()
    weights = {name: tensor for name, tensor in before.state_dict().items() if name in expected or not name.startswith(AUXILIARY)}
    names = [before.config.id2label[row] for row in range(before.config.num_labels)]
    sources = sources_of_rows(weights, names, expected, label_space, checkpoint, with_classifier)
    for name in filter(_is_classifier, expected):
        rows = expected[name].clone()
        for row, of in enumerate(sources):
            if of and name in weights:  # auxiliary classifiers that the checkpoint has not are random
                rows[row] = weights[name][of].mean(0)
        weights[name] = rows
    model.load_state_dict(weights)
    if hasattr(before.config, "backbone_license"):
        model.config.backbone_license = before.config.backbone_license  # the backbone's weights are the checkpoint's
    named = {name: [names[row] for row in of] for name, of in zip(label_space.names, sources, strict=True)}
    # Stages before a change of the classes come first.
    histories = (getattr(before.config, name, None) or [] for name in ("pretraining_history", "training_history"))
    return Transfer(str(checkpoint), named, [stage for history in histories for stage in history])


def sources_of_rows(
    before: dict[str, torch.Tensor],
    names: Sequence[str],
    expected: dict[str, torch.Tensor],
    label_space: LabelSpace,
    checkpoint: str,
    with_classifier: bool = True,
) -> list[list[int]]:
    """For each row of the new classifier, the rows of the old one that it begins with the mean of; none for a random one.

    Args:
        before, names: the old network's weights, of which shapes are enough, and its classes.
        expected, label_space: those of the new one.
        checkpoint, with_classifier: as for `transfer`; the checkpoint is named in errors and not read.

    Raises:
        RecipeError: the two are not of the same network, or no class has a partner.
    """
    _check_same_network(before, expected, checkpoint)
    if not with_classifier:
        return [[] for _ in label_space.names]
    return _sources(classes_of_names(names), label_space, checkpoint)


def _sources(before: LabelSpace | Classes, after: LabelSpace, checkpoint: str) -> list[list[int]]:
    try:
        return sources_of(before, after)
    except DataError as error:
        raise RecipeError(
            f"The classifier of init_from {checkpoint} cannot be transferred: no class of the checkpoint "
            f"({first_few(before.names)}) has a partner among the dataset's, {after.name!r} ({first_few(after.names)}): no table "
            "joins the two, and no names are equal. Set transfer_classifier to false for a classifier with random weights"
        ) from error


def _is_classifier(name: str) -> bool:
    return name in CLASSIFIER or name.startswith((AUXILIARY, *OCR_CLASSIFIER))


def _check_same_network(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], checkpoint: str) -> None:
    strays = sorted(name for name in weights.keys() ^ expected.keys() if not name.startswith(AUXILIARY))
    if strays:
        where = "the checkpoint" if strays[0] in weights else "the recipe's network"
        raise RecipeError(
            f"init_from {checkpoint} is of another network than the recipe's: {strays[0]} (and {len(strays) - 1} more) is in "
            f"{where} only. Give the stage the settings that the checkpoint was trained with"
        )
    for name, tensor in expected.items():
        if name not in weights:
            continue
        given, wanted = weights[name].shape, tensor.shape
        if _is_classifier(name):
            given, wanted = given[1:], wanted[1:]
        if given != wanted:
            raise RecipeError(
                f"init_from {checkpoint} is of another network than the recipe's: {name} is {tuple(weights[name].shape)} there "
                f"and {tuple(tensor.shape)} here. Give the stage the settings that the checkpoint was trained with"
            )
