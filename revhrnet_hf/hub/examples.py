"""Example images of a checkpoint: the files in its folder `examples`, which travel with it to the Hub, a Space and a release.

Nothing of ours writes them, because not every publisher of a dataset allows images to be passed on: whoever publishes a
checkpoint puts images there that may be shown.
"""

from pathlib import Path

from huggingface_hub import snapshot_download

from ..errors import DataError
from ..images import find_images, read_image

EXAMPLES = "examples"


def own_examples(checkpoint: str | Path) -> list[Path]:
    """The example images of a checkpoint, by name; none where it has no folder of them, or no image in it.

    Args:
        checkpoint: its folder, or a name on the Hub, from where they are downloaded (from the cache if the Hub is switched off).

    Raises:
        DataError: one of them cannot be read.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(checkpoint), allow_patterns=f"{EXAMPLES}/*"))
    try:
        examples = find_images([folder / EXAMPLES])
    except DataError:  # no folder, or no image in it
        return []
    for path in examples:
        read_image(path)  # a broken one is said now, not to those who are to see it
    return examples
