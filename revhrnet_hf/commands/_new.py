"""The work of `revhrnet new`. The command line is elsewhere, because it does not wait for PyTorch."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..data import label_space_of, load_segmentation_dataset
from ..data.annotation import raw_ids_of_shapes
from ..data.archive import DataFolder, read_text
from ..data.class_lists import ClassList, find_class_list
from ..data.datasets.folder import HELD_OUT_FROM, SCORED_ON, Folder, find_split
from ..data.datasets.labelme import images_without_file, labelme_files, labelme_pairs, labels_in
from ..data.datasets.pairing import images_below
from ..data.label_table import CVAT_NAME, USUAL_NAME
from ..data.layout import Layout, find_layout, find_pairs
from ..data.listing import Sample, check_same_sizes, image_size, locate
from ..data.proposed_table import (
    MOST_VALUES,
    MaskContents,
    ProposedTable,
    ids_of_labels,
    no_classes,
    notes_on_labels,
    propose_table,
)
from ..data.raw_label_map import RawContent, ids_in, raw_content
from ..defaults import VAL_FRACTION
from ..errors import DataError, RecipeError, first_few
from ..images import Colour, save_image
from ..io import write_text
from ..text import table as text_table
from ..training.first_recipe import Images, Machine, first_recipe, recipe_text
from ..viz.contact_sheet import contact_sheet
from ..viz.figures import untinted_classes
from . import name_of

TABLE, RECIPE, SHEET = "labels.yaml", "mine.yaml", "masks.png"


class Division(NamedTuple):
    """The options that divide images into those to train on and those to score on; None if not given."""

    val_fraction: float | None
    seed: int | None

    @property
    def values(self) -> tuple[float, int]:
        return VAL_FRACTION if self.val_fraction is None else self.val_fraction, self.seed or 0

    def refuse_if_given(self, by: str) -> None:
        """Raises a RecipeError that `by` divides the images already, if an option is given: it would have no effect."""
        if given := [f"--{name}" for name, value in self._asdict().items() if value is not None]:
            raise RecipeError(f"{' and '.join(given)}: {by} divides the images already: leave the option out, or change that")


class Start:
    """What `revhrnet new` finds and writes.

    Args:
        folder: of images and masks; nothing in it is changed.
        output_dir: for the files.

    Attributes:
        table: the label table's file, in `output_dir` or the data folder's own.
        train_split, eval_split: names of the splits, after `check_samples`.
    """

    def __init__(self, folder: Path, output_dir: Path):
        self.folder, self.output_dir = folder, output_dir
        self.data_folder = Folder.open_folder(folder)  # as training does: perhaps a folder in an archive
        self.table = str(output_dir / TABLE)
        self.train_split = self.eval_split = ""

    def write_table(self, division: Division) -> None:
        """Writes the label table, unless there is one; a RecipeError if an option of the division would have no effect."""
        own = DataFolder(self.folder).location(USUAL_NAME) or self.data_folder.location(USUAL_NAME)
        val_fraction, seed = division.values
        if Path(self.table).exists():
            division.refuse_if_given(self.table)
            print(f"kept:    {self.table}")
        elif own is not None and self._is_divided(own):
            division.refuse_if_given(own)
            self.table = own
            print(f"used:    {own}, the folder's own label table")
        elif own is not None:
            self._copy_table(own, f"val_fraction: {val_fraction}\nval_seed: {seed}\n")
        else:
            layout = find_layout(self.data_folder)
            print(f"found:   {layout}")
            is_divided = find_split(layout.splits, SCORED_ON) is not None
            if is_divided:
                division.refuse_if_given(f"its layout, with the splits {', '.join(layout.splits)},")
            proposed = self._propose(layout)
            if layout.left_out:
                proposed.notes.append(
                    f"Left out, because this table does not describe them: {first_few(layout.left_out)}. If they hold images and "
                    "masks to train on, arrange them as the others are."
                )
            text = proposed.to_yaml(name_of(self.folder), layout, None if is_divided else val_fraction, seed)
            self._write(Path(self.table), text)
            print("\n" + _described(proposed) + "\n")

    def _copy_table(self, own: str, added: str) -> None:
        """Copies the folder's own label table with further lines, and CVAT's if the names are taken from it."""
        text = read_text(own).rstrip("\n")
        if re.search(rf"^names: *['\"]?{re.escape(CVAT_NAME)}", text, re.M):
            folders = sorted((DataFolder(self.folder), self.data_folder), key=lambda place: place.location(USUAL_NAME) != own)
            found = (place.location(CVAT_NAME) for place in folders)
            if (cvat := next(filter(None, found), None)) is not None:  # the table is read with the one that lies beside it
                self._write(self.output_dir / CVAT_NAME, read_text(cvat))
        self._write(Path(self.table), f"{text}\n{added}")

    def _is_divided(self, table: str) -> bool:
        """Whether the folder's own label table leads to a split to score on."""
        try:
            splits = Folder.splits(self.folder, table)
        except DataError:  # not divided; any other reason is said by `check_samples`, which reads a copy of the table
            return False
        return find_split(splits, SCORED_ON) is not None

    def _propose(self, layout: Layout) -> ProposedTable:
        if layout.is_labelme:
            return self._propose_from_shapes(layout)
        pairs = check_same_sizes(locate(self.data_folder, find_pairs(self.data_folder, layout)))
        masks = list(dict.fromkeys(pair.label_map for pair in pairs))
        contents = list(read_masks(tqdm(masks, desc="reading masks", unit="mask", leave=False, disable=None)))
        classes = self._class_list()
        by_colour = classes is not None and not classes.by_id
        return propose_table(MaskContents.of(contents, by_colour), classes)

    def _propose_from_shapes(self, layout: Layout) -> ProposedTable:
        """Ids for the labels in labelme's files."""
        files = labelme_files(self.data_folder)
        ids, classes = ids_of_labels(labels_in(files), self._class_list())
        pairs = check_same_sizes(locate(self.data_folder, list(labelme_pairs(self.data_folder, "", ids).values())))
        drawn = ((pair.label_map, raw_ids_of_shapes(pair.annotation, pair.label_map)) for pair in pairs)
        contents = [(file, ids_in(raw, file)) for file, raw in drawn]
        proposed = replace(propose_table(MaskContents.of(contents), classes), labelme=ids)
        proposed.notes += notes_on_labels(ids)
        if without := images_without_file(self.data_folder, list(images_below(self.data_folder, "")), files):
            count = f"{len(without)} of {len(without) + len(files)} images"
            proposed.notes.append(f"{count} have no file of labelme, and are left out: {first_few(without, 3)}.")
        return proposed

    def _class_list(self) -> ClassList | None:
        """Beside the data, or beside the archive that holds them."""
        return find_class_list(self.data_folder) or find_class_list(DataFolder(self.folder))

    def check_samples(self) -> None:
        """Finds the splits by the loader that training uses, which reports files without a partner."""
        splits = Folder.splits(self.folder, self.table)
        self.train_split = find_split(splits, HELD_OUT_FROM) or ""
        self.eval_split = find_split(splits, SCORED_ON) or ""
        if not self.train_split or not self.eval_split:
            advice = "rename them" if self.eval_split else f"rename them, or put val_fraction: 0.2 into {self.table}"
            raise DataError(
                f"{self.folder} has the splits {', '.join(splits)}, and training needs one called train and one called val: "
                + advice
            )
        if unused := sorted(set(splits) - {self.train_split, self.eval_split}):
            print(f"neither trained on nor scored: {', '.join(unused)}")
        self.samples: dict[str, list[Sample]] = {
            split: Folder.list_samples(self.folder, split, self.table) for split in (self.train_split, self.eval_split)
        }

    def write_recipe(self) -> None:
        sizes = [image_size(sample.image) for sample in self.samples[self.train_split]]
        beside = Path(self.table).name if Path(self.table).parent == self.output_dir else None
        machine = Machine.this()
        settings = first_recipe(Images(sizes, self.train_split, self.eval_split, beside), machine)
        counts = ", ".join(f"{len(samples)} images in {split}" for split, samples in self.samples.items())
        title = f"For {self.folder.name} ({counts}), on {machine}.\nOther fields: revhrnet train --help"
        self._write(self.output_dir / RECIPE, recipe_text(settings, title))

    def write_sheet(self, count: int) -> None:
        path = self.output_dir / SHEET
        if path.exists():
            print(f"kept:    {path}")
            return
        datasets = [load_segmentation_dataset("folder", self.folder, split, label_space=self.table) for split in self.samples]
        places = [(dataset, row) for dataset in datasets for row in range(len(dataset))]
        chosen = sorted({round(place) for place in np.linspace(0, len(places) - 1, count)})
        rows = []
        for dataset, row in (places[place] for place in chosen):
            example = dataset[row]
            rows.append((example["image_id"], example["image"], np.asarray(example["label_map"])))
        space = label_space_of(datasets[0])
        untinted = untinted_classes(space.names, space.untinted)
        save_image(contact_sheet(rows, space.names, space.colours, space.ignore_index, untinted=untinted), path)
        print(f"written: {path} ({len(rows)} of {len(places)} images)")

    def _write(self, path: Path, text: str) -> None:
        if path.exists():
            print(f"kept:    {path}")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        print(f"written: {path}")


def read_masks(masks: Iterable[str]) -> Iterator[tuple[str, RawContent]]:
    """Location and content of each mask; a DataError as soon as there are too many colours for classes.

    So a folder of photos, each of which has a hundred thousand, is not read to its end.
    """
    colours: set[Colour] = set()
    for mask in masks:
        content = raw_content(mask)
        if content.ids is None:
            colours.update(content.colours)
        if len(colours) > MOST_VALUES:
            raise no_classes(f"more than {MOST_VALUES} colours", mask)
        yield mask, content


def _described(proposed: ProposedTable) -> str:
    contents = proposed.contents
    rows = [["class", "in the masks", ">pixels", ">masks"]]
    for value, name in proposed.names.items():
        raw = str(value) if isinstance(value, int) else "#{:02x}{:02x}{:02x}".format(*value)
        rows.append([name, raw, f"{100 * contents.share(value):.2f} %", f"{contents.masks[value]} of {contents.files}"])
    return "\n".join([text_table(rows), *proposed.notes])
