"""The generated world (`pipeline.synthetic.render`) as a set: any number of pictures, with the exact truth of any task.

A set of a name is endless: picture i depends on (seed, look, i) and on the size, so a larger `count` keeps the
pictures it had, and sets of different seeds share none. The splits follow each other: train, val, test.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from pipeline.errors import DataError
from pipeline.recipe.source import SourceConfig
from pipeline.sources import BaseSource, SourceRecord, TrueLabels
from pipeline.sources._splits import SPLITS
from pipeline.stores.labels import LabelSpace, Value
from pipeline.synthetic.render import CLASSES, VERSION, Rendered, SceneKey, render
from pipeline.synthetic.textures import Look, photograph_paths, stamp_bundled

TaskName = Literal["classification", "detection", "segmentation", "depth", "normals"]
QUALITY = 92
LEAST_SHARE = 0.002
"""Objects that show on less of the picture than this (33 pixels of 128 x 128) get no box."""
SPACES: dict[str, LabelSpace] = {
    "classification": LabelSpace("classification", CLASSES),
    "detection": LabelSpace("detection", CLASSES),
    "segmentation": LabelSpace("segmentation", ("background", *CLASSES)),
    "depth": LabelSpace("depth"),
    "normals": LabelSpace("normals"),
}


class Config(SourceConfig):
    """`count` pictures for training, then `val` and `test` more, of `size` x `size` pixels."""

    kind: Literal["scenes"] = "scenes"
    count: Annotated[int, Field(ge=0)]
    """How many images to train on."""
    seed: Annotated[int, Field(ge=0)]
    """Sets of different seeds share no image."""
    look: Look = "studio"
    """studio: clean pictures. shifted: other textures, coloured light, and a worse camera."""
    size: Annotated[int, Field(ge=32, le=1024)] = 128
    """Side of the image, pixels."""
    tasks: tuple[TaskName, ...] = ()
    """The tasks whose truth the set gives; none for a pool."""
    val: Annotated[int, Field(ge=0)] = 0
    """How many more for validation."""
    test: Annotated[int, Field(ge=0)] = 0
    """How many more to test on."""


class Source(BaseSource):
    """Opens a generated set. Raises ConfigError if scikit-image, whose photographs it paints with, is missing."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._photographs = photograph_paths(config.look)
        # `read` and `truth` of a record follow each other: the second finds the first one's picture here.
        self._render = functools.lru_cache(maxsize=8)(render)

    def spaces(self) -> dict[str, LabelSpace]:
        return {task: SPACES[task] for task in self.config.tasks}

    def records(self) -> Iterator[SourceRecord]:
        counts = (self.config.count, self.config.val, self.config.test)
        splits = itertools.chain.from_iterable(map(itertools.repeat, SPLITS, counts))
        for index, split in enumerate(splits):
            key = SceneKey(self.config.seed, self.config.look, self.config.size, index)
            read, truth = functools.partial(self._read, key), functools.partial(self._truth, key)
            yield SourceRecord(f"scene-{index:06d}.jpg", split, read, truth)

    def count(self) -> int:
        return self.config.count + self.config.val + self.config.test

    def stamp(self) -> list[tuple[str, int, int]]:
        """One row for the set and its renderer's version, and one for each photograph that it is painted with."""
        c = self.config
        about = f"scenes v{VERSION} seed={c.seed} look={c.look} size={c.size} count={c.count},{c.val},{c.test}"
        return [(about, 0, 0), *stamp_bundled(self._photographs)]

    def _read(self, key: SceneKey) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self._render(key).image).save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()

    def _truth(self, key: SceneKey, size: tuple[int, int]) -> TrueLabels:
        if size != (key.size, key.size):
            raise DataError(f"scene-{key.index:06d}.jpg is {key.size} x {key.size}, not {size[0]} x {size[1]}.")
        scene, tasks = self._render(key), self.config.tasks
        hidden = int(((areas(scene) > 0) & ~_shown(scene)).sum()) if "detection" in tasks else 0
        return TrueLabels(
            {task: TRUTHS[task](scene) for task in tasks}, ["object too little visible for a box"] * hidden
        )


def areas(scene: Rendered) -> NDArray[np.intp]:
    """Visible pixels (N,) of each object."""
    return np.bincount(scene.instances[scene.instances >= 0], minlength=len(scene.kinds))


def _shown(scene: Rendered) -> NDArray[np.bool_]:
    return areas(scene) >= LEAST_SHARE * scene.instances.size


def classification(scene: Rendered) -> Value:
    """The class of the object with the largest visible area: one-hot `probs` (6,)."""
    probs = np.zeros(len(CLASSES), np.float32)
    probs[scene.kinds[np.argmax(areas(scene))]] = 1
    return {"probs": probs}


def detection(scene: Rendered) -> Value:
    """Tight boxes around the visible parts, in pixels: the right and lower edges are those of the last pixel."""
    objects = np.flatnonzero(_shown(scene))
    boxes = np.array([_box(scene.instances == k) for k in objects], np.float32).reshape(-1, 4)
    size = np.array(scene.instances.shape[::-1], np.int32)
    return {"boxes": boxes, "scores": np.ones(len(objects), np.float32), "classes": scene.kinds[objects], "size": size}


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


def segmentation(scene: Rendered) -> Value:
    """Class 0 is the background (sky, ground, walls, stones); no pixel is ignored."""
    names = np.append(scene.kinds + 1, 0).astype(np.uint16)  # the last: instance -1, no object
    return {"classes": names[scene.instances], "confidence": np.ones(scene.instances.shape, np.float32)}


TRUTHS: dict[str, Callable[[Rendered], Value]] = {
    "classification": classification,
    "detection": detection,
    "segmentation": segmentation,
    "depth": lambda scene: {"depth": scene.depth},
    "normals": lambda scene: {"normals": scene.normals},
}
