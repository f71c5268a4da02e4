"""Colours that nobody has chosen."""

import numpy as np

from revhrnet_hf.data.palette import default_palette


def test_default_palette_repeats_no_colour_and_always_begins_alike():
    palette = default_palette(256)
    assert default_palette(7) == palette[:7]
    assert default_palette(40) == palette[:40]
    for num_labels, least in ((19, 30), (66, 30), (150, 30), (256, 25)):
        colours = np.array(palette[:num_labels])
        distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
        assert distances[np.triu_indices(num_labels, 1)].min() > least
    # Paul Tol's bright blue and red, as published.
    assert palette[:2] == ((68, 119, 170), (238, 102, 119))
