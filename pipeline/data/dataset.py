"""Images and labels on disk, joined strictly and found by position. No torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import draw, generator, view_image, view_label
from pipeline.data.decode import decode
from pipeline.recipe.augment import AugmentConfig
from pipeline.storage.root import StoredFile
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import Label, LabelShard, Value, check_joined, read_labels

WINDOW = 64
"""Shards that are shuffled together, and whose labels are in memory; sets of fewer shards are shuffled as a whole."""
SHARE = 1 / (2 * WINDOW)
"""Of the cache, if the set is elsewhere: shards this large are fetched whole; those of a window fill half of it."""


@dataclasses.dataclass(frozen=True)
class LabelSource:
    """Labels of one head for one image shard: a label file, how to read it, and the threshold applied when read.

    A file of the shard's own has its keys in its order. Of another shard's, `rows` says in which row of the file each
    image has its label, -1 for none. Labels of the image shard's rows `without` are there but not used.
    """

    file: StoredFile
    label: Label
    threshold: float = 0.0
    rows: tuple[int, ...] | None = None
    without: frozenset[int] = frozenset()

    def row(self, row: int) -> int:
        """The row in the file for a row of the image shard, -1 if it has none to be used."""
        if row in self.without:
            return -1
        return row if self.rows is None else self.rows[row]

    def check(self, images: ImageShard, keys: Sequence[str]) -> None:
        """Raise DataError, naming shard and key, unless the file, which holds `keys`, has every image's label where it
        is looked for.
        """
        if self.rows is None:
            return check_joined(images.keys, keys, images.name, self.file)
        pairs = [(key, keys[row]) for key, row in zip(images.keys, self.rows, strict=True) if row >= 0]
        return check_joined([key for key, _ in pairs], [found for _, found in pairs], images.name, self.file)

    def has_label(self, images: ImageShard) -> NDArray[np.bool_]:
        """For every image of the shard, whether it has a label here. DataError if the file is not the right one."""
        table = read_labels(self.file, ["key", "status"])
        self.check(images, table.column("key").to_pylist())
        fine = np.append(table.column("status").to_numpy() == "ok", False)
        return np.asarray(fine[[self.row(row) for row in range(len(images))]])


@dataclasses.dataclass(frozen=True)
class DatasetShard:
    """One image shard, the rows of it that may be used, and for every head its layers: the first with a label wins."""

    images: ImageShard
    rows: NDArray[np.int64]
    label_sources: Mapping[str, tuple[LabelSource, ...]]


@dataclasses.dataclass
class ImageSample:
    """One image's view and its labels in that view."""

    key: str
    image: NDArray[np.uint8]
    values: dict[str, Value]


class ImageDataset:
    """All usable (image, labels) of a training or evaluation set, by position."""

    def __init__(self, shards: Sequence[DatasetShard]) -> None:
        self.shards = [shard for shard in shards if len(shard.rows)]
        self._starts = np.cumsum([0, *(len(shard.rows) for shard in self.shards)])
        self._open = functools.lru_cache(maxsize=WINDOW)(self._open_labels)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _open_labels(self, number: int) -> dict[str, list[tuple[LabelShard, LabelSource]]]:
        shard = self.shards[number]
        opened: dict[str, list[tuple[LabelShard, LabelSource]]] = {}
        for head, label_sources in shard.label_sources.items():
            opened[head] = [(LabelShard(source.file, source.label), source) for source in label_sources]
            for labels, source in opened[head]:
                source.check(shard.images, labels.keys)
        return opened

    def locate(self, index: int) -> tuple[int, int]:
        """(shelf number, row in its image shard) of position `index`."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, int(self.shards[number].rows[index - self._starts[number]])

    def values(self, index: int) -> dict[str, Value]:
        """The labels of position `index` as stored, by head; heads without one are left out."""
        number, row = self.locate(index)
        found: dict[str, Value] = {}
        for head, label_sources in self._open(number).items():
            for labels, source in label_sources:
                place = source.row(row)
                value = None if place < 0 else labels.value(place, source.threshold)
                if value is not None:
                    found[head] = value
                    break
        return found

    def keys(self) -> list[str]:
        """The images' keys, by position."""
        return [shard.images.keys[row] for shard in self.shards for row in shard.rows]

    def only(self, chosen: Sequence[int] | NDArray[np.int64]) -> ImageDataset:
        """The images at these positions, in their order here."""
        kept: dict[int, list[int]] = {}
        for number, row in (self.locate(index) for index in sorted(chosen)):
            kept.setdefault(number, []).append(row)
        shards = [dataclasses.replace(self.shards[number], rows=np.array(rows)) for number, rows in kept.items()]
        return ImageDataset(shards)

    def labels(self, index: int) -> dict[str, Label]:
        """How the labels of position `index` are read, by head."""
        number, _ = self.locate(index)
        return {head: label_sources[0].label for head, label_sources in self.shards[number].label_sources.items()}

    def read(self, index: int) -> tuple[str, bytes]:
        """(key, image bytes) of position `index`."""
        number, row = self.locate(index)
        images = self.shards[number].images
        images.download(SHARE)
        return images.keys[row], images.read(row)

    def sample(self, index: int, size: int, augment: AugmentConfig, seed: tuple[int, ...]) -> ImageSample:
        """One view of position `index`, drawn by `seed`, with its labels."""
        view = draw(augment, generator(*seed))
        key, data = self.read(index)
        share = min(view.box[2] - view.box[0], view.box[3] - view.box[1])
        enough = int(np.ceil(size / share))
        image = view_image(decode(data, at_least=(enough, enough)), view, size)
        labels = self.labels(index)
        cells = size // 4
        values = {
            head: view_label(labels[head], value, view, size if labels[head].uses_pixels else cells)
            for head, value in self.values(index).items()
        }
        return ImageSample(key, image, values)

    @functools.cached_property
    def _by_key(self) -> NDArray[np.int64]:
        """All positions, in the order of their images' keys."""
        keys = [np.array(shard.images.keys, dtype="S16")[shard.rows] for shard in self.shards]
        return np.argsort(np.concatenate(keys), kind="stable")

    @functools.lru_cache(maxsize=2)  # noqa: B019 - libraries live as long as the run
    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """All positions once, shuffled: as a whole, or by windows of WINDOW shards where there are more.

        As a whole, it is an order of the images, whatever shards they are in: a pool that grew in parts gives the
        stream of one that was read at once.
        """
        rng = generator(seed, epoch)
        if len(self.shards) <= WINDOW:
            return self._by_key[rng.permutation(len(self))]
        shards = rng.permutation(len(self.shards))
        windows = [shards[start : start + WINDOW] for start in range(0, len(shards), WINDOW)]
        spans = [
            np.concatenate([np.arange(self._starts[n], self._starts[n + 1]) for n in window]) for window in windows
        ]
        return np.concatenate([rng.permutation(span) for span in spans])
