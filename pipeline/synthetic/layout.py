"""Random layouts of the small ray-traced world: which shapes stand where, and the camera that looks at them.

World axes in metres: x right, y up. The ground is y = 0, and the camera is above the origin and looks along -z. The
first object is the subject: the camera looks roughly at it, and the other objects are placed so as to appear smaller.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from pipeline.synthetic.materials import Lens, Light, Material, Rng, Sky
from pipeline.synthetic.shapes import Floats, Frustum, Plane, Shape, Sphere, Torus, box, pyramid, stone
from pipeline.synthetic.textures import Look

BACKGROUND = -1
"""The class id of the ground, walls and stones."""


@dataclasses.dataclass(frozen=True)
class Primitive:
    """A shape in the world: the columns of `rotation` (3, 3) are its axes, `center` (3,) is in metres."""

    shape: Shape
    rotation: Floats
    center: Floats
    class_id: int
    material: Material

    @property
    def radius(self) -> float:
        """Radius of a sphere around the shape in metres; infinite for a plane."""
        return float(np.linalg.norm(self.shape.half_extents))


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole at `position` (3,); the columns of `rotation` are right, up, backward; `focal` is in image widths."""

    position: Floats
    rotation: Floats
    focal: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene to render. `primitives` are in order: the ground, walls, the subject, other solids."""

    camera: Camera
    primitives: tuple[Primitive, ...]
    light: Light
    sky: Sky
    lens: Lens


def rotation_matrix(yaw: float, tilt: float = 0.0) -> Floats:
    """Return the rotation (3, 3) that tilts the y axis towards +x by `tilt`, then turns by `yaw` about y; radians."""
    cy, sy, ct, st = np.cos(yaw), np.sin(yaw), np.cos(tilt), np.sin(tilt)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[ct, st, 0], [-st, ct, 0], [0, 0, 1]])
    return (about_y @ about_z).astype(np.float32)


def _sideways_yaw(rng: Rng) -> float:
    """Sample a yaw that turns a tilted axis across the view rather than along it, so that its length shows."""
    return float(rng.uniform(-0.9, 0.9) + (np.pi if rng.random() < 0.5 else 0))


def _box(size: float, rng: Rng) -> tuple[Shape, Floats]:
    x, y, z = size / 2 * rng.uniform(0.55, 1.0, 3)
    return box(x, y, z), rotation_matrix(rng.uniform(0, np.pi))


def _cone(size: float, rng: Rng) -> tuple[Shape, Floats]:
    """Sample a cone, upright or lying on its side."""
    radius, height = size * rng.uniform(0.32, 0.48), size * rng.uniform(0.85, 1.2)
    tilt = np.pi / 2 + np.arctan(radius / height) if rng.random() < 0.3 else 0.0
    return Frustum(radius, 0.0, height), rotation_matrix(_sideways_yaw(rng), tilt)


def _cylinder(size: float, rng: Rng) -> tuple[Shape, Floats]:
    """Sample a cylinder, upright or lying."""
    radius = size * rng.uniform(0.22, 0.42)
    tilt = np.pi / 2 if rng.random() < 0.35 else 0.0
    return Frustum(radius, radius, size * rng.uniform(0.75, 1.1)), rotation_matrix(_sideways_yaw(rng), tilt)


def _pyramid(size: float, rng: Rng) -> tuple[Shape, Floats]:
    shape = pyramid(size * rng.uniform(0.38, 0.52), size * rng.uniform(0.65, 1.05))
    return shape, rotation_matrix(rng.uniform(0, np.pi))


def _sphere(size: float, rng: Rng) -> tuple[Shape, Floats]:
    return Sphere(0.45 * size), rotation_matrix(rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.2))


def _torus(size: float, rng: Rng) -> tuple[Shape, Floats]:
    """Sample a ring whose hole is turned to the camera: edge on, it would look like a rod."""
    ring = 0.36 * size
    facing = -np.pi / 2 + rng.uniform(-0.8, 0.8)
    return Torus(ring, ring * rng.uniform(0.26, 0.46)), rotation_matrix(facing, rng.uniform(0.5, np.pi / 2))


SHAPE_SAMPLERS: dict[str, Callable[[float, Rng], tuple[Shape, Floats]]] = {
    "box": _box,
    "cone": _cone,
    "cylinder": _cylinder,
    "pyramid": _pyramid,
    "sphere": _sphere,
    "torus": _torus,
}
CLASSES = tuple(SHAPE_SAMPLERS)


def sample_scene(look: Look, rng: Rng) -> Scene:
    """Sample a whole scene. The order of the draws is part of what a seed means."""
    subject = _sample_object(look, rng, rng.uniform(0.45, 1.0))
    camera, subject = _aim_camera(subject, rng)
    solids = [subject]
    for _ in range(rng.choice(6, p=(0.17, 0.23, 0.23, 0.17, 0.12, 0.08))):
        _place(solids, _sample_object(look, rng, rng.uniform(0.35, 0.9)), camera, rng)
    for _ in range(rng.integers(0, 5)):
        _place(solids, _sample_stone(look, rng), camera, rng)
    walls = _sample_walls(look, camera, solids, rng)
    material = Material.sample(look, rng, rng.uniform(0.8, 2.5), ground=True)
    ground = Primitive(Plane(), rotation_matrix(rng.uniform(0, 6)), np.zeros(3, np.float32), BACKGROUND, material)
    light = Light.sample(look, rng, [wall.rotation[:, 1] for wall in walls])
    return Scene(camera, (ground, *walls, *solids), light, Sky.sample(look, rng), Lens.sample(look, rng))


def _sample_object(look: Look, rng: Rng, size: float) -> Primitive:
    """Sample an object of any class, about `size` metres large, resting on the ground at the origin."""
    class_id = int(rng.integers(len(CLASSES)))
    shape, rotation = SHAPE_SAMPLERS[CLASSES[class_id]](size, rng)
    return _rest_on_ground(shape, rotation, class_id, Material.sample(look, rng, size * rng.uniform(0.5, 1.2)))


def _sample_stone(look: Look, rng: Rng) -> Primitive:
    size = rng.uniform(0.05, 0.16)
    material = Material.sample(look, rng, size * 3)
    return _rest_on_ground(stone(size, rng), rotation_matrix(rng.uniform(0, 6)), BACKGROUND, material)


def _rest_on_ground(shape: Shape, rotation: Floats, class_id: int, material: Material) -> Primitive:
    height = shape.support(-rotation[1])
    return Primitive(shape, rotation, np.array([0, height, 0], np.float32), class_id, material)


def _aim_camera(subject: Primitive, rng: Rng) -> tuple[Camera, Primitive]:
    """Return a camera, and the subject moved to fill a third to two thirds of the picture's width."""
    focal, elevation = rng.uniform(0.9, 1.5), rng.uniform(0.12, 0.62)
    distance = 2 * subject.radius * focal / rng.uniform(0.42, 0.85)
    aside, above = rng.uniform(-0.2, 0.2), rng.uniform(-0.12, 0.12)
    shift = [distance * aside / focal, 0, -distance * np.cos(elevation)]
    subject = dataclasses.replace(subject, center=subject.center + np.array(shift, np.float32))
    position = np.array([0, subject.center[1] + distance * np.sin(elevation), 0], np.float32)
    rotation = _camera_rotation(elevation + np.arctan(above / focal), rng.uniform(-0.07, 0.07))
    return Camera(position, rotation, focal), subject


def _camera_rotation(down: float, roll: float) -> Floats:
    """Return the axes (3, 3) of a camera that looks down by the angle `down` and rolls about its line of sight."""
    back = np.array([0, np.sin(down), np.cos(down)])
    up = np.array([0, np.cos(down), -np.sin(down)])
    right = np.array([1.0, 0, 0])
    axes = [np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right, back]
    return np.stack(axes, axis=1).astype(np.float32)


def _place(solids: list[Primitive], solid: Primitive, camera: Camera, rng: Rng) -> None:
    """Append `solid` at a free spot in view where it appears smaller than the subject, unless 8 tries find none."""
    subject = solids[0]
    depth = -float(subject.center[2])
    for _ in range(8):
        distance = depth * rng.uniform(0.7, 2.6)
        center = np.array([distance * rng.uniform(-0.5, 0.5) / camera.focal, solid.center[1], -distance], np.float32)
        small = solid.radius / distance < 0.75 * subject.radius / depth
        clear = (np.hypot(*(center - other.center)[::2]) > 0.95 * (solid.radius + other.radius) for other in solids)
        if small and all(clear):
            solids.append(dataclasses.replace(solid, center=center))
            return


def _sample_walls(look: Look, camera: Camera, solids: list[Primitive], rng: Rng) -> list[Primitive]:
    """Sample no wall (so that sky shows), one, or a corner of two: behind all solids, facing the camera."""
    count = int(rng.choice(3, p=(0.4, 0.35, 0.25) if look == "studio" else (0.5, 0.3, 0.2)))
    yaw = rng.uniform(-0.5, 0.5)
    yaws = [yaw + np.pi / 4, yaw - np.pi / 4] if count == 2 else [yaw] * count
    return [_sample_wall(look, angle, camera, solids, rng) for angle in yaws]


def _sample_wall(look: Look, yaw: float, camera: Camera, solids: list[Primitive], rng: Rng) -> Primitive:
    """Sample a wall a little behind the last solid; its normal is +z turned by `yaw`."""
    rotation = rotation_matrix(yaw - np.pi / 2, np.pi / 2)
    normal = rotation[:, 1]
    nearest = min(float(normal @ solid.center) - solid.radius for solid in solids)
    offset = min(nearest, float(normal @ camera.position)) - rng.uniform(0.05, 1.5)
    material = Material.sample(look, rng, rng.uniform(0.8, 2.5))
    return Primitive(Plane(), rotation, normal * np.float32(offset), BACKGROUND, material)
