"""Small datasets of drawn street scenes in each publisher's layout, for tests, the quickstart and examples."""

from .camvid import write_camvid
from .files import draw_scenes
from .objects import write_coco, write_pascal_voc
from .streets import write_cityscapes, write_mapillary_vistas

__all__ = [
    "draw_scenes",
    "write_camvid",
    "write_cityscapes",
    "write_coco",
    "write_mapillary_vistas",
    "write_pascal_voc",
]
