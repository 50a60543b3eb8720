"""Forms that labels are taken out in: one file each; the file's name is the form's name in `must export labels --to`.

A file `pipeline/export/<form>.py` holds a class `Writer(BaseWriter)` that is given the labelled images one by one and
keeps none of them. Nothing else has to be told about it. No torch in here.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from numpy.typing import NDArray

from pipeline.errors import ConfigError, require_one_of
from pipeline.recipe.plugins import modules
from pipeline.steps.artifact import write_json
from pipeline.storage.atomic import atomic_folder, check_absent
from pipeline.storage.errors import explaining_full_disk, is_disk_full
from pipeline.stores.labels import Label, Value, gather

SUMMARY = "export.json"
"""What every export says of itself, in its own folder."""
BELOW = "below the threshold, left out"
"""What is said of classifications that their threshold leaves nothing of."""
WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class ExportSample:
    """One image with its labels by head: its own bytes, the suffix of its content, and its size in pixels, (width,
    height), upright by its EXIF orientation; labels are in that image's coordinates.
    """

    key: str
    data: bytes
    suffix: str
    size: tuple[int, int]
    source: str
    values: Mapping[str, Value]

    @property
    def file_name(self) -> str:
        return f"{self.key}.{self.suffix}"


class BaseWriter(ABC):
    """Writes samples of some heads into a folder. Files that stay open between samples belong on `files`."""

    lost: ClassVar[Mapping[str, str]]
    """The tasks that the form can hold, each with what of their labels it can't; "" where it holds all of them."""
    others: ClassVar[str | None] = None
    """The same for any other task; None if the form has no place for it."""
    why_not: ClassVar[str] = ""
    """What the form is made for: why it has no place for other tasks."""

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        self.folder, self.heads = folder, heads
        self.files = contextlib.ExitStack()
        self.counts: dict[str, collections.Counter[str]] = {head: collections.Counter() for head in heads}
        """By head, how much was written, and how much was changed on the way, in words."""
        self.places: dict[str, str] = {}
        """By head, where in the folder its labels are."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.files.close()

    @classmethod
    def loses(cls, task: str) -> str | None:
        """What the form can't hold of labels of a task: "" for nothing, None for all of it."""
        return cls.lost.get(task, cls.others)

    def named(self, head: str, alone: str, stem: str = "{}") -> str:
        """What belongs to a head is called `alone` if the head is the only one of its task, else after the head."""
        tasks = [label.space.task for label in self.heads.values()]
        return alone if tasks.count(self.heads[head].space.task) == 1 else stem.format(head)

    def leave_out(self, head: str, why: str) -> None:
        """Count an image that has a label of this head, but none that the form can hold."""
        self.counts[head]["images"] -= 1
        self.counts[head][why] += 1

    @abstractmethod
    def add(self, sample: ExportSample) -> None:
        """Write an image and its labels: `sample.values` holds at least one, of these heads alone."""

    def finish(self) -> None:
        """After the last sample: write what can only be written at the end, and close the files."""
        self.files.close()


def names() -> list[str]:
    """The forms there are, by their files."""
    return list(modules(__name__))


def writer_of(form: str) -> type[BaseWriter]:
    """The class that writes a form. ConfigError lists the forms if there is none of this name."""
    chosen = require_one_of(form, names(), "--to")
    writer: type[BaseWriter] = importlib.import_module(f"{__name__}.{chosen}").Writer
    return writer


def write(
    form: str, out: Path, heads: Mapping[str, Label], samples: Iterable[ExportSample], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write samples to the folder `out`, whole or not at all, and return what `export.json` in it says.

    Raises ConfigError if there is something at `out`, it can't be written to, or the form can hold none of the heads'
    tasks; DataError if the disk is full.
    """
    writer_class = writer_of(form)
    held, refused = _sort_out(writer_class, heads, form)
    with _explained(out):
        check_absent(out)
        with atomic_folder(out) as part, writer_class(part, held) as writer:
            counts = _write_all(writer, samples)
            writer.finish()
            summary = {"form": form, **about, **counts, "heads": _summary(writer), "left_out": refused}
            write_json(part / SUMMARY, summary)
    return summary


def _sort_out(
    writer: type[BaseWriter], heads: Mapping[str, Label], form: str
) -> tuple[dict[str, Label], dict[str, str]]:
    """The heads that a form can hold, and for the others the reason why it can't."""
    held = {head: label for head, label in heads.items() if writer.loses(label.space.task) is not None}
    refused = {
        head: f"{form} has no place for {label.space.task}: {writer.why_not}"
        for head, label in heads.items()
        if head not in held
    }
    if not held:
        asked = ", ".join(f"{head} ({label.space.task})" for head, label in heads.items()) or "none"
        raise ConfigError(
            f"--to {form} can hold labels for {', '.join(writer.lost)}, and the heads are {asked}: name another form, "
            "or other heads with --head."
        )
    return held, refused


def _write_all(writer: BaseWriter, samples: Iterable[ExportSample]) -> dict[str, int]:
    """Write every sample that has a label of the writer's heads; how many were written, and how many had none."""
    counts = {"images": 0, "images_without_labels": 0}
    for sample in samples:
        values = {head: value for head, value in sample.values.items() if head in writer.heads}
        for head in values:
            writer.counts[head]["images"] += 1
        if values:
            writer.add(dataclasses.replace(sample, values=values))
        counts["images" if values else "images_without_labels"] += 1
    return counts


def _summary(writer: BaseWriter) -> dict[str, Any]:
    """By head: what its labels are, where they lie, how much was written, and what the form can't hold of it."""
    return {
        head: {
            **label.space.to_json(),
            "where": writer.places[head],
            "written": dict(writer.counts[head]),
            "lost": writer.loses(label.space.task),
        }
        for head, label in writer.heads.items()
    }


@contextlib.contextmanager
def _explained(out: Path) -> Iterator[None]:
    """What the system says about writing to `out`, as errors of this project."""
    with explaining_full_disk("export", out):
        try:
            yield
        except OSError as error:
            if is_disk_full(error):
                raise
            raise ConfigError(f"{out}: can't be written ({error.strerror or error}). Name another folder.") from error


def at_size(grid: NDArray[Any], size: tuple[int, int], unknown: Any) -> NDArray[Any]:
    """A raster (h, w, ...) over the whole image at the image's `size` (width, height): each pixel takes the nearest
    cell's value.
    """
    return grid if grid.shape[1::-1] == size else gather(grid, WHOLE_IMAGE, size[::-1], unknown)


def distinct(classes: Sequence[str]) -> list[str]:
    """The same names, those that were there before numbered: crane, crane (2). ImageNet has two cranes."""
    seen: collections.Counter[str] = collections.Counter()
    found = []
    for name in classes:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
