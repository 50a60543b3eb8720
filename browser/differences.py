"""Compare two label stores image by image: versions of a teacher, two teachers, or a teacher and true labels.

The differences of a pair are computed on a thread when they are first asked for: every label of both has to be read.
"""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pyarrow as pa

from browser.loading import Loading
from browser.pictures import decode_row
from browser.tables import Store, quoted
from pipeline.errors import ConfigError, MustError
from pipeline.storage.root import StoredFile
from pipeline.stores.labels import Row, open_labels

PAIR_SEPARATOR = ":"
"""Between the names of the two stores."""


@dataclasses.dataclass
class StorePair:
    """Two stores, and for how many images their difference is in the table."""

    one: Store
    other: Store
    done: int = 0
    total: int = 0
    columns = {"differ": "FLOAT"}  # noqa: RUF012 - a constant

    @property
    def name(self) -> str:
        return f"{self.one.name}{PAIR_SEPARATOR}{self.other.name}"

    @property
    def table(self) -> str:
        return quoted(self.name)


class Differences:
    """The pairs of stores that were asked for."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.pairs: dict[str, StorePair] = {}
        self._lock = threading.Lock()

    def start(self, one: Store, other: Store) -> StorePair:
        """Return the pair, whose differences a thread computes. Raises ConfigError if the labels' meanings differ."""
        pair, is_new = self._pair(one, other)
        if is_new:
            threading.Thread(target=self._compute, args=(pair,), name="differences", daemon=True).start()
        return pair

    def compute(self, one: Store, other: Store) -> StorePair:
        """Return the pair with all differences computed. Raises ConfigError as `start` does."""
        pair, _ = self._pair(one, other)
        self._compute(pair)
        return pair

    def _pair(self, one: Store, other: Store) -> tuple[StorePair, bool]:
        """Return the pair, and True if it is new."""
        if one.label.space != other.label.space or one is other:
            raise ConfigError(
                f"{one.name} and {other.name} can't be compared: they are one store, or their tasks or classes differ."
            )
        pair = StorePair(one, other)
        with self._lock:
            if pair.name in self.pairs:
                return self.pairs[pair.name], False
            self.loading.tables.add_table(pair.table, pair.columns)
            self.pairs[pair.name] = pair
            return pair, True

    def _compute(self, pair: StorePair) -> None:
        shards = self.loading.common_shards(pair.one.name, pair.other.name)
        pair.total = sum(len(ids) for ids, _, _ in shards)
        for ids, one, other in shards:
            try:
                values = _distances(pair, one, other)
            except MustError as error:
                self.loading.progress.damaged[f"{one} and {other}"] = str(error)
                continue
            rows = {"id": pa.array(ids, pa.int32()), "differ": pa.array(values, pa.float32())}
            self.loading.tables.insert(pair.table, pa.table(rows))
            pair.done += len(ids)


def _distances(pair: StorePair, one: StoredFile, other: StoredFile) -> list[float | None]:
    """Return the distance in [0, 1] for every row of two files, None where one of them has no label.

    The task's own threshold is applied: labels below it are mostly noise that no student learns from.
    """
    label, threshold = pair.one.label, pair.one.label.default_threshold
    distances: list[float | None] = []
    for left, right in zip(read_rows(one), read_rows(other), strict=True):
        if left["status"] != "ok" or right["status"] != "ok":
            distances.append(None)
            continue
        values = decode_row(pair.one, left, threshold), decode_row(pair.other, right, threshold)
        distances.append(float(np.clip(label.distance(*values), 0, 1)))
    return distances


def read_rows(file: StoredFile) -> list[Row]:
    """Return all rows of a label file."""
    return open_labels(file, lambda parquet: parquet.read().to_pylist())
