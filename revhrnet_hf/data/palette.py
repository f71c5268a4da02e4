"""Colours for classes that have none of their own."""

from functools import cache

import numpy as np

from ..images import Colour

# Paul Tol's "bright" and "muted" schemes without their greys: told apart with any common colour vision.
# https://personal.sron.nl/~pault/
DISTINCT_COLOURS: tuple[Colour, ...] = (
    (68, 119, 170),
    (238, 102, 119),
    (34, 136, 51),
    (204, 187, 68),
    (102, 204, 238),
    (170, 51, 119),
    (51, 34, 136),
    (221, 204, 119),
    (136, 34, 85),
    (68, 170, 153),
    (153, 153, 51),
    (204, 102, 119),
)
USUAL_COUNT = 256  # of colours that are worked out together


def default_palette(count: int) -> tuple[Colour, ...]:
    """A colour for each of `count` classes: always the same, no two alike, the first dozen safe for colour-blind eyes."""
    return _distinct_colours(max(count, USUAL_COUNT))[:count]


@cache
def _distinct_colours(count: int) -> tuple[Colour, ...]:
    """After the first dozen, each is the colour of a grid of 4,096 that lies farthest from those before it, black and white."""
    colours = list(DISTINCT_COLOURS[:count])
    levels = np.arange(0, 256, 17)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    taken = np.array([(0, 0, 0), (255, 255, 255), *colours])
    distances = np.square(grid[:, None] - taken).sum(axis=-1).min(axis=1)
    while len(colours) < count:
        farthest = grid[distances.argmax()]
        colours.append(tuple(int(channel) for channel in farthest))
        distances = np.minimum(distances, np.square(grid - farthest).sum(axis=-1))
    return tuple(colours)
