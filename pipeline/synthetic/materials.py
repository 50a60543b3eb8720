"""How a generated scene is painted, lit and photographed: all that the two looks differ in.

Colours are linear light, float32 (3,). "studio" is clean and nearly white; "shifted" has other textures, coloured
light, and a worse camera, so that labels learned on the one have to be carried over to the other.
"""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np

from pipeline.synthetic.shapes import Floats
from pipeline.synthetic.textures import Look, bank

Rng = np.random.Generator


@dataclasses.dataclass(frozen=True)
class Material:
    """Colour = low + (high - low) * texture; `tile` is the edge of the texture's square in metres."""

    texture: int
    low: Floats
    high: Floats
    tile: float
    shine: float


@dataclasses.dataclass(frozen=True)
class Light:
    """One sun (`toward` it, unit, world axes) and an even light from above (`sky`) and from below (`bounce`)."""

    toward: Floats
    sun: Floats
    sky: Floats
    bounce: Floats


@dataclasses.dataclass(frozen=True)
class Sky:
    """Colours at the horizon and overhead, and how strongly a texture clouds them."""

    horizon: Floats
    zenith: Floats
    texture: int
    clouds: float


@dataclasses.dataclass(frozen=True)
class Lens:
    """What the camera does: mean brightness, contrast, colour cast, darker corners, blur (in pixels of an image of
    128) and noise (standard deviation, of 255)."""

    exposure: float
    contrast: float
    cast: Floats
    vignette: float
    blur: float
    noise: float


def colour(rng: Rng, saturation: tuple[float, float], value: tuple[float, float]) -> Floats:
    """Any hue, with saturation and value (of the displayed colour) drawn from the ranges."""
    shown = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return np.square(np.array(shown, np.float32))


def material(look: Look, rng: Rng, tile: float, ground: bool = False) -> Material:
    """A photograph, a pattern of two colours or one plain colour; the ground is mostly what a ground may look like."""
    textures, draw, shine = bank(look), rng.random(), float(rng.choice((0.0, 0.15, 0.6)))
    vivid = 0.3 if look == "studio" else 0.45
    if draw < (0.75 if ground else 0.4):
        photos = textures.floors if ground and rng.random() < 0.85 else textures.photos
        dark, tint = np.zeros(3, np.float32), colour(rng, (0, vivid), (0.85, 1))
        return Material(int(rng.choice(photos)), dark, np.float32(1.4) * tint, tile, shine)
    low, high = colour(rng, (0.2, 0.8), (0.35, 0.75)), colour(rng, (0.1, 0.65), (0.6, 0.95))
    if draw < (0.85 if ground else 0.65):
        return Material(int(rng.choice(textures.patterns)), low, high, tile, shine)
    return Material(0, high, high, tile, shine)


def light(look: Look, walls: list[Floats], rng: Rng) -> Light:
    """A sun mostly behind the camera's shoulders, never behind a wall (`walls`: their normals)."""
    aside, height = rng.uniform(-1.5, 1.5), rng.uniform(0.45, 1.2)
    toward = np.array([np.sin(aside) * np.cos(height), np.sin(height), np.cos(aside) * np.cos(height)], np.float32)
    for normal in walls:
        toward += normal * max(0.0, 0.25 - float(normal @ toward))
    toward /= np.linalg.norm(toward)
    tint = (0.0, 0.12) if look == "studio" else (0.15, 0.5)
    sun = colour(rng, tint, (1, 1)) * np.float32(rng.uniform(0.8, 1.3))
    sky = colour(rng, tint, (1, 1)) * np.float32(rng.uniform(0.25, 0.55))
    return Light(toward, sun, sky, sky * np.float32(0.4) + sun * np.float32(0.1))


def sky(look: Look, rng: Rng) -> Sky:
    """From a pale horizon to a deeper colour overhead."""
    hue = rng.uniform(0.52, 0.66) if look == "studio" else rng.random()
    pale, deep = rng.uniform(0.03, 0.2), rng.uniform(0.3, 0.7)
    horizon = np.square(np.array(colorsys.hsv_to_rgb(hue, pale, rng.uniform(0.8, 0.95)), np.float32))
    zenith = np.square(np.array(colorsys.hsv_to_rgb(hue, deep, rng.uniform(0.5, 0.9)), np.float32))
    return Sky(horizon, zenith, int(rng.choice(bank(look).photos)), float(rng.uniform(0, 0.5)))


def lens(look: Look, rng: Rng) -> Lens:
    """A steady camera, or one with noise, blur, and its own idea of white."""
    if look == "studio":
        plain = np.ones(3, np.float32)
        return Lens(rng.uniform(0.42, 0.55), rng.uniform(0.95, 1.1), plain, 0.0, rng.uniform(0, 0.3), rng.uniform(0, 2))
    cast = rng.uniform(0.85, 1.15, 3).astype(np.float32)
    contrast, vignette = rng.uniform(0.7, 1.25), rng.uniform(0, 0.5)
    return Lens(rng.uniform(0.32, 0.6), contrast, cast, vignette, rng.uniform(0.2, 0.9), rng.uniform(1.5, 7))
