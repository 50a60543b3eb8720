"""Random crops of the real photographs that scikit-image and scikit-learn contain: a small pool without labels.

Nothing is downloaded. A crop covers between a tenth and all of a photograph's area, with a random aspect ratio.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from pipeline.recipe.source import SourceConfig
from pipeline.sources import BaseSource, SourceRecord
from pipeline.stores.labels import LabelSpace
from pipeline.synthetic.textures import bundled_image, encode_jpeg, stamp_bundled

VERSION = 1
"""To be raised when the same settings give other crops."""
PHOTOGRAPHS = {
    "skimage": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "motorcycle_left.png",
        "rocket.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}


class Config(SourceConfig):
    """`count` crops with a longest side of `size` pixels, an equal number of every photograph."""

    kind: Literal["photographs"] = "photographs"
    count: Annotated[int, Field(ge=1)]
    """Number of crops."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of the random crops."""
    size: Annotated[int, Field(ge=32, le=512)] = 128
    """Longest side, pixels."""


class Source(BaseSource):
    """Crops the photographs. Raises ConfigError if a package or one of its photographs is missing."""

    def __init__(self, config: Config) -> None:
        self.config = config
        paths = [bundled_image(package, name) for package, names in PHOTOGRAPHS.items() for name in names]
        self._paths = sorted(paths, key=lambda path: path.stem)
        self._open = functools.lru_cache(maxsize=2)(_open)  # the crops of a photograph follow each other

    def spaces(self) -> dict[str, LabelSpace]:
        return {}

    def records(self) -> Iterator[SourceRecord]:
        share, extra = divmod(self.config.count, len(self._paths))
        for index, path in enumerate(self._paths):
            for number in range(share + (index < extra)):
                read = functools.partial(self._read, path, number)
                yield SourceRecord(f"{path.stem}-{number:04d}.jpg", "train", read)

    def count(self) -> int:
        return self.config.count

    def file_stamps(self) -> list[tuple[str, int, int]]:
        c = self.config
        version = f"photographs v{VERSION} seed={c.seed} size={c.size} count={c.count}"
        return [(version, 0, 0), *stamp_bundled(self._paths)]

    def _read(self, path: Path, number: int) -> bytes:
        entropy = [self.config.seed, *path.stem.encode(), number]
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        return encode_jpeg(random_crop(self._open(path), self.config.size, rng))


def _open(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Return a random part of the image, of aspect ratio 2 : 3 to 3 : 2, its longest side scaled to `size` pixels."""
    area = image.width * image.height * rng.uniform(0.1, 1.0)
    aspect = np.exp(rng.uniform(-np.log(1.5), np.log(1.5)))
    width = min(image.width, round(float(np.sqrt(area * aspect))))
    height = min(image.height, round(float(np.sqrt(area / aspect))))
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    scale = size / max(width, height)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    return image.resize(target, Image.Resampling.LANCZOS, (left, top, left + width, top + height))
