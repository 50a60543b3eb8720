"""Compare two label stores image by image: versions of a teacher, two teachers, or a teacher and true labels.

The differences of a pair are computed on a thread when they are asked for: every label of both has to be read. Labels
that arrive or change later are compared as soon as the pair, or its progress, is asked for again.
"""

from __future__ import annotations

import dataclasses
import math
import threading

import numpy as np
import pyarrow as pa

from browser.label_files import decode_row, read_rows
from browser.loading import Loading, is_same_file
from browser.tables import Store, quoted
from pipeline.errors import ConfigError, DataError, MustError
from pipeline.storage.root import StoredFile

PAIR_SEPARATOR = ":"
"""Between the names of the two stores."""


Files = tuple[StoredFile, StoredFile]
"""The label files of two stores for one image shard."""


@dataclasses.dataclass
class StorePair:
    """Two stores, and the image shards (the ids of their images) that are compared, with the files that were read."""

    one: Store
    other: Store
    compared: dict[range, Files] = dataclasses.field(default_factory=dict)
    total: int = 0
    """Number of images that both stores have labels of."""
    is_running: bool = False
    """True while a thread computes differences."""
    columns = {"differ": "FLOAT"}  # noqa: RUF012 - a constant

    @property
    def name(self) -> str:
        return f"{self.one.name}{PAIR_SEPARATOR}{self.other.name}"

    @property
    def table(self) -> str:
        return quoted(self.name)

    @property
    def done(self) -> int:
        """Number of images that are compared, those of damaged files included."""
        return sum(map(len, list(self.compared)))


class Differences:
    """The pairs of stores that were asked for."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.pairs: dict[str, StorePair] = {}
        self._lock = threading.Lock()

    def start(self, one: Store, other: Store) -> StorePair:
        """Return the pair, whose missing differences a thread computes. Raises ConfigError if the labels' meanings
        differ.
        """
        pair = self._pair(one, other)
        with self._lock:
            must_start = not pair.is_running and bool(self._missing(pair))
            pair.is_running |= must_start
        if must_start:
            threading.Thread(target=self._run, args=(pair,), name="differences", daemon=True).start()
        return pair

    def compute(self, one: Store, other: Store) -> StorePair:
        """Return the pair with all differences computed. Raises ConfigError as `start` does."""
        pair = self._pair(one, other)
        self._compute(pair)
        return pair

    def _pair(self, one: Store, other: Store) -> StorePair:
        if one.label.space != other.label.space or one is other:
            raise ConfigError(
                f"{one.name} and {other.name} can't be compared: they are one store, or their tasks or classes differ."
            )
        pair = StorePair(one, other)
        with self._lock:
            if pair.name not in self.pairs:
                self.loading.tables.add_table(pair.table, pair.columns)
                self.pairs[pair.name] = pair
            return self.pairs[pair.name]

    def _missing(self, pair: StorePair) -> dict[range, Files]:
        """Drop the differences of labels that are gone or replaced; return the shards that are still to be compared."""
        shards = self.loading.common_shards(pair.one.name, pair.other.name)
        pair.total = sum(map(len, shards))
        for ids, files in list(pair.compared.items()):
            if ids not in shards or not all(map(is_same_file, files, shards[ids])):
                self.loading.tables.delete(pair.table, ids)
                del pair.compared[ids]
        return {ids: files for ids, files in shards.items() if ids not in pair.compared}

    def _run(self, pair: StorePair) -> None:
        self.loading.progress.damaged.pop(pair.name, None)
        try:
            self._compute(pair)
        except MustError as error:  # such as a storage that does not answer: the next `start` goes on
            self.loading.progress.damaged[pair.name] = str(error)
        finally:
            pair.is_running = False

    def _compute(self, pair: StorePair) -> None:
        with self._lock:
            missing = self._missing(pair)
        for ids, files in missing.items():
            self._compare(pair, ids, files)
            pair.compared[ids] = files

    def _compare(self, pair: StorePair, ids: range, files: Files) -> None:
        damaged, names = self.loading.progress.damaged, " and ".join(map(str, files))
        damaged.pop(names, None)
        try:
            values = _distances(pair, *files)
        except (DataError, ValueError) as error:  # ValueError: their numbers of rows differ
            damaged[names] = str(error)
            return
        rows = {"id": pa.array(ids, pa.int32()), "differ": pa.array(values, pa.float32())}
        self.loading.tables.insert(pair.table, pa.table(rows))


def _distances(pair: StorePair, one: StoredFile, other: StoredFile) -> list[float | None]:
    """Return the distance in [0, 1] for every row of two files, None where one has no label or holds no numbers (NaN).

    The task's own threshold is applied: labels below it are mostly noise that no student learns from.
    """
    label, threshold = pair.one.label, pair.one.label.default_threshold
    distances: list[float | None] = []
    for left, right in zip(read_rows(one), read_rows(other), strict=True):
        if left["status"] != "ok" or right["status"] != "ok":
            distances.append(None)
            continue
        values = decode_row(pair.one, left, threshold), decode_row(pair.other, right, threshold)
        distance = float(np.clip(label.distance(*values), 0, 1))
        distances.append(None if math.isnan(distance) else distance)
    return distances
