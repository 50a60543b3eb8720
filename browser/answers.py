"""What the page asks, answered from the tables and the shards, as JSON: no HTTP in here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from browser.differences import BETWEEN, Differences
from browser.filters import Clause, FilterColumn, ImageSelection, Table, column, joined, threshold_of
from browser.loading import Loading
from browser.pictures import Pictures, decoded
from browser.rejecting import Rejecting
from browser.tables import Store, quoted
from pipeline.errors import ConfigError, DataError
from tasks.drawing import palette

AMONG = "id IN (SELECT unnest(?::INTEGER[]))"
MOST_ROWS = 1000
"""Of a list or of a query's answer."""
PAIR = re.compile(rf"-?(?P<one>[^{BETWEEN}<>=!~]+){BETWEEN}(?P<other>[^{BETWEEN}<>=!~]+)\.differ")
KEY = re.compile(r"[0-9a-f]{16}")
BINS = 20
SAMPLE = 2000
"""Images whose labels are read to tell what a threshold keeps."""
PIECES = 20
MOST_VALUES = 50
"""Of a column of words, the most frequent."""


class Answers:
    """Answers about one root."""

    def __init__(self, loading: Loading) -> None:
        self.loading, self.tables, self.pictures = loading, loading.tables, Pictures(loading)
        self.differences, self.rejecting = Differences(loading), Rejecting(loading)

    @property
    def stores(self) -> dict[str, Store]:
        """The label stores by name; by its maker's name alone the newest one of a maker."""
        return {**self.loading.newest(), **self.loading.stores}

    def tables_for(self, *texts: str) -> dict[str, Table]:
        """What links may name: the label stores, and the pairs `one:other` that these conditions and orders do."""
        found: dict[str, Table] = dict(self.stores)
        for text in texts:
            pair = PAIR.match(text)
            if pair:
                made = self.differences.between(self.store(pair["one"]), self.store(pair["other"]))
                found[f"{pair['one']}{BETWEEN}{pair['other']}"] = found[made.name] = made
        return found

    def number(self, key: str) -> int:
        """The number of an image. DataError if there is none of this key."""
        if KEY.fullmatch(key):
            [[found]] = self.tables.ask("SELECT min(id) FROM placed WHERE hash = ?", (int(key, 16),)).rows
            if found is not None:
                return int(found)
        raise DataError(f"There is no image {key!r} in {self.loading.root}: a key is 16 hex digits.")

    def about(self) -> dict[str, Any]:
        """The root: its sets and stores, and how much of it is there to be asked after."""
        progress = self.loading.progress
        sets = self.tables.ask('SELECT "set", split, sum(images)::BIGINT FROM shards GROUP BY ALL ORDER BY ALL').rows
        return {
            "root": str(self.loading.root),
            "loaded": progress.loaded,
            "found": progress.found,
            "damaged": dict(progress.damaged),
            "images": sum(row[2] for row in sets),
            "rejected": self.tables.ask("SELECT count(*) FROM thrown").rows[0][0],
            "compared": self.compared(),
            "sets": [{"name": name, "split": split, "images": count} for name, split, count in sets],
            "stores": [self._store(found.name) for found in self.loading.found.stores if found.name in self.stores],
        }

    def _store(self, name: str) -> dict[str, Any]:
        store, found = self.stores[name], next(one for one in self.loading.found.stores if one.name == name)
        space = store.label.space
        counts = self.tables.ask(f"SELECT status::VARCHAR, count(*) FROM {store.table} GROUP BY ALL").rows
        return {
            "name": name,
            "maker": found.maker,
            "learned": found.is_learned,
            "newest": self.stores.get(found.maker) is store,
            "made": found.made,
            "task": space.task,
            "scale": space.scale,
            "classes": store.names,
            "holds": "classes" in store.columns,
            "colours": palette(len(space.classes)).tolist(),
            "columns": [each for each in store.columns if each not in ("classes", "amounts")],
            "threshold": store.label.default_threshold,
            "scored": store.label.has_scores,
            "reading": store.label.legend,
            "counts": dict(counts),
        }

    def images(self, view: ImageSelection, limit: int, offset: int, shown: Sequence[str] = ()) -> dict[str, Any]:
        """A page of the list, and how long the list is; of every image what is in the columns `shown`."""
        stores = self.tables_for(*view.conditions, view.order, *shown)
        count = view.select("count(*)", stores, [view.needed(stores)])
        [[total]] = self.tables.ask(count.sql, count.parameters).rows
        page = view.ordered(stores, min(limit, MOST_ROWS), offset)
        numbers = [row[0] for row in self.tables.ask(page.sql, page.parameters).rows]
        rows = self._rows(numbers)
        for name in shown:
            values = self._values(column(name, stores), numbers)
            for number, row in zip(numbers, rows, strict=True):
                row[name] = values.get(number)
        return {"total": total, "images": rows}

    def _rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        wanted = (list(numbers),)
        found = self.tables.ask(f"SELECT * FROM images WHERE {AMONG}", wanted)
        thrown = f"SELECT id, list(coalesce(store, '')) FROM placed JOIN thrown USING (hash) WHERE {AMONG} GROUP BY id"
        rejected = dict(self.tables.ask(thrown, wanted).rows)
        rows = {
            row[0]: dict(zip(found.columns, row, strict=True)) | {"rejected": rejected.get(row[0])}
            for row in found.rows
        }
        return [{name: value for name, value in rows[number].items() if name != "id"} for number in numbers]

    def _values(self, found: FilterColumn, numbers: Sequence[int]) -> dict[int, Any]:
        """What is in a column of a store's table for these images."""
        if found.table is None or found.name in ("class", "rejected"):
            raise ConfigError(f"Column {found.name!r} can't be shown beside images.")
        sql = f"SELECT id, {quoted(found.name)} FROM {found.table.table} WHERE {AMONG}"
        return {number: finite(value) for number, value in self.tables.ask(sql, (list(numbers),)).rows}

    def image(self, key: str, thresholds: Mapping[str, float]) -> dict[str, Any]:
        """An image and what every store says of it."""
        number = self.number(key)
        [row] = self._rows([number])
        known = self.loading.stores
        stores = [known[found.name] for found in self.loading.found.stores if found.name in known]
        labels = [self._label(store, number, thresholds) for store in stores]
        return {**row, "labels": [label for label in labels if label]}

    def _label(self, store: Store, number: int, thresholds: Mapping[str, float]) -> dict[str, Any] | None:
        try:
            row = self.pictures.row(store, number)
            if row is None:
                return None
            value = decoded(store, row, thresholds.get(store.name, 0.0)) if row["status"] == "ok" else None
        except DataError as error:
            task = store.label.space.task
            return {"store": store.name, "task": task, "status": "damaged", "reason": str(error), "columns": {}}
        shown = [name for name in store.columns if name not in ("classes", "amounts", "status")]
        return {
            "store": store.name,
            "task": store.label.space.task,
            "status": row["status"],
            "reason": row["reason"],
            "says": store.label.describe(value) if value else "no label",
            "columns": {name: finite(row[name]) for name in shown},
        }

    def at(self, key: str, store: Store, place: tuple[float, float], threshold: float) -> str:
        """What a label says of a place in the image."""
        value = self.pictures.value(store, self.number(key), threshold)
        return store.label.describe_at(value, place) if value else ""

    def histogram(self, view: ImageSelection, name: str) -> dict[str, Any]:
        """How often each value of a column is among the images: in bins, or of words the most frequent."""
        stores = self.tables_for(*view.conditions, name)
        found = column(name, stores)
        if found.name == "rejected":
            raise ConfigError("There is no histogram of what is rejected: see the list of it.")
        needs = joined(found.table.name if found.table else None)
        if found.name == "class" and isinstance(found.table, Store):
            store, least = found.table, threshold_of(found.table, view.thresholds)
            words = f"unnest({store.table}.classes)::VARCHAR AS word, unnest({store.table}.amounts) AS amount"
            return self._words(view.select(words, stores, [needs]), f"amount >= {least!r}::FLOAT")
        if found.kind is str:
            return self._words(view.select(f"{found.sql}::VARCHAR AS word", stores, [needs]))
        return self._bins(view.select(f"{found.sql}::DOUBLE AS number", stores, [needs]))

    def _words(self, inner: Clause, also: str = "true") -> dict[str, Any]:
        sql = (
            f"SELECT word, count(*) FROM ({inner.sql}) WHERE word IS NOT NULL AND {also} GROUP BY 1 ORDER BY 2 DESC, 1"
        )
        rows = self.tables.ask(f"{sql} LIMIT {MOST_VALUES}", inner.parameters).rows
        return {"kind": "words", "values": [row[0] for row in rows], "counts": [row[1] for row in rows]}

    def _bins(self, inner: Clause) -> dict[str, Any]:
        ends = self.tables.ask(f"SELECT min(number), max(number) FROM ({inner.sql})", inner.parameters).rows[0]
        if ends[0] is None:
            return {"kind": "numbers", "edges": [], "counts": []}
        edges = np.linspace(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1, BINS + 1)
        low, width = float(edges[0]), float(edges[1] - edges[0])
        place = f"least(floor((number - {low!r}) / {width!r})::INTEGER, {BINS - 1})"
        sql = f"SELECT {place}, count(*) FROM ({inner.sql}) WHERE number IS NOT NULL GROUP BY 1"
        counts = dict(self.tables.ask(sql, inner.parameters).rows)
        return {"kind": "numbers", "edges": edges.tolist(), "counts": [counts.get(n, 0) for n in range(BINS)]}

    def balance(self, view: ImageSelection, store: Store, threshold: float) -> dict[str, Any]:
        """What a threshold keeps of a store, class by class, in up to SAMPLE of the images."""
        stores = self.tables_for(*view.conditions)
        inner = view.select("images.id", stores, [joined(store.name)], "ORDER BY images.id")
        numbers = self.tables.numbers(inner.sql, inner.parameters)
        some = sample(numbers)
        names = store.names or [store.label.space.task]
        held, kept = np.zeros(len(names)), np.zeros(len(names))
        for number in some:
            row = self.pictures.row(store, number)
            if row and row["status"] == "ok":
                there, left = store.label.count(row, threshold)
                held, kept = held + there, kept + left
        return {
            "images": len(some),
            "of": len(numbers),
            "unit": store.label.unit,
            "classes": names,
            "held": held.tolist(),
            "kept": kept.tolist(),
        }

    def keys(self, view: ImageSelection) -> list[str]:
        """The keys of all images that a link is about."""
        found = view.select("DISTINCT images.key", self.tables_for(*view.conditions))
        return [row[0] for row in self.tables.ask(found.sql, found.parameters).rows]

    def compared(self) -> list[dict[str, Any]]:
        """How far the comparisons of stores have come."""
        pairs = list(self.differences.pairs.values())
        return [{"name": pair.name, "done": pair.done, "total": pair.total} for pair in pairs]

    def store(self, name: str) -> Store:
        """The store that a link names. ConfigError lists those that there are."""
        if name not in self.stores:
            raise ConfigError(f"There is no label store {name!r}; there are {', '.join(sorted(self.loading.stores))}.")
        return self.stores[name]


def sample(numbers: NDArray[np.int32]) -> list[int]:
    """Up to SAMPLE of these images: PIECES runs of neighbours, spread over all of them. Neighbours are in one file."""
    length = SAMPLE // PIECES
    starts = np.linspace(0, len(numbers) - length, PIECES).astype(int)
    some = np.concatenate([numbers[start : start + length] for start in starts]) if len(numbers) > SAMPLE else numbers
    found: list[int] = some.tolist()
    return found


def finite(value: Any) -> Any:
    """A value for JSON, which knows no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
