"""Label spaces for tests."""

from collections.abc import Sequence

from revhrnet_hf.data import LabelSpace


def unnamed_space(names: Sequence[str]) -> LabelSpace:
    """A label space with these classes and without colours, in whose label maps the ids count from 0."""
    return LabelSpace("unnamed", tuple(names), ((0, 0, 0),) * len(names), {index: index for index in range(len(names))})
