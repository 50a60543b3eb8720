"""WebDataset tars: members of one key are one sample, `<key>.jpg` with, perhaps, its class in `<key>.cls`.

As WebDataset has it, a key ends at the first dot of the member's name, and the rest is the field: `7.seg.png` is the
field `seg.png` of sample `7`. So a key with dots is written nowhere in a tar, and yet many tars have such names
(`photo.v2.jpg`). They are told apart by the members beside them: where a key has an image under a plain suffix
(`7.jpg`), that is the sample's image and the rest are fields; where it has none, each image is a sample of its own.

Tars are read from front to back once for their contents; an image is then one seek away. They must not be compressed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from typing import Literal

from pipeline.errors import ConfigError, DataError
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources import BaseSource, SourceRecord, TrueLabels
from pipeline.sources._classes import check_distinct, class_index, class_truth
from pipeline.sources._files import IMAGE_SUFFIXES, at_least_one, stamp_files
from pipeline.sources._splits import split_by_hash, split_in_path
from pipeline.storage.path import StoragePath, existing, opened, shown, walk
from pipeline.stores.labels import LabelSpace

LABELS = (".cls", ".json", ".txt")


class Config(SourceConfig):
    """A tar, a folder of them, or a pattern like `shards/train-{000000..000146}.tar`."""

    kind: Literal["webdataset"] = "webdataset"
    path: str
    """A tar, a folder of tars, or a pattern such as `pool-{0000..0041}.tar`."""
    classes: tuple[str, ...] = ()
    """The names of the classes. With them, a sample's label is read: `.cls` or `.txt` holds a name or an index, or
    `.json` does under the key `label`. Without them, the set has no labels."""
    hold_out: Share = 0.2
    """The share of samples that becomes `test` in tars whose names tell no split, by the hash of the sample's name."""


@dataclasses.dataclass(frozen=True)
class _Member:
    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """As WebDataset cuts it: up to the first dot after the folders."""
        folder, slash, base = self.name.rpartition("/")
        return folder + slash + base.split(".", 1)[0]

    @property
    def stem(self) -> str:
        """Up to the last dot."""
        return self.name.rpartition(".")[0]

    @property
    def suffix(self) -> str:
        return "." + self.name.rpartition(".")[2].lower()


_Sample = tuple[str, _Member | None, _Member | None]
"""Key, image, label."""


class Source(BaseSource):
    """Opens the tars. Raises ConfigError if one is not there; DataError, while reading, on a broken one."""

    def __init__(self, config: Config) -> None:
        self.config = config
        check_distinct(config.classes)
        paths = [existing(StoragePath.of(path), "path", "path") for path in expand_braces(config.path)]
        if len(paths) == 1 and paths[0].is_folder():
            self.root, self.tars = paths[0], [file for file in walk(paths[0]) if file.suffix == ".tar"]
        else:
            self.root, self.tars = paths[0].parent, paths
        if not self.tars:
            raise ConfigError(f"path: no .tar files in {self.root}; compressed ones have to be unpacked to .tar")
        self._problems: list[tuple[str, str]] = []

    def spaces(self) -> dict[str, LabelSpace]:
        classes = self.config.classes
        return {"classification": LabelSpace("classification", classes)} if classes else {}

    def records(self) -> Iterator[SourceRecord]:
        self._problems = []
        return at_least_one((record for tar in self.tars for record in self._records(tar)), self.root)

    def _records(self, tar: StoragePath) -> Iterator[SourceRecord]:
        shard, stamp, seen = tar.under(self.root), tar.stamp(), set()
        for key, image, label in _samples(_members(tar)):
            name = f"{shard}#{key}"
            if image is None or key in seen:
                self._problems.append((name, "the tar had this key before" if image else "a sample without an image"))
                continue
            seen.add(key)
            split = split_in_path(shard) or split_by_hash(name, self.config.hold_out)
            read = functools.partial(tar.read, image.offset, image.size)
            yield SourceRecord(name, split, read, functools.partial(self._truth, tar, label), lambda: stamp)

    def _truth(self, tar: StoragePath, label: _Member | None, size: tuple[int, int]) -> TrueLabels:
        if not self.config.classes:
            return TrueLabels()
        if label is None:
            return TrueLabels(notes=["no label"])
        value = _label(tar.read(label.offset, label.size), label)
        return class_truth(class_index(value, self.config.classes), len(self.config.classes), size)

    def problems(self) -> list[tuple[str, str]]:
        return self._problems

    def stamp(self) -> list[tuple[str, int, int]]:
        return stamp_files(self.root, self.tars)


def expand_braces(pattern: str) -> list[str]:
    """`a-{08..10}.tar` -> a-08.tar, a-09.tar, a-10.tar; `{a,b}` -> a, b. Any number of braces, none within another."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if numbers:
        words = [f"{i:0{len(numbers[1])}}" for i in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        words = braces[1].split(",")
    return [
        path for word in words for path in expand_braces(pattern[: braces.start()] + word + pattern[braces.end() :])
    ]


def _members(tar: StoragePath) -> Iterator[_Member]:
    """The plain files in a tar, in its order."""
    try:
        with opened(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                base = info.name.rpartition("/")[2]
                if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not base.startswith(".") and "." in base:
                    yield _Member(shown(info.name), info.offset_data, info.size)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{tar}: not a whole, uncompressed tar ({error})") from error


def _samples(members: Iterable[_Member]) -> Iterator[_Sample]:
    for key, group in itertools.groupby(members, key=lambda member: member.key):
        samples = list(_split_key(list(group)))
        yield from samples or [(key, None, None)]


def _split_key(group: list[_Member]) -> Iterator[_Sample]:
    """The samples among neighbouring members of one key: see the head of this file."""
    images = [member for member in group if member.suffix in IMAGE_SUFFIXES]
    plain = sorted((i for i in images if i.stem == i.key), key=lambda i: IMAGE_SUFFIXES.index(i.suffix))
    for image in plain[:1] or images:
        found = {member.suffix: member for member in group if member.stem == image.stem and member.suffix in LABELS}
        yield image.stem, image, next((found[suffix] for suffix in LABELS if suffix in found), None)


def _label(data: bytes, member: _Member) -> object:
    try:
        text = data.decode().strip()
        if member.suffix != ".json":
            return text
        return json.loads(text)["label"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{member.name} holds no label ({error!r})") from error
