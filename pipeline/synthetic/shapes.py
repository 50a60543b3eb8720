"""Solids of the generated world, each with its exact meeting point with a ray.

Everything here is in the solid's own axes: its centre at the origin, y along its axis of symmetry, metres. Vectors are
float32 arrays (3, N), one column per ray or point. A shape says where rays meet it (`hit`), and from a point on its
surface alone which way it faces there (`normal`) and where that is on its texture (`uv`, metres along the surface).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""float32, always; the type checker has numpy widen float32 times a Python float."""

NEAR = np.float32(1e-3)
ROUNDS, STEPS = 12, 6
TOUCH = 2e-5
QUIET = np.errstate(divide="ignore", invalid="ignore")
"""Rays that miss, or run along a face, divide by zero and take roots of negative numbers: infinities and NaN, which
no comparison lets through."""


class Shape(Protocol):
    """A solid, or the boundless plane."""

    @property
    def half(self) -> tuple[float, float, float]:
        """Half the edges of the smallest upright box around the solid."""

    def hit(self, origin: Floats, way: Floats) -> Floats:
        """The least t > 0.001 with origin + t way on the surface, seen from outside; infinite for a miss.

        `origin` and `way` are (3, N) or (3, 1), of any length; returns (N,).
        """

    def normal(self, point: Floats) -> Floats:
        """Outward unit normals (3, N) at surface points (3, N)."""

    def uv(self, point: Floats, normal: Floats) -> Floats:
        """Texture coordinates (2, N) in metres."""

    def drop(self, down: Floats) -> float:
        """How far the solid reaches from its centre in the unit direction `down` (3,)."""


def _dot(a: Floats, b: Floats) -> Floats:
    product: Floats = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return product


def _first(*candidates: Floats) -> Floats:
    """The least of the candidates that is ahead of the origin, or infinity."""
    best: Floats = np.full(candidates[0].shape, np.inf, np.float32)
    for t in candidates:
        best = np.where((t > NEAR) & (t < best), t, best)
    return best


def _roots(a: Floats, b: Floats, c: Floats) -> tuple[Floats, Floats]:
    """Both solutions of a t^2 + 2 b t + c = 0; NaN where there is none. No cancellation: c/q for the second."""
    q = -(b + np.copysign(np.sqrt(b * b - a * c), b))
    return q / a, c / q


@dataclasses.dataclass(frozen=True)
class Plane:
    """The plane y = 0, facing +y: ground and walls."""

    @property
    def half(self) -> tuple[float, float, float]:
        return (np.inf, 0.0, np.inf)

    @QUIET
    def hit(self, origin: Floats, way: Floats) -> Floats:
        return _first(np.where(way[1] < 0, -origin[1] / way[1], np.float32(np.inf)))

    def normal(self, point: Floats) -> Floats:
        up = np.zeros_like(point)
        up[1] = 1
        return up

    def uv(self, point: Floats, normal: Floats) -> Floats:
        return point[::2]

    def drop(self, down: Floats) -> float:
        return 0.0


@dataclasses.dataclass(frozen=True)
class Sphere:
    """A ball of this radius."""

    radius: float

    @property
    def half(self) -> tuple[float, float, float]:
        return (self.radius,) * 3

    @QUIET
    def hit(self, origin: Floats, way: Floats) -> Floats:
        return _first(*_roots(_dot(way, way), _dot(origin, way), _dot(origin, origin) - self.radius**2))

    def normal(self, point: Floats) -> Floats:
        return point / np.sqrt(_dot(point, point))

    def uv(self, point: Floats, normal: Floats) -> Floats:
        latitude = np.arcsin(np.clip(normal[1], -1, 1))
        return self.radius * np.stack([np.arctan2(normal[0], normal[2]), latitude])

    def drop(self, down: Floats) -> float:
        return self.radius


@dataclasses.dataclass(frozen=True)
class Frustum:
    """A cylinder (both radii alike) or a cone (`top` zero), from y = -height/2 to y = height/2."""

    bottom: float
    top: float
    height: float

    @property
    def half(self) -> tuple[float, float, float]:
        return (self.bottom, self.height / 2, self.bottom)

    @property
    def _slope(self) -> float:
        return (self.top - self.bottom) / self.height

    def _radius(self, y: Floats) -> Floats:
        return (self.bottom + self.top) / 2 + self._slope * y

    @QUIET
    def hit(self, origin: Floats, way: Floats) -> Floats:
        return _first(*self._sides(origin, way), *self._lids(origin, way))

    def _sides(self, origin: Floats, way: Floats) -> list[Floats]:
        """x^2 + z^2 = r(y)^2 within the height, for both roots."""
        r, dr = self._radius(origin[1]), self._slope * way[1]
        a = way[0] ** 2 + way[2] ** 2 - dr * dr
        b = origin[0] * way[0] + origin[2] * way[2] - r * dr
        c = origin[0] ** 2 + origin[2] ** 2 - r * r
        roots = _roots(a, b, c)
        return [np.where(np.abs(origin[1] + t * way[1]) <= self.height / 2, t, np.inf) for t in roots]

    def _lids(self, origin: Floats, way: Floats) -> list[Floats]:
        lids = []
        for y, radius in ((-self.height / 2, self.bottom), (self.height / 2, self.top)):
            if radius:
                t = (y - origin[1]) / way[1]
                x, z = origin[0] + t * way[0], origin[2] + t * way[2]
                lids.append(np.where(x * x + z * z <= radius**2, t, np.inf))
        return lids

    def _on_lid(self, point: Floats) -> NDArray[np.bool_]:
        """Whether the lids' planes are nearer than the side."""
        side = np.abs(np.hypot(point[0], point[2]) - self._radius(point[1])) / np.hypot(1, self._slope)
        lid = np.abs(point[1] + self.height / 2)
        if self.top:
            lid = np.minimum(lid, np.abs(point[1] - self.height / 2))
        on_lid: NDArray[np.bool_] = lid < side
        return on_lid

    def normal(self, point: Floats) -> Floats:
        around = np.maximum(np.hypot(point[0], point[2]), np.float32(1e-9))
        side = np.stack([point[0] / around, np.full_like(around, -self._slope), point[2] / around])
        side /= np.float32(np.hypot(1, self._slope))
        lid = np.zeros_like(point)
        lid[1] = np.sign(point[1])
        return np.where(self._on_lid(point), lid, side)

    def uv(self, point: Floats, normal: Floats) -> Floats:
        side = np.stack([np.arctan2(point[0], point[2]) * self.bottom, point[1]])
        return np.where(np.abs(normal[1]) > 0.999, point[::2], side)

    def drop(self, down: Floats) -> float:
        flat = float(np.hypot(down[0], down[2]))
        y = float(down[1]) * self.height / 2
        return max(self.bottom * flat - y, self.top * flat + y)


@dataclasses.dataclass(frozen=True)
class Torus:
    """A ring around the y axis: `ring` is the radius of its centre line, `tube` that of its thickness."""

    ring: float
    tube: float

    @property
    def half(self) -> tuple[float, float, float]:
        return (self.ring + self.tube, self.tube, self.ring + self.tube)

    def _distance(self, point: Floats) -> Floats:
        off = np.sqrt(point[0] ** 2 + point[2] ** 2) - self.ring
        distance: Floats = np.sqrt(off * off + point[1] ** 2) - self.tube
        return distance

    @QUIET
    def hit(self, origin: Floats, way: Floats) -> Floats:
        """Walks along the ray by the distance to the surface (Hart 1996, sphere tracing); exact to 0.00002 m.

        Most rays arrive in the first round; each later one has only the rays left over, that pass close by.
        """
        origin, way = np.broadcast_arrays(origin, way)
        found = np.full(way.shape[1], np.inf, np.float32)
        enter, leave = self._span(origin, way)
        rays = np.flatnonzero((leave > NEAR) & (enter < leave))
        t, leave, origin, way = np.maximum(enter, NEAR)[rays], leave[rays], origin[:, rays], way[:, rays]
        speed = np.sqrt(_dot(way, way))
        for _ in range(ROUNDS):
            for _ in range(STEPS):
                gap = self._distance(origin + t * way)
                t = t + gap / speed
            arrived = gap < TOUCH
            found[rays[arrived]] = t[arrived]
            going = np.flatnonzero(~arrived & (t < leave))
            if not len(going):
                break
            rays, t, leave, speed = rays[going], t[going], leave[going], speed[going]
            origin, way = origin[:, going], way[:, going]
        return found

    def _span(self, origin: Floats, way: Floats) -> tuple[Floats, Floats]:
        """Where each ray is inside both the sphere and the slab around the ring: t from, t to."""
        outer = self.ring + self.tube
        a, b, c = _dot(way, way), _dot(origin, way), _dot(origin, origin) - outer**2
        root = np.sqrt(b * b - a * c)
        one, two = (-self.tube - origin[1]) / way[1], (self.tube - origin[1]) / way[1]
        return np.maximum((-b - root) / a, np.minimum(one, two)), np.minimum((root - b) / a, np.maximum(one, two))

    def normal(self, point: Floats) -> Floats:
        pull = 1 - self.ring / np.hypot(point[0], point[2])
        out = np.stack([point[0] * pull, point[1], point[2] * pull])
        return out / np.sqrt(_dot(out, out))

    def uv(self, point: Floats, normal: Floats) -> Floats:
        off = np.hypot(point[0], point[2]) - self.ring
        return np.stack([np.arctan2(point[0], point[2]) * self.ring, np.arctan2(point[1], off) * self.tube])

    def drop(self, down: Floats) -> float:
        return self.ring * float(np.hypot(down[0], down[2])) + self.tube


class Polyhedron:
    """The convex solid within faces `normals` (F, 3) unit . x <= `offsets` (F,): boxes, pyramids, stones."""

    def __init__(self, normals: Floats, offsets: Floats, corners: Floats) -> None:
        self.normals, self.offsets = normals.astype(np.float32), offsets.astype(np.float32)
        self.corners = corners.astype(np.float32)
        up = np.where(np.abs(self.normals[:, 1:2]) > 0.9, [[0, 0, 1]], [[0, 1, 0]])
        across = np.cross(up, self.normals)
        self._across = (across / np.linalg.norm(across, axis=1, keepdims=True)).astype(np.float32)
        self._along = np.cross(self.normals, self._across).astype(np.float32)
        self._reach = np.float32(np.linalg.norm(self.corners, axis=1).max())

    @property
    def half(self) -> tuple[float, float, float]:
        x, y, z = np.abs(self.corners).max(axis=0).tolist()
        return (x, y, z)

    def hit(self, origin: Floats, way: Floats) -> Floats:
        """Clips the ray by every face: it enters where the last front face lets it in."""
        room = self.offsets[:, None] - self.normals @ origin
        speed = self.normals @ way
        speed = np.where(speed == 0, np.float32(-1e-12), speed)
        t = room / speed
        enter = np.where(speed < 0, t, np.float32(-np.inf)).max(axis=0)
        leave = np.where(speed > 0, t, np.float32(np.inf)).min(axis=0)
        hit: Floats = np.where((enter <= leave) & (enter > NEAR), enter, np.float32(np.inf))
        return hit

    def _face(self, point: Floats) -> NDArray[np.intp]:
        face: NDArray[np.intp] = np.argmax(self.normals @ point - self.offsets[:, None], axis=0)
        return face

    def normal(self, point: Floats) -> Floats:
        return np.ascontiguousarray(self.normals[self._face(point)].T)

    def uv(self, point: Floats, normal: Floats) -> Floats:
        face = self._face(point)
        uv = np.stack([_dot(self._across[face].T, point), _dot(self._along[face].T, point)])
        return uv + self._reach  # zero, where the texture is mirrored, outside every face

    def drop(self, down: Floats) -> float:
        return float((self.corners @ down).max())


def box(x: float, y: float, z: float) -> Polyhedron:
    """An upright box with half edges x, y, z."""
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
    normals = np.concatenate([np.eye(3), -np.eye(3)])
    return Polyhedron(normals, np.array([x, y, z] * 2), signs * [x, y, z])


def pyramid(base: float, height: float) -> Polyhedron:
    """A pyramid with a square base of half edge `base` at y = -height/2 and its tip at y = height/2."""
    sides = np.array([[height, base, 0], [-height, base, 0], [0, base, height], [0, base, -height]])
    sides = sides / np.hypot(base, height)
    normals = np.concatenate([sides, [[0, -1, 0]]])
    offsets = np.array([base * height / 2 / np.hypot(base, height)] * 4 + [height / 2])
    foot = [[x * base, -height / 2, z * base] for x in (-1, 1) for z in (-1, 1)]
    return Polyhedron(normals, offsets, np.array([*foot, [0, height / 2, 0]]))


def stone(radius: float, rng: np.random.Generator) -> Polyhedron:
    """An irregular lump of nine faces that each touch a flattened sphere: clutter that is of no class."""
    spread = np.arange(9) + 0.5
    heights, turns = 1 - 2 * spread / 9, np.pi * (1 + 5**0.5) * spread
    flat = np.sqrt(1 - heights**2)
    normals = np.stack([flat * np.cos(turns), heights, flat * np.sin(turns)], axis=1)
    normals += rng.normal(0, 0.2, normals.shape)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    offsets = radius * rng.uniform(0.6, 0.85, 9) * np.where(np.abs(normals[:, 1]) > 0.6, 0.7, 1)
    return Polyhedron(normals, offsets, _corners(normals, offsets))


def _corners(normals: NDArray[np.float64], offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """The meeting points of three faces that lie within all the others."""
    n = len(normals)
    triples = np.array([(i, j, k) for i in range(n) for j in range(i) for k in range(j)])
    systems = normals[triples]
    fine = np.abs(np.linalg.det(systems)) > 1e-3
    points = np.linalg.solve(systems[fine], offsets[triples[fine]][:, :, None])[:, :, 0]
    return points[(points @ normals.T <= offsets + 1e-9).all(axis=1)]
