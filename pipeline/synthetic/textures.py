"""Textures of the small ray-traced world: crops of real photographs and a few patterns, as mipmaps.

The photographs are part of the packages scikit-image and scikit-learn; nothing is downloaded. A texture is a square of
128 texels with its mip levels down to one texel: a lookup takes the level whose texels are about as large as the pixel
is on the surface, so that distant ground does not flicker. Textures are mirrored at their borders, which keeps every
surface continuous.
"""

from __future__ import annotations

import functools
import importlib.util
import io
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.synthetic.shapes import Floats

Ints = NDArray[np.int32]
Square = NDArray[np.uint8]
Look = Literal["studio", "shifted"]
LOOKS: tuple[Look, ...] = get_args(Look)

SIDE = 128
LEVELS = 8  # 128, 64, ..., 1
CROPS = 16  # per photograph
FLOORS: dict[Look, tuple[str, ...]] = {
    "studio": ("brick.png", "grass.png", "gravel.png"),
    "shifted": ("moon.png", "hubble_deep_field.jpg"),
}
"""Photographs of an even surface, for the ground."""
PICTURES: dict[Look, tuple[str, ...]] = {
    "studio": ("chelsea.png", "coffee.png"),
    "shifted": ("astronaut.png", "camera.png", "motorcycle_left.png", "rocket.jpg"),
}
"""Other photographs, for walls and objects."""
PACKAGES = {"skimage": ("scikit-image", "data"), "sklearn": ("scikit-learn", "datasets/images")}
"""Distribution and folder of images by package."""


def bundled_image(package: str, name: str) -> Path:
    """Return the path of an image that `package` ("skimage" or "sklearn") contains, without importing the package.

    Raises ConfigError if the package is not installed or its release lacks the file.
    """
    distribution, folder = PACKAGES[package]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"Image {name!r} comes with {distribution}, which is not installed: uv pip install {distribution}."
        )
    path = Path(spec.origin).parent / folder / name
    if not path.is_file():
        raise ConfigError(
            f"{path}: this release of {distribution} has no {name!r}: uv pip install --upgrade {distribution}."
        )
    return path


def stamp_bundled(paths: list[Path]) -> list[tuple[str, int, int]]:
    """Return (name, size in bytes, 0) of each file, sorted; mtimes are left out because every install changes them."""
    return sorted((path.name, path.stat().st_size, 0) for path in paths)


def encode_jpeg(image: Image.Image) -> bytes:
    """Return the file of a generated picture."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


class TextureBank:
    """Textures of one look, packed for lookup.

    Their ids: `photos` with `floors` first, then `patterns` of two values (0 and 1).
    """

    def __init__(self, floors: list[Square], pictures: list[Square], patterns: list[Square]) -> None:
        squares = [*floors, *pictures, *patterns]
        self._texels = np.concatenate([_mipmap(square) for square in squares])
        self._stride = len(self._texels) // len(squares)
        sides = SIDE >> np.arange(LEVELS, dtype=np.int32)
        self._sides = sides
        self._starts = np.concatenate([[0], np.cumsum(sides**2)[:-1]]).astype(np.int32)
        self.floors = range(len(floors))
        self.photos = range(len(floors) + len(pictures))
        self.patterns = range(len(self.photos), len(squares))

    def look_up(self, texture: Ints, uv: Floats, texels: Floats) -> Floats:
        """Return the linear-light colors (3, N) in [0, 1] of `texture` (N,) at `uv` (2, N), interpolated bilinearly.

        `uv` is in edges of the texture's square; `texels` (N,) is the width of the pixel on the surface, in texels of
        the finest level.
        """
        level = np.rint(np.log2(np.clip(texels, 1, SIDE / 2))).astype(np.int32)
        side = self._sides[level]
        base = texture * np.int32(self._stride) + self._starts[level]
        position = uv * side - np.float32(0.5)
        low = np.floor(position)
        fraction = position - low
        x, y = low.astype(np.int32)
        x0, x1, y0, y1 = _mirror(x, side), _mirror(x + 1, side), _mirror(y, side) * side, _mirror(y + 1, side) * side
        top = self._lerp(base + y0 + x0, base + y0 + x1, fraction[0])
        bottom = self._lerp(base + y1 + x0, base + y1 + x1, fraction[0])
        color = (top + (bottom - top) * fraction[1, :, None]) * np.float32(1 / 255)
        return np.ascontiguousarray((color * color).T)

    def _lerp(self, left: Ints, right: Ints, fraction: Floats) -> Floats:
        a = self._texels.take(left, axis=0).astype(np.float32)
        b = self._texels.take(right, axis=0).astype(np.float32)
        return a + (b - a) * fraction[:, None]


def _mirror(index: Ints, side: Ints) -> Ints:
    """Fold any index into 0..side-1 by reflection at both ends; `side` is a power of two."""
    folded = index & (2 * side - 1)
    return np.minimum(folded, 2 * side - 1 - folded)


def _mipmap(square: Square) -> Square:
    """Return the texels (N, 3) of all mip levels of the square, finest first."""
    level: Floats = square.astype(np.float32)
    rows = [square.reshape(-1, 3)]
    while len(level) > 1:
        level = (level[::2, ::2] + level[1::2, ::2] + level[::2, 1::2] + level[1::2, 1::2]) / 4
        rows.append(np.rint(level).astype(np.uint8).reshape(-1, 3))
    return np.concatenate(rows)


@functools.cache
def load_textures(look: Look) -> TextureBank:
    """Return the textures of `look`, the same in every process. Raises ConfigError as `bundled_image` does."""
    rng = np.random.Generator(np.random.PCG64(LOOKS.index(look)))
    floors, pictures = (
        [square for name in names for square in _crops(bundled_image("skimage", name), rng)]
        for names in (FLOORS[look], PICTURES[look])
    )
    return TextureBank(floors, pictures, _patterns(look))


def _crops(path: Path, rng: np.random.Generator) -> list[Square]:
    """Cut squares out of a photograph at random places and scales, and brighten dark ones."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    squares = []
    for share in np.linspace(0.35, 0.95, CROPS):
        edge = int(share * min(image.size))
        left, top = (int(rng.integers(0, length - edge + 1)) for length in image.size)
        crop = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, (left, top, left + edge, top + edge))
        squares.append(_brighten(np.asarray(crop)))
    return squares


def _brighten(square: Square) -> Square:
    """Add to dark crops (a night sky) up to a mean of 100, because black hides the shape that it covers.

    Adding, unlike scaling, keeps contrast and colors.
    """
    lift = max(0, round(100 - float(square.mean())))
    return (255 - np.maximum(255 - square.astype(np.int16) - lift, 0)).astype(np.uint8)


def _patterns(look: Look) -> list[Square]:
    """Return patterns of two values (0 and 255), which materials color: checkers and stripes, or dots and waves."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    squares = []
    for n in (2, 4, 8):
        if look == "studio":
            masks = [(np.floor(x * n) + np.floor(y * n)) % 2 > 0, np.floor(x * n) % 2 > 0, np.floor(y * n) % 2 > 0]
        else:
            dots = (x * n % 1 - 0.5) ** 2 + (y * n % 1 - 0.5) ** 2 < 0.09
            masks = [dots, np.sin(2 * np.pi * (x * n + 0.15 * np.sin(4 * np.pi * y))) > 0, (x + y) * n % 1 > 0.5]
        squares += [np.repeat(mask[:, :, None], 3, axis=2).astype(np.uint8) * 255 for mask in masks]
    return squares
