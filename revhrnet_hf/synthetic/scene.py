"""Draws small street scenes with exact label maps: a network can learn from them without any download.

A pinhole camera looks along a street. Lengths are in metres: x to the right of the camera, y up from the ground, z forward. Far
things are drawn before near ones, which hide them. Surfaces have texture, and light comes from one side.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter

Paint = tuple[float, float, float]  # red, green, blue, 0–255, not yet rounded
Point = tuple[float, float]
Point3 = tuple[float, float, float]

SCENE_CLASSES = (
    "void", "sky", "building", "wall", "pole", "road", "lane marking", "pavement", "tree", "vegetation", "sign",
    "traffic light", "fence", "car", "bus", "pedestrian", "bicyclist",
)  # fmt: skip
SCARCE = ("fence", "pedestrian", "bicyclist", "sign", "traffic light", "car", "tree", "pole")
"""Things that may be missing in a street. Scene k always has number k modulo 8, close to the camera."""

CIRCLE = tuple((math.cos(k * math.pi / 8), math.sin(k * math.pi / 8)) for k in range(16))
NEAREST, FARTHEST = 3.0, 90.0
SMALLEST_WINDOW = 1.2  # pixels wide
GLASS, TYRE, SKIN = (50, 60, 75), (25, 25, 28), (205, 160, 130)
CLOTHES = ((40, 45, 70), (120, 35, 40), (60, 80, 60), (150, 140, 130), (35, 35, 38), (190, 170, 60), (70, 110, 150))
PAINTS = ((170, 25, 30), (30, 60, 130), (200, 200, 205), (45, 47, 52), (130, 135, 140), (25, 90, 60), (205, 190, 150))
FACADES = ((150, 85, 65), (175, 155, 125), (120, 115, 110), (200, 190, 170), (135, 105, 90), (165, 125, 95))


@dataclass(frozen=True)
class Scene:
    """A drawn street.

    Attributes:
        image: (height, width, 3) uint8.
        classes: (height, width) uint8, indices of SCENE_CLASSES.
        objects: (height, width) uint16, the number of the thing in the street, 0 elsewhere.
    """

    image: np.ndarray
    classes: np.ndarray
    objects: np.ndarray


def draw_street_scene(rng: np.random.Generator, size: tuple[int, int], scarce: str) -> Scene:
    """Draws one street of `size` (height, width) pixels that has `scarce`, one of SCARCE, close to the camera."""
    canvas = _Canvas(rng, size)
    street = _Street.random(rng)
    _draw_sky(canvas)
    _draw_ground(canvas, street)
    for side in (-1, 1):
        _draw_roadside(canvas, street, side)
    _draw_ground_shadow(canvas, street)
    things = sorted(_things(rng, street, scarce), key=lambda thing: -thing[0])
    for number, (_, draw) in enumerate(things, start=1):
        canvas.object = number
        draw(canvas)
    canvas.object = 0
    if rng.random() < 0.25:
        _draw_bonnet(canvas)
    return Scene(canvas.photograph(), canvas.classes, canvas.objects)


@dataclass(frozen=True)
class _Street:
    """The street's geometry and light: the road's edges, the pavement's width, the sun's side and strength."""

    left: float
    right: float
    pavement: float
    sun_side: int
    sun: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Street":
        return cls(
            left=-rng.uniform(2.5, 5.5),
            right=rng.uniform(2.5, 5.5),
            pavement=rng.uniform(1.8, 3.5),
            sun_side=int(rng.choice([-1, 1])),
            sun=rng.uniform(0.1, 0.45),
        )

    def kerb(self, side: int) -> float:
        return self.left if side < 0 else self.right

    def facade(self, side: int) -> float:
        return self.kerb(side) + side * self.pavement


class _Canvas:
    """The image and its maps of classes and objects. Every shape is drawn in all of them, so that they agree exactly."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]):
        self.rng = rng
        self.height, self.width = size
        self.image = np.zeros((*size, 3), np.float32)
        self.classes = np.zeros(size, np.uint8)
        self.objects = np.zeros(size, np.uint16)
        self.object = 0
        self.grain = rng.standard_normal(size, np.float32)
        self.leaves = self.noise(max(2.0, self.height / 120))
        self.patches = self.noise(self.height / 12)
        self.focal = self.width * rng.uniform(0.75, 0.95)
        self.horizon = self.height * rng.uniform(0.40, 0.52)
        self.centre = self.width * rng.uniform(0.38, 0.62)
        self.eye = rng.uniform(1.4, 2.0)

    def noise(self, cell: float) -> np.ndarray:
        """Standard normal noise, smooth over `cell` pixels."""
        coarse_size = (int(self.height / cell) + 2, int(self.width / cell) + 2)
        coarse = PIL.Image.fromarray(self.rng.standard_normal(coarse_size, np.float32))
        return np.asarray(coarse.resize((self.width, self.height), PIL.Image.Resampling.BICUBIC))

    def project(self, point: Point3) -> Point:
        x, y, z = point
        return self.centre + self.focal * x / z, self.horizon + self.focal * (self.eye - y) / z

    def pixels(self, length: float, z: float) -> float:
        return self.focal * length / z

    def face(self, points: Iterable[Point3], colour: Paint, name: str | None, **texture: float) -> None:
        """Draws a flat polygon in the world."""
        self.polygon([self.project(point) for point in points], colour, name, **texture)

    def board(self, x: float, z: float, points: Iterable[Point], colour: Paint, name: str, **texture: float) -> None:
        """Draws a polygon that faces the camera; its points are in metres, relative to (x, z) on the ground."""
        self.face([(x + dx, dy, z) for dx, dy in points], colour, name, **texture)

    def disc(self, x: float, y: float, z: float, radii: Point, colour: Paint, name: str, **texture: float) -> None:
        points = [(x + radii[0] * across, y + radii[1] * up, z) for across, up in CIRCLE]
        self.face(points, colour, name, **texture)

    def bar(self, start: Point3, end: Point3, thickness: float, colour: Paint, name: str) -> None:
        """Draws a straight bar of `thickness` metres, at least one pixel wide."""
        width = max(1, round(self.pixels(thickness, (start[2] + end[2]) / 2)))
        self._fill(
            [self.project(start), self.project(end)],
            lambda draw, line: draw.line(line, fill=1, width=width),
            colour,
            name,
            margin=width,
        )

    def polygon(self, points: list[Point], colour: Paint, name: str | None, **texture: float) -> None:
        self._fill(points, lambda draw, corners: draw.polygon(corners, fill=1), colour, name, **texture)

    def _fill(
        self,
        points: list[Point],
        stroke: Callable,
        colour: Paint,
        name: str | None,
        margin: int = 0,
        grain: float = 0.04,
        patches: float = 0.06,
        leaves: float = 0.0,
        ragged: bool = False,
        opacity: float = 1.0,
    ) -> None:
        """Draws a shape in all maps. `name` None keeps the class below; `ragged` cuts holes into the shape."""
        corners = np.array(points)
        left, top = np.floor(corners.min(0)).astype(int) - margin
        right, bottom = np.ceil(corners.max(0)).astype(int) + margin + 1
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, self.width), min(bottom, self.height)
        if left >= right or top >= bottom:
            return
        stencil = PIL.Image.new("L", (right - left, bottom - top))
        stroke(PIL.ImageDraw.Draw(stencil), [tuple(corner) for corner in corners - (left, top)])
        window = np.s_[top:bottom, left:right]
        mask = np.asarray(stencil) > 0
        if ragged:
            mask &= self.leaves[window] > -0.9
        fields = ((grain, self.grain), (patches, self.patches), (leaves, self.leaves))
        brightness = sum(strength * field[window][mask] for strength, field in fields if strength) + np.float32(1)
        painted = brightness[:, None] * np.asarray(colour, np.float32)
        pixels = self.image[window]
        pixels[mask] = painted if opacity == 1 else opacity * painted + (1 - opacity) * pixels[mask]
        if name is not None:
            self.classes[window][mask] = SCENE_CLASSES.index(name)
            self.objects[window][mask] = self.object

    def photograph(self) -> np.ndarray:
        """The image with the effects of a camera: exposure, tint, a darker rim, a little blur, sensor noise."""
        rows, columns = np.ogrid[-1 : 1 : self.height * 1j, -1 : 1 : self.width * 1j]
        rim = 1 - 0.15 * (rows**2 + columns**2) / 2
        tint = self.rng.uniform(0.75, 1.15) * self.rng.uniform(0.94, 1.06, 3)
        exposed = (self.image * rim[..., None] * tint).clip(0, 255).astype(np.uint8)
        blurred = PIL.Image.fromarray(exposed).filter(PIL.ImageFilter.GaussianBlur(self.height / 600))
        noise = self.rng.standard_normal(self.image.shape, np.float32) * self.rng.uniform(2, 5)
        return (np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8)


def _shade(colour: Paint, factor: float) -> Paint:
    return tuple(channel * factor for channel in colour)


def _pick(rng: np.random.Generator, colours: tuple[Paint, ...]) -> Paint:
    """One of the colours with a small random variation."""
    return tuple(np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.8, 1.15) + rng.uniform(-8, 8, 3))


def _draw_sky(canvas: _Canvas) -> None:
    cover = canvas.patches * 0.5 + canvas.noise(canvas.height / 4) + canvas.rng.uniform(-1, 1.5)
    clouds = cover.clip(0, 1)[..., None]
    height = (np.arange(canvas.height, dtype=np.float32) / canvas.horizon).clip(0, 1)[:, None, None]
    blue = np.array([110, 155, 215]) * (1 - height) + np.array([195, 210, 230]) * height
    canvas.image[:] = blue * (1 - clouds) + canvas.rng.uniform(150, 240) * clouds
    canvas.classes[:] = SCENE_CLASSES.index("sky")


def _draw_ground(canvas: _Canvas, street: _Street) -> None:
    stone = _pick(canvas.rng, ((150, 142, 132), (125, 120, 118), (165, 150, 140)))
    asphalt = _pick(canvas.rng, ((92, 92, 96), (75, 75, 80), (110, 107, 104)))
    _strip(canvas, -60, 60, stone, "pavement", grain=0.07)
    for side in (-1, 1):
        _paving_joints(canvas, street, side, _shade(stone, 0.8))
        _strip(canvas, street.kerb(side), street.kerb(side) + side * 0.2, _shade(stone, 1.2), "pavement")
    _strip(canvas, street.left, street.right, asphalt, "road", grain=0.09, patches=0.08)
    _draw_markings(canvas, street)


def _strip(canvas: _Canvas, left: float, right: float, colour: Paint, name: str, **texture: float) -> None:
    """Draws a band of ground along the whole street."""
    _patch(canvas, left, right, 1.0, 400.0, colour, name, **texture)


def _patch(
    canvas: _Canvas,
    left: float,
    right: float,
    near: float,
    far: float,
    colour: Paint,
    name: str | None,
    **texture: float,
) -> None:
    """Draws a rectangle of ground."""
    canvas.face([(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)], colour, name, **texture)


def _paving_joints(canvas: _Canvas, street: _Street, side: int, colour: Paint) -> None:
    for z in np.geomspace(NEAREST, 30, 24):
        canvas.bar((street.kerb(side), 0, z), (street.facade(side), 0, z), 0.03, colour, "pavement")


def _draw_markings(canvas: _Canvas, street: _Street) -> None:
    white = _pick(canvas.rng, ((215, 215, 210), (190, 188, 180), (220, 205, 120)))
    middle = (street.left + street.right) / 2 + canvas.rng.uniform(-0.4, 0.4)
    for near in np.arange(canvas.rng.uniform(1, 4), 60, 5.0):
        _patch(canvas, middle - 0.07, middle + 0.07, near, near + 2.4, white, "lane marking", grain=0.08)
    for side in (-1, 1):
        if canvas.rng.random() < 0.5:
            edge = street.kerb(side) - side * 0.35
            _patch(canvas, edge - 0.06, edge + 0.06, 1, 200, white, "lane marking", grain=0.08)
    if canvas.rng.random() < 0.3:
        near = canvas.rng.uniform(6, 14)
        for x in np.arange(street.left + 0.5, street.right - 0.5, 1.0):
            _patch(canvas, x, x + 0.5, near, near + 3, white, "lane marking", grain=0.08)


def _draw_ground_shadow(canvas: _Canvas, street: _Street) -> None:
    """Draws the shadows of the houses on the sun's side on the ground; things in the street are drawn later."""
    reach = street.facade(street.sun_side) - street.sun_side * canvas.rng.uniform(2, 7)
    near = 1.0
    while near < 60:
        far = near + canvas.rng.uniform(4, 15)
        if canvas.rng.random() < 0.7:
            edge = street.facade(street.sun_side) + street.sun_side * -0.01
            _patch(canvas, edge, reach + canvas.rng.uniform(-1, 1), near, far, (20, 20, 30), None, opacity=street.sun)
        near = far


def _draw_roadside(canvas: _Canvas, street: _Street, side: int) -> None:
    """Draws houses, walls and gardens from the far end towards the camera."""
    lots, near = [], canvas.rng.uniform(1.2, NEAREST)
    while near < FARTHEST:
        far = near + canvas.rng.uniform(7, 18)
        lots.append((near, far))
        near = far
    leafy = canvas.rng.uniform(0.1, 0.6)
    _garden(canvas, street, side, FARTHEST, FARTHEST + 40)
    for near, far in reversed(lots):
        draw = _garden if canvas.rng.random() < leafy else _house
        draw(canvas, street, side, near, far)


def _house(canvas: _Canvas, street: _Street, side: int, near: float, far: float) -> None:
    x = street.facade(side) + side * canvas.rng.uniform(0, 0.8)
    storeys = int(canvas.rng.integers(2, 5))
    height = storeys * 3.0 + canvas.rng.uniform(0.3, 1.5)
    colour = _pick(canvas.rng, FACADES)
    light = 1 - street.sun if side == street.sun_side else 1 + 0.3 * street.sun
    front, side_wall = _shade(colour, light), _shade(colour, light * 0.75)
    back = x + side * 8
    end_wall = [(x, 0, near), (back, 0, near), (back, height, near), (x, height, near)]
    canvas.face(end_wall, side_wall, "building", grain=0.07)
    canvas.face([(x, 0, near), (x, 0, far), (x, height, far), (x, height, near)], front, "building", grain=0.08)
    if canvas.rng.random() < 0.5:
        ridge, top = x + side * 4, height + 2.5
        canvas.face([(x, height, near), (ridge, top, near), (back, height, near)], side_wall, "building", grain=0.07)
        tiles = _pick(canvas.rng, ((85, 60, 55), (70, 72, 80)))
        roof = [(x, height, near), (x, height, far), (ridge, top, far), (ridge, top, near)]
        canvas.face(roof, tiles, "building", grain=0.1)
    canvas.face(
        [(x, height, near), (x, height, far), (x, height - 0.25, far), (x, height - 0.25, near)],
        _shade(front, 0.7),
        "building",
    )
    _windows(canvas, x, near, far, storeys, front)


def _windows(canvas: _Canvas, x: float, near: float, far: float, storeys: int, wall: Paint) -> None:
    pitch, glass = canvas.rng.uniform(2.0, 3.2), _pick(canvas.rng, (GLASS, (90, 105, 120), (35, 38, 45)))
    tall = canvas.rng.uniform(1.1, 1.7)
    frame = _shade(wall, 1.3 if canvas.rng.random() < 0.6 else 0.6)
    for z in np.arange(near + 0.8, far - 1.2, pitch):
        seen_from, seen_to = canvas.project((x, 0, z))[0], canvas.project((x, 0, z + 1.1))[0]
        if abs(seen_to - seen_from) < SMALLEST_WINDOW:
            return
        for storey in range(storeys):
            low = storey * 3.0 + (0.05 if storey == 0 and canvas.rng.random() < 0.3 else 0.9)
            _pane(canvas, x, z - 0.12, z + 1.22, low - 0.12, storey * 3.0 + 1.02 + tall, frame)
            _pane(canvas, x, z, z + 1.1, low, storey * 3.0 + 0.9 + tall, _shade(glass, canvas.rng.uniform(0.7, 1.4)))


def _pane(canvas: _Canvas, x: float, near: float, far: float, low: float, high: float, colour: Paint) -> None:
    canvas.face([(x, low, near), (x, low, far), (x, high, far), (x, high, near)], colour, "building")


def _garden(canvas: _Canvas, street: _Street, side: int, near: float, far: float) -> None:
    x = street.facade(side)
    green = _pick(canvas.rng, ((80, 105, 55), (70, 85, 50)))
    hedge = canvas.rng.uniform(0.8, 1.8)
    for z in sorted(canvas.rng.uniform(near, far, 3), reverse=True):
        _tree(canvas, x + side * canvas.rng.uniform(2, 6), z, canvas.rng.uniform(5, 10))
    front, name = (green, "vegetation") if canvas.rng.random() < 0.6 else ((150, 110, 90), "wall")
    back = x + side * 30
    leaves = 0.3 if name == "vegetation" else 0.0
    end = [(x, 0, near), (back, 0, near), (back, hedge, near), (x, hedge, near)]
    canvas.face(end, _shade(front, 0.8), name, leaves=leaves)
    canvas.face([(x, 0, near), (x, 0, far), (x, hedge, far), (x, hedge, near)], front, name, leaves=leaves)


def _things(rng: np.random.Generator, street: _Street, scarce: str) -> list[tuple[float, Callable[[_Canvas], None]]]:
    """The things in the street, as (distance, function that draws it)."""
    counts = {
        "tree": rng.integers(0, 4),
        "pole": rng.integers(1, 5),
        "sign": rng.integers(0, 4),
        "traffic light": rng.integers(0, 2),
        "fence": rng.integers(0, 3),
        "car": rng.integers(1, 6),
        "bus": rng.integers(0, 5) // 4,
        "pedestrian": rng.integers(0, 7),
        "bicyclist": rng.integers(0, 3),
        "bin": rng.integers(0, 2),
    }
    names = [name for name, count in counts.items() for _ in range(count)]
    things = [_thing(rng, street, name, rng.uniform(6, 12) * 4 ** rng.random()) for name in names]
    return [*things, _thing(rng, street, scarce, rng.uniform(6, 9))]


def _thing(rng: np.random.Generator, street: _Street, name: str, z: float) -> tuple[float, Callable[[_Canvas], None]]:
    side = int(rng.choice([-1, 1]))
    # Things on the pavement must be visible: the camera sees at least 0.4 z metres to each side.
    on_pavement = street.kerb(side) + side * rng.uniform(0.3, street.pavement - 0.6)
    on_road = rng.uniform(street.left + 1.2, street.right - 1.2)
    z = max(z, 2.4 * abs(on_pavement)) if name not in ("car", "bus", "bicyclist") else z
    match name:
        case "tree":
            return z, partial(_tree, x=on_pavement, z=z, height=rng.uniform(4, 8))
        case "pole":
            return z, partial(_lamp_post, x=street.kerb(side) + side * 0.4, z=z, side=side)
        case "sign":
            return z, partial(_sign, x=street.kerb(side) + side * 0.5, z=z)
        case "traffic light":
            return z, partial(_traffic_light, x=street.kerb(side) + side * 0.4, z=z)
        case "fence":
            return z, partial(_fence, x=street.kerb(side) + side * 0.35, near=z, far=z + rng.uniform(4, 10))
        case "car":
            parked = rng.random() < 0.5
            x = street.kerb(side) - side * 1.0 if parked else on_road
            z = max(z, 2.0 * abs(x))
            length, height = rng.uniform(3.6, 4.6), rng.uniform(1.35, 1.9)
            return z, partial(_vehicle, x=x, z=z, length=length, height=height, name="car")
        case "bus":
            z += 6
            return z, partial(_vehicle, x=on_road, z=z, length=8.0, height=rng.uniform(2.6, 3.6), name="bus")
        case "pedestrian":
            x = on_road if rng.random() < 0.15 else on_pavement
            return z, partial(_pedestrian, x=x, z=z, height=rng.uniform(1.2, 1.85))
        case "bicyclist":
            return z, partial(_bicyclist, x=rng.uniform(street.left + 0.6, street.right - 0.6), z=z)
        case "bin":
            return z, partial(_bin, x=on_pavement, z=z)
    raise ValueError(f"unknown thing {name!r}")


def _contact_shadow(canvas: _Canvas, x: float, z: float, width: float) -> None:
    """Darkens the ground below a thing; the ground keeps its class."""
    _patch(canvas, x - width, x + width, z - 0.15, z + 0.3, (20, 20, 25), None, opacity=0.5)


def _tree(canvas: _Canvas, x: float, z: float, height: float) -> None:
    rng = canvas.rng
    canvas.bar((x, 0, z), (x + rng.uniform(-0.3, 0.3), height * 0.6, z), 0.3, (75, 60, 45), "tree")
    green = _pick(rng, ((75, 100, 45), (95, 110, 50), (50, 75, 40), (120, 105, 50)))
    for _ in range(14):
        dx, dy = rng.normal(0, height * 0.13), rng.uniform(0.45, 0.95) * height
        radius = height * rng.uniform(0.1, 0.2)
        lit = _shade(green, rng.uniform(0.6, 1.0) + 0.3 * (dy / height - 0.5))
        canvas.disc(x + dx, dy, z, (radius, radius * 0.8), lit, "tree", leaves=0.3, ragged=True)


def _lamp_post(canvas: _Canvas, x: float, z: float, side: int) -> None:
    colour, height = _pick(canvas.rng, ((95, 95, 98), (60, 70, 65), (150, 150, 150))), canvas.rng.uniform(4.5, 7.5)
    _contact_shadow(canvas, x, z, 0.12)
    canvas.bar((x, 0, z), (x, height, z), 0.14, colour, "pole")
    if canvas.rng.random() < 0.7:
        canvas.bar((x, height, z), (x - side * 1.4, height + 0.2, z), 0.1, colour, "pole")
        canvas.bar((x - side * 1.1, height + 0.15, z), (x - side * 1.6, height + 0.2, z), 0.2, (190, 190, 185), "pole")


def _sign(canvas: _Canvas, x: float, z: float) -> None:
    height, radius = canvas.rng.uniform(2.2, 2.8), canvas.rng.uniform(0.35, 0.5)
    canvas.bar((x, 0, z), (x, height, z), 0.09, (120, 122, 125), "pole")
    match canvas.rng.integers(3):
        case 0:
            canvas.disc(x, height, z, (radius, radius), (190, 30, 35), "sign")
            canvas.disc(x, height, z, (radius * 0.7, radius * 0.7), (230, 230, 225), "sign")
            canvas.board(x, z, _box(-radius / 2, height - 0.08, radius / 2, height + 0.08), (40, 40, 45), "sign")
        case 1:
            for size, colour in ((1.15, (190, 30, 35)), (0.7, (230, 230, 225))):
                r = radius * size
                points = [(-r, height - r * 0.7), (r, height - r * 0.7), (0, height + r)]
                canvas.board(x, z, points, colour, "sign")
        case _:
            wide = radius * canvas.rng.uniform(1, 2)
            plate = _pick(canvas.rng, ((30, 70, 160), (35, 110, 60), (225, 200, 60)))
            canvas.board(x, z, _box(-wide, height - 0.5, wide, height + 0.5), plate, "sign")
            for row in (-0.2, 0.15):
                stripe = _box(-wide * 0.7, height + row, wide * 0.7, height + row + 0.12)
                canvas.board(x, z, stripe, (235, 235, 235), "sign")


def _traffic_light(canvas: _Canvas, x: float, z: float) -> None:
    canvas.bar((x, 0, z), (x, 2.4, z), 0.12, (70, 72, 75), "pole")
    canvas.board(x, z, _box(-0.22, 2.2, 0.22, 3.2), (30, 32, 34), "traffic light")
    shining = canvas.rng.integers(3)
    for lamp, colour in enumerate(((60, 220, 110), (240, 180, 50), (240, 50, 40))):
        shown = colour if lamp == shining else _shade(colour, 0.3)
        canvas.disc(x, 2.4 + 0.3 * lamp, z, (0.12, 0.12), shown, "traffic light")


def _fence(canvas: _Canvas, x: float, near: float, far: float) -> None:
    height, colour = canvas.rng.uniform(0.9, 1.4), _pick(canvas.rng, ((60, 65, 70), (120, 90, 60), (165, 168, 170)))
    solid = canvas.rng.random() < 0.4
    panel = [(x, 0.05, near), (x, 0.05, far), (x, height, far), (x, height, near)]
    # The background is visible between the bars, but the whole panel counts as fence.
    canvas.face(panel, colour, "fence", opacity=0.95 if solid else 0.25)
    bar = _shade(colour, 0.7)
    for z in np.arange(near, far, 0.3 if solid else 0.2):
        canvas.bar((x, 0, z), (x, height, z), 0.04, bar, "fence")
    for y in (0.15, height):
        canvas.bar((x, y, near), (x, y, far), 0.07, bar, "fence")


def _vehicle(canvas: _Canvas, x: float, z: float, length: float, height: float, name: str) -> None:
    """Draws a box with a narrower cabin, from its far end to the near end; the upper half of the sides is glass."""
    paint, half = _pick(canvas.rng, PAINTS), 0.85 if name == "car" else 1.2
    waist, roof = (0.58 * height, 0.75 * half) if height < 1.7 else (0.5 * height, 0.95 * half)
    outline = [(-half, 0.25), (-half, waist), (-roof, height), (roof, height), (half, waist), (half, 0.25)]
    far = z + length
    _patch(canvas, x - half * 1.1, x + half * 1.1, z - 0.2, far, (18, 18, 22), None, opacity=0.7)
    canvas.board(x, far, outline, _shade(paint, 0.6), name)
    for (x0, y0), (x1, y1) in pairwise(outline):
        roof_side, glass_side = y0 == y1, waist in (y0, y1) and height in (y0, y1)
        colour = _shade(paint, 1.15) if roof_side else GLASS if glass_side else _shade(paint, 0.75)
        canvas.face([(x + x0, y0, z), (x + x1, y1, z), (x + x1, y1, far), (x + x0, y0, far)], colour, name)
    _side_wheels(canvas, x - half if x > 0 else x + half, z, length, name)
    canvas.board(x, z, outline, paint, name)
    _vehicle_front(canvas, x, z, half, roof, waist, height, name)


def _side_wheels(canvas: _Canvas, x: float, z: float, length: float, name: str) -> None:
    for middle in (z + 0.2 * length, z + 0.8 * length):
        for radius, colour in ((0.33, TYRE), (0.18, (120, 120, 122))):
            circle = [(x, 0.33 + radius * up, middle + radius * along) for along, up in CIRCLE]
            canvas.face(circle, colour, name)


def _vehicle_front(canvas: _Canvas, x: float, z: float, half: float, roof: float, waist: float, height: float, name: str) -> None:
    for side in (-1, 1):
        canvas.board(x, z, _box(side * (half - 0.28), 0, side * (half - 0.02), 0.35), TYRE, name)
    sill, top = (half * 0.86, waist + 0.04), (roof * 0.88, height - 0.1)
    screen = [(-sill[0], sill[1]), (-top[0], top[1]), top, sill]
    canvas.board(x, z, screen, GLASS, name, patches=0.25)
    lamp = (205, 40, 35) if canvas.rng.random() < 0.6 else (240, 240, 220)
    for side in (-1, 1):
        canvas.board(x, z, _box(side * half * 0.65, waist - 0.25, side * half * 0.95, waist - 0.08), lamp, name)
    canvas.board(x, z, _box(-0.26, 0.38, 0.26, 0.5), (235, 225, 150), name)
    canvas.board(x, z, _box(-half, 0.25, half, 0.36), (40, 40, 42), name)


def _pedestrian(canvas: _Canvas, x: float, z: float, height: float) -> None:
    rng, unit = canvas.rng, height / 1.8
    coat, trousers = _pick(rng, CLOTHES), _pick(rng, CLOTHES)
    stride = rng.uniform(0.02, 0.28) * unit
    _contact_shadow(canvas, x, z, 0.25 * unit)
    for foot in (-stride, stride):
        leg = [(-0.1 * unit, 0.9 * unit), (0.1 * unit, 0.9 * unit), (foot + 0.07 * unit, 0), (foot - 0.07 * unit, 0)]
        canvas.board(x, z, leg, trousers, "pedestrian")
    for arm in (-1, 1):
        hand = arm * rng.uniform(0.22, 0.38) * unit
        shoulder, sleeve = (x + arm * 0.2 * unit, 1.4 * unit, z), _shade(coat, 0.85)
        canvas.bar(shoulder, (x + hand, 0.85 * unit, z), 0.1, sleeve, "pedestrian")
    body = ((-0.22, 1.48), (0.22, 1.48), (0.17, 0.8), (-0.17, 0.8))
    canvas.board(x, z, [(dx * unit, dy * unit) for dx, dy in body], coat, "pedestrian")
    _head(canvas, x, 1.63 * unit, z, 0.13 * unit, "pedestrian")


def _head(canvas: _Canvas, x: float, y: float, z: float, radius: float, name: str) -> None:
    hair = _pick(canvas.rng, ((45, 32, 25), (110, 80, 50)))
    canvas.disc(x, y + radius * 0.25, z, (radius, radius * 1.2), hair, name)
    canvas.disc(x, y - radius * 0.1, z, (radius * 0.8, radius), SKIN, name)


def _bicyclist(canvas: _Canvas, x: float, z: float) -> None:
    """Draws a bicyclist in an oblique view: the wheels are ellipses, `spread` to each side of the rider."""
    rng, metal = canvas.rng, _pick(canvas.rng, PAINTS)
    spread, ahead = rng.uniform(0.2, 0.55), int(rng.choice([-1, 1]))
    _contact_shadow(canvas, x, z, spread + 0.2)
    for wheel in (-spread, spread):
        canvas.disc(x + wheel, 0.34, z, (0.1 + 0.4 * spread, 0.34), TYRE, "bicyclist")
        canvas.disc(x + wheel, 0.34, z, (0.06 + 0.38 * spread, 0.28), (125, 125, 125), "bicyclist", grain=0.15)
    saddle, handlebar = (x - ahead * spread * 0.4, 0.95, z), (x + ahead * spread * 0.8, 1.05, z)
    for start, end in (((x - spread, 0.34, z), saddle), ((x + spread, 0.34, z), handlebar), (saddle, handlebar)):
        canvas.bar(start, end, 0.06, metal, "bicyclist")
    coat, trousers = _pick(rng, CLOTHES), _pick(rng, CLOTHES)
    shoulder = (x + ahead * spread * 0.3, 1.5, z)
    for foot in (0.2, 0.42):
        knee = (x + ahead * spread * 0.5, 0.75, z)
        canvas.bar(saddle, knee, 0.16, trousers, "bicyclist")
        canvas.bar(knee, (x + (foot - 0.3) * spread, foot, z), 0.12, trousers, "bicyclist")
    canvas.bar(saddle, shoulder, 0.36, coat, "bicyclist")
    canvas.bar(shoulder, handlebar, 0.1, _shade(coat, 0.8), "bicyclist")
    _head(canvas, x + ahead * spread * 0.4, 1.68, z, 0.13, "bicyclist")


def _bin(canvas: _Canvas, x: float, z: float) -> None:
    colour = _pick(canvas.rng, ((40, 60, 45), (50, 50, 55)))
    _contact_shadow(canvas, x, z, 0.3)
    canvas.board(x, z, [(-0.25, 0), (0.25, 0), (0.3, 1.0), (-0.3, 1.0)], colour, "void")
    canvas.board(x, z, _box(-0.33, 1.0, 0.33, 1.1), _shade(colour, 0.7), "void")


def _draw_bonnet(canvas: _Canvas) -> None:
    """Draws the bonnet of the camera's own car at the lower edge of the image."""
    top, width, height = canvas.rng.uniform(0.9, 0.96), canvas.width, canvas.height
    points = [(0, height), (0, height * (top + 0.03)), (width * 0.3, height * top), (width * 0.7, height * top)]
    points += [(width, height * (top + 0.03)), (width, height)]
    canvas.polygon(points, _pick(canvas.rng, PAINTS), "void")


def _box(left: float, low: float, right: float, high: float) -> list[Point]:
    return [(left, low), (right, low), (right, high), (left, high)]
