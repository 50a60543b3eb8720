"""Helpers for sources that are tables, a row per image: the columns of labels, and what their cells mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.errors import ConfigError, DataError, error_context, require_one_of
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources import TrueLabels
from pipeline.sources._classes import class_index, class_named
from pipeline.stores.labels import LabelSpace

UNKNOWN = float("nan")
OUTCOMES = {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0}
"""Meaning of the cells of a column for one class, as text in lower case."""
UNCERTAIN = ("-1", "-1.0")
MEANINGS = {"unknown": UNKNOWN, "positive": 1.0, "negative": 0.0}


class TableConfig(SourceConfig):
    """The keys that tables have in common."""

    path: str
    """File, folder or URL."""
    image: str = "image"
    """Column of the images."""
    label: str | None = None
    """Column of the labels: of each image one class, or several as a list or divided by `separator`. By default
    `label`, if the file has it."""
    labels: tuple[str, ...] = ()
    """Columns for one class each, named like it, instead of `label`, for labels of several classes per image: 1
    (present), 0 (absent), -1 (uncertain), or blank."""
    separator: str | None = Field(default=None, min_length=1)
    """Divides the classes in a cell of `label`, for instance a vertical bar: an image then has any number of them."""
    no_class: tuple[str, ...] = ()
    """Where `label` holds several classes: names that say that there is none, as "No Finding" does."""
    uncertain: Literal["unknown", "positive", "negative"] = "unknown"
    """Meaning of -1 in the columns `labels`."""
    blank: Literal["unknown", "negative"] = "unknown"
    """Meaning of a blank cell in labels of several classes: whether a class is there is unknown, or it is not."""
    classes: tuple[str, ...] = ()
    """Names of the classes in order, if the file does not state them; by default all that occur, sorted."""
    hold_out: Share = 0.2
    """The share of rows without a stated split that becomes `test`, by the hash of the row's name."""

    @model_validator(mode="after")
    def _one_way_to_label(self) -> TableConfig:
        others = [key for key in ("label", "separator", "no_class", "classes") if getattr(self, key)]
        if self.labels and others:
            raise ValueError(
                f"labels gives each class a column, named like it; {', '.join(others)} has no meaning then"
            )
        return self

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The columns that every file has to have: of labels those that the recipe names."""
        return (self.image, *(self.label_columns if self.label or self.labels or self.separator else ()))

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns that labels are read from."""
        return self.labels or (self.label or "label",)


@dataclasses.dataclass(frozen=True)
class LabelColumns:
    """Reads the labels of a table's rows."""

    config: TableConfig
    classes: tuple[str, ...]
    multilabel: bool
    """True if an image has any number of the classes, False if it has one."""
    from_labels: bool = False
    """True if the classes are the names that occur: then digits are such a name too, and no index."""

    def __post_init__(self) -> None:
        if self.config.no_class and not self.multilabel:
            raise ConfigError("no_class: each image has one class here; give the `separator` of several in a cell")

    @property
    def space(self) -> LabelSpace:
        return LabelSpace("multilabel" if self.multilabel else "classification", self.classes)

    def truth(self, cells: Mapping[str, object], place: str, size: tuple[int, int]) -> TrueLabels:
        """Return the label of a row, given its cells by column; the image's `size` plays no part.

        Raises DataError, with the `place` of the row, the column and the value, for a cell that has no meaning.
        """
        probs: list[float] = []
        for column in self.config.label_columns:
            if column in cells:  # a file without labels has none of them
                with error_context(f"{place}, column {column!r}"):
                    probs += self._read(cells[column])
        if all(map(math.isnan, probs)):
            return TrueLabels(notes=["no label"])
        return TrueLabels({self.space.task: {"probs": np.array(probs, np.float32)}})

    def _read(self, cell: object) -> list[float]:
        """Return what a cell says of its classes, nothing if it is blank and holds the only class."""
        if self.config.labels:
            return [self._outcome(cell)]
        if not self.multilabel and cell == -1:  # what Hugging Face writes for labels that are not public
            return []
        if is_blank(cell):
            return [MEANINGS[self.config.blank]] * len(self.classes) if self.multilabel else []
        names = names_in(cell, self.config)
        if not names and isinstance(cell, str):  # separators alone
            return [MEANINGS[self.config.blank]] * len(self.classes)
        present = {self._index(name) for name in names if name not in self.config.no_class}
        if present and not set(names).isdisjoint(self.config.no_class):
            raise DataError(f"{cell!r} names classes, and says that there is none")
        return [float(number in present) for number in range(len(self.classes))]

    def _index(self, name: object) -> int:
        # of classes that are all digits, text is a name: "1" of 1, 2, 3 is the first
        digits = isinstance(name, str) and all(map(str.isdecimal, self.classes))
        return (class_named if self.from_labels or digits else class_index)(name, self.classes)

    def _outcome(self, cell: object) -> float:
        """Return the probability of a class, NaN for unknown, that a cell of its own column states."""
        if is_blank(cell):
            return MEANINGS[self.config.blank]
        text = str(cell).strip().lower()
        if text in UNCERTAIN:
            return MEANINGS[self.config.uncertain]
        if text not in OUTCOMES:
            raise DataError(f"{cell!r} is none of 1 (present), 0 (absent), -1 (uncertain) and blank")
        return OUTCOMES[text]


def is_blank(cell: object) -> bool:
    """Return True for null, NaN and text of white space."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def names_in(cell: object, config: TableConfig) -> list[object]:
    """Return the names, or indices of classes, that a cell of `label` holds; empty parts of it are none."""
    if isinstance(cell, str) and config.separator:
        return [name.strip() for name in cell.split(config.separator) if name.strip()]
    return list(cell) if isinstance(cell, list) else [cell]


def distinct_names(cells: Iterable[object], config: TableConfig) -> set[str]:
    """Return the names that occur in the cells of a column, those of `no_class` among them."""
    return {str(name) for cell in cells if not is_blank(cell) for name in names_in(cell, config)}


def classes_among(names: set[str], config: TableConfig) -> tuple[str, ...]:
    """Return the classes among the names that occur, sorted.

    Raises ConfigError for a name of `no_class` that does not occur: a misspelt one would make a class of its meaning.
    """
    for name in config.no_class if names else ():
        require_one_of(name, names, f"no_class: name in column {config.label_columns[0]!r}")
    return tuple(sorted(names - set(config.no_class)))
