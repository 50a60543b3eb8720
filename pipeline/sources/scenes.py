"""Generated pictures of a small ray-traced world (`pipeline.synthetic.render`), with exact labels for every task.

Picture i depends on the seed, the look, the size and i alone: a larger `count` keeps the pictures that a set had, and
sets of different seeds share none. Indices count through the splits in order: train, val, test.
"""

from __future__ import annotations

import functools
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
from pipeline.sources._classes import true_boxes
from pipeline.sources._splits import SPLITS
from pipeline.stores.labels import LabelSpace, Value
from pipeline.stores.rle import box_around, encode_mask, rle_array
from pipeline.stores.skeleton import VISIBLE, Skeleton
from pipeline.synthetic.layout import CLASSES
from pipeline.synthetic.render import VERSION, RenderedScene, SceneKey, render
from pipeline.synthetic.textures import FLOORS, PICTURES, Look, bundled_image, encode_jpeg, stamp_bundled

TaskName = Literal["classification", "detection", "masks", "keypoints", "segmentation", "depth", "normals"]
MIN_VISIBLE_SHARE = 0.002
"""Share of the picture, 33 pixels of 128 x 128, below which an object gets no box, mask and keypoints."""
ENDS = Skeleton(("top", "right", "bottom", "left"), ((0, 1), (1, 2), (2, 3), (3, 0)), ((1, 3),))
"""The keypoints of an object: where the part of it that is visible ends."""
SPACES: dict[str, LabelSpace] = {
    "classification": LabelSpace("classification", CLASSES),
    "detection": LabelSpace("detection", CLASSES),
    "masks": LabelSpace("masks", CLASSES),
    "keypoints": LabelSpace("keypoints", CLASSES, skeleton=ENDS),
    "segmentation": LabelSpace("segmentation", ("background", *CLASSES)),
    "depth": LabelSpace("depth"),
    "normals": LabelSpace("normals"),
}


class Config(SourceConfig):
    """`count` pictures for training, `val` and `test` more for evaluation, of `size` x `size` pixels."""

    kind: Literal["scenes"] = "scenes"
    count: Annotated[int, Field(ge=0)]
    """Number of training images."""
    seed: Annotated[int, Field(ge=0)]
    """Sets of different seeds share no image."""
    look: Look = "studio"
    """studio: clean pictures. shifted: other textures, coloured light, and a worse camera."""
    size: Annotated[int, Field(ge=32, le=1024)] = 128
    """Side of the image, pixels."""
    tasks: tuple[TaskName, ...] = ()
    """The tasks to give true labels for; none for a pool."""
    val: Annotated[int, Field(ge=0)] = 0
    """Number of validation images."""
    test: Annotated[int, Field(ge=0)] = 0
    """Number of test images."""


class Source(BaseSource):
    """Generates a set. Raises ConfigError if scikit-image, whose photographs are the textures, is missing."""

    def __init__(self, config: Config) -> None:
        self.config = config
        names = (*FLOORS[config.look], *PICTURES[config.look])
        self._photographs = [bundled_image("skimage", name) for name in names]
        # `read` and `truth` of a record are called one after the other: the second finds the picture here
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

    def file_stamps(self) -> list[tuple[str, int, int]]:
        """Return a row for the settings and the renderer's version, and one for each photograph in the textures."""
        c = self.config
        version = f"scenes v{VERSION} seed={c.seed} look={c.look} size={c.size} count={c.count},{c.val},{c.test}"
        return [(version, 0, 0), *stamp_bundled(self._photographs)]

    def _read(self, key: SceneKey) -> bytes:
        return encode_jpeg(Image.fromarray(self._render(key).image))

    def _truth(self, key: SceneKey, size: tuple[int, int]) -> TrueLabels:
        if size != (key.size, key.size):
            raise DataError(f"scene-{key.index:06d}.jpg is {key.size} x {key.size}, not {size[0]} x {size[1]}.")
        scene, tasks = self._render(key), self.config.tasks
        values: dict[str, Value] = {task: LABELLERS[task](scene) for task in tasks}
        hidden = int(((visible_areas(scene) > 0) & ~_has_box(scene)).sum())
        left_out = hidden if {"detection", "masks", "keypoints"} & set(tasks) else 0
        return TrueLabels(values, ["object too little visible for a box"] * left_out)


def visible_areas(scene: RenderedScene) -> NDArray[np.intp]:
    """Return the number of visible pixels (N,) of each object."""
    return np.bincount(scene.instances[scene.instances >= 0], minlength=len(scene.class_ids))


def _has_box(scene: RenderedScene) -> NDArray[np.bool_]:
    return visible_areas(scene) >= MIN_VISIBLE_SHARE * scene.instances.size


def classification(scene: RenderedScene) -> Value:
    """Return one-hot `probs` (6,) of the class of the object with the largest visible area."""
    probs = np.zeros(len(CLASSES), np.float32)
    probs[scene.class_ids[np.argmax(visible_areas(scene))]] = 1
    return {"probs": probs}


def detection(scene: RenderedScene) -> Value:
    """Return tight boxes around the visible parts, in pixels; x1 and y1 are one more than the last pixel's."""
    objects = np.flatnonzero(_has_box(scene))
    boxes = [box_around(scene.instances == k) for k in objects]
    return true_boxes(boxes, scene.class_ids[objects], scene.instances.shape[::-1])


def masks(scene: RenderedScene) -> Value:
    """Return the boxes of `detection`, with the visible pixels of each object."""
    visible = (encode_mask(scene.instances == k) for k in np.flatnonzero(_has_box(scene)))
    return {**detection(scene), "masks": rle_array(visible)}


def keypoints(scene: RenderedScene) -> Value:
    """Return the boxes of `detection`, with the middle of each object's pixels at each side of its box."""
    boxes, objects = detection(scene), np.flatnonzero(_has_box(scene))
    pixels = [scene.instances == k for k in objects]
    points = np.array([_ends(mask, box) for mask, box in zip(pixels, boxes["boxes"], strict=True)], np.float32)
    shape = len(objects), len(ENDS.points)
    return {
        **boxes,
        "keypoints": points.reshape(*shape, 2),
        "visibility": np.full(shape, VISIBLE, np.uint8),
        "keypoint_scores": np.ones(shape, np.float32),
        "areas": visible_areas(scene)[objects].astype(np.float32),
    }


def _ends(mask: NDArray[np.bool_], box: NDArray[np.float32]) -> list[tuple[float, float]]:
    """Return the points of ENDS, each on a side of the smallest box around the mask (H, W)."""
    x0, y0, x1, y1 = box.astype(int).tolist()
    top, right, bottom, left = (
        float(np.flatnonzero(side).mean()) + 0.5 for side in (mask[y0], mask[:, x1 - 1], mask[y1 - 1], mask[:, x0])
    )
    return [(top, y0), (x1, right), (bottom, y1), (x0, left)]


def segmentation(scene: RenderedScene) -> Value:
    """Return the class of every pixel; 0 is the background (sky, ground, walls, stones), and none is ignored."""
    classes = np.append(scene.class_ids + 1, 0).astype(np.uint16)  # by instance; the last entry is for -1, no object
    return {"classes": classes[scene.instances], "confidence": np.ones(scene.instances.shape, np.float32)}


LABELLERS: dict[str, Callable[[RenderedScene], Value]] = {
    "classification": classification,
    "detection": detection,
    "masks": masks,
    "keypoints": keypoints,
    "segmentation": segmentation,
    "depth": lambda scene: {"depth": scene.depth},
    "normals": lambda scene: {"normals": scene.normals},
}
