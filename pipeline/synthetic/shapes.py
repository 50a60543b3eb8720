"""Solid shapes of the small ray-traced world that `render` generates, with their exact intersections with rays.

Everything is in the shape's own axes, in metres: the center at the origin, y along the axis of symmetry. Vectors are
float32 arrays (3, N), one column per ray or point.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""Always float32; declared wider because NumPy's types widen float32 times a Python float."""

CORNERS = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), np.float32).reshape(3, 8)
T_MIN = np.float32(1e-3)
"""Smallest ray parameter that counts as a hit, so that a surface does not hit itself."""
ROUNDS, STEPS = 12, 6
"""Sphere tracing of a torus: rounds, after each of which finished rays are dropped, and steps in a round."""
TOLERANCE_M = 2e-5
QUIET = np.errstate(divide="ignore", invalid="ignore")
"""Rays that miss or run along a face give infinities and NaN, which every comparison below turns into a miss."""


class Shape(Protocol):
    """A solid, or the infinite plane."""

    @property
    def half_extents(self) -> tuple[float, float, float]:
        """Half the edges of the axis-aligned bounding box."""

    def intersect(self, origin: Floats, direction: Floats) -> Floats:
        """Return the smallest t > 0.001 (N,) at which origin + t * direction enters the shape, infinity for a miss.

        `origin` and `direction` are (3, N) or (3, 1); `direction` need not be of unit length.
        """

    def normal(self, point: Floats) -> Floats:
        """Return outward unit normals (3, N) at surface points (3, N)."""

    def uv(self, point: Floats, normal: Floats) -> Floats:
        """Return texture coordinates (2, N) in metres along the surface."""

    def support(self, direction: Floats) -> float:
        """Return how far the shape reaches from its center in the unit `direction` (3,), in metres."""


def dot(a: Floats, b: Floats) -> Floats:
    """Return the dot products (N,) of the columns of two arrays (3, N)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _nearest(*candidates: Floats) -> Floats:
    """Return the smallest of the candidates above T_MIN, or infinity."""
    best: Floats = np.full(candidates[0].shape, np.inf, np.float32)
    for t in candidates:
        best = np.where((t > T_MIN) & (t < best), t, best)
    return best


def _roots(a: Floats, b: Floats, c: Floats) -> tuple[Floats, Floats]:
    """Solve a t^2 + 2 b t + c = 0; NaN where there is no solution. The second root is c/q to avoid cancellation."""
    q = -(b + np.copysign(np.sqrt(b * b - a * c), b))
    return q / a, c / q


@dataclasses.dataclass(frozen=True)
class Plane:
    """The plane y = 0, facing +y: ground and walls."""

    @property
    def half_extents(self) -> tuple[float, float, float]:
        return (np.inf, 0.0, np.inf)

    @QUIET
    def intersect(self, origin: Floats, direction: Floats) -> Floats:
        return _nearest(np.where(direction[1] < 0, -origin[1] / direction[1], np.float32(np.inf)))

    def normal(self, point: Floats) -> Floats:
        up = np.zeros_like(point)
        up[1] = 1
        return up

    def uv(self, point: Floats, normal: Floats) -> Floats:
        return point[::2]

    def support(self, direction: Floats) -> float:
        return 0.0


@dataclasses.dataclass(frozen=True)
class Sphere:
    """A ball."""

    radius: float

    @property
    def half_extents(self) -> tuple[float, float, float]:
        return (self.radius,) * 3

    @QUIET
    def intersect(self, origin: Floats, direction: Floats) -> Floats:
        a, b, c = dot(direction, direction), dot(origin, direction), dot(origin, origin) - self.radius**2
        return _nearest(*_roots(a, b, c))

    def normal(self, point: Floats) -> Floats:
        return point / np.sqrt(dot(point, point))

    def uv(self, point: Floats, normal: Floats) -> Floats:
        latitude = np.arcsin(np.clip(normal[1], -1, 1))
        return self.radius * np.stack([np.arctan2(normal[0], normal[2]), latitude])

    def support(self, direction: Floats) -> float:
        return self.radius


@dataclasses.dataclass(frozen=True)
class Frustum:
    """A cylinder (equal radii) or a cone (`top` is 0) from y = -height/2, of radius `bottom`, to y = height/2."""

    bottom: float
    top: float
    height: float

    @property
    def half_extents(self) -> tuple[float, float, float]:
        return (self.bottom, self.height / 2, self.bottom)

    @property
    def _slope(self) -> float:
        return (self.top - self.bottom) / self.height

    def _radius(self, y: Floats) -> Floats:
        return (self.bottom + self.top) / 2 + self._slope * y

    @QUIET
    def intersect(self, origin: Floats, direction: Floats) -> Floats:
        return _nearest(*self._sides(origin, direction), *self._caps(origin, direction))

    def _sides(self, origin: Floats, direction: Floats) -> list[Floats]:
        """Solve x^2 + z^2 = r(y)^2; infinity for a root outside the height."""
        r, dr = self._radius(origin[1]), self._slope * direction[1]
        a = direction[0] ** 2 + direction[2] ** 2 - dr * dr
        b = origin[0] * direction[0] + origin[2] * direction[2] - r * dr
        c = origin[0] ** 2 + origin[2] ** 2 - r * r
        roots = _roots(a, b, c)
        return [np.where(np.abs(origin[1] + t * direction[1]) <= self.height / 2, t, np.inf) for t in roots]

    def _caps(self, origin: Floats, direction: Floats) -> list[Floats]:
        caps = []
        for y, radius in ((-self.height / 2, self.bottom), (self.height / 2, self.top)):
            if radius:
                t = (y - origin[1]) / direction[1]
                x, z = origin[0] + t * direction[0], origin[2] + t * direction[2]
                caps.append(np.where(x * x + z * z <= radius**2, t, np.inf))
        return caps

    def _on_cap(self, point: Floats) -> NDArray[np.bool_]:
        """Return True for points (3, N) that are nearer to the plane of a cap than to the side."""
        side = np.abs(np.hypot(point[0], point[2]) - self._radius(point[1])) / np.hypot(1, self._slope)
        cap = np.abs(point[1] + self.height / 2)
        if self.top:
            cap = np.minimum(cap, np.abs(point[1] - self.height / 2))
        return cap < side

    def normal(self, point: Floats) -> Floats:
        around = np.maximum(np.hypot(point[0], point[2]), np.float32(1e-9))
        side = np.stack([point[0] / around, np.full_like(around, -self._slope), point[2] / around])
        side /= np.float32(np.hypot(1, self._slope))
        cap = np.zeros_like(point)
        cap[1] = np.sign(point[1])
        return np.where(self._on_cap(point), cap, side)

    def uv(self, point: Floats, normal: Floats) -> Floats:
        side = np.stack([np.arctan2(point[0], point[2]) * self.bottom, point[1]])
        return np.where(np.abs(normal[1]) > 0.999, point[::2], side)

    def support(self, direction: Floats) -> float:
        flat = float(np.hypot(direction[0], direction[2]))
        y = float(direction[1]) * self.height / 2
        return max(self.bottom * flat - y, self.top * flat + y)


@dataclasses.dataclass(frozen=True)
class Torus:
    """A ring around the y axis: `ring` is the major radius, `tube` the minor one."""

    ring: float
    tube: float

    @property
    def half_extents(self) -> tuple[float, float, float]:
        return (self.ring + self.tube, self.tube, self.ring + self.tube)

    def _distance(self, point: Floats) -> Floats:
        off = np.sqrt(point[0] ** 2 + point[2] ** 2) - self.ring
        return np.sqrt(off * off + point[1] ** 2) - self.tube

    @QUIET
    def intersect(self, origin: Floats, direction: Floats) -> Floats:
        """Step along the rays by the distance to the surface (sphere tracing, Hart 1996), to within 0.00002 m.

        Most rays arrive in the first round; later rounds have only the rays that pass close by.
        """
        origin, direction = np.broadcast_arrays(origin, direction)
        hit = np.full(direction.shape[1], np.inf, np.float32)
        enter, leave = self._bounds(origin, direction)
        rays = np.flatnonzero((leave > T_MIN) & (enter < leave))
        t, leave, origin, direction = np.maximum(enter, T_MIN)[rays], leave[rays], origin[:, rays], direction[:, rays]
        speed = np.sqrt(dot(direction, direction))
        for _ in range(ROUNDS):
            for _ in range(STEPS):
                distance = self._distance(origin + t * direction)
                t = t + distance / speed
            arrived = distance < TOLERANCE_M
            hit[rays[arrived]] = t[arrived]
            active = np.flatnonzero(~arrived & (t < leave))
            if not len(active):
                break
            rays, t, leave, speed = rays[active], t[active], leave[active], speed[active]
            origin, direction = origin[:, active], direction[:, active]
        return hit

    def _bounds(self, origin: Floats, direction: Floats) -> tuple[Floats, Floats]:
        """Return t where each ray enters and leaves the sphere and the slab around the ring."""
        outer = self.ring + self.tube
        a, b, c = dot(direction, direction), dot(origin, direction), dot(origin, origin) - outer**2
        root = np.sqrt(b * b - a * c)
        one, two = (-self.tube - origin[1]) / direction[1], (self.tube - origin[1]) / direction[1]
        return np.maximum((-b - root) / a, np.minimum(one, two)), np.minimum((root - b) / a, np.maximum(one, two))

    def normal(self, point: Floats) -> Floats:
        pull = 1 - self.ring / np.hypot(point[0], point[2])
        out = np.stack([point[0] * pull, point[1], point[2] * pull])
        return out / np.sqrt(dot(out, out))

    def uv(self, point: Floats, normal: Floats) -> Floats:
        off = np.hypot(point[0], point[2]) - self.ring
        return np.stack([np.arctan2(point[0], point[2]) * self.ring, np.arctan2(point[1], off) * self.tube])

    def support(self, direction: Floats) -> float:
        return self.ring * float(np.hypot(direction[0], direction[2])) + self.tube


class Polyhedron:
    """A convex solid: the points x with normals @ x <= offsets, for unit `normals` (F, 3) and `offsets` (F,)."""

    def __init__(self, normals: Floats, offsets: Floats, corners: Floats) -> None:
        self.normals, self.offsets = normals.astype(np.float32), offsets.astype(np.float32)
        self.corners = corners.astype(np.float32)
        up = np.where(np.abs(self.normals[:, 1:2]) > 0.9, [[0, 0, 1]], [[0, 1, 0]])
        u_axes = np.cross(up, self.normals)
        self._u_axes = (u_axes / np.linalg.norm(u_axes, axis=1, keepdims=True)).astype(np.float32)
        self._v_axes = np.cross(self.normals, self._u_axes).astype(np.float32)
        self._radius = np.float32(np.linalg.norm(self.corners, axis=1).max())

    @property
    def half_extents(self) -> tuple[float, float, float]:
        x, y, z = np.abs(self.corners).max(axis=0).tolist()
        return (x, y, z)

    def intersect(self, origin: Floats, direction: Floats) -> Floats:
        """Clip the rays by every face; a ray enters the solid at the last face that it enters through."""
        distance = self.offsets[:, None] - self.normals @ origin
        speed = self.normals @ direction
        speed = np.where(speed == 0, np.float32(-1e-12), speed)
        t = distance / speed
        enter = np.where(speed < 0, t, np.float32(-np.inf)).max(axis=0)
        leave = np.where(speed > 0, t, np.float32(np.inf)).min(axis=0)
        return np.where((enter <= leave) & (enter > T_MIN), enter, np.float32(np.inf))

    def _face(self, point: Floats) -> NDArray[np.intp]:
        return np.argmax(self.normals @ point - self.offsets[:, None], axis=0)

    def normal(self, point: Floats) -> Floats:
        return np.ascontiguousarray(self.normals[self._face(point)].T)

    def uv(self, point: Floats, normal: Floats) -> Floats:
        face = self._face(point)
        uv = np.stack([dot(self._u_axes[face].T, point), dot(self._v_axes[face].T, point)])
        return uv + self._radius  # textures are mirrored at zero, which this moves off every face

    def support(self, direction: Floats) -> float:
        return float((self.corners @ direction).max())


def box(x: float, y: float, z: float) -> Polyhedron:
    """Return an upright box with half extents x, y, z in metres."""
    normals = np.concatenate([np.eye(3), -np.eye(3)])
    return Polyhedron(normals, np.array([x, y, z] * 2), CORNERS.T * [x, y, z])


def pyramid(base: float, height: float) -> Polyhedron:
    """Return a pyramid with a square base of half edge `base` at y = -height/2 and its tip at y = height/2."""
    sides = np.array([[height, base, 0], [-height, base, 0], [0, base, height], [0, base, -height]])
    sides = sides / np.hypot(base, height)
    normals = np.concatenate([sides, [[0, -1, 0]]])
    offsets = np.array([base * height / 2 / np.hypot(base, height)] * 4 + [height / 2])
    base_corners = [[x * base, -height / 2, z * base] for x in (-1, 1) for z in (-1, 1)]
    return Polyhedron(normals, offsets, np.array([*base_corners, [0, height / 2, 0]]))


def stone(radius: float, rng: np.random.Generator) -> Polyhedron:
    """Return a random lump of nine faces, each tangent to a flattened sphere; stones are clutter of no class."""
    spread = np.arange(9) + 0.5
    heights, turns = 1 - 2 * spread / 9, np.pi * (1 + 5**0.5) * spread
    flat = np.sqrt(1 - heights**2)
    normals = np.stack([flat * np.cos(turns), heights, flat * np.sin(turns)], axis=1)
    normals += rng.normal(0, 0.2, normals.shape)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    offsets = radius * rng.uniform(0.6, 0.85, 9) * np.where(np.abs(normals[:, 1]) > 0.6, 0.7, 1)
    return Polyhedron(normals, offsets, _corners(normals, offsets))


def _corners(normals: NDArray[np.float64], offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the vertices (V, 3): points common to three faces and inside all others."""
    n = len(normals)
    triples = np.array([(i, j, k) for i in range(n) for j in range(i) for k in range(j)])
    systems = normals[triples]
    fine = np.abs(np.linalg.det(systems)) > 1e-3
    points = np.linalg.solve(systems[fine], offsets[triples[fine]][:, :, None])[:, :, 0]
    return points[(points @ normals.T <= offsets + 1e-9).all(axis=1)]
