"""What a link of the page says, as SQL: conditions, an order, and from where in the list.

A condition is `<column><operator><value>`, as in `things.confidence<0.3`, `street.class=car`, `source~IMG_0`. Columns
are those of the table `images`, and of a label store after its name and a dot; `class` means that the class is there,
by the threshold that the link states for the store, and `confidence` and the task's own columns are as in the files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from browser.tables import Store, literal, quoted
from pipeline.errors import ConfigError, require_one_of

CONDITION = re.compile(r"(?P<column>.+?)(?P<operator><=|>=|!=|=|<|>|~)(?P<value>.*)", re.DOTALL)
IMAGES = {
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
"""The columns of images, and what is in them."""
EXAMPLE = "write for example things.confidence<0.3, things.class=car or source~IMG_0"


@dataclasses.dataclass(frozen=True)
class Clause:
    """A part of a query, its parameters, and the stores whose tables it needs."""

    sql: str
    parameters: tuple[Any, ...] = ()
    stores: frozenset[str] = frozenset()


def joined(store: str | None) -> Clause:
    """What restricts a query to the images that a store has been asked about, so that its columns can be named."""
    return Clause("", (), frozenset({store}) if store else frozenset[str]())


@dataclasses.dataclass(frozen=True)
class FilterColumn:
    """A column: how SQL names it, what kind of value it has, and the table it is of, None if it is the images'."""

    sql: str
    kind: type
    table: Table | None = None
    name: str = ""


class Table(Protocol):
    """What has a table with a row per image: a label store, or what two of them differ by."""

    @property
    def name(self) -> str: ...

    @property
    def table(self) -> str:
        """Its name as SQL writes it."""

    @property
    def columns(self) -> Mapping[str, str]: ...


def column(text: str, stores: Mapping[str, Table]) -> FilterColumn:
    """The column that a link names. ConfigError lists those that there are."""
    place, dot, name = text.rpartition(".")
    if not dot:
        require_one_of(name, {*IMAGES, "rejected"}, "Column")
        if name == "rejected":
            return FilterColumn("", str, None, name)
        return FilterColumn(f"images.{quoted(name)}", IMAGES[name], None, name)
    store = stores[require_one_of(place, stores, "Label store")]
    known = {each for each in store.columns if each not in ("classes", "amounts")}
    also = {"class", "rejected"} if "classes" in store.columns else {"rejected"}
    require_one_of(name, known | also, f"Column of {place}")
    kind = str if name in ("status", "class") else float
    return FilterColumn(f"{store.table}.{quoted(name)}", kind, store, name)


def condition(text: str, stores: Mapping[str, Table], thresholds: Mapping[str, float]) -> Clause:
    """One condition. ConfigError says what would have worked."""
    parts = CONDITION.fullmatch(text)
    if parts is None:
        raise ConfigError(f"Condition {text!r} has no operator: {EXAMPLE}.")
    found, operator = column(parts["column"], stores), parts["operator"]
    needs = frozenset({found.table.name}) if found.table else frozenset[str]()
    if found.name == "rejected":
        return _of_rejected(found.table, operator, parts["value"])
    if found.name == "class" and isinstance(found.table, Store):
        return _of_class(found.table, operator, parts["value"], threshold_of(found.table, thresholds))
    if operator == "~":
        return Clause(f"contains(lower({found.sql}::VARCHAR), lower(?))", (parts["value"],), needs)
    cast = "::VARCHAR" if found.kind is str else ""
    return Clause(f"{found.sql}{cast} {operator} ?", (_value(found, parts["value"]),), needs)


def threshold_of(store: Store, thresholds: Mapping[str, float]) -> float:
    """From which amount on a class is there: for scores the threshold, told or the task's own; else any amount."""
    return thresholds.get(store.name, store.label.default_threshold) if store.label.has_scores else 0.0


def _of_class(store: Store, operator: str, name: str, threshold: float) -> Clause:
    if operator not in ("=", "!="):
        raise ConfigError(f"Condition on {store.name}.class: a class is there (=) or not (!=), and nothing else.")
    require_one_of(name, store.names, f"Class of {store.name}")
    place = f"list_position({store.table}.classes, ?::{store.classes})"
    there = f"coalesce({store.table}.amounts[{place}] >= ?::FLOAT, false)"
    needs = frozenset({store.name})
    return Clause(there if operator == "=" else f"NOT {there}", (name, threshold), needs)


def _of_rejected(table: Table | None, operator: str, answer: str) -> Clause:
    """Whether the image was thrown out, or its label in a store was, or the image with it."""
    if operator != "=" or answer not in ("yes", "no"):
        raise ConfigError(f"Condition rejected{operator}{answer}: write rejected=yes or rejected=no.")
    also = f" OR thrown.store = {literal(table.name)}" if table else ""
    found = f"SELECT id FROM placed JOIN thrown USING (hash) WHERE thrown.store IS NULL{also}"
    return Clause(f"images.id {'IN' if answer == 'yes' else 'NOT IN'} ({found})")


def _value(found: FilterColumn, text: str) -> Any:
    if found.kind is str:
        return text
    try:
        return found.kind(text)
    except ValueError as error:
        raise ConfigError(f"Condition on {found.name}: {text!r} is no number.") from error


@dataclasses.dataclass(frozen=True)
class ImageSelection:
    """The images that a link is about, in its order."""

    conditions: Sequence[str] = ()
    order: str = "id"
    """A column; with a minus before it the largest come first."""
    thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """By label store; where none is told, the task's own."""

    def clauses(self, stores: Mapping[str, Table]) -> list[Clause]:
        return [condition(text, stores, self.thresholds) for text in self.conditions]

    def select(self, what: str, stores: Mapping[str, Table], more: Sequence[Clause] = (), rest: str = "") -> Clause:
        """`SELECT what` of these images, `more` conditions among them; `rest` is what comes behind."""
        every = [*self.clauses(stores), *more]
        needed = sorted(frozenset[str]().union(*(clause.stores for clause in every)))
        joins = "".join(f" JOIN {stores[name].table} USING (id)" for name in needed)
        where = " AND ".join(f"({clause.sql})" for clause in every if clause.sql) or "true"
        parameters = tuple(value for clause in every for value in clause.parameters)
        return Clause(f"SELECT {what} FROM images{joins} WHERE {where} {rest}", parameters, frozenset(needed))

    def _by(self, stores: Mapping[str, Table]) -> FilterColumn:
        """The column of the order."""
        found = column(self.order.removeprefix("-"), stores)
        if found.name in ("class", "rejected"):
            raise ConfigError(f"Order {self.order!r}: {found.name} is nothing that images are ordered by.")
        return found

    def needed(self, stores: Mapping[str, Table]) -> Clause:
        """What leaves out the images of which the order's column knows nothing."""
        found = self._by(stores)
        return joined(found.table.name if found.table else None)

    def ordered(self, stores: Mapping[str, Table], limit: int, offset: int) -> Clause:
        """The numbers of the images on a page, `limit` of them at most."""
        found = self._by(stores)
        down = "DESC" if self.order.startswith("-") else "ASC"
        rest = f"ORDER BY {found.sql} {down} NULLS LAST, images.id LIMIT {int(limit)} OFFSET {int(offset)}"
        return self.select("images.id", stores, [self.needed(stores)], rest)
