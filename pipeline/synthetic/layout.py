"""What stands where in a generated scene, and the camera that sees it.

World axes in metres: x right, y up; the ground is y = 0 and the camera stands over the origin, looking along -z. The
first object is the subject: the camera looks roughly at it, and the other objects are made to appear smaller.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from pipeline.synthetic.materials import Lens, Light, Material, Sky, lens, light, material, sky
from pipeline.synthetic.shapes import Floats, Frustum, Plane, Shape, Sphere, Torus, box, pyramid, stone
from pipeline.synthetic.textures import Look

Rng = np.random.Generator

BACKGROUND = -1
"""The `kind` of all that is of no class: ground, walls and stones."""


@dataclasses.dataclass(frozen=True)
class Thing:
    """A shape in the world. The columns of `rotation` (3, 3) are its own axes; `kind` is a class id or BACKGROUND."""

    shape: Shape
    rotation: Floats
    centre: Floats
    kind: int
    material: Material

    @property
    def radius(self) -> float:
        """Of a sphere around the shape; infinite for a plane."""
        return float(np.linalg.norm(self.shape.half))


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole at `place` (3,). Columns of `rotation`: its axes right, up, backward. `focal` is in image widths."""

    place: Floats
    rotation: Floats
    focal: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """Of `things`, the ground comes first, then the walls, then the solids, the subject before the others."""

    camera: Camera
    things: tuple[Thing, ...]
    light: Light
    sky: Sky
    lens: Lens


def turn(yaw: float, tilt: float = 0.0) -> Floats:
    """Rotation (3, 3): the y axis is tilted towards +x by `tilt`, then everything is turned about y by `yaw`."""
    cy, sy, ct, st = np.cos(yaw), np.sin(yaw), np.cos(tilt), np.sin(tilt)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[ct, st, 0], [-st, ct, 0], [0, 0, 1]])
    turned: Floats = (about_y @ about_z).astype(np.float32)
    return turned


def _across(rng: Rng) -> float:
    """A yaw that brings a tilted axis across the view rather than along it, so that its length is seen."""
    return float(rng.uniform(-0.9, 0.9) + (np.pi if rng.random() < 0.5 else 0))


def _box(size: float, rng: Rng) -> tuple[Shape, Floats]:
    x, y, z = size / 2 * rng.uniform(0.55, 1.0, 3)
    return box(x, y, z), turn(rng.uniform(0, np.pi))


def _cone(size: float, rng: Rng) -> tuple[Shape, Floats]:
    """Standing, or lying on its side."""
    radius, height = size * rng.uniform(0.32, 0.48), size * rng.uniform(0.85, 1.2)
    tilt = np.pi / 2 + np.arctan(radius / height) if rng.random() < 0.3 else 0.0
    return Frustum(radius, 0.0, height), turn(_across(rng), tilt)


def _cylinder(size: float, rng: Rng) -> tuple[Shape, Floats]:
    """Standing or lying."""
    radius = size * rng.uniform(0.22, 0.42)
    tilt = np.pi / 2 if rng.random() < 0.35 else 0.0
    return Frustum(radius, radius, size * rng.uniform(0.75, 1.1)), turn(_across(rng), tilt)


def _pyramid(size: float, rng: Rng) -> tuple[Shape, Floats]:
    return pyramid(size * rng.uniform(0.38, 0.52), size * rng.uniform(0.65, 1.05)), turn(rng.uniform(0, np.pi))


def _sphere(size: float, rng: Rng) -> tuple[Shape, Floats]:
    return Sphere(0.45 * size), turn(rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.2))


def _torus(size: float, rng: Rng) -> tuple[Shape, Floats]:
    """Upright or leaning back, the hole turned to the camera: edge on, a ring looks like a rod."""
    ring = 0.36 * size
    facing = -np.pi / 2 + rng.uniform(-0.8, 0.8)
    return Torus(ring, ring * rng.uniform(0.26, 0.46)), turn(facing, rng.uniform(0.5, np.pi / 2))


MAKERS: dict[str, Callable[[float, Rng], tuple[Shape, Floats]]] = {
    "box": _box,
    "cone": _cone,
    "cylinder": _cylinder,
    "pyramid": _pyramid,
    "sphere": _sphere,
    "torus": _torus,
}
CLASSES = tuple(MAKERS)


def compose(look: Look, rng: Rng) -> Scene:
    """Draw a whole scene."""
    subject = _object(look, rng, rng.uniform(0.45, 1.0))
    camera, subject = _frame(subject, rng)
    solids = [subject]
    for _ in range(rng.choice(6, p=(0.17, 0.23, 0.23, 0.17, 0.12, 0.08))):
        _add(solids, _object(look, rng, rng.uniform(0.35, 0.9)), camera, rng)
    for _ in range(rng.integers(0, 5)):
        _add(solids, _clutter(look, rng), camera, rng)
    walls = _walls(look, camera, solids, rng)
    paint = material(look, rng, rng.uniform(0.8, 2.5), ground=True)
    ground = Thing(Plane(), turn(rng.uniform(0, 6)), np.zeros(3, np.float32), BACKGROUND, paint)
    sun = light(look, [wall.rotation[:, 1] for wall in walls], rng)
    return Scene(camera, (ground, *walls, *solids), sun, sky(look, rng), lens(look, rng))


def _object(look: Look, rng: Rng, size: float) -> Thing:
    """An object of any class, resting on the ground at the origin; about `size` metres large."""
    kind = int(rng.integers(len(CLASSES)))
    shape, rotation = MAKERS[CLASSES[kind]](size, rng)
    return _rest(shape, rotation, kind, material(look, rng, size * rng.uniform(0.5, 1.2)))


def _clutter(look: Look, rng: Rng) -> Thing:
    size = rng.uniform(0.05, 0.16)
    paint = material(look, rng, size * 3)
    return _rest(stone(size, rng), turn(rng.uniform(0, 6)), BACKGROUND, paint)


def _rest(shape: Shape, rotation: Floats, kind: int, paint: Material) -> Thing:
    height = shape.drop(-rotation[1])
    return Thing(shape, rotation, np.array([0, height, 0], np.float32), kind, paint)


def _frame(subject: Thing, rng: Rng) -> tuple[Camera, Thing]:
    """A camera that sees the subject on a third to two thirds of the picture's width; and the subject, put there."""
    focal, elevation = rng.uniform(0.9, 1.5), rng.uniform(0.12, 0.62)
    distance = 2 * subject.radius * focal / rng.uniform(0.42, 0.85)
    aside, above = rng.uniform(-0.2, 0.2), rng.uniform(-0.12, 0.12)
    shift = [distance * aside / focal, 0, -distance * np.cos(elevation)]
    subject = dataclasses.replace(subject, centre=subject.centre + np.array(shift, np.float32))
    place = np.array([0, subject.centre[1] + distance * np.sin(elevation), 0], np.float32)
    return Camera(place, _gaze(elevation + np.arctan(above / focal), rng.uniform(-0.07, 0.07)), focal), subject


def _gaze(down: float, roll: float) -> Floats:
    """The axes of a camera that looks `down` by this angle and is rolled about its line of sight."""
    back = np.array([0, np.sin(down), np.cos(down)])
    up = np.array([0, np.cos(down), -np.sin(down)])
    right = np.array([1.0, 0, 0])
    axes = [np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right, back]
    return np.stack(axes, axis=1).astype(np.float32)


def _add(solids: list[Thing], thing: Thing, camera: Camera, rng: Rng) -> None:
    """Put `thing` on a free place in view where it appears smaller than the subject; leave it out if none is found."""
    subject = solids[0]
    depth = -float(subject.centre[2])
    for _ in range(8):
        back = depth * rng.uniform(0.7, 2.6)
        place = np.array([back * rng.uniform(-0.5, 0.5) / camera.focal, thing.centre[1], -back], np.float32)
        small = thing.radius / back < 0.75 * subject.radius / depth
        if small and all(_apart(place, thing, other) for other in solids):
            solids.append(dataclasses.replace(thing, centre=place))
            return


def _apart(place: Floats, thing: Thing, other: Thing) -> bool:
    gap = np.hypot(*(place - other.centre)[::2])
    return bool(gap > 0.95 * (thing.radius + other.radius))


def _walls(look: Look, camera: Camera, solids: list[Thing], rng: Rng) -> list[Thing]:
    """No wall (sky), one wall, or a corner of two; behind everything, facing the camera."""
    count = int(rng.choice(3, p=(0.4, 0.35, 0.25) if look == "studio" else (0.5, 0.3, 0.2)))
    yaw = rng.uniform(-0.5, 0.5)
    yaws = [yaw + np.pi / 4, yaw - np.pi / 4] if count == 2 else [yaw] * count
    return [_wall(look, angle, camera, solids, rng) for angle in yaws]


def _wall(look: Look, yaw: float, camera: Camera, solids: list[Thing], rng: Rng) -> Thing:
    """A wall whose normal is +z turned by `yaw`, a little beyond the last of the solids."""
    rotation = turn(yaw - np.pi / 2, np.pi / 2)
    normal = rotation[:, 1]
    nearest = min(float(normal @ solid.centre) - solid.radius for solid in solids)
    offset = min(nearest, float(normal @ camera.place)) - rng.uniform(0.05, 1.5)
    paint = material(look, rng, rng.uniform(0.8, 2.5))
    return Thing(Plane(), rotation, normal * np.float32(offset), BACKGROUND, paint)
