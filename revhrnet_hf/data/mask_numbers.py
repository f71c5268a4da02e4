"""Whether the numbers in masks mean the same in all files, as ids must.

Programs that save colour images with few colours give each file a palette of its own, so that an index is another class in each
file. Others store white as 1 if one bit is enough for a file, as 255 or 65535 if not. In both cases the colours that a viewer
shows are the same in all files.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ..images import Colour
from .raw_label_map import RawContent

WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Differing:
    """Two files whose numbers differ in their meaning.

    Attributes:
        text: names the files and says what differs, without a full stop.
        is_clear: whether the colours are the classes; otherwise it is not known which files are right.
    """

    text: str
    is_clear: bool

    def __str__(self) -> str:
        return self.text


def find_differing(contents: Iterable[tuple[str, RawContent]]) -> Differing | None:
    """The first two files whose numbers cannot be the same ids; None if there are none.

    Grey files of 8 bits show the ids themselves, so that their colours tell nothing: such files and those with a palette may
    hold the same ids. But if a colour has one number in them and another with a palette or in another bit depth, the numbers
    are no ids.

    Args:
        contents: location and content of each.
    """
    plain: dict[int, str] = {}
    coded: dict[int, tuple[Colour, str]] = {}
    for location, content in contents:
        if all(colour == (raw_id,) * 3 for raw_id, colour in content.shown.items()):
            plain |= dict.fromkeys(content.shown.keys() - plain.keys(), location)
            continue
        for raw_id, colour in content.shown.items():
            first, where = coded.setdefault(raw_id, (colour, location))
            if first != colour:
                return Differing(f"{raw_id} is {_hex(first)} in {where} and {_hex(colour)} in {location}", True)
    return _two_whites(coded) or _other_depth(coded, plain)


def _two_whites(coded: dict[int, tuple[Colour, str]]) -> Differing | None:
    """For grey files of few or of 16 bits, whose largest number is white."""
    whites = [(raw_id, location) for raw_id, (colour, location) in coded.items() if colour == WHITE]
    if len(whites) < 2:
        return None
    (one, first), (other, second) = whites[:2]
    return Differing(f"{_hex(WHITE)} is {one} in {first} and {other} in {second}", True)


def _other_depth(coded: dict[int, tuple[Colour, str]], plain: dict[int, str]) -> Differing | None:
    """A grey that is one number in a grey file of 8 bits and another one elsewhere. Neither is clear if both hold that number."""
    for raw_id, (colour, location) in coded.items():
        grey = _grey(colour)
        if grey in plain and grey != raw_id and not (grey in coded and coded[grey][0] == colour):
            shared = [number for number, (shown, _) in coded.items() if number in plain and _grey(shown) != number]
            is_clear = set(shared) <= {0}
            return Differing(f"{_hex(colour)} is {raw_id} in {location} and {grey} in {plain[grey]}", is_clear)
    return None


def _grey(colour: Colour) -> int | None:
    return colour[0] if len(set(colour)) == 1 else None


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
