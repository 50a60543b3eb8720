"""Random materials, light, sky and lens of the small ray-traced world: all that its two looks differ in.

Colors are linear light, float32 (3,). "studio" is clean and nearly white. "shifted" has other textures, colored light
and a worse camera: a domain shift for what was learned on "studio".
"""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np

from pipeline.synthetic.shapes import Floats
from pipeline.synthetic.textures import Look, load_textures

Rng = np.random.Generator


def _linear(hue: float, saturation: float, value: float) -> Floats:
    """Return the linear light of a color that is displayed, with gamma 2, as this hue, saturation and value."""
    return np.square(np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32))


def sample_color(rng: Rng, saturation: tuple[float, float], value: tuple[float, float]) -> Floats:
    """Sample a color of any hue, with saturation and value in these ranges."""
    return _linear(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


@dataclasses.dataclass(frozen=True)
class Material:
    """A surface of color low + (high - low) * texture; `tile` is the edge of the texture's square in metres."""

    texture: int
    low: Floats
    high: Floats
    tile: float
    shine: float

    @classmethod
    def sample(cls, look: Look, rng: Rng, tile: float, ground: bool = False) -> Material:
        """Sample a photograph, a pattern of two colors or a plain color; for the ground mostly a photographed floor."""
        textures, draw, shine = load_textures(look), rng.random(), float(rng.choice((0.0, 0.15, 0.6)))
        vivid = 0.3 if look == "studio" else 0.45
        if draw < (0.75 if ground else 0.4):
            photos = textures.floors if ground and rng.random() < 0.85 else textures.photos
            dark, tint = np.zeros(3, np.float32), sample_color(rng, (0, vivid), (0.85, 1))
            return cls(int(rng.choice(photos)), dark, np.float32(1.4) * tint, tile, shine)
        low, high = sample_color(rng, (0.2, 0.8), (0.35, 0.75)), sample_color(rng, (0.1, 0.65), (0.6, 0.95))
        if draw < (0.85 if ground else 0.65):
            return cls(int(rng.choice(textures.patterns)), low, high, tile, shine)
        return cls(0, high, high, tile, shine)


@dataclasses.dataclass(frozen=True)
class Light:
    """A `sun` in `sun_direction` (unit vector, world axes), ambient light from above (`sky`) and below (`bounce`)."""

    sun_direction: Floats
    sun: Floats
    sky: Floats
    bounce: Floats

    @classmethod
    def sample(cls, look: Look, rng: Rng, wall_normals: list[Floats]) -> Light:
        """Sample a light whose sun is mostly behind the camera and never behind a wall."""
        azimuth, height = rng.uniform(-1.5, 1.5), rng.uniform(0.45, 1.2)
        x, y, z = np.sin(azimuth) * np.cos(height), np.sin(height), np.cos(azimuth) * np.cos(height)
        direction = np.array([x, y, z], np.float32)
        for normal in wall_normals:
            direction += normal * max(0.0, 0.25 - float(normal @ direction))
        direction /= np.linalg.norm(direction)
        tint = (0.0, 0.12) if look == "studio" else (0.15, 0.5)
        sun = sample_color(rng, tint, (1, 1)) * np.float32(rng.uniform(0.8, 1.3))
        sky = sample_color(rng, tint, (1, 1)) * np.float32(rng.uniform(0.25, 0.55))
        return cls(direction, sun, sky, sky * np.float32(0.4) + sun * np.float32(0.1))


@dataclasses.dataclass(frozen=True)
class Sky:
    """Colors at the horizon and overhead, and how strongly a texture covers them with clouds, in [0, 1]."""

    horizon: Floats
    zenith: Floats
    texture: int
    clouds: float

    @classmethod
    def sample(cls, look: Look, rng: Rng) -> Sky:
        """Sample a sky that goes from a pale horizon to a deeper color overhead."""
        hue = rng.uniform(0.52, 0.66) if look == "studio" else rng.random()
        pale, deep = rng.uniform(0.03, 0.2), rng.uniform(0.3, 0.7)
        horizon, zenith = _linear(hue, pale, rng.uniform(0.8, 0.95)), _linear(hue, deep, rng.uniform(0.5, 0.9))
        return cls(horizon, zenith, int(rng.choice(load_textures(look).photos)), float(rng.uniform(0, 0.5)))


@dataclasses.dataclass(frozen=True)
class Lens:
    """The marks that a camera leaves on the picture.

    `exposure` is the mean brightness in [0, 1], `blur` the sigma in pixels of an image 128 pixels wide, `noise` the
    standard deviation in 8-bit levels.
    """

    exposure: float
    contrast: float
    color_cast: Floats
    vignette: float
    blur: float
    noise: float

    @classmethod
    def sample(cls, look: Look, rng: Rng) -> Lens:
        """Sample a steady camera, or for "shifted" one with a color cast, darker corners, blur and noise."""
        if look == "studio":
            exposure, contrast, white = rng.uniform(0.42, 0.55), rng.uniform(0.95, 1.1), np.ones(3, np.float32)
            return cls(exposure, contrast, white, 0.0, rng.uniform(0, 0.3), rng.uniform(0, 2))
        cast = rng.uniform(0.85, 1.15, 3).astype(np.float32)
        contrast, vignette = rng.uniform(0.7, 1.25), rng.uniform(0, 0.5)
        return cls(rng.uniform(0.32, 0.6), contrast, cast, vignette, rng.uniform(0.2, 0.9), rng.uniform(1.5, 7))
