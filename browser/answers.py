"""What the page asks, answered from the tables and the shards, as JSON: no HTTP in here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from browser.filters import Column, View, column, joined
from browser.loading import Loading
from browser.pictures import Pictures, decoded
from browser.tables import Store
from pipeline.errors import ConfigError, DataError
from tasks.colours import palette

MOST_ROWS = 1000
"""Of a list or of a query's answer."""
KEY = re.compile(r"[0-9a-f]{16}")
BINS = 20
SAMPLE = 2000
"""Images whose labels are read to tell what a threshold keeps."""
MOST_VALUES = 50
"""Of a column of words, the most frequent."""


class Answers:
    """Answers about one root."""

    def __init__(self, loading: Loading) -> None:
        self.loading, self.tables, self.pictures = loading, loading.tables, Pictures(loading)

    @property
    def stores(self) -> dict[str, Store]:
        """The label stores by name; by its maker's name alone the newest one of a maker."""
        return {**self.loading.newest(), **self.loading.stores}

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
            "damaged": progress.damaged,
            "images": sum(row[2] for row in sets),
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
            "true": found.is_true,
            "newest": self.stores.get(found.maker) is store,
            "made": found.made,
            "task": space.task,
            "scale": space.scale,
            "classes": store.names,
            "colours": palette(len(space.classes)).tolist(),
            "columns": [each for each in store.columns if each not in ("classes", "amounts")],
            "threshold": store.label.default_threshold,
            "reading": store.label.reading,
            "counts": dict(counts),
        }

    def images(self, view: View, limit: int, offset: int) -> dict[str, Any]:
        """A page of the list, and how long the list is."""
        stores = self.stores
        count = view.select("count(*)", stores)
        [[total]] = self.tables.ask(count.sql, count.parameters).rows
        page = view.ordered(stores, min(limit, MOST_ROWS), offset)
        numbers = [row[0] for row in self.tables.ask(page.sql, page.parameters).rows]
        return {"total": total, "images": self._rows(numbers)}

    def _rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        found = self.tables.ask("SELECT * FROM images WHERE id IN (SELECT unnest(?::INTEGER[]))", (list(numbers),))
        rows = {row[0]: dict(zip(found.columns, row, strict=True)) for row in found.rows}
        return [{name: value for name, value in rows[number].items() if name != "id"} for number in numbers]

    def image(self, key: str, thresholds: Mapping[str, float]) -> dict[str, Any]:
        """An image and what every store says of it."""
        number = self.number(key)
        [row] = self._rows([number])
        labels = [self._label(store, number, thresholds) for store in self.loading.stores.values()]
        return {**row, "labels": [label for label in labels if label]}

    def _label(self, store: Store, number: int, thresholds: Mapping[str, float]) -> dict[str, Any] | None:
        row = self.pictures.row(store, number)
        if row is None:
            return None
        threshold = thresholds.get(store.name, 0.0)
        value = decoded(store, row, threshold) if row["status"] == "ok" else None
        shown = [name for name in store.columns if name not in ("classes", "amounts", "status")]
        return {
            "store": store.name,
            "task": store.label.space.task,
            "status": row["status"],
            "reason": row["reason"],
            "says": store.label.say(value) if value else "no label",
            "columns": {name: finite(row[name]) for name in shown},
        }

    def at(self, key: str, store: Store, place: tuple[float, float], threshold: float) -> str:
        """What a label says of a place in the image."""
        value = self.pictures.value(store, self.number(key), threshold)
        return store.label.at(value, place) if value else ""

    def histogram(self, view: View, name: str) -> dict[str, Any]:
        """How often each value of a column is among the images: in bins, or of words the most frequent."""
        found = column(name, self.stores)
        needs = found.store.name if found.store else None
        if found.name == "class" and found.store:
            return self._words(view, f"unnest({found.store.table}.classes)::VARCHAR", needs)
        if found.kind is str:
            return self._words(view, f"{found.sql}::VARCHAR", needs)
        return self._bins(view, found)

    def _words(self, view: View, what: str, needs: str | None) -> dict[str, Any]:
        inner = view.select(f"{what} AS word", self.stores, [joined(needs)])
        sql = f"SELECT word, count(*) FROM ({inner.sql}) WHERE word IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
        rows = self.tables.ask(f"{sql} LIMIT {MOST_VALUES}", inner.parameters).rows
        return {"kind": "words", "values": [row[0] for row in rows], "counts": [row[1] for row in rows]}

    def _bins(self, view: View, found: Column) -> dict[str, Any]:
        needs = joined(found.store.name if found.store else None)
        inner = view.select(f"{found.sql}::DOUBLE AS number", self.stores, [needs])
        ends = self.tables.ask(f"SELECT min(number), max(number) FROM ({inner.sql})", inner.parameters).rows[0]
        if ends[0] is None:
            return {"kind": "numbers", "edges": [], "counts": []}
        edges = np.linspace(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1, BINS + 1)
        low, width = float(edges[0]), float(edges[1] - edges[0])
        place = f"least(floor((number - {low!r}) / {width!r})::INTEGER, {BINS - 1})"
        sql = f"SELECT {place}, count(*) FROM ({inner.sql}) WHERE number IS NOT NULL GROUP BY 1"
        counts = dict(self.tables.ask(sql, inner.parameters).rows)
        return {"kind": "numbers", "edges": edges.tolist(), "counts": [counts.get(n, 0) for n in range(BINS)]}

    def balance(self, view: View, store: Store, threshold: float) -> dict[str, Any]:
        """What a threshold keeps of a store, class by class, in up to SAMPLE of the images, evenly spread over them."""
        inner = view.select("images.id", self.stores, [joined(store.name)], "ORDER BY images.id")
        numbers = [row[0] for row in self.tables.ask(inner.sql, inner.parameters).rows]
        some = numbers[:: max(1, math.ceil(len(numbers) / SAMPLE))]
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

    def store(self, name: str) -> Store:
        """The store that a link names. ConfigError lists those that there are."""
        if name not in self.stores:
            raise ConfigError(f"There is no label store {name!r}; there are {', '.join(sorted(self.loading.stores))}.")
        return self.stores[name]


def finite(value: Any) -> Any:
    """A value for JSON, which knows no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
