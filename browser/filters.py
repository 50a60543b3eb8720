"""Translate the filters of a page's link to SQL: conditions, an order, and the part of the list to show.

A condition is `<column><operator><value>`, as in `things.confidence<0.3`, `street.class=car`, `source~IMG_0`. Columns
are those of the table `images`, and those of a label store after its name and a dot. `class=car` selects images with
that class by the store's threshold in the link; `confidence` and the task's own columns are as in the files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from browser.tables import Store, literal, quoted
from pipeline.errors import ConfigError, require_one_of

CONDITION = re.compile(r"(?P<column>.+?)(?P<operator><=|>=|!=|=|<|>|~)(?P<value>.*)", re.DOTALL)
IMAGE_COLUMNS = {
    "id": int,
    "key": str,
    "set": str,
    "split": str,
    "shard": str,
    "row": int,
    "width": int,
    "height": int,
    "bytes": int,
    "source": str,
}
"""The columns of images and the types of their values."""
ANSWERED = ("labelled", "rejected")
"""Columns of images that are yes or no, and only in conditions."""
EXAMPLE = "write for example things.confidence<0.3, things.class=car or source~IMG_0"


@dataclasses.dataclass(frozen=True)
class Clause:
    """A part of a query, its parameters, and the stores whose tables it needs."""

    sql: str
    parameters: tuple[Any, ...] = ()
    stores: frozenset[str] = frozenset()


def requires(table: JoinedTable | None) -> Clause:
    """Return the clause that restricts a query to the images that a table covers, so that its columns can be named."""
    return Clause("", (), frozenset({table.name}) if table else frozenset[str]())


@dataclasses.dataclass(frozen=True)
class FilterColumn:
    """A column: its SQL, the type of its values, and the table that it belongs to, None for the images' own."""

    sql: str
    kind: type
    table: JoinedTable | None = None
    name: str = ""

    @property
    def is_whole(self) -> bool:
        """True if its values are whole numbers."""
        return self.kind is int or (self.table is not None and self.table.columns.get(self.name) == "INTEGER")


class JoinedTable(Protocol):
    """A table with a row per image: of a label store, or of the differences between two."""

    @property
    def name(self) -> str: ...

    @property
    def table(self) -> str:
        """The name, quoted for SQL."""

    @property
    def columns(self) -> Mapping[str, str]: ...


def parse_column(text: str, stores: Mapping[str, JoinedTable]) -> FilterColumn:
    """Return the column that a link names. Raises ConfigError, with the known ones, if there is none."""
    place, dot, name = text.rpartition(".")
    if not dot:
        require_one_of(name, {*IMAGE_COLUMNS, *ANSWERED}, "Column")
        if name in ANSWERED:
            return FilterColumn("", str, None, name)
        return FilterColumn(f"images.{quoted(name)}", IMAGE_COLUMNS[name], None, name)
    store = stores[require_one_of(place, stores, "Label store")]
    known = {column for column in store.columns if column not in ("classes", "amounts")}
    virtual = {"class", "rejected"} if "classes" in store.columns else {"rejected"}
    require_one_of(name, known | virtual, f"Column of {place}")
    kind = str if name in ("status", "class") else float
    return FilterColumn(f"{store.table}.{quoted(name)}", kind, store, name)


def parse_condition(text: str, stores: Mapping[str, JoinedTable], thresholds: Mapping[str, float]) -> Clause:
    """Return the SQL of one condition. Raises ConfigError if it can't be understood."""
    parts = CONDITION.fullmatch(text)
    if parts is None:
        raise ConfigError(f"Condition {text!r} has no operator: {EXAMPLE}.")
    column, operator, value = parse_column(parts["column"], stores), parts["operator"], parts["value"]
    if column.name in ANSWERED:
        return _answered_condition(column, operator, value)
    if column.name == "class" and isinstance(column.table, Store):
        return _class_condition(column.table, operator, value, class_threshold(column.table, thresholds))
    needed = requires(column.table).stores
    if operator == "~":
        return Clause(f"contains(lower({column.sql}::VARCHAR), lower(?))", (value,), needed)
    cast = "::VARCHAR" if column.kind is str else ""
    return Clause(f"{column.sql}{cast} {operator} ?", (_parse_value(column, value),), needed)


def class_threshold(store: Store, thresholds: Mapping[str, float]) -> float:
    """Return the least amount of a class that counts: of scores the threshold, given or the task's, else any amount."""
    return thresholds.get(store.name, store.label.default_threshold) if store.label.has_scores else 0.0


def _class_condition(store: Store, operator: str, name: str, threshold: float) -> Clause:
    if operator not in ("=", "!="):
        raise ConfigError(f"Condition on {store.name}.class: only = (has the class) and != (lacks it) are possible.")
    require_one_of(name, store.class_names, f"Class of {store.name}")
    place = f"list_position({store.table}.classes, ?::{store.class_type})"
    has_class = f"coalesce({store.table}.amounts[{place}] >= ?::FLOAT, false)"
    return Clause(has_class if operator == "=" else f"NOT {has_class}", (name, threshold), frozenset({store.name}))


def _answered_condition(column: FilterColumn, operator: str, answer: str) -> Clause:
    """Select images that a teacher labelled, or that were rejected; with a store also those whose label in it was."""
    if operator != "=" or answer not in ("yes", "no"):
        raise ConfigError(f"Condition {column.name}{operator}{answer}: write {column.name}=yes or {column.name}=no.")
    if column.name == "labelled":
        shards = 'SELECT ("set", split, name) FROM shards WHERE teachers > 0'
        sql = f'("set", split, images.shard) IN ({shards}) AND images.id NOT IN (FROM unlabelled)'
    else:
        or_label = f" OR rejections.store = {literal(column.table.name)}" if column.table else ""
        ids = f"SELECT id FROM image_rows JOIN rejections USING (hash) WHERE rejections.store IS NULL{or_label}"
        sql = f"images.id IN ({ids})"
    return Clause(sql if answer == "yes" else f"NOT ({sql})")


def _parse_value(column: FilterColumn, text: str) -> Any:
    if column.kind is str:
        return text
    try:
        return column.kind(text)
    except ValueError as error:
        raise ConfigError(f"Condition on {column.name}: {text!r} is no number.") from error


@dataclasses.dataclass(frozen=True)
class ImageSelection:
    """The images that a link selects, in its order.

    Example:
        ImageSelection(["things.confidence<0.3", "split=train"], order="-things.confidence")
    """

    conditions: Sequence[str] = ()
    order: str = "id"
    """A column; with a minus before it the largest come first."""
    thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """By label store; the task's own for stores that are missing."""

    def select(
        self, columns: str, stores: Mapping[str, JoinedTable], more: Sequence[Clause] = (), rest: str = ""
    ) -> Clause:
        """Return `SELECT columns` from these images, also restricted by `more`; `rest` ends the query."""
        clauses = [*(parse_condition(text, stores, self.thresholds) for text in self.conditions), *more]
        needed = sorted(frozenset[str]().union(*(clause.stores for clause in clauses)))
        joins = "".join(f" JOIN {stores[name].table} USING (id)" for name in needed)
        where = " AND ".join(f"({clause.sql})" for clause in clauses if clause.sql) or "true"
        parameters = tuple(value for clause in clauses for value in clause.parameters)
        return Clause(f"SELECT {columns} FROM images{joins} WHERE {where} {rest}", parameters, frozenset(needed))

    def _order_column(self, stores: Mapping[str, JoinedTable]) -> FilterColumn:
        column = parse_column(self.order.removeprefix("-"), stores)
        if column.name in ("class", *ANSWERED):
            raise ConfigError(f"Order {self.order!r}: images can't be ordered by {column.name}.")
        return column

    def requires_order(self, stores: Mapping[str, JoinedTable]) -> Clause:
        """Return the clause that leaves out images without a value in the order's column."""
        column = self._order_column(stores)
        return requires(column.table)

    def page(self, stores: Mapping[str, JoinedTable], limit: int, offset: int) -> Clause:
        """Return the query for the ids of the images on a page, at most `limit`."""
        column = self._order_column(stores)
        direction = "DESC" if self.order.startswith("-") else "ASC"
        rest = f"ORDER BY {column.sql} {direction} NULLS LAST, images.id LIMIT {int(limit)} OFFSET {int(offset)}"
        return self.select("images.id", stores, [self.requires_order(stores)], rest)
