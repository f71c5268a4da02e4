"""Label maps in the file formats of the benchmark servers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.datasets.cityscapes import CITYSCAPES
from ..data.datasets.mapillary_vistas import VISTAS_V12, VISTAS_V20
from ..data.datasets.pascal_voc import VOC21
from ..data.label_space import LabelSpace
from ..errors import DataError, RecipeError
from ..images import ImageFile, save_image, unreadable_is_data_error
from ..viz.figures import palette_png
from .cityscapes import RAW_IDS
from .settings import Size


@dataclass(frozen=True)
class SubmissionFormat:
    """The files that one server takes.

    Attributes:
        label_space: the predicted classes.
        folder: the files' folder below the submission's.
        mode: of the PNGs: "L", or "P" with the label space's colours. In both a pixel's value is the server's id of the class.
        ids: the server's id for each train id.
    """

    label_space: LabelSpace
    folder: str
    mode: str
    ids: np.ndarray

    def file(self, root: Path, image_id: str) -> Path:
        """The image's file; the server finds images by their names."""
        return root / self.folder / f"{image_id}.png"

    def write(self, root: Path, image_id: str, label_map: np.ndarray) -> None:
        """Writes the label map of one image, (height, width) train ids; the file is written whole or not at all."""
        ids = self.ids[label_map]
        file = self.file(root, image_id)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_image(palette_png(ids, self.label_space.colours) if self.mode == "P" else Image.fromarray(ids), file)

    def check(self, root: Path, sizes: Mapping[str, Size]) -> None:
        """Opens every file that the submission should hold.

        Args:
            sizes: (height, width) of each image by its id.

        Raises:
            DataError: a file is missing or unreadable, has another size or mode or unknown ids, or does not belong to the
                submission.
        """
        expected = {self.file(root, image_id): size for image_id, size in sizes.items()}
        for file, size in expected.items():
            self._check_file(file, size)
        strays = sorted(set((root / self.folder).glob("*")) - set(expected))
        if strays:
            raise DataError(f"{strays[0]} ({len(strays)} such) belongs to no image of the split: the server would refuse it")

    def _check_file(self, file, size):
        try:
            with unreadable_is_data_error("Label map", str(file)):
                image = ImageFile(file.read_bytes()).pixels()
        except DataError as error:
            raise DataError(f"the submission's file is damaged: {error} Write it again (--overwrite)") from error
        mode, found, ids = image.mode, (image.height, image.width), np.unique(np.asarray(image))
        if mode != self.mode or found != tuple(size):
            raise DataError(
                f"the submission's {file} is {found[0]}×{found[1]}, mode {mode}, but its image {size[0]}×{size[1]}, and the "
                f"server wants mode {self.mode}: write it again (--overwrite)"
            )
        unknown = np.setdiff1d(ids, self.ids)
        if len(unknown):
            raise DataError(f"the submission's {file} holds the id {unknown[0]}, which the server does not know")


def _same_ids(label_space):
    return np.arange(label_space.num_classes, dtype=np.uint8)


# The Cityscapes server finds an image by the beginning of the file's name, CITY_SEQ_FRAME.
FORMATS = {
    ("cityscapes", CITYSCAPES.name): SubmissionFormat(CITYSCAPES, ".", "L", RAW_IDS),
    ("pascal_voc", VOC21.name): SubmissionFormat(VOC21, "results/VOC2012/Segmentation/comp6_test_cls", "P", _same_ids(VOC21)),
    **{
        ("mapillary_vistas", space.name): SubmissionFormat(space, ".", "P", _same_ids(space))
        for space in (VISTAS_V12, VISTAS_V20)
    },
}


def submission_format(dataset: str, label_space: LabelSpace) -> SubmissionFormat:
    """The format of the dataset's server; a RecipeError if we know none for it."""
    if (dataset, label_space.name) not in FORMATS:
        known = ", ".join(f"{name} ({space})" for name, space in FORMATS)
        raise RecipeError(f"--submission: no server takes {dataset} in the classes {label_space.name!r}; known are {known}")
    return FORMATS[dataset, label_space.name]
