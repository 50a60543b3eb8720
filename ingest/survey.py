"""Survey a set before it is read: look at samples of its images and labels, and tell what they hold and what is odd."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import tasks
from pipeline.data.bands import RGB, inspect_pixels
from pipeline.data.decode import FORMATS
from pipeline.errors import MustError
from pipeline.sources import BaseSource, SourceRecord, TrueLabels
from pipeline.stores.labels import LabelSpace

SAMPLE = 40
"""Images of each split that are opened, spread evenly over it."""
MAX_HASHED = 1000
"""Files that are compared byte for byte with those of other splits: of a size that occurs in both."""
WHOLE_IMAGE = frozenset(("classification", "multilabel"))
"""Tasks whose labels are known without an image: many more of them are looked at."""
MAX_LABELS = 5000
"""Labels of each split that are looked at where they are known without an image."""
MANY = 5
"""Labels of a class in one split from which on it is odd that another split has none."""
RANGE = {"least": np.fmin, "most": np.fmax}
"""Columns of labels that are numbers with the smallest and the largest of each channel."""
UNKNOWN = "unknown"
"""Column of dense labels with the share that is not known."""
MOST_CLASSES = 6
"""Classes that are named."""
MOST_UNKNOWN = 0.9
"""Share of a label that is not known above which there is a warning."""


@dataclasses.dataclass
class TaskSurvey:
    """The labels of one task that were looked at."""

    space: LabelSpace
    labels: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Images with a label, by split."""
    held: dict[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    """How much of each class there is, (K,), by split, in the task's unit."""
    unknown: list[float] = dataclasses.field(default_factory=list)
    """Share of each dense label that is not known."""
    range: dict[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    """The smallest and the largest number of each channel, (K,), by the names of RANGE, of labels that have such."""

    def add(self, split: str, truth: TrueLabels) -> None:
        """Add an image's label of the task, if it has one."""
        value = truth.values.get(self.space.task)
        if value is None:
            return
        label = tasks.label(self.space)
        row = label.encode(value)
        held, _ = label.count(row, 0.0)
        self.labels[split] += 1
        self.held[split] = self.held.get(split, np.zeros_like(held)) + held
        if row.get(UNKNOWN) is not None:
            self.unknown.append(float(row[UNKNOWN]))
        for column in RANGE.keys() & row.keys():
            numbers = np.array(row[column], np.float64)
            self.range[column] = RANGE[column](self.range.get(column, numbers), numbers)

    def describe(self) -> str:
        """Return the labels in words, the most frequent classes first."""
        labels = ", ".join(f"{count:,} {split}" for split, count in self.labels.items()) or "none"
        amounts = sum(self.held.values(), np.zeros(max(1, len(self.space.classes))))
        unknown = f"; unknown: {np.mean(self.unknown):.0%}" if self.unknown else ""
        return f"labels of {labels}{self._describe_classes(amounts)}{self._describe_range()}{unknown}"

    def _describe_range(self) -> str:
        ends = zip(self.space.classes, *(self.range.get(column, ()) for column in RANGE), strict=False)
        unit = f" {self.space.unit}" if self.space.unit else ""
        channels = [f"{name} {low:.4g} to {high:.4g}{unit}" for name, low, high in ends if low <= high]
        return f"; numbers: {', '.join(channels)}" if channels else ""

    def _describe_classes(self, amounts: NDArray[np.float64]) -> str:
        total = amounts.sum()
        if not self.space.classes or not total:
            return ""
        order = np.argsort(-amounts, kind="stable")[:MOST_CLASSES]
        shares = ", ".join(f"{self.space.classes[each]} {amounts[each] / total:.0%}" for each in order if amounts[each])
        more = len(self.space.classes) - len(order)
        unit = tasks.label(self.space).unit.partition(" (")[0]
        return f"; of {unit} {shares}{f', and {more:,} more classes' if more else ''}"

    def warnings(self) -> Iterator[str]:
        """Yield what is odd: classes that nothing shows, or that only one split does, and labels that tell nothing."""
        if not self.labels:
            yield f"no label for {self.space.task} among the images that were looked at"
            return
        if self.unknown and np.mean(self.unknown) > MOST_UNKNOWN:
            yield f"{np.mean(self.unknown):.0%} of the labels for {self.space.task} is unknown"
        for number, name in enumerate(self.space.classes):
            amounts = {split: held[number] for split, held in self.held.items()}
            if len(amounts) > 1 and max(amounts.values()) >= MANY and not all(amounts.values()):
                lacking = ", ".join(split for split, amount in amounts.items() if not amount)
                most = max(amounts, key=amounts.__getitem__)
                yield f"the class {name!r} occurs in {most}, but not in {lacking}, of the images looked at"


@dataclasses.dataclass
class SetSurvey:
    """A set, by samples of its images."""

    images: dict[str, int]
    """Images by split."""
    opened: int = 0
    sides: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """(width, height) of the images that were opened, pixels."""
    modes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Pillow's modes of these images: RGB, L, I;16 ..., or how many channels they have."""
    channels: int = RGB
    """Channels of the images, as the recipe states them."""
    tasks: dict[str, TaskSurvey] = dataclasses.field(default_factory=dict)
    unreadable: list[str] = dataclasses.field(default_factory=list)
    """Images or labels that can't be read, each with the reason."""
    notes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """What was changed or dropped in labels, without the place."""
    duplicates: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """Images of equal bytes in two splits."""

    def describe(self) -> str:
        """Return the images in words."""
        splits = ", ".join(f"{split} {count:,}" for split, count in self.images.items())
        sides = sorted(self.sides, key=lambda size: size[0] * size[1])
        sizes = " to ".join(dict.fromkeys(f"{width} x {height}" for width, height in (sides[:1] + sides[-1:])))
        return f"{splits}; {sizes} pixels, {', '.join(self.modes)}" if sides else f"{splits}; none could be opened"

    def warnings(self) -> Iterator[str]:
        """Yield what is odd about the images and all labels."""
        if self.unreadable:
            more = f", and {len(self.unreadable) - 1:,} more" if len(self.unreadable) > 1 else ""
            yield f"of {self.opened:,} images that were opened: {self.unreadable[0]}{more}"
        for note, count in self.notes.most_common(MOST_CLASSES):
            yield f"{note}: {count:,} times in {self.opened:,} images"
        if self.duplicates:
            one, other = self.duplicates[0]
            count = len(self.duplicates)
            yield f"{count:,} images are in two splits, the first {one} and {other}"
        for each in self.tasks.values():
            yield from each.warnings()


def survey(source: BaseSource) -> SetSurvey:
    """Look at samples of a set. Raises ConfigError or DataError if its files of labels can't be used."""
    spaces = source.spaces()
    by_split: dict[str, list[SourceRecord]] = collections.defaultdict(list)
    for record in source.records():
        by_split[record.split].append(record)
    found = SetSurvey({split: len(records) for split, records in by_split.items()}, channels=source.channels)
    found.tasks = {task: TaskSurvey(space) for task, space in spaces.items()}
    is_cheap = bool(spaces) and spaces.keys() <= WHOLE_IMAGE
    for split, records in by_split.items():
        for record in _spread(records, SAMPLE):
            _open(record, split, found, labels=not is_cheap)
        for record in _spread(records, MAX_LABELS) if is_cheap else ():
            _add_labels(record, split, (1, 1), found)
    found.duplicates = list(_duplicates(by_split))
    return found


def _spread(records: Sequence[SourceRecord], most: int) -> list[SourceRecord]:
    count = min(most, len(records))
    return [records[number * len(records) // count] for number in range(count)]


def _open(record: SourceRecord, split: str, found: SetSurvey, labels: bool) -> None:
    found.opened += 1
    try:
        data = record.read()
        size = inspect_pixels(data, found.channels)[:2]
        found.modes[_mode(data, found.channels)] += 1
    except (MustError, OSError, ValueError) as error:
        found.unreadable.append(f"{record.name}: {error}")
        return
    found.sides.append(size)
    if labels:
        _add_labels(record, split, size, found)


def _mode(data: bytes, channels: int) -> str:
    if channels != RGB:
        return f"{channels} channels"
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.mode


def _add_labels(record: SourceRecord, split: str, size: tuple[int, int], found: SetSurvey) -> None:
    try:
        truth = record.truth(size)
    except MustError as error:
        found.unreadable.append(f"{record.name}: {error}")
        return
    found.notes.update(note.partition(":")[0] for note in truth.notes)
    for each in found.tasks.values():
        each.add(split, truth)


def _duplicates(by_split: Mapping[str, Sequence[SourceRecord]]) -> Iterator[tuple[str, str]]:
    """Yield the names of images of equal bytes in two splits, among files of equal sizes."""
    sizes: dict[int, dict[str, list[SourceRecord]]] = {}
    for split, records in by_split.items() if len(by_split) > 1 else ():
        for record in records:
            if (stamp := record.stamp()) is not None:
                sizes.setdefault(stamp[0], {}).setdefault(split, []).append(record)
    hashed = 0
    for splits in sizes.values():
        if len(splits) > 1 and hashed < MAX_HASHED:
            hashed += sum(map(len, splits.values()))
            yield from _equal(splits)


def _equal(splits: Mapping[str, Iterable[SourceRecord]]) -> Iterator[tuple[str, str]]:
    first: dict[bytes, tuple[str, str]] = {}
    for split, records in splits.items():
        for record in records:
            try:
                digest = hashlib.sha256(record.read()).digest()
            except MustError:
                continue
            where, name = first.setdefault(digest, (split, record.name))
            if where != split:
                yield name, record.name
