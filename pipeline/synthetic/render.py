"""Ray tracer of a small generated world: pictures of simple solids, with exact labels for every pixel.

A scene has a few solids of six classes on a ground, in front of walls or a sky, with small stones as clutter, under a
sun that casts shadows. A pinhole camera looks at it. One ray per pixel center gives the labels: the object, the depth
along the optical axis and the normal. The picture is shaded from the same rays; at edges, four more rays per pixel
smooth it. Scene `index` depends on (seed, look, index) alone, so the same scene can be rendered at any size.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.layout import BACKGROUND, Camera, Primitive, Scene, sample_scene
from pipeline.synthetic.materials import Lens
from pipeline.synthetic.shapes import CORNERS, Floats, Plane, dot
from pipeline.synthetic.textures import LOOKS, SIDE, Ints, Look, TextureBank, load_textures

VERSION = 1
"""To be raised when the same scene comes out differently."""
FAR_M = 20.0
"""Depth along the optical axis beyond which haze hides everything and pixels count as sky."""
HAZE_START_M = 11.0
FILL_LIGHT = np.float32(0.12)
"""Light from the camera, so that faces in the shade still differ."""
SHADOW_BIAS_M = np.float32(2e-3)
"""Distance above the surface at which shadow rays start, so that a surface does not shade itself."""
GROUND = 0
"""Index of the ground in `scene.primitives`."""
SUBPIXELS = np.array([[-0.375, 0.125], [-0.125, -0.375], [0.375, -0.125], [0.125, 0.375]], np.float32)
"""Offsets (4, 2) of the antialiasing rays in a pixel (rotated grid: no two in one row or column)."""

Bools = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class SceneKey:
    """Identity of a scene, and `size`, the width and height of its picture in pixels."""

    seed: int
    look: Look
    size: int
    index: int


@dataclasses.dataclass(frozen=True)
class RenderedScene:
    """A picture, and the exact labels at its pixel centers; H = W = `SceneKey.size`."""

    image: NDArray[np.uint8]
    """(H, W, 3), RGB."""
    instances: Ints
    """(H, W) int32, the index of the visible object, -1 where there is none."""
    class_ids: Ints
    """(N,) int32, each object's class as an index into `layout.CLASSES`."""
    depth: Floats
    """(H, W) float32, metres along the optical axis, 0 for sky."""
    normals: Floats
    """(H, W, 3) float32 unit vectors: x right, y up, z towards the camera; zero for sky."""


@dataclasses.dataclass(frozen=True)
class RayHits:
    """First intersections of N rays with a scene."""

    direction: Floats
    """(3, N) in world axes, of the length that advances one metre of depth."""
    primitive: Ints
    """(N,) indices into `scene.primitives`, -1 for sky."""
    depth: Floats
    """(N,) metres, FAR_M for sky."""


@dataclasses.dataclass(frozen=True)
class Surface:
    """The surface at N hits: world `point` and unit `normal` (3, N), color `albedo` (3, N), `shine` (N,)."""

    point: Floats
    normal: Floats
    albedo: Floats
    shine: Floats


def render(key: SceneKey) -> RenderedScene:
    """Render scene `key`. Raises ConfigError if scikit-image is missing.

    Example:
        depth = render(SceneKey(seed=0, look="studio", size=128, index=7)).depth
    """
    rng = scene_rng(key)
    scene, textures, size = sample_scene(key.look, rng), load_textures(key.look), key.size
    hits = trace(scene, pixel_centers(size), size)
    surface = find_surfaces(scene, hits, textures, size)
    light, lit = shade(scene, hits, surface, textures)
    edges = _edges(hits.primitive, surface.normal, lit, size)
    light[:, edges] = _antialias(scene, edges, textures, size)
    image = apply_lens(light.T.reshape(size, size, 3), scene.lens, rng)
    return RenderedScene(image, *_labels(scene, hits, surface.normal, size))


def scene_rng(key: SceneKey) -> np.random.Generator:
    """Return the generator that samples the scene and then the camera's noise; it does not depend on the size."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([key.seed, LOOKS.index(key.look), key.index])))


def pixel_centers(size: int) -> Floats:
    """Return x and y (2, size * size) of all pixel centers, row by row; the first is (0.5, 0.5)."""
    y, x = np.divmod(np.arange(size * size, dtype=np.float32), np.float32(size))
    return np.stack([x, y]) + np.float32(0.5)


def trace(scene: Scene, pixels: Floats, size: int) -> RayHits:
    """Send a ray through each point `pixels` (2, N) of a picture `size` pixels wide, and keep the nearest hits."""
    camera = scene.camera
    across, down = (pixels - np.float32(size / 2)) * np.float32(1 / (camera.focal * size))
    rays = np.stack([across, -down, np.full_like(across, -1)])
    hit, depth = np.full(len(across), -1, np.int32), np.full(len(across), np.float32(FAR_M))
    for index, primitive in enumerate(scene.primitives):
        candidates = _in_bounding_box(camera, primitive, pixels, size)
        origin = primitive.rotation.T @ (camera.position - primitive.center)
        directions = (primitive.rotation.T @ camera.rotation) @ rays[:, candidates]
        t = primitive.shape.intersect(origin[:, None], directions)
        nearer = t < depth[candidates]
        depth[candidates[nearer]], hit[candidates[nearer]] = t[nearer], index
    return RayHits(camera.rotation @ rays, hit, depth)


def _in_bounding_box(camera: Camera, primitive: Primitive, pixels: Floats, size: int) -> NDArray[np.intp]:
    """Return the indices of `pixels` in the projected bounding box of a primitive: no other ray can hit it."""
    if isinstance(primitive.shape, Plane):
        return np.arange(pixels.shape[1])
    corners = primitive.rotation @ (CORNERS * np.array(primitive.shape.half_extents, np.float32)[:, None])
    x, y, z = camera.rotation.T @ (corners + (primitive.center - camera.position)[:, None])
    scale = camera.focal * size / np.maximum(-z, np.float32(0.01))
    x, y = size / 2 + x * scale, size / 2 - y * scale
    inside = (pixels[0] >= x.min()) & (pixels[0] <= x.max()) & (pixels[1] >= y.min()) & (pixels[1] <= y.max())
    return np.flatnonzero(inside)


def find_surfaces(scene: Scene, hits: RayHits, textures: TextureBank, size: int) -> Surface:
    """Return the surface at every hit; zeros for sky."""
    point = scene.camera.position[:, None] + hits.direction * hits.depth
    normal, uv = np.zeros_like(point), np.zeros_like(point[:2])
    for index, primitive in enumerate(scene.primitives):
        rays = np.flatnonzero(hits.primitive == index)
        if len(rays):
            local = primitive.rotation.T @ (point[:, rays] - primitive.center[:, None])
            local_normal = primitive.shape.normal(local)
            normal[:, rays] = primitive.rotation @ local_normal
            uv[:, rays] = primitive.shape.uv(local, local_normal)
    albedo, shine = _colors(scene, hits, uv, _footprint(scene.camera, hits, normal, size), textures)
    return Surface(point, normal, albedo, shine)


def _colors(scene: Scene, hits: RayHits, uv: Floats, width: Floats, textures: TextureBank) -> tuple[Floats, Floats]:
    """Return color (3, N) and shine (N,) at `uv` (2, N) metres on the surfaces, for pixels `width` (N,) metres wide."""
    materials, row = [primitive.material for primitive in scene.primitives], np.maximum(hits.primitive, 0)
    tile = np.array([material.tile for material in materials], np.float32)[row]
    texture = np.array([material.texture for material in materials], np.int32)[row]
    mix = textures.look_up(texture, uv / tile, width * SIDE / tile)
    low = np.stack([material.low for material in materials], axis=1)[:, row]
    high = np.stack([material.high for material in materials], axis=1)[:, row]
    shine = np.array([material.shine for material in materials], np.float32)[row]
    return low + (high - low) * mix, shine


def _footprint(camera: Camera, hits: RayHits, normal: Floats, size: int) -> Floats:
    """Return the width (N,) in metres of a pixel on the surface: the geometric mean, as slant stretches one side."""
    ray = hits.direction
    slant = np.maximum(np.abs(dot(ray, normal)) / np.sqrt(dot(ray, ray)), np.float32(0.05))
    return hits.depth / np.float32(camera.focal * size) / np.sqrt(slant)


def shade(scene: Scene, hits: RayHits, surface: Surface, textures: TextureBank) -> tuple[Floats, Bools]:
    """Return the linear light (3, N) that reaches the camera, and a mask (N,) of the hits that the sun lights."""
    light, normal = scene.light, surface.normal
    view = -hits.direction / np.sqrt(dot(hits.direction, hits.direction))
    facing = dot(normal, light.sun_direction[:, None])
    lit = (hits.primitive >= 0) & (facing > 0)
    lit[lit] = ~_in_shadow(scene, surface.point[:, lit] + SHADOW_BIAS_M * normal[:, lit])
    ambient = light.bounce[:, None] + (light.sky - light.bounce)[:, None] * (0.5 + 0.5 * normal[1])
    ambient = (ambient + FILL_LIGHT * np.maximum(dot(normal, view), 0)) * _ambient_occlusion(scene, hits, surface.point)
    half = view + light.sun_direction[:, None]
    specular = surface.shine * _power_32(dot(normal, half).clip(0) / np.sqrt(dot(half, half)))
    sunlight = light.sun[:, None] * lit
    color = surface.albedo * (ambient + sunlight * facing) + sunlight * specular
    far = np.flatnonzero(hits.depth > HAZE_START_M)
    haze = np.square((hits.depth[far] - HAZE_START_M) / (FAR_M - HAZE_START_M))
    color[:, far] += (_sky(scene, hits.direction[:, far], textures) - color[:, far]) * haze
    return color, lit


def _in_shadow(scene: Scene, point: Floats) -> Bools:
    """Return True (N,) for points (3, N) that a solid hides from the sun. Planes cast no shadow."""
    toward = scene.light.sun_direction[:, None]
    shadow = np.zeros(point.shape[1], np.bool_)
    for solid in scene.primitives:
        if not isinstance(solid.shape, Plane):
            offset = solid.center[:, None] - point
            along = dot(offset, toward)
            reach = solid.radius**2
            near = np.flatnonzero((along > -solid.radius) & (dot(offset, offset) - along * along < reach) & ~shadow)
            t = solid.shape.intersect(-(solid.rotation.T @ offset[:, near]), solid.rotation.T @ toward)
            shadow[near] = np.isfinite(t)
    return shadow


def _ambient_occlusion(scene: Scene, hits: RayHits, point: Floats) -> Floats:
    """Return the share (N,) of ambient light that the ground gets: less around solids. A rule of thumb, not physics."""
    share = np.ones_like(hits.depth)
    ground = np.flatnonzero(hits.primitive == GROUND)
    x, _, z = point[:, ground]
    for solid in scene.primitives:
        if not isinstance(solid.shape, Plane):
            reach = np.float32((0.8 * solid.center[1]) ** 2)
            gap = ((x - solid.center[0]) ** 2 + (z - solid.center[2]) ** 2) / reach
            share[ground] *= 1 - np.float32(0.7) / (1 + gap * gap)
    return share


def _sky(scene: Scene, direction: Floats, textures: TextureBank) -> Floats:
    """Return the sky's color (3, N): constant below the horizon, with clouds from a blurred texture above it."""
    sky = scene.sky
    height = (direction[1] / np.sqrt(dot(direction, direction))).clip(0)
    clear = sky.horizon[:, None] + (sky.zenith - sky.horizon)[:, None] * np.sqrt(height)
    texture, blurred = np.full(len(height), sky.texture, np.int32), np.full(len(height), 6, np.float32)
    cloud = textures.look_up(texture, direction[::2] / (height + np.float32(0.25)) * np.float32(0.3), blurred)
    cover = np.float32(sky.clouds) * np.minimum(height * 5, 1)
    return clear + (cloud - clear) * cover


def _edges(primitive: Ints, normal: Floats, lit: Bools, size: int) -> NDArray[np.intp]:
    """Return pixels next to a change of primitive, of the normal by over 25 degrees, or between sun and shadow."""
    normals = normal.reshape(3, size, size)
    region = (2 * primitive + lit).reshape(size, size)
    rows = (region[1:] != region[:-1]) | (dot(normals[:, 1:], normals[:, :-1]) < 0.9)
    columns = (region[:, 1:] != region[:, :-1]) | (dot(normals[:, :, 1:], normals[:, :, :-1]) < 0.9)
    edge = np.zeros((size, size), np.bool_)
    edge[1:], edge[:-1] = edge[1:] | rows, edge[:-1] | rows
    edge[:, 1:], edge[:, :-1] = edge[:, 1:] | columns, edge[:, :-1] | columns
    return np.flatnonzero(edge)


def _antialias(scene: Scene, edges: NDArray[np.intp], textures: TextureBank, size: int) -> Floats:
    """Return the mean light (3, E) of four rays through each pixel of `edges` (E,)."""
    centers = pixel_centers(size)[:, edges]
    pixels = (centers[:, :, None] + SUBPIXELS.T[:, None, :]).reshape(2, -1)
    hits = trace(scene, pixels, size)
    light, _ = shade(scene, hits, find_surfaces(scene, hits, textures, size), textures)
    return light.reshape(3, -1, len(SUBPIXELS)).mean(axis=2)


def apply_lens(light: Floats, lens: Lens, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn linear light (S, S, 3) into a picture of uint8: exposed, with gamma 2, blurred and noisy."""
    size = len(light)
    radius = np.square(np.linspace(-1, 1, size, dtype=np.float32))
    vignette = 1 - np.float32(lens.vignette / 2) * (radius[:, None] + radius)
    image = np.sqrt(light * (vignette[:, :, None] * lens.color_cast))
    image *= np.float32(lens.exposure) / image.mean()
    image = np.float32(0.5) + (image - np.float32(0.5)) * np.float32(lens.contrast)
    image = _blur(image, lens.blur * size / 128)
    image += rng.standard_normal(image.shape, np.float32) * np.float32(lens.noise / 255)
    return (image.clip(0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def _blur(image: Floats, sigma: float) -> Floats:
    """Blur along both axes with a Gaussian of `sigma` pixels; the border is repeated."""
    reach = int(np.ceil(2 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        padded = np.pad(image, [(reach, reach) if axis == a else (0, 0) for a in range(3)], mode="edge")
        shifts = np.moveaxis(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis), -1, 0)
        image = sum((w * s for w, s in zip(weights[1:], shifts[1:], strict=True)), weights[0] * shifts[0])
    return image


def _labels(scene: Scene, hits: RayHits, normal: Floats, size: int) -> tuple[Ints, Ints, Floats, Floats]:
    """Return `instances`, `class_ids`, `depth` and `normals` of RenderedScene."""
    objects = np.array([index for index, item in enumerate(scene.primitives) if item.class_id != BACKGROUND])
    class_ids = np.array([scene.primitives[index].class_id for index in objects], np.int32)
    instances = np.full(len(scene.primitives) + 1, -1, np.int32)  # by primitive; the last entry is for -1, sky
    instances[objects] = np.arange(len(objects))
    depth = np.where(hits.primitive >= 0, hits.depth, np.float32(0)).reshape(size, size)
    normals = np.ascontiguousarray((scene.camera.rotation.T @ normal).T).reshape(size, size, 3)
    return instances[hits.primitive].reshape(size, size), class_ids, depth, normals


def _power_32(x: Floats) -> Floats:
    for _ in range(5):
        x = x * x
    return x
