"""Answer the page's requests from the tables and the shards, as JSON. No HTTP in here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from browser.catalogue import CataloguedStore
from browser.differences import PAIR_SEPARATOR, Differences
from browser.filters import (
    ANSWERED,
    Clause,
    FilterColumn,
    ImageSelection,
    JoinedTable,
    class_threshold,
    parse_column,
    requires,
)
from browser.label_files import decode_row
from browser.loading import Loading
from browser.overview import Overview
from browser.pictures import Pictures
from browser.query_process import as_json
from browser.rejecting import Rejecting
from browser.sql import Queries
from browser.tables import Store, quoted
from pipeline.errors import ConfigError, DataError
from pipeline.stores.labels import explain_label_errors
from tasks.drawing import palette

HAS_ID = "id IN (SELECT unnest(?::INTEGER[]))"
MAX_ROWS = 1000
"""Of a list."""
_STORE = rf"[^{PAIR_SEPARATOR}<>=!~]+"
PAIR = re.compile(rf"-?(?P<one>{_STORE}){PAIR_SEPARATOR}(?P<other>{_STORE})\.differ")
KEY = re.compile(r"[0-9a-f]{16}")
BINS = 20
MAX_SAMPLE = 2000
"""Images whose labels are read to count what a threshold keeps."""
SAMPLE_RUNS = 20
MAX_VALUES = 50
"""The most frequent values of a text column, in a histogram."""


class Answers:
    """Answers about one root.

    Example:
        Answers(loading).images(ImageSelection(["split=train"]), limit=10, offset=0)["total"]
    """

    def __init__(self, loading: Loading) -> None:
        self.loading, self.tables, self.pictures = loading, loading.tables, Pictures(loading)
        self.differences, self.rejecting = Differences(loading), Rejecting(loading)
        self.queries, self.overview = Queries(loading.tables), Overview(loading)

    @property
    def stores(self) -> dict[str, Store]:
        """The label stores by name, and the newest store of each maker by the maker's name."""
        return {**self.loading.newest_stores(), **self.loading.stores}

    def tables_for(self, *texts: str) -> dict[str, JoinedTable]:
        """Return the tables that a link may name: label stores, and pairs `one:other` in its conditions and order."""
        tables: dict[str, JoinedTable] = dict(self.stores)
        for text in texts:
            names = PAIR.match(text)
            if names:
                pair = self.differences.start(self.store(names["one"]), self.store(names["other"]))
                tables[f"{names['one']}{PAIR_SEPARATOR}{names['other']}"] = tables[pair.name] = pair
        return tables

    def thresholds(self, given: Mapping[str, float]) -> dict[str, float]:
        """Return the threshold of each store: the given one, by the store's or its teacher's name, or the first one."""
        stores = self.stores
        first = {name: self.loading.first_threshold(store)[0] for name, store in self.loading.stores.items()}
        return first | {stores[name].name: value for name, value in given.items() if name in stores}

    def _complete(self, selection: ImageSelection) -> ImageSelection:
        """Return a selection with the thresholds of all stores."""
        return dataclasses.replace(selection, thresholds=self.thresholds(selection.thresholds))

    def image_id(self, key: str) -> int:
        """Return the id of an image. Raises DataError if no image has this key."""
        if not KEY.fullmatch(key):
            raise DataError(f"{key!r:.40} is no image's key: those are 16 hex digits.")
        [[image]] = self.tables.query("SELECT min(id) FROM image_rows WHERE hash = ?", (int(key, 16),))
        if image is None:
            raise DataError(f"There is no image {key!r} in {self.loading.root}.")
        return int(image)

    def about(self) -> dict[str, Any]:
        """Return the root's sets and stores, and how much of it is loaded."""
        progress = self.loading.progress
        sets = self.tables.query('SELECT "set", split, sum(images)::BIGINT FROM shards GROUP BY ALL ORDER BY ALL')
        return {
            "root": str(self.loading.root),
            "loaded": progress.loaded,
            "found": progress.found,
            "damaged": dict(progress.damaged),
            "images": sum(row[2] for row in sets),
            "start": self._first_conditions(),
            "run": self.loading.newest_run and self.loading.newest_run.to_json(),
            "rejected": self.tables.query("SELECT count(*) FROM rejections")[0][0],
            "compared": self.comparison_progress(),
            "sets": [{"name": name, "split": split, "images": count} for name, split, count in sets],
            "stores": [self._store(found) for found in self.loading.catalogue.stores if found.name in self.stores],
        }

    def _first_conditions(self) -> list[str]:
        """Return the conditions of a link that has none: the images that teachers labelled, if there are any."""
        [[labelled]] = self.tables.query("SELECT EXISTS (FROM shards WHERE teachers > 0)")
        return ["labelled=yes"] if labelled else []

    def _store(self, found: CataloguedStore) -> dict[str, Any]:
        store = self.stores[found.name]
        space, (threshold, of_recipe) = store.label.space, self.loading.first_threshold(store)
        counts = self.tables.query(f"SELECT status::VARCHAR, count(*) FROM {store.table} GROUP BY ALL")
        return {
            "name": found.name,
            "maker": found.maker,
            "learned": found.is_learned,
            "true": found.is_true,
            "newest": self.stores.get(found.maker) is store,
            "made": found.made,
            "task": space.task,
            "scale": space.scale,
            "classes": store.class_names,
            "holds": "classes" in store.columns,
            "colours": palette(len(space.classes)).tolist(),
            "columns": [column for column in store.columns if column not in ("classes", "amounts")],
            "layer": store.label.layer,
            "clear": list(store.label.clear_classes),
            "threshold": threshold,
            "of_recipe": of_recipe,
            "drops": store.label.has_scores or store.label.can_be_calibrated,
            "scored": store.label.has_scores,
            "calibration": store.label.calibration and store.label.calibration.to_json(),
            "reading": store.label.legend,
            "counts": dict(counts),
        }

    def images(self, selection: ImageSelection, limit: int, offset: int, shown: Sequence[str] = ()) -> dict[str, Any]:
        """Return a page of the list and the list's length; each image has its values of the columns `shown`."""
        selection = self._complete(selection)
        stores = self.tables_for(*selection.conditions, selection.order, *shown)
        count = selection.select("count(*)", stores, [selection.requires_order(stores)])
        [[total]] = self.tables.query(count.sql, count.parameters)
        page = selection.page(stores, min(limit, MAX_ROWS), offset)
        ids = [row[0] for row in self.tables.query(page.sql, page.parameters)]
        rows = self._rows(ids)
        for name in shown:
            values = self._values(parse_column(name, stores), ids)
            for image, row in zip(ids, rows, strict=True):
                row[name] = values.get(image)
        return {"total": total, "images": rows}

    def _rows(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        rows = dict(self.tables.query(f"SELECT id, image FROM images AS image WHERE {HAS_ID}", (list(ids),)))
        stores = "SELECT id, list(coalesce(store, '')) FROM image_rows JOIN rejections USING (hash)"
        rejected = dict(self.tables.query(f"{stores} WHERE {HAS_ID} GROUP BY id", (list(ids),)))
        return [
            {name: value for name, value in rows[image].items() if name != "id"} | {"rejected": rejected.get(image)}
            for image in ids
        ]

    def _values(self, column: FilterColumn, ids: Sequence[int]) -> dict[int, Any]:
        """Return the values of these images in a column of a store's table, by id."""
        if column.table is None or column.name in ("class", *ANSWERED):
            raise ConfigError(f"Column {column.name!r} can't be shown beside images.")
        sql = f"SELECT id, {quoted(column.name)} FROM {column.table.table} WHERE {HAS_ID}"
        return {image: as_json(value) for image, value in self.tables.query(sql, (list(ids),))}

    def image(self, key: str, thresholds: Mapping[str, float]) -> dict[str, Any]:
        """Return an image and its label in every store, with these thresholds, by default those to begin with."""
        image, thresholds = self.image_id(key), self.thresholds(thresholds)
        [row] = self._rows([image])
        known = self.loading.stores
        stores = [known[found.name] for found in self.loading.catalogue.stores if found.name in known]
        labels = [self._label(store, image, thresholds) for store in stores]
        return {**row, "labels": [label for label in labels if label]}

    def _label(self, store: Store, image: int, thresholds: Mapping[str, float]) -> dict[str, Any] | None:
        try:
            row = self.pictures.row(store, image)
            if row is None:
                return None
            value = decode_row(store, row, thresholds[store.name]) if row["status"] == "ok" else None
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
            "columns": {name: as_json(row[name]) for name in shown},
        }

    def describe_at(self, key: str, store: Store, point: tuple[float, float], threshold: float) -> str:
        """Describe a label at a point (x, y) of the image, in [0, 1]."""
        value = self.pictures.value(store, self.image_id(key), threshold)
        return store.label.describe_at(value, point) if value else ""

    def histogram(self, selection: ImageSelection, name: str) -> dict[str, Any]:
        """Count the values of a column among the images: of numbers in bins, of texts the most frequent ones."""
        selection = self._complete(selection)
        stores = self.tables_for(*selection.conditions, name)
        column = parse_column(name, stores)
        if column.name in ANSWERED:
            raise ConfigError(f"Column {column.name!r} has no histogram: it is for conditions.")
        table = requires(column.table)
        if column.name == "class" and isinstance(column.table, Store):
            store, threshold = column.table, class_threshold(column.table, selection.thresholds)
            words = f"unnest({store.table}.classes)::VARCHAR AS word, unnest({store.table}.amounts) AS amount"
            return self._count_words(selection.select(words, stores, [table]), "amount >= ?::FLOAT", (threshold,))
        if column.kind is str:
            return self._count_words(selection.select(f"{column.sql}::VARCHAR AS word", stores, [table]))
        return self._count_in_bins(
            selection.select(f"{column.sql}::DOUBLE AS number", stores, [table]), column.is_whole
        )

    def _count_words(self, inner: Clause, condition: str = "true", values: tuple[float, ...] = ()) -> dict[str, Any]:
        sql = f"SELECT word, count(*) FROM ({inner.sql}) WHERE word IS NOT NULL AND {condition} GROUP BY 1"
        rows = self.tables.query(f"{sql} ORDER BY 2 DESC, 1 LIMIT {MAX_VALUES}", (*inner.parameters, *values))
        return {"kind": "words", "values": [row[0] for row in rows], "counts": [row[1] for row in rows]}

    def _count_in_bins(self, inner: Clause, is_whole: bool) -> dict[str, Any]:
        finite = f"FROM ({inner.sql}) WHERE isfinite(number)"  # NaN and infinity have no bin
        ends = self.tables.query(f"SELECT min(number), max(number) {finite}", inner.parameters)[0]
        if ends[0] is None:
            return {"kind": "numbers", "whole": is_whole, "edges": [], "counts": []}
        edges = whole_edges(*ends) if is_whole else edges_between(*ends)
        low, width, bins = float(edges[0]), float(edges[1] - edges[0]), len(edges) - 1
        bin_sql = f"least(floor((number - ?) / ?)::INTEGER, {bins - 1})"
        sql = f"SELECT {bin_sql}, count(*) {finite} GROUP BY 1"
        counts = dict(self.tables.query(sql, (low, width, *inner.parameters)))
        found = [counts.get(n, 0) for n in range(bins)]
        return {"kind": "numbers", "whole": is_whole, "edges": edges.tolist(), "counts": found}

    def balance(self, selection: ImageSelection, store: Store, threshold: float) -> dict[str, Any]:
        """Count what a threshold keeps of a store, class by class, in up to MAX_SAMPLE of the images."""
        selection = self._complete(selection)
        stores = self.tables_for(*selection.conditions)
        inner = selection.select("images.id", stores, [requires(store)], "ORDER BY images.id")
        ids = self.tables.query_ids(inner.sql, inner.parameters)
        sampled = sample(ids)
        names = store.class_names or [store.label.space.task]
        held, kept = np.zeros(len(names)), np.zeros(len(names))
        for image in sampled:
            row = self.pictures.row(store, image)
            if row and row["status"] == "ok":
                with explain_label_errors(store.name, row["key"]):
                    held_here, kept_here = store.label.count(row, threshold)
                held, kept = held + held_here, kept + kept_here
        return {
            "images": len(sampled),
            "of": len(ids),
            "unit": store.label.unit,
            "classes": names,
            "held": [as_count(amount) for amount in held.tolist()],
            "kept": [as_count(amount) for amount in kept.tolist()],
        }

    def sql(self, query: str) -> dict[str, Any]:
        """Answer a query in SQL. Raises ConfigError if it can't be answered."""
        return self.queries.answer(query, self.stores)

    def keys(self, selection: ImageSelection) -> list[str]:
        """Return the keys of all images that a link selects."""
        query = self._complete(selection).select("DISTINCT images.key", self.tables_for(*selection.conditions))
        return [row[0] for row in self.tables.query(query.sql, query.parameters)]

    def comparison_progress(self) -> list[dict[str, Any]]:
        """Return how many images of each pair of stores are compared, and go on comparing if there are new labels."""
        pairs = [self.differences.start(pair.one, pair.other) for pair in list(self.differences.pairs.values())]
        return [{"name": pair.name, "done": pair.done, "total": pair.total} for pair in pairs]

    def store(self, name: str) -> Store:
        """Return the store that a link names. Raises ConfigError, with the known ones, if there is none."""
        if name not in self.stores:
            known = ", ".join(sorted(self.stores))
            raise ConfigError(f"There is no label store {name!r}; there are {known}.")
        return self.stores[name]


def edges_between(low: float, high: float) -> NDArray[np.float64]:
    """Return the edges of the bins of numbers from `low` to `high`."""
    return np.linspace(low, high if high > low else low + 1, BINS + 1)


def whole_edges(low: float, high: float) -> NDArray[np.int64]:
    """Return the edges of the bins of whole numbers from `low` to `high`, whole as well; a last bin may be smaller."""
    width = -(-int(high - low + 1) // BINS)
    return np.append(np.arange(int(low), int(high) + 1, width), int(high) + 1)


def as_count(amount: float) -> float:
    """Return an amount, as an int if it is a whole number: then it counts something."""
    return int(amount) if amount.is_integer() else amount


def sample(ids: NDArray[np.int32]) -> list[int]:
    """Return up to MAX_SAMPLE of these images: SAMPLE_RUNS runs of neighbors, which share a file, spread over all."""
    length = MAX_SAMPLE // SAMPLE_RUNS
    if len(ids) > MAX_SAMPLE:
        starts = np.linspace(0, len(ids) - length, SAMPLE_RUNS).astype(int)
        ids = np.concatenate([ids[start : start + length] for start in starts])
    return ids.tolist()
