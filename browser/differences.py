"""How far two label stores are apart, image by image: two versions of a teacher, two teachers, or a teacher and the
truth. Worked out on a thread when it is first asked for, as every label of both has to be read.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pyarrow as pa

from browser.loading import Loading
from browser.pictures import decoded
from browser.tables import Store, quoted
from pipeline.errors import ConfigError, MustError
from pipeline.storage.root import StoredFile
from pipeline.stores.labels import Row, open_labels

BETWEEN = ":"
"""Between the names of the two stores."""


@dataclasses.dataclass
class Pair:
    """Two stores, and how much of what they differ by is in the table."""

    one: Store
    other: Store
    done: int = 0
    total: int = 0
    columns = {"differ": "FLOAT"}  # noqa: RUF012 - a constant

    @property
    def name(self) -> str:
        return f"{self.one.name}{BETWEEN}{self.other.name}"

    @property
    def table(self) -> str:
        return quoted(self.name)


class Differences:
    """The pairs that were asked for."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.pairs: dict[str, Pair] = {}
        self._lock = threading.Lock()

    def between(self, one: Store, other: Store) -> Pair:
        """What two stores differ by, as far as it is known: the work begins when it is first asked for. ConfigError if
        their labels don't mean the same.
        """
        pair, is_new = self._pair(one, other)
        if is_new:
            threading.Thread(target=self._work, args=(pair,), name="differences", daemon=True).start()
        return pair

    def worked_out(self, one: Store, other: Store) -> Pair:
        """The same, all of it, once it is there."""
        pair, _ = self._pair(one, other)
        self._work(pair)
        return pair

    def _pair(self, one: Store, other: Store) -> tuple[Pair, bool]:
        """The pair, and whether it is asked for for the first time."""
        if one.label.space != other.label.space or one is other:
            raise ConfigError(
                f"{one.name} and {other.name} can't be compared: they are one store, or their tasks or classes differ."
            )
        pair = Pair(one, other)
        with self._lock:
            if pair.name in self.pairs:
                return self.pairs[pair.name], False
            self.loading.tables.add_table(pair.table, pair.columns)
            self.pairs[pair.name] = pair
            return pair, True

    def _work(self, pair: Pair) -> None:
        shards = self.loading.shared(pair.one.name, pair.other.name)
        pair.total = sum(len(ids) for ids, _, _ in shards)
        for ids, one, other in shards:
            try:
                values = self._differ(pair, one, other)
            except MustError as error:
                self.loading.progress.damaged[f"{one} and {other}"] = str(error)
                continue
            rows = {"id": pa.array(ids, pa.int32()), "differ": pa.array(values, pa.float32())}
            self.loading.tables.put(pair.table, pa.table(rows))
            pair.done += len(ids)

    def _differ(self, pair: Pair, one: StoredFile, other: StoredFile) -> list[float | None]:
        """For every row of two files; None where one of them has no label. At the tasks' own thresholds: below them is
        much that nobody will learn from.
        """
        label, threshold = pair.one.label, pair.one.label.default_threshold
        found: list[float | None] = []
        for left, right in zip(read_rows(one), read_rows(other), strict=True):
            if left["status"] != "ok" or right["status"] != "ok":
                found.append(None)
                continue
            values = decoded(pair.one, left, threshold), decoded(pair.other, right, threshold)
            found.append(float(np.clip(label.distance(*values), 0, 1)))
        return found


def read_rows(file: StoredFile) -> list[Row]:
    """All rows of a label file."""

    def read(parquet: Any) -> list[Row]:
        rows: list[Row] = parquet.read().to_pylist()
        return rows

    return open_labels(file, read)
