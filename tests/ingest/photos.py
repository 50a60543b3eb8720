"""Write small sets of noise images with masks, and read what ingesting made of them."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

import tasks
from flows.plan.steps import build_steps
from ingest.dataset import IngestedSet
from pipeline.recipe.recipe import Recipe
from pipeline.steps.artifact import Artifact, Step
from pipeline.stores.images import ImageRow, ImageShard
from pipeline.stores.labels import LabelShard, LabelSpace
from tests.disk import folder_of, image_shard, stored

GROUND = LabelSpace("segmentation", ("sky", "road"))
WIDTH, HEIGHT = 12, 8
Make = Callable[..., Artifact]


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Return noise, different for each number."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8)


def add_image(root: Path, name: str, number: int) -> bytes:
    """Save a picture as `images/<name>` and return its bytes."""
    path = root / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path)
    return path.read_bytes()


def add_mask(root: Path, name: str, ids: NDArray[np.uint8]) -> None:
    """Save a mask as `masks/<name>`."""
    path = root / "masks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def add(root: Path, split: str, numbers: range) -> None:
    """Save pictures with their masks, all of them usable, as `<two digits>.png`."""
    for number in numbers:
        add_image(root, f"{split}/{number:02d}.png", number)
        add_mask(root, f"{split}/{number:02d}.png", mask(number))


def add_bad(root: Path, count: int) -> None:
    """Save files that are no images, sorted behind the training images."""
    for number in range(count):
        (root / "images" / "train" / f"bad-{number}.jpg").write_text(f"no picture {number}")


def step_for(root: Path | str, kind: str = "masks", shard_images: int = 3, **options: Any) -> Step:
    """Return the step that a recipe has for the set."""
    classes = {"classes": GROUND.classes} if kind == "masks" else {}
    recipe = {
        "name": "recipe",
        "data": {"photos": {"kind": kind, "path": str(root), **classes, **options}},
        "shard_images": shard_images,
        "teachers": {"gabor": {"kind": "analytic"}},
        "pool": ["photos"],
        "student": {"weighting": "equal"},
    }
    return build_steps(Recipe.model_validate(recipe))[0]


@dataclasses.dataclass(frozen=True)
class IngestResult:
    """The folder that ingesting wrote, and its counts."""

    out: Path
    counts: Mapping[str, Any]

    def shards(self, split: str = "train") -> list[ImageShard]:
        return [image_shard(tar) for tar in sorted((self.out / "images" / split).glob("*.tar"))]

    def rows(self, split: str = "train") -> list[ImageRow]:
        return [shard.row(index) for shard in self.shards(split) for index in range(len(shard))]

    def names(self, split: str = "train") -> list[str]:
        return [row.source for row in self.rows(split)]

    def labels(self, shard: ImageShard, split: str = "train") -> LabelShard:
        path = self.out / "labels" / "segmentation" / split / f"{shard.name}.parquet"
        return LabelShard(stored(path), tasks.label(GROUND))

    def read_list(self, table: str) -> list[tuple[str, str, str]]:
        """Return (source, split, reason) of every row of one of the lists."""
        rows = pq.read_table(self.out / f"{table}.parquet").to_pylist()
        return [(row["source"], row["split"], row["reason"]) for row in rows]


class StopAfter(threading.Event):
    """A stop signal that is set after so many checks."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self._checks = checks

    def is_set(self) -> bool:
        self._checks -= 1
        return self._checks < 0


def touch(path: Path, ns: int = 1_000_000_000) -> None:
    os.utime(path, ns=(ns, ns))


def shards(made: Artifact, split: str = "train") -> dict[str, list[str]]:
    """Return the names of the files that a split's images are from, by shard."""
    found = IngestedSet(made).images(split).shards
    return {shard.name[-1]: [Path(name).stem for name in shard.table.column("source").to_pylist()] for shard in found}


def is_same_file(before: Artifact, made: Artifact, name: str) -> bool:
    """Return True if both artifacts hold the same file, not a copy."""
    return (folder_of(before) / name).samefile(folder_of(made) / name)


def read_list(made: Artifact, table: str) -> list[tuple[str, str, str]]:
    return IngestResult(folder_of(made), made.counts).read_list(table)
