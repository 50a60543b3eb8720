"""The generated world: scenes of simple solids, photographed, with the exact truth of every pixel.

Each scene is a few solids of six classes on a ground, before walls or a sky, with small stones for clutter, under a
sun that casts shadows. A pinhole camera looks at it and one ray per pixel centre gives the truth: which object, how
far along the optical axis, facing where. The picture is shaded from the same rays; where neighbouring rays met
different surfaces, four more rays per pixel smooth the edge. Scene `index` depends on (seed, look, index) alone: the
same scene can be had at any size.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.layout import BACKGROUND, CLASSES, Camera, Scene, Thing, compose
from pipeline.synthetic.materials import Lens
from pipeline.synthetic.shapes import Floats, Plane
from pipeline.synthetic.textures import LOOKS, SIDE, Bank, Look, bank

__all__ = ["CLASSES", "VERSION", "Rendered", "SceneKey", "generator", "pixel_centres", "render", "shade", "trace"]

VERSION = 1
"""Changes whenever the same scene would come out differently."""
FAR = 20.0
"""Metres along the optical axis beyond which all is lost in the haze: sky."""
CLEAR = 11.0
"""Metres at which the haze begins."""
FILL = np.float32(0.12)
"""Light from the camera's own direction, so that faces in the shade still differ."""
NUDGE = np.float32(2e-3)
GROUND = 0
"""The place of the ground in `scene.things`."""
CORNERS = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), np.float32).reshape(3, 8)
GRID = np.array([[-0.375, 0.125], [-0.125, -0.375], [0.375, -0.125], [0.125, 0.375]], np.float32)
"""Where in a pixel the smoothing rays go: no two in one row or column."""

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class SceneKey:
    """Which scene, and how many pixels it is wide and high."""

    seed: int
    look: Look
    size: int
    index: int


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A picture and the truth at its pixel centres; H = W = the size asked for.

    `image` (H, W, 3) uint8. `instances` (H, W) int32: which object, -1 where none is. `kinds` (N,) int32: the class of
    each object, an index into CLASSES. `depth` (H, W) float32 metres along the optical axis, 0 for sky. `normals`
    (H, W, 3) float32, x right, y up, z towards the camera, zero for sky.
    """

    image: NDArray[np.uint8]
    instances: Ints
    kinds: Ints
    depth: Floats
    normals: Floats


@dataclasses.dataclass(frozen=True)
class Hits:
    """Where N rays meet the scene: `way` (3, N), their world directions for one metre of depth; `thing` (N,), the
    place in `scene.things` or -1 for sky; `depth` (N,) in metres, infinite for sky."""

    way: Floats
    thing: Ints
    depth: Floats


@dataclasses.dataclass(frozen=True)
class Surface:
    """What the rays see there: world `point` and unit `normal` (3, N), own colour `albedo` (3, N), `shine` (N,)."""

    point: Floats
    normal: Floats
    albedo: Floats
    shine: Floats


def render(key: SceneKey) -> Rendered:
    """Photograph scene `key`. Raises ConfigError if scikit-image is missing."""
    rng = generator(key)
    scene, textures, size = compose(key.look, rng), bank(key.look), key.size
    hits = trace(scene, pixel_centres(size), size)
    surface = examine(scene, hits, textures, size)
    light, lit = shade(scene, hits, surface, textures)
    edges = _edges(hits.thing, surface.normal, lit, size)
    light[:, edges] = _smooth(scene, edges, textures, size)
    image = photograph(light.T.reshape(size, size, 3), scene.lens, rng)
    return Rendered(image, *_truth(scene, hits, surface.normal, size))


def generator(key: SceneKey) -> np.random.Generator:
    """The random numbers that a scene is drawn with, and after it the camera's noise; the size is not in them."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([key.seed, LOOKS.index(key.look), key.index])))


def pixel_centres(size: int) -> Floats:
    """x and y (2, size * size) of the centres of all pixels, row by row; the first is (0.5, 0.5)."""
    y, x = np.divmod(np.arange(size * size, dtype=np.float32), np.float32(size))
    return np.stack([x, y]) + np.float32(0.5)


def trace(scene: Scene, pixels: Floats, size: int) -> Hits:
    """Send a ray through each point `pixels` (2, N) of a picture `size` pixels wide, and keep the nearest meeting."""
    camera = scene.camera
    across, down = (pixels - np.float32(size / 2)) * np.float32(1 / (camera.focal * size))
    rays = np.stack([across, -down, np.full_like(across, -1)])
    thing, depth = np.full(len(across), -1, np.int32), np.full(len(across), np.float32(FAR))
    for number, solid in enumerate(scene.things):
        among = _window(camera, solid, pixels, size)
        origin = solid.rotation.T @ (camera.place - solid.centre)
        t = solid.shape.hit(origin[:, None], (solid.rotation.T @ camera.rotation) @ rays[:, among])
        nearer = t < depth[among]
        depth[among[nearer]], thing[among[nearer]] = t[nearer], number
    return Hits(camera.rotation @ rays, thing, depth)


def _window(camera: Camera, thing: Thing, pixels: Floats, size: int) -> NDArray[np.intp]:
    """Which of `pixels` lie within the picture of the upright box around `thing`: nothing else can meet it."""
    if isinstance(thing.shape, Plane):
        return np.arange(pixels.shape[1])
    corners = thing.rotation @ (CORNERS * np.array(thing.shape.half, np.float32)[:, None])
    x, y, z = camera.rotation.T @ (corners + (thing.centre - camera.place)[:, None])
    scale = camera.focal * size / np.maximum(-z, np.float32(0.01))
    x, y = size / 2 + x * scale, size / 2 - y * scale
    inside = (pixels[0] >= x.min()) & (pixels[0] <= x.max()) & (pixels[1] >= y.min()) & (pixels[1] <= y.max())
    return np.flatnonzero(inside)


def examine(scene: Scene, hits: Hits, textures: Bank, size: int) -> Surface:
    """Work out the surface at every hit; zeros for sky."""
    point = scene.camera.place[:, None] + hits.way * hits.depth
    normal, uv = np.zeros_like(point), np.zeros_like(point[:2])
    for number, solid in enumerate(scene.things):
        here = np.flatnonzero(hits.thing == number)
        if len(here):
            local = solid.rotation.T @ (point[:, here] - solid.centre[:, None])
            facing = solid.shape.normal(local)
            normal[:, here] = solid.rotation @ facing
            uv[:, here] = solid.shape.uv(local, facing)
    albedo, shine = _paint(scene, hits, uv, _footprint(scene.camera, hits, normal, size), textures)
    return Surface(point, normal, albedo, shine)


def _paint(scene: Scene, hits: Hits, uv: Floats, width: Floats, textures: Bank) -> tuple[Floats, Floats]:
    """Own colour (3, N) and shine (N,) at `uv` (2, N) metres on the surfaces, for pixels `width` (N,) metres wide."""
    paints, row = [thing.material for thing in scene.things], np.maximum(hits.thing, 0)
    tile = np.array([paint.tile for paint in paints], np.float32)[row]
    number = np.array([paint.texture for paint in paints], np.int32)[row]
    texture = textures.look_up(number, uv / tile, width * SIDE / tile)
    low = np.stack([paint.low for paint in paints], axis=1)[:, row]
    high = np.stack([paint.high for paint in paints], axis=1)[:, row]
    shine = np.array([paint.shine for paint in paints], np.float32)[row]
    return low + (high - low) * texture, shine


def _footprint(camera: Camera, hits: Hits, normal: Floats, size: int) -> Floats:
    """Width in metres (N,) of a pixel on the surface: the geometric mean of its sides; a slant stretches one."""
    slant = np.maximum(np.abs(_dot(hits.way, normal)) / np.sqrt(_dot(hits.way, hits.way)), np.float32(0.05))
    width: Floats = hits.depth / np.float32(camera.focal * size) / np.sqrt(slant)
    return width


def shade(scene: Scene, hits: Hits, surface: Surface, textures: Bank) -> tuple[Floats, Bools]:
    """Linear light (3, N) that reaches the camera, and whether the sun reaches the surface (N,)."""
    light, normal = scene.light, surface.normal
    view = -hits.way / np.sqrt(_dot(hits.way, hits.way))
    facing = _dot(normal, light.toward[:, None])
    lit = (hits.thing >= 0) & (facing > 0)
    lit[lit] = ~_shadowed(scene, surface.point[:, lit] + NUDGE * normal[:, lit])
    even = light.bounce[:, None] + (light.sky - light.bounce)[:, None] * (0.5 + 0.5 * normal[1])
    even = (even + FILL * np.maximum(_dot(normal, view), 0)) * _openness(scene, hits, surface.point)
    half = view + light.toward[:, None]
    gloss = surface.shine * _power_32(_dot(normal, half).clip(0) / np.sqrt(_dot(half, half)))
    sunlight = light.sun[:, None] * lit
    colour = surface.albedo * (even + sunlight * facing) + sunlight * gloss
    far = np.flatnonzero(hits.depth > CLEAR)
    haze = np.square((hits.depth[far] - CLEAR) / (FAR - CLEAR))
    colour[:, far] += (_sky(scene, hits.way[:, far], textures) - colour[:, far]) * haze
    return colour, lit


def _shadowed(scene: Scene, point: Floats) -> Bools:
    """Whether a solid stands between each point (3, N) and the sun. Planes cast no shadow."""
    toward = scene.light.toward[:, None]
    dark = np.zeros(point.shape[1], np.bool_)
    for solid in scene.things:
        if not isinstance(solid.shape, Plane):
            offset = solid.centre[:, None] - point
            along = _dot(offset, toward)
            reach = solid.radius**2
            near = np.flatnonzero((along > -solid.radius) & (_dot(offset, offset) - along * along < reach) & ~dark)
            t = solid.shape.hit(-(solid.rotation.T @ offset[:, near]), solid.rotation.T @ toward)
            dark[near] = np.isfinite(t)
    return dark


def _openness(scene: Scene, hits: Hits, point: Floats) -> Floats:
    """How much of the sky the ground sees (N,): less around the feet of things. Not physics, but it seats them."""
    share = np.ones_like(hits.depth)
    ground = np.flatnonzero(hits.thing == GROUND)
    x, _, z = point[:, ground]
    for solid in scene.things:
        if not isinstance(solid.shape, Plane):
            reach = np.float32((0.8 * solid.centre[1]) ** 2)
            gap = ((x - solid.centre[0]) ** 2 + (z - solid.centre[2]) ** 2) / reach
            share[ground] *= 1 - np.float32(0.7) / (1 + gap * gap)
    return share


def _sky(scene: Scene, way: Floats, textures: Bank) -> Floats:
    """The sky's colour (3, N) in the directions `way`: the horizon's at and below it, clouds from a blurred texture."""
    sky = scene.sky
    height = (way[1] / np.sqrt(_dot(way, way))).clip(0)
    clear = sky.horizon[:, None] + (sky.zenith - sky.horizon)[:, None] * np.sqrt(height)
    texture, blurred = np.full(len(height), sky.texture, np.int32), np.full(len(height), 6, np.float32)
    cloud = textures.look_up(texture, way[::2] / (height + np.float32(0.25)) * np.float32(0.3), blurred)
    cover = np.float32(sky.clouds) * np.minimum(height * 5, 1)
    clouded: Floats = clear + (cloud - clear) * cover
    return clouded


def _edges(thing: Ints, normal: Floats, lit: Bools, size: int) -> NDArray[np.intp]:
    """Pixels beside a change: of the thing, of the way it faces by over 25 degrees, or from sun to shadow."""
    bend = normal.reshape(3, size, size)
    fingerprint = (2 * thing + lit).reshape(size, size)
    rows = (fingerprint[1:] != fingerprint[:-1]) | (_dot(bend[:, 1:], bend[:, :-1]) < 0.9)
    columns = (fingerprint[:, 1:] != fingerprint[:, :-1]) | (_dot(bend[:, :, 1:], bend[:, :, :-1]) < 0.9)
    edge = np.zeros((size, size), np.bool_)
    edge[1:], edge[:-1] = edge[1:] | rows, edge[:-1] | rows
    edge[:, 1:], edge[:, :-1] = edge[:, 1:] | columns, edge[:, :-1] | columns
    return np.flatnonzero(edge)


def _smooth(scene: Scene, edges: NDArray[np.intp], textures: Bank, size: int) -> Floats:
    """The mean light (3, E) of four rays through each pixel of `edges`."""
    middle = pixel_centres(size)[:, edges]
    pixels = (middle[:, :, None] + GRID.T[:, None, :]).reshape(2, -1)
    hits = trace(scene, pixels, size)
    light, _ = shade(scene, hits, examine(scene, hits, textures, size), textures)
    mean: Floats = light.reshape(3, -1, len(GRID)).mean(axis=2)
    return mean


def photograph(light: Floats, lens: Lens, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Linear light (S, S, 3) as the camera stores it, uint8: exposed, displayed with gamma 2, blurred and noisy."""
    size = len(light)
    corner = np.square(np.linspace(-1, 1, size, dtype=np.float32))
    fall = 1 - np.float32(lens.vignette / 2) * (corner[:, None] + corner)
    shown = np.sqrt(light * (fall[:, :, None] * lens.cast))
    shown *= np.float32(lens.exposure) / shown.mean()
    shown = np.float32(0.5) + (shown - np.float32(0.5)) * np.float32(lens.contrast)
    shown = _blur(shown, lens.blur * size / 128)
    shown += rng.standard_normal(shown.shape, np.float32) * np.float32(lens.noise / 255)
    return (shown.clip(0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def _blur(image: Floats, sigma: float) -> Floats:
    """Gaussian blur along both axes, the border repeated."""
    reach = int(np.ceil(2 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        padded = np.pad(image, [(reach, reach) if axis == a else (0, 0) for a in range(3)], mode="edge")
        shifts = [
            padded[i : i + len(image)] if axis == 0 else padded[:, i : i + len(image)] for i in range(2 * reach + 1)
        ]
        image = sum((w * s for w, s in zip(weights[1:], shifts[1:], strict=True)), weights[0] * shifts[0])
    return image


def _truth(scene: Scene, hits: Hits, normal: Floats, size: int) -> tuple[Ints, Ints, Floats, Floats]:
    """instances, kinds, depth, normals of Rendered."""
    numbers = np.array([n for n, thing in enumerate(scene.things) if thing.kind != BACKGROUND])
    kinds = np.array([scene.things[n].kind for n in numbers], np.int32)
    names = np.full(len(scene.things) + 1, -1, np.int32)
    names[numbers] = np.arange(len(numbers))
    depth = np.where(hits.thing >= 0, hits.depth, np.float32(0)).reshape(size, size)
    normals = np.ascontiguousarray((scene.camera.rotation.T @ normal).T).reshape(size, size, 3)
    return names[hits.thing].reshape(size, size), kinds, depth, normals


def _power_32(x: Floats) -> Floats:
    for _ in range(5):
        x = x * x
    return x


def _dot(a: Floats, b: Floats) -> Floats:
    product: Floats = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return product
