"""The fields of a dataclass as options of a command, in groups.

`HfArgumentParser` does the same without groups; it needs a second to import, and PyTorch with this package's models.
"""

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..cli import ArgumentParser

TRUE, FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")
METAVARS = {int: "N", float: "X", str: "TEXT"}


def add_fields(parser: ArgumentParser, settings: type, groups: Mapping[str, str]) -> None:
    """Adds an option for each field of a dataclass; its help is the field's metadata "help", and its value's name "metavar".

    Args:
        groups: title of a group → the first field in it. The groups follow each other as the fields do.
    """
    kinds, title_of = get_type_hints(settings), {first: title for title, first in groups.items()}
    group = parser
    for setting in fields(settings):
        if setting.name in title_of:
            group = parser.add_argument_group(title_of[setting.name])
        _add_field(group, setting, kinds[setting.name])


def _add_field(group, setting: Field, kind: Any) -> None:
    default = setting.default if setting.default_factory is MISSING else setting.default_factory()
    is_required = default is MISSING
    given: dict[str, Any] = {"help": _help(setting.metadata["help"], default), "required": is_required}
    given |= {} if is_required else {"default": default}
    if get_origin(kind) not in (list, Literal) and get_args(kind):  # X | None
        # The recipe itself reads names with numbers, and lists that a word may stand for.
        kind, *others = get_args(kind)
        kind = list[str] if get_origin(kind) is dict or str in others else kind
    if kind is bool:
        given |= {"type": _boolean, "nargs": "?", "const": True, "metavar": "true|false"}
    elif get_origin(kind) is Literal:
        given["choices"] = get_args(kind)
    elif get_origin(kind) is list:
        [entry] = get_args(kind)
        given |= {"type": entry, "nargs": "+", "metavar": setting.metadata.get("metavar", METAVARS[entry])}
    else:
        given |= {"type": kind, "metavar": setting.metadata.get("metavar", METAVARS[kind])}
    group.add_argument(*_spellings(setting.name), **given)
    if kind is bool and default is True:
        no = {"dest": setting.name, "action": "store_false", "default": default, "help": f"The same as --{setting.name} false"}
        group.add_argument(*_spellings(f"no_{setting.name}"), **no)


def _spellings(name: str) -> list[str]:
    """`--crop_size`, and `--crop-size` as other programs have it."""
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def _help(text: str, default: Any) -> str:
    """The text with its default, unless it says itself what holds where nothing is given."""
    text = text.replace("%", "%%")
    if default is MISSING or default is False or default in (None, "") or "(the default)" in text:
        return text
    shown = " ".join(map(str, default)) if isinstance(default, list) else str(default).lower() if default is True else default
    return f"{text} (default: {shown})"


def _boolean(text: str) -> bool:
    if text.lower() in (*TRUE, *FALSE):
        return text.lower() in TRUE
    raise argparse.ArgumentTypeError(f"{text} is neither true nor false")


class GroupedHelp(argparse.RawDescriptionHelpFormatter):
    """Shows `--crop_size N [N ...]` without the other spelling, for which every option would need a second line."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = [option for option in action.option_strings if "-" not in option[2:]]
        if len(shown) == len(action.option_strings) or not shown:
            return super()._format_action_invocation(action)
        takes = "" if action.nargs == 0 else f" {self._format_args(action, self._get_default_metavar_for_optional(action))}"
        return ", ".join(shown) + takes
