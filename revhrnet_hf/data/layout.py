"""Finds out how somebody's folder of images and masks is laid out, so that a label table can describe it to `datasets/folder.py`.

That loader reads some layouts by itself. Here any two folders are compared by the names in them, and each folder with itself, for
masks beside their images: `train/x.jpg` with `train/x_mask.png`, `scans/x_sat.tif` with `truth/x_gt.tif`, `img01.png` with
`mask01.png`. Among several folders of images whose files have the names of the masks, that with the most similar name is taken.
"""

import math
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby, product
from pathlib import PurePosixPath

from ..errors import DataError, first_few
from ..images import SUFFIXES
from .archive import DataFolder
from .datasets.folder import (
    HELD_OUT_FROM,
    SCORED_ON,
    SPLIT_NAMES,
    TESTS,
    TRAINED_ON,
    Folder,
    filled,
    find_split,
    list_files,
    part_of,
    sources_by_pattern,
    sources_without_table,
    split_pattern,
)
from .datasets.labelme import labelme_files
from .datasets.pairing import LABEL_SUFFIXES, Affix, images_below, pair_files, read_split_list
from .label_table import ANY, SPLIT
from .listing import MAX_NAMED, ListedSample

INSTANCES = "segmentationobject"  # CVAT and VOC: masks of instances, beside those of classes
MASK_WORDS = re.compile(
    r"mask|annot|label|segm|semantic|truth|colou?r_?map|gt_?(fine|coarse)|(?<![a-z])(gt|ann|anno|seg|class)(?![a-z])", re.I
)
# In names of files and folders of what was drawn from masks: it is neither the images, nor the masks if there are others.
DRAWN_WORDS = re.compile(r"colou?r|instance|overlay|(?<![a-z])vi[sz]", re.I)
# Left out where the names of folders are compared: they tell the images of a split from its masks.
KIND_WORDS = re.compile(
    r"(?:jpeg)?images?|imgs?|rgb|masks?|annotations?|annot|labell?ed|labels?|segmentations?|truth"
    r"|(?<![a-z])(?:gt|ann|anno|seg|class)(?![a-z])",
    re.I,
)
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
SPLIT_WORDS = {word: names[0] for names in (TRAINED_ON, SCORED_ON, TESTS, ("trainval",)) for word in names}
SUFFIX = re.compile(r"(?:[_-][A-Za-z][A-Za-z0-9]*)+$")
PREFIX = re.compile(r"(?:[A-Za-z][A-Za-z0-9]*[_-])+|[A-Za-z]+(?=\d)")
MOST_AFFIXES = 6  # the most frequent ends, and beginnings, of names in a folder that are tried
FEWEST_PAIRED = 0.5  # of the files of the folder that has fewer; below it, equal names are chance


@dataclass(frozen=True)
class Layout:
    """Where images and masks are, in the terms of a label table (label_table.py).

    Attributes:
        images, labels: the folders, with `{split}` in both or in neither, and perhaps `*`; None: the loader finds them by itself.
        image_suffix, label_suffix, image_prefix, label_prefix: the ends and beginnings of the names; None: the loader finds
            them by itself.
        splits: names of the splits, as folders or lists; empty if the images are not divided.
        is_labelme: whether the masks are labelme's JSON files.
        left_out: folders with images, or with masks, that are not used, each with the number of its files.
    """

    images: str | None = None
    labels: str | None = None
    image_suffix: str | None = None
    label_suffix: str | None = None
    image_prefix: str | None = None
    label_prefix: str | None = None
    splits: tuple[str, ...] = ()
    is_labelme: bool = False
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = "images and masks in folders with usual names"
        if self.images is not None:
            masks = "labelme's files" if self.is_labelme else "masks"
            where = f"images in {self.images or '.'}/, {masks} in {self.labels or '.'}/"
        ends = f", names that end with {self.label_suffix}" if self.label_suffix else ""
        begin = f", names that begin with {self.label_prefix}" if self.label_prefix else ""
        return f"{where}{ends}{begin}; " + (f"splits {', '.join(self.splits)}" if self.splits else "not divided into splits")


def find_layout(data_folder: DataFolder) -> Layout:
    """The layout of a folder of images and masks.

    Raises:
        DataError: there are no images, or no masks that go with them by name; other formats of annotations are named.
    """
    folders = _image_folders(data_folder)
    if not folders:
        raise DataError(
            f"{data_folder.root} holds no images ({', '.join(SUFFIXES)}): give the folder that holds images and masks."
            + _other_formats(data_folder, has_images=False)
        )
    sources, is_divided = sources_without_table(data_folder)
    count = {folder: len(stems) for folder, stems in folders.items()}
    if sources and all(_are_paired(folders, source.images, source.labels) for source in sources):
        splits = Folder.splits(data_folder.root, "") if is_divided else ()
        return Layout(splits=splits, left_out=_left_out(count, [(source.images, source.labels) for source in sources]))
    if matches := list(_matches(folders)):
        return _with_lists(_joined(matches, count), list_files(data_folder))
    if files := labelme_files(data_folder):
        return _with_lists(_of_labelme(files), list_files(data_folder))
    raise _no_masks(data_folder, folders)


def _with_lists(layout: Layout, lists: Mapping[str, Sequence[str]]) -> Layout:
    """The layout divided by list files, if there are some; the loader does not read them if folders divide it."""
    if not layout.splits:
        return replace(layout, splits=tuple(sorted(lists)))
    unread = tuple(f"{file} (a list)" for files in lists.values() for file in files)
    return replace(layout, left_out=(*layout.left_out, *unread))


def _of_labelme(files: Iterable[str]) -> Layout:
    """The layout of labelme's files, which name their images: divided by folders with the names of splits, or not at all."""
    folders = Counter(posixpath.dirname(file) for file in files)
    matches = [_Match(folder, folder, Affix(), Affix(), count, count) for folder, count in folders.items()]
    divided = [match for match in matches if any(_patterns(match))]
    layout = _joined(divided, folders) if divided else Layout("", "")
    return replace(layout, is_labelme=True)


@dataclass(frozen=True)
class _Match:
    """Two folders whose files go together by name, how many do, and how many masks there are."""

    images: str
    labels: str
    image_affix: Affix
    label_affix: Affix
    pairs: int
    masks: int


def find_pairs(data_folder: DataFolder, layout: Layout) -> list[ListedSample]:
    """All images with their masks, of all splits; DataErrors as of `pair_files` and `read_split_list`."""
    affixes = Affix.of(layout.image_prefix, layout.image_suffix), Affix.of(layout.label_prefix, layout.label_suffix)
    found = []
    for (images, labels), lists in _folders_and_lists(data_folder, layout).items():
        pairs = pair_files(data_folder, images, labels, *affixes)
        # What no list names is in no split, and need not have a mask, as most images of VOC.
        listed = [pair for file in lists for pair in read_split_list(data_folder, file, images, labels, pairs)]
        found += dict.fromkeys(listed) if lists else pairs.values()
    return found


def _folders_and_lists(data_folder: DataFolder, layout: Layout) -> dict[tuple[str, str], list[str]]:
    """Folders of images and of masks → the list files that divide them; none if lists do not name what is trained on."""
    by_split = list_files(data_folder)
    lists = [file for files in by_split.values() for file in files] if find_split(by_split, HELD_OUT_FROM) else []
    if layout.images is None:
        sources, _ = sources_without_table(data_folder)
        return {(source.images, source.labels): lists if source.listed_in else [] for source in sources}
    if SPLIT in layout.images:
        by_split = sources_by_pattern(data_folder, layout.images, layout.labels)
        return {(source.images, source.labels): [] for split in layout.splits for source in by_split[split]}
    return {(layout.images, layout.labels): lists}


def _image_folders(data_folder: DataFolder) -> dict[str, list[str]]:
    """Folder → stems of the images in it."""
    folders = defaultdict(list)
    for file in images_below(data_folder, ""):
        path = PurePosixPath(file)
        if INSTANCES not in (part.lower() for part in path.parts):
            folders["" if str(path.parent) == "." else str(path.parent)].append(path.stem)
    return dict(folders)


def _are_paired(folders: dict[str, list[str]], images: str, labels: str) -> bool:
    """Whether the loader, which knows the usual suffixes, can pair most of what is below these two folders."""

    def below(folder: str) -> set[str]:
        prefix = f"{folder}/"
        found = [(name, stems) for name, stems in folders.items() if name == folder or name.startswith(prefix)]
        return {f"{name.removeprefix(folder)}/{stem}" for name, stems in found for stem in stems}

    known, masks = below(images), below(labels)
    ends = ("", *LABEL_SUFFIXES, *SUFFIXES)
    paired = sum(any(mask.lower().endswith(end) and mask[: len(mask) - len(end)] in known for end in ends) for mask in masks)
    return paired > 0 and paired >= FEWEST_PAIRED * min(len(known), len(masks))


def _matches(folders: dict[str, list[str]]) -> Iterator[_Match]:
    """For each folder of masks, its match with the folder of images whose name is most like its own; several if these tie.

    Names alone decide between folders whose files are numbered alike.
    """
    for labels in folders:
        candidates = [images for images in folders if _may_match(images, labels)]
        # A folder that sounds like masks may hold several kinds of them: its images are looked for elsewhere first.
        own = math.inf if _sounds_like_masks(labels) else 0
        distance = {images: own if images == labels else _distance(images, labels) for images in candidates}
        for _, nearest in groupby(sorted(candidates, key=distance.get), distance.get):
            found = [match for images in nearest if (match := _match_of(folders, images, labels)) is not None]
            if found:
                yield from found
                break


def _may_match(images: str, labels: str) -> bool:
    """Whether the names of two folders, perhaps the same, can be those of a split's images and masks."""
    if images == labels:
        return True
    one, other = _differing(images, labels)
    return _sounds_like_masks(other) and not _sounds_like_masks(one) and not _other_split(images, labels)


def _differing(images: str, labels: str) -> tuple[str, str]:
    """Two paths without the folders in which both begin and end, which distinguish nothing: segmentation/train/photos."""
    one, other, _ = _without_tail(images, labels)
    above = len(posixpath.commonprefix([_parts(one), _parts(other)]))
    return "/".join(_parts(one)[above:]), "/".join(_parts(other)[above:])


@cache
def _sounds_like_masks(folder: str) -> bool:
    return MASK_WORDS.search(folder) is not None


@cache  # each folder is compared with each other one
def _words(text: str) -> Counter[str]:
    """The words and numbers in the name of a folder, without those for images and masks: train and 2017 of train2017_masks."""
    return Counter(word.lower() for word in WORD.findall(KIND_WORDS.sub(" ", text)))


def _distance(images: str, labels: str) -> int:
    """The number of words that only one of two folders has in its name."""
    one, other = _words(images), _words(labels)
    return (one - other).total() + (other - one).total()


@cache
def _split_words(text: str) -> set[str]:
    return {SPLIT_WORDS[word] for word in _words(text) if word in SPLIT_WORDS}


def _other_split(images: str, labels: str) -> bool:
    """Whether two names are those of different splits."""
    one, other = _split_words(images), _split_words(labels)
    return bool(one - other and other - one)


def _match_of(folders: dict[str, list[str]], images: str, labels: str) -> _Match | None:
    """The match by the affixes with which the most files go together; None if too few do."""
    best = None
    label_affixes = sorted(_affixes(folders[labels]), key=lambda affix: DRAWN_WORDS.search(" ".join(affix)) is not None)
    for image_affix, label_affix in product(_affixes(folders[images]), label_affixes):
        one, other = " ".join(image_affix), " ".join(label_affix)
        if images == labels and (_sounds_like_masks(one) or DRAWN_WORDS.search(one) or not _sounds_like_masks(other)):
            continue
        if _other_split(one, other):
            continue
        known = _without(folders[images], image_affix, label_affix if images == labels else None)
        masks = _without(folders[labels], label_affix)
        pairs = len(known & masks)
        if pairs >= max(1, FEWEST_PAIRED * min(len(known), len(masks))) and (best is None or pairs > best.pairs):
            best = _Match(images, labels, image_affix, label_affix, pairs, len(masks))
    return best


def _affixes(stems: Iterable[str]) -> list[Affix]:
    """No affix, then ends of names and beginnings of names, the most frequent first."""
    ends, beginnings = Counter(), Counter()
    for stem in stems:
        if found := SUFFIX.search(stem):
            parts = re.findall(r"[_-][^_-]+", found[0])
            ends.update("".join(parts[k:]) for k in range(len(parts)))
        if found := PREFIX.match(stem):
            parts = re.findall(r"[^_-]+[_-]?", found[0])
            beginnings.update("".join(parts[: k + 1]) for k in range(len(parts)))
    suffixes = [Affix("", suffix) for suffix, _ in ends.most_common(MOST_AFFIXES)]
    return [Affix(), *suffixes, *(Affix(prefix) for prefix, _ in beginnings.most_common(MOST_AFFIXES))]


def _without(stems: Iterable[str], affix: Affix, other: Affix | None = None) -> set[str]:
    """The ids in the names that have `affix`, and not `other`."""
    return {found for stem in stems if (found := affix.id_in(stem)) is not None and (other is None or other.id_in(stem) is None)}


@dataclass(frozen=True)
class _Group:
    """Matches that one pair of folders in a label table serves.

    Attributes:
        images, labels: these folders, perhaps with `{split}` and `*`.
        members: name of the split, what `*` stands for (each is empty if there is none) and folders below → match.
    """

    images: str
    labels: str
    members: Mapping[tuple[str, str, tuple[str, ...]], _Match]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(sorted({split for split, _, _ in self.members if split}))

    @property
    def folders(self) -> list[tuple[str, str]]:
        """The folders of images and masks of each split, and of each name for which `*` stands."""
        names = dict.fromkeys((split, part) for split, part, _ in self.members)
        return [(filled(self.images, *name), filled(self.labels, *name)) for name in names]

    def rank(self) -> tuple[bool, int, bool, bool, bool, int]:
        """Images to train on go before those of val and test only, then the number of pairs counts; masks go before drawings of
        them, and then the simpler name counts."""
        matches = self.members.values()
        to_train_on = any(_split_words(match.images) <= {"train", "trainval"} for match in matches)
        drawn = any(DRAWN_WORDS.search(_differing(match.images, match.labels)[1]) for match in matches)
        simple = ANY not in self.images, SPLIT not in self.images, -len(self.images)
        return to_train_on, sum(match.pairs for match in matches), not drawn, *simple

    def is_whole(self, folders: Iterable[str]) -> bool:
        """Whether all folders that the loader would read are among the matches."""
        matched = {folder for match in self.members.values() for folder in (match.images, match.labels)}
        for images, labels in self.folders:
            for one, other in ((images, labels), (labels, images)):
                inner = other if other != one and _is_below(other, one) else None  # the loader leaves it out of `one`
                below = {folder for folder in folders if _is_below(folder, one)}
                if not {folder for folder in below if inner is None or not _is_below(folder, inner)} <= matched:
                    return False
        return SPLIT not in self.images or self._has_all_splits(folders)

    def _has_all_splits(self, folders: Iterable[str]) -> bool:
        """Whether the loader would read nothing else by the pattern; without a split to train on, it reads all splits."""
        depth, pattern = len(_parts(self.images)), split_pattern(self.images)
        above = {"/".join(_parts(folder)[:depth]) for folder in folders}
        others = {(found["split"], part_of(found)) for found in map(pattern.fullmatch, above) if found}
        others -= {(split, part) for split, part, _ in self.members}
        if find_split(self.splits, HELD_OUT_FROM) is not None:
            others = {(split, part) for split, part in others if split in self.splits}
        return not any(_is_below(folder, filled(self.labels, *other)) for other in others for folder in folders)


def _joined(matches: list[_Match], files: Mapping[str, int]) -> Layout:
    """One layout for as many of the matches as a label table can describe, and the folders for which it cannot.

    Args:
        files: folder → the number of images in it.
    """
    groups: dict[tuple, dict] = defaultdict(dict)
    exact = set()
    for match in matches:
        for is_exact, images, labels, *names in _places(match):
            key = images, labels, match.image_affix, match.label_affix
            groups[key][tuple(names)] = match
            exact |= {key} if is_exact else set()
    found = [(_with_common_tail(*key[:2], members), *key[2:], key in exact) for key, members in groups.items()]
    group, image_affix, label_affix, _ = max(
        (entry for entry in found if entry[-1] or entry[0].is_whole(files)), key=lambda entry: entry[0].rank()
    )
    is_alone = all(match.masks == files[match.labels] for match in group.members.values())  # not beside drawings of the masks
    is_usual = is_alone and not label_affix.prefix and label_affix.suffix.lower() in ("", *LABEL_SUFFIXES)
    by_itself = image_affix == Affix() and group.images != group.labels and is_usual
    suffixes = (None, None) if by_itself else (image_affix.suffix or None, label_affix.suffix or None)
    prefixes = (image_affix.prefix or None, label_affix.prefix or None)
    left_out = _left_out(files, group.folders)
    return Layout(group.images, group.labels, *suffixes, *prefixes, splits=group.splits, left_out=left_out)


def _places(match: _Match) -> Iterator[tuple[bool, str, str, str, str, tuple[str, ...]]]:
    """The ways to say where a match is: whether it says just this, folders of images and masks, and the key of a group's member:
    the split, what `*` stands for, and what is below."""
    named = list(_patterns(match))
    for images, labels, split in named or [(match.images, match.labels, "")]:
        short, short_labels, tail = _without_tail(images, labels)
        yield True, images, labels, split, "", ()
        yield False, short, short_labels, split, "", tail
        for place in ((images, labels, ()), (short, short_labels, tail)):
            for one, other, name in _patterns_of_any_name(*place[:2], ANY if named else SPLIT):
                yield False, one, other, *((split, name) if named else (name, "")), place[2]


def _without_tail(images: str, labels: str) -> tuple[str, str, tuple[str, ...]]:
    """Two folders without the folders in which their paths end alike, and these; a split's name stays."""
    one, other, tail = _parts(images), _parts(labels), ()
    while one and other and one[-1] == other[-1] and SPLIT not in one[-1]:
        one, other, tail = one[:-1], other[:-1], (one[-1], *tail)
    return "/".join(one), "/".join(other), tail


def _with_common_tail(images: str, labels: str, members: Mapping[tuple[str, str, tuple[str, ...]], _Match]) -> _Group:
    """The group, with folders that all matches have below it as part of its own."""
    common = posixpath.commonprefix([tail for *_, tail in members])
    below = {(split, part, tail[len(common) :]): match for (split, part, tail), match in members.items()}
    return _Group(posixpath.join(images, *common), posixpath.join(labels, *common), below)


def _parts(folder: str) -> tuple[str, ...]:
    return tuple(folder.split("/")) if folder else ()


def _is_below(folder: str, above: str) -> bool:
    """Whether a folder is another one or below it."""
    return not above or folder == above or folder.startswith(f"{above}/")


def _left_out(files: Mapping[str, int], used: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The folders that hold images, or masks, and are not below those that are used."""
    used = {folder for pair in used for folder in pair}
    rest = {folder: count for folder, count in files.items() if not any(_is_below(folder, above) for above in used)}
    return tuple(f"{folder or '.'}/ ({count} file{'s' if count > 1 else ''})" for folder, count in sorted(rest.items()))


def _patterns(match: _Match) -> Iterator[tuple[str, str, str]]:
    """The folders with `{split}` in place of a split's name, and the name."""
    for name in SPLIT_NAMES:
        word = re.compile(rf"(?<![A-Za-z0-9]){name}(?:[_-]?(?:19|20)\d\d)?(?![A-Za-z0-9])", re.I)
        inside = word.findall(match.images)
        # In the masks' folder it may be glued to another word, as in trainannot; train/train_images has it twice.
        if len(set(inside)) == 1 and match.labels.count(inside[0]) == len(inside):
            yield word.sub(SPLIT, match.images), match.labels.replace(inside[0], SPLIT), inside[0]


def _patterns_of_any_name(images: str, labels: str, mark: str) -> Iterator[tuple[str, str, str]]:
    """The same, with a mark in place of each folder that is above both, whatever it is called: city_a/img and city_a/gt."""
    for place, (one, other) in enumerate(zip(_parts(images), _parts(labels), strict=False)):
        if one != other:
            return
        if SPLIT not in one:
            patterns = ("/".join((*parts[:place], mark, *parts[place + 1 :])) for parts in (_parts(images), _parts(labels)))
            yield (*patterns, one)


def _no_masks(data_folder: DataFolder, folders: dict[str, list[str]]) -> DataError:
    files = [str(PurePosixPath(folder) / stem) for folder, stems in folders.items() for stem in stems]
    return DataError(
        f"{data_folder.root} holds {len(files)} images ({first_few(files, MAX_NAMED)}), but no masks that go with them by name: "
        "a mask has its image's name, in another folder (images/x.jpg, masks/x.png), or with a suffix (x_mask.png)."
        + _other_formats(data_folder, has_images=True)
    )


def _other_formats(data_folder: DataFolder, has_images: bool) -> str:
    """A hint, for an error, if the annotations are in files of another kind."""
    files = list(_files_below(data_folder, ""))
    json_files = [file for file in files if file.lower().endswith(".json")]
    if any("coco" in file.lower() or "instances_" in file for file in json_files):
        return f" {json_files[0]} seems to be COCO's format, which needs no masks: train with --dataset coco."
    if any(part in ("SegmentationClass", "SegmentationObject") for file in files for part in file.split("/")) and not has_images:
        return " CVAT leaves the images out unless *Save images* is chosen: export again, or put them into JPEGImages/."
    return ""


def _files_below(data_folder: DataFolder, folder: str) -> Iterator[str]:
    prefix = f"{folder}/" if folder else ""
    yield from (prefix + name for name in data_folder.files(folder))
    for name in data_folder.folders(folder):
        yield from _files_below(data_folder, prefix + name)
