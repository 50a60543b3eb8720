"""Export forms: the layouts in which `must export labels --to FORM` writes labels for other tools.

A file `pipeline/export/<form>.py` holds `class Writer(BaseWriter)`, which is given labelled images one by one; there is
nothing to register. Modules that begin with `_` are helpers. No torch in this package.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import importlib
import itertools
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from numpy.typing import NDArray

from pipeline.data.bands import RGB
from pipeline.errors import ConfigError, require_one_of
from pipeline.export._names import ExportNames
from pipeline.recipe.plugins import modules
from pipeline.steps.artifact import write_json
from pipeline.storage.atomic import atomic_folder, check_absent
from pipeline.storage.shortage import explain_shortage
from pipeline.stores.labels import Label, LabelOrigin, Value
from pipeline.stores.rasters import FULL_IMAGE, resample_nearest

SUMMARY = "export.json"
"""The description that every export has in its folder."""
LABELS = "labels.csv"
"""The list of labels that every export has in its folder."""
LABEL_COLUMNS = ("file", "split", "head", "origin", "origin_name", "set", "source", "key")
TRAIN, VAL = "train", "val"
"""The splits: the images that the student learns from, and those that are held out."""
Names = Literal["source", "hash"]
"""Names of exported images: those of their files, or their keys."""
ANY_CHANNELS = ("masks", "webdataset")
"""Forms for images of any number of channels: their readers open no image by themselves."""
BELOW_THRESHOLD = "below the threshold, left out"
"""Reason why a classification is left out: no class reaches the threshold."""


@dataclasses.dataclass(frozen=True)
class ExportSample:
    """One image with its labels.

    Example:
        ExportSample("3f0a9c0b1d2e4f56", jpeg, "jpg", (640, 480), "photos/a.jpg", {"boxes": value})
    """

    key: str
    """First 16 hex digits of the image's sha256."""
    data: bytes
    """The image file's own bytes."""
    suffix: str
    """Suffix that fits the content, without the dot."""
    size: tuple[int, int]
    """(width, height) in pixels of the upright image (EXIF orientation applied)."""
    source: str
    """Name of the file that the image was ingested from."""
    values: Mapping[str, Value]
    """Label by head, in coordinates of the upright image; rasters may be coarser than the image."""
    origins: Mapping[str, LabelOrigin] = dataclasses.field(default_factory=dict)
    """Who made the labels, by head."""
    dataset: str = ""
    """Name of the set that the image is from."""
    split: str = TRAIN
    """TRAIN or VAL; all images of a split come one after another."""
    name: str = ""
    """Path of the image in the export, below the form's folder for images; empty for its key."""
    channels: int = RGB
    """Channels of the image."""

    @property
    def file_name(self) -> str:
        return self.name or f"{self.key}.{self.suffix}"

    @property
    def stem(self) -> str:
        """`file_name` without its suffix: the name of the label files beside it."""
        return os.path.splitext(self.file_name)[0]

    def origin(self, head: str) -> dict[str, str]:
        """Return `origin` and `origin_name` of a label: true and its set, or pseudo and its teacher."""
        made_by = self.origins.get(head)
        return made_by._asdict() if made_by else {}

    def about(self) -> dict[str, str]:
        """Return where the image is from: its set, its file in it, and its key."""
        return {"set": self.dataset, "source": self.source, "key": self.key}


class BaseWriter(contextlib.AbstractContextManager["BaseWriter"]):
    """Writes samples into a folder, one by one, and keeps none in memory.

    Example:
        with Writer(folder, {"boxes": label}) as writer:
            writer.add(sample)
            writer.finish()
    """

    supported: ClassVar[Mapping[str, str]]
    """Tasks whose labels the form can hold, each with what is lost of them; "" if nothing is."""
    other_tasks: ClassVar[str | None] = None
    """The loss in labels of all other tasks; None if the form can't hold them."""
    unsupported_reason: ClassVar[str] = ""
    """Why the form can't hold labels of other tasks."""

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        self.folder, self.heads = folder, heads
        self.files = contextlib.ExitStack()
        """Enter files here that stay open between samples: they are closed at the end, after errors as well."""
        self.counts: dict[str, collections.Counter[str]] = {head: collections.Counter() for head in heads}
        """Numbers by head of what was written, changed or left out, in words."""
        self.locations: dict[str, str] = {}
        """The place of each head's labels in the folder; to be filled by every writer."""

    def __exit__(self, *error: object) -> None:
        self.files.close()

    @classmethod
    def what_is_lost(cls, task: str) -> str | None:
        """Return what the form can't hold of labels of a task: "" for nothing, None if it can't hold any."""
        return cls.supported.get(task, cls.other_tasks)

    def name_for(self, head: str, name: str, template: str = "{}") -> str:
        """Return `name` if no other head has the same task, else `template` filled with the head's name."""
        tasks = [label.space.task for label in self.heads.values()]
        return name if tasks.count(self.heads[head].space.task) == 1 else template.format(head)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, by its path in the folder, and make the folders that it lies in."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def leave_out(self, head: str, reason: str) -> None:
        """Count a label of this head that is not written."""
        self.counts[head]["images"] -= 1
        self.counts[head][reason] += 1

    @abstractmethod
    def add(self, sample: ExportSample) -> None:
        """Write an image and its labels: at least one, and only of `self.heads`."""

    def finish(self) -> None:
        """Write what can only be written after the last sample: `self.files` are closed after it.

        Not called after an error.
        """


@dataclasses.dataclass(frozen=True)
class Forms:
    """The forms of one package, each of whose files holds `class Writer(BaseWriter)`."""

    package: str
    summary: str
    """The description that every folder has; it is written last."""
    command: str
    """What messages call the writing."""

    def names(self) -> list[str]:
        """Return the names of all forms: those of the files in the package."""
        return list(modules(self.package))

    def load_writer(self, form: str) -> type[BaseWriter]:
        """Import the writer of a form. Raises ConfigError, which lists the forms, if there is none of this name."""
        name = require_one_of(form, self.names(), "--to")
        return importlib.import_module(f"{self.package}.{name}").Writer

    def write(
        self, form: str, out: Path, heads: Mapping[str, Label], add_all: Callable[[BaseWriter], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Write a folder, all or none of it, and return the content of its `summary`.

        `add_all` adds the samples to the writer that it is given, and returns what the summary says besides.

        Raises ConfigError if `out` is a file, not empty or not writable, or if the form can't hold any of the heads'
        tasks; Shortage if the disk is full.
        """
        writer_class = self.load_writer(form)
        supported, unsupported = select_heads(writer_class, heads, form)
        try:
            with explain_shortage(self.command, out):
                check_absent(out)
                with atomic_folder(out) as folder, writer_class(folder, supported) as writer:
                    about = add_all(writer)
                    writer.finish()
                    summary = {"form": form, **about, "heads": describe_heads(writer), "left_out": unsupported}
                    write_json(folder / self.summary, summary)
        except OSError as error:
            raise ConfigError(f"{out}: can't be written ({error.strerror or error}). Name another folder.") from error
        return summary


FORMS = Forms(__name__, SUMMARY, "export")
form_names, load_writer = FORMS.names, FORMS.load_writer


def write_export(
    form: str, out: Path, heads: Mapping[str, Label], samples: Iterable[ExportSample], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write samples to the folder `out`, all or none, and return the content of its `export.json`.

    `about` is added to `export.json`, `labels.csv` lists the labels. Samples without a label that the form can hold are
    counted and left out. Raises as `Forms.write` does.
    """
    return FORMS.write(form, out, heads, lambda writer: {**about, **_add_all(writer, samples)})


def check_channels(form: str, channels: int) -> None:
    """Raise ConfigError, with the forms that can, if a form can't hold images of so many channels."""
    if channels != RGB and form not in ANY_CHANNELS:
        raise ConfigError(
            f"--to {form} takes images of {RGB} channels; these have {channels}: {' and '.join(ANY_CHANNELS)} take any."
        )


def select_heads(
    writer: type[BaseWriter], heads: Mapping[str, Label], form: str
) -> tuple[dict[str, Label], dict[str, str]]:
    """Return the heads that a form can hold, and for each other one the reason why it can't.

    Raises ConfigError if it can hold none.
    """
    supported = {head: label for head, label in heads.items() if writer.what_is_lost(label.space.task) is not None}
    if not supported:
        given = ", ".join(f"{head} ({label.space.task})" for head, label in heads.items()) or "none"
        raise ConfigError(
            f"--to {form} can hold labels for {', '.join(writer.supported)}, and the heads are {given}: name another "
            "form, or other heads with --head."
        )
    return supported, {
        head: f"{form} has no place for {label.space.task}: {writer.unsupported_reason}"
        for head, label in heads.items()
        if head not in supported
    }


def with_names(samples: Iterable[ExportSample], names: str) -> Iterable[ExportSample]:
    """Give every sample the name of its file if `names` is "source"; leave its key if it is "hash".

    Raises ConfigError for other `names`.
    """
    return _with_file_names(samples) if require_one_of(names, get_args(Names), "--names") == "source" else samples


def _with_file_names(samples: Iterable[ExportSample]) -> Iterator[ExportSample]:
    names = ExportNames()
    for sample in samples:
        name = names.name(sample.dataset, sample.source, sample.key, sample.suffix)
        yield dataclasses.replace(sample, name=name)


def _add_all(writer: BaseWriter, samples: Iterable[ExportSample]) -> dict[str, Any]:
    """Add every sample that has a label of the writer's heads, and list its labels.

    Return how many were added, in all and by split, and how many had no label.
    """
    counts, splits = {"images": 0, "images_without_labels": 0}, collections.Counter[str]()
    with open(writer.folder / LABELS, "w", encoding="utf-8", newline="") as file:
        listing = csv.DictWriter(file, LABEL_COLUMNS)
        listing.writeheader()
        for sample in samples:
            written = add_sample(writer, sample)
            counts["images_without_labels" if written is None else "images"] += 1
            if written is not None:
                splits[sample.split] += 1
                place = {"file": sample.file_name, "split": sample.split, **sample.about()}
                listing.writerows({**place, "head": head, **sample.origin(head)} for head in written)
    return {**counts, "splits": dict(splits)}


def add_sample(writer: BaseWriter, sample: ExportSample) -> list[str] | None:
    """Add a sample with its labels of the writer's heads, and return the heads whose labels were not left out.

    A sample without such labels is not added: None is returned.
    """
    values = {head: value for head, value in sample.values.items() if head in writer.heads}
    if not values:
        return None
    before = {head: writer.counts[head]["images"] for head in values}
    for head in values:
        writer.counts[head]["images"] += 1
    writer.add(dataclasses.replace(sample, values=values))
    return [head for head, images in before.items() if writer.counts[head]["images"] > images]


def describe_heads(writer: BaseWriter) -> dict[str, Any]:
    """Return by head: its label space, where its labels are, what was written, and what is lost of it."""
    return {
        head: {
            **label.space.to_json(),
            "where": writer.locations[head],
            "written": dict(writer.counts[head]),
            "lost": writer.what_is_lost(label.space.task),
        }
        for head, label in writer.heads.items()
    }


def to_image_size(grid: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return a raster (h, w, ...) over the whole image at the image's `size` (width, height), by nearest neighbour."""
    return grid if grid.shape[1::-1] == size else resample_nearest(grid, FULL_IMAGE, size[::-1], 0)


def unique_names(classes: Sequence[str]) -> list[str]:
    """Return the names with repeated ones numbered: crane, crane (2). ImageNet has two cranes."""
    taken, unique = set(classes), dict[str, None]()
    for name in classes:
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        unique[next(free for free in numbered if free not in taken | unique.keys()) if name in unique else name] = None
    return list(unique)
