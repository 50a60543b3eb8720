"""Map-style dataset of images and labels on disk, which are joined strictly by key. No torch."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import (
    relative_square,
    sample_params,
    seeded_generator,
    transform_image,
    transform_label,
    valid_size,
)
from pipeline.data.bands import RGB, decode_pixels
from pipeline.errors import DataError
from pipeline.recipe.augment import AugmentConfig, Resize
from pipeline.recipe.student import DisagreementMode
from pipeline.storage.root import StoredFile
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import APPLICABILITY, Label, LabelOrigin, LabelShard, Value, read_labels

SHUFFLE_WINDOW = 64
"""Shards that are shuffled together, and whose labels are in memory; fewer shards are shuffled as a whole."""
CACHE_SHARE = 1 / (2 * SHUFFLE_WINDOW)
"""Remote shards up to this share of the cache are downloaded whole, so that a window's fill half of it."""
REMEDY = "If its file has changed since it was made, `must artifacts verify --repair` deletes it."
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """Other labels of the images of a shard, by whose distance from them labels are weighted."""

    other: LabelSource
    mode: DisagreementMode

    def weight(self, distance: float) -> float:
        """Return the weight in [0, 1] of a label at this distance in [0, 1] from the other one.

        `focus`: tanh(distance), as Self-MM weights its tasks (Yu et al., AAAI 2021); `trust`: 1 - distance.
        """
        return math.tanh(distance) if self.mode == "focus" else 1 - distance


@dataclasses.dataclass(frozen=True)
class LabelSource:
    """Labels of one head for one image shard: a label file, how to read it, and the threshold applied when read."""

    file: StoredFile
    label: Label
    threshold: float = 0.0
    applicability: float = 0.0
    """Labels of less applicability are not used."""
    label_rows: tuple[int, ...] | None = None
    """For each image of the shard its row in the file, -1 for none; None if the file has the same keys in order."""
    excluded: frozenset[int] = frozenset()
    """Rows of the image shard whose labels are not used."""
    origin: LabelOrigin | None = None
    """Who made the labels, where that is asked for."""
    disagreement: Disagreement | None = None
    """What the labels are weighted by; None for a weight of 1."""

    def label_row(self, image_row: int) -> int:
        """Return the row in the file for a row of the image shard, -1 if the image has no label to use."""
        if image_row in self.excluded:
            return -1
        return image_row if self.label_rows is None else self.label_rows[image_row]

    def check(self, images: ImageShard, keys: Sequence[str]) -> None:
        """Raise DataError, naming shard and key, unless the file, whose keys are `keys`, fits the image shard."""
        expected: Sequence[str] = images.keys
        if self.label_rows is not None:
            expected = [key for key, row in zip(images.keys, self.label_rows, strict=True) if row >= 0]
            keys = [keys[row] for row in self.label_rows if row >= 0]
        check_joined(expected, keys, images.name, self.file)

    def has_label(self, images: ImageShard) -> NDArray[np.bool_]:
        """Return a mask of the shard's images that have a label here. Raises DataError if the file does not fit."""
        filtered = [APPLICABILITY.name] if self.applicability else []
        table = read_labels(self.file, ["key", "status", *filtered])
        self.check(images, table.column("key").to_pylist())
        usable = table.column("status").to_numpy() == "ok"
        for name in filtered:  # null, which is NaN here, is no reason
            usable &= ~(table.column(name).to_numpy() < self.applicability)
        is_ok = np.append(usable, False)  # the last one is row -1
        return np.asarray(is_ok[[self.label_row(row) for row in range(len(images))]])


def check_joined(images: Sequence[str], labels: Sequence[str], shard: str, path: object) -> None:
    """Raise DataError with shard and key unless the keys of images and labels are equal and in the same order."""
    for position, (left, right) in enumerate(zip(images, labels, strict=False)):
        if left != right:
            raise DataError(f"{path}: row {position} holds key {right!r} where shard {shard} has {left!r}.")
    if len(images) != len(labels):
        first = (images[len(labels) :] or labels[len(images) :])[0]
        raise DataError(
            f"{path}: {len(labels)} rows for the {len(images)} images of shard {shard}; first unmatched key {first!r}."
        )


@dataclasses.dataclass(frozen=True)
class DatasetShard:
    """An image shard, the rows of it that may be used, and by head its label sources: the first with a label wins."""

    images: ImageShard
    rows: NDArray[np.int64]
    label_sources: Mapping[str, tuple[LabelSource, ...]]
    dataset: str = ""
    """The name of the set that the images are from, where that is asked for."""
    channels: int = RGB
    """Channels of the images."""

    def has_label(self, head: str) -> NDArray[np.bool_]:
        """Return a mask of the images of the shard, whatever `rows` are used, that have a label of the head.

        Raises DataError if a label file does not fit the shard.
        """
        known = np.zeros(len(self.images), np.bool_)
        for source in self.label_sources.get(head, ()):
            known |= source.has_label(self.images)
        return known


@dataclasses.dataclass
class ImageSample:
    """An augmented image (S, S, 3) uint8, or (S, S, C) float32 of a set of C channels, with its labels by head, and the
    (width, height) of its valid region.
    """

    key: str
    image: NDArray[Any]
    valid: tuple[int, int]
    values: dict[str, Value]
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """By head, what its label counts, in [0, 1]; 1 if it is not there."""


class OpenSource(NamedTuple):
    """A label source with its label file, and that of the labels that these are compared with."""

    source: LabelSource
    labels: LabelShard
    other: LabelShard | None

    @classmethod
    def of(cls, source: LabelSource, images: ImageShard) -> OpenSource:
        """Open the files. Raises DataError, naming shard and key, unless they fit the image shard."""
        return cls(
            source, _open(source, images), _open(compared.other, images) if (compared := source.disagreement) else None
        )

    def value(self, row: int) -> Value | None:
        """Return the label of a row of the image shard, as stored; None without one."""
        return _value(self.source, self.labels, row)

    def weight(self, row: int, value: Value) -> float:
        """Return what the label of a row, of which `value` is learned, counts: 1 if it is compared with none.

        Both labels are compared as their makers gave them, without thresholds.
        """
        compared = self.source.disagreement
        if compared is None or self.other is None:
            return 1.0
        one = self.labels.value(self.source.label_row(row)) if self.source.threshold else value
        other = _value(compared.other, self.other, row)
        return 1.0 if one is None or other is None else compared.weight(self.labels.label.distance(one, other))


def _open(source: LabelSource, images: ImageShard) -> LabelShard:
    labels = LabelShard(source.file, source.label)
    source.check(images, labels.keys)
    return labels


def _value(source: LabelSource, labels: LabelShard, row: int) -> Value | None:
    label_row = source.label_row(row)
    return None if label_row < 0 else labels.value(label_row, source.threshold, source.applicability)


class ImageDataset:
    """The images of some shards with their labels, by index."""

    def __init__(self, shards: Sequence[DatasetShard]) -> None:
        self.shards = [shard for shard in shards if len(shard.rows)]
        self._starts = np.cumsum([0, *(len(shard.rows) for shard in self.shards)])
        self._open = functools.lru_cache(maxsize=SHUFFLE_WINDOW)(self._open_labels)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def channels(self) -> int:
        """Channels of the images: the same of all sets of a recipe that are used together."""
        return self.shards[0].channels if self.shards else RGB

    def _open_labels(self, number: int) -> dict[str, list[OpenSource]]:
        shard = self.shards[number]
        return {
            head: [OpenSource.of(source, shard.images) for source in sources]
            for head, sources in shard.label_sources.items()
        }

    def locate(self, index: int) -> tuple[int, int]:
        """Return (number of the shard, row in its image shard)."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, int(self.shards[number].rows[index - self._starts[number]])

    def values(self, index: int) -> dict[str, Value]:
        """Return the labels of an image as stored, by head; heads without one are left out."""
        return {head: value for head, (value, _) in self.labels(index).items()}

    def labels(self, index: int) -> dict[str, tuple[Value, LabelSource]]:
        """Return the labels of an image as stored, each with its source, by head; heads without one are left out."""
        return {head: (value, opened.source) for head, (value, opened) in self._labels(index).items()}

    def labelled(self, head: str) -> NDArray[np.int64]:
        """Return the indices of the images that have a label of the head."""
        masks = [shard.has_label(head)[shard.rows] for shard in self.shards]
        return np.flatnonzero(np.concatenate([np.zeros(0, np.bool_), *masks]))

    def weights(self, index: int) -> dict[str, float]:
        """Return what the labels of an image that are compared with others count, in [0, 1], by head."""
        return self._weights(index, self._labels(index))

    def _weights(self, index: int, found: Mapping[str, tuple[Value, OpenSource]]) -> dict[str, float]:
        _, row = self.locate(index)
        return {
            head: opened.weight(row, value) for head, (value, opened) in found.items() if opened.source.disagreement
        }

    def _labels(self, index: int) -> dict[str, tuple[Value, OpenSource]]:
        number, row = self.locate(index)
        found: dict[str, tuple[Value, OpenSource]] = {}
        for head, sources in self._open(number).items():
            for opened in sources:
                if (value := opened.value(row)) is not None:
                    found[head] = value, opened
                    break
        return found

    def keys(self) -> list[str]:
        """Return the images' keys, by index."""
        return [shard.images.keys[row] for shard in self.shards for row in shard.rows]

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> ImageDataset:
        """Return a dataset of these images, in their order here."""
        rows: dict[int, list[int]] = {}
        for number, row in (self.locate(index) for index in sorted(indices)):
            rows.setdefault(number, []).append(row)
        shards = [dataclasses.replace(self.shards[number], rows=np.array(kept)) for number, kept in rows.items()]
        return ImageDataset(shards)

    def size(self, index: int) -> tuple[int, int]:
        """Return (width, height) of an upright image, pixels."""
        number, row = self.locate(index)
        return self.shards[number].images.sizes[row]

    def read(self, index: int) -> tuple[str, bytes]:
        """Return (key, bytes of the image file)."""
        number, row = self.locate(index)
        images = self.shards[number].images
        images.download(CACHE_SHARE)
        return images.keys[row], images.read(row)

    def decode(self, index: int, decoder: Callable[[bytes], T]) -> tuple[str, T]:
        """Return (key, `decoder(bytes of the image file)`). A DataError of the decoder names tar and image."""
        key, data = self.read(index)
        try:
            return key, decoder(data)
        except DataError as error:
            tar = self.shards[self.locate(index)[0]].images.tar
            raise DataError(f"{tar}: image {key}: {error}. {REMEDY}") from error

    def sample(
        self, index: int, size: int, resize: Resize, augment: AugmentConfig, seed: tuple[int, ...]
    ) -> ImageSample:
        """Return an image of side `size` with its labels, by an augmentation that `seed` draws.

        Labels in pixels are for that size; rasters have a cell for every `stride` pixels of their label.
        """
        params = sample_params(augment, seeded_generator(*seed), relative_square(resize, self.size(index)), size)
        x0, y0, x1, y1 = params.box
        needed = math.ceil(size / (x1 - x0)), math.ceil(size / (y1 - y0))
        key, decoded = self.decode(index, lambda data: decode_pixels(data, self.channels, needed))
        image = transform_image(decoded, params, size)
        values, found = {}, self._labels(index)
        for head, (value, opened) in found.items():
            label = opened.source.label
            values[head] = transform_label(label, value, params, label.target_side(size))
        return ImageSample(key, image, valid_size(params.box, size), values, self._weights(index, found))

    @functools.cached_property
    def _by_key(self) -> NDArray[np.int64]:
        """The indices of the images, sorted by key."""
        keys = [np.array(shard.images.keys, dtype="S16")[shard.rows] for shard in self.shards]
        return np.argsort(np.concatenate(keys), kind="stable")

    @functools.lru_cache(maxsize=2)  # noqa: B019 - datasets live as long as the run
    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return all indices, shuffled: as a whole, or by windows of SHUFFLE_WINDOW shards where there are more.

        Shuffled as a whole, the order of the images does not depend on their shards: a pool that grew in parts gives
        the same stream as one that was read at once.
        """
        rng = seeded_generator(seed, epoch)
        if len(self.shards) <= SHUFFLE_WINDOW:
            return self._by_key[rng.permutation(len(self))]
        shards = rng.permutation(len(self.shards))
        windows = [shards[start : start + SHUFFLE_WINDOW] for start in range(0, len(shards), SHUFFLE_WINDOW)]
        spans = [[np.arange(self._starts[n], self._starts[n + 1]) for n in window] for window in windows]
        return np.concatenate([rng.permutation(np.concatenate(span)) for span in spans])
