"""WebDataset tars: `<key>.jpg`, optionally with its class in `<key>.cls`; members of one key are one sample.

In WebDataset a key ends at the first dot of the member's name, and the rest is the field: `7.seg.png` is the field
`seg.png` of sample `7`. Many tars break this rule with names like `photo.v2.jpg`. The other members of the key decide:
if one of them is an image with a plain suffix (`7.jpg`), it is the sample's image and the rest are fields; if none is,
each image is a sample of its own.

A tar's table of contents is read once, front to back; images are then read by offset. Tars must not be compressed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pipeline.errors import ConfigError, DataError
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources import SourceRecord, TrueLabels
from pipeline.sources._classes import check_distinct, class_index, one_hot_label
from pipeline.sources._detection import is_readable
from pipeline.sources._files import IMAGE_SUFFIXES, FileSource
from pipeline.sources._splits import split_by_hash, split_from_path
from pipeline.storage.json_text import load_json
from pipeline.storage.path import StoragePath, printable, require_exists, walk
from pipeline.storage.remote_file import open_file
from pipeline.storage.shortage import raise_shortage
from pipeline.stores.labels import LabelSpace

LABEL_SUFFIXES = (".cls", ".json", ".txt")


class Config(SourceConfig):
    """Tars of images, with labels if `classes` are given."""

    kind: Literal["webdataset"] = "webdataset"
    path: str
    """A tar, a folder of tars, or a pattern such as `pool-{0000..0041}.tar`."""
    classes: tuple[str, ...] = ()
    """The names of the classes. If given, labels are read: a name or an index in `.cls` or `.txt`, or in `.json` under
    the key `label`. Without them, the set has no labels."""
    hold_out: Share = 0.2
    """The share of samples that becomes `test` in tars whose names state no split, by the hash of the sample's name."""


@dataclasses.dataclass(frozen=True)
class _Member:
    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """The name up to the first dot after the folders, as WebDataset splits it."""
        folder, slash, base = self.name.rpartition("/")
        return folder + slash + base.split(".", 1)[0]

    @property
    def stem(self) -> str:
        """The name up to the last dot."""
        return self.name.rpartition(".")[0]

    @property
    def suffix(self) -> str:
        return "." + self.name.rpartition(".")[2].lower()


_Sample = tuple[str, _Member | None, _Member | None]
"""Key, image, label."""


class Source(FileSource):
    """Reads the tars. Raises ConfigError if one does not exist; DataError, while reading, on a broken one."""

    def __init__(self, config: Config) -> None:
        self.config = config
        check_distinct(config.classes)
        paths = [require_exists(StoragePath.of(path), "path", "path") for path in expand_braces(config.path)]
        if len(paths) == 1 and paths[0].is_folder():
            super().__init__(paths[0], files=[file for file in walk(paths[0]) if file.suffix == ".tar"])
        else:
            super().__init__(paths[0].parent, files=paths)
        if not self.files:
            raise ConfigError(f"path: no .tar files in {self.root}; compressed ones have to be unpacked to .tar first")

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        return {} if is_readable(lambda: cls(Config(path=path))) else None

    def spaces(self) -> dict[str, LabelSpace]:
        classes = self.config.classes
        return {"classification": LabelSpace("classification", classes)} if classes else {}

    def read_records(self) -> Iterator[SourceRecord]:
        return itertools.chain.from_iterable(map(self._records_in, self.files))

    def _records_in(self, tar: StoragePath) -> Iterator[SourceRecord]:
        shard, stamp, seen = tar.relative_to(self.root), tar.stamp(), set()
        for key, image, label in _samples(_members(tar)):
            name = f"{shard}#{key}"
            if image is None or key in seen:
                self.problems.append((name, "the tar had this key before" if image else "a sample without an image"))
                continue
            seen.add(key)
            split = split_from_path(shard) or split_by_hash(name, self.config.hold_out)
            read = functools.partial(tar.read, image.offset, image.size)
            yield SourceRecord(name, split, read, functools.partial(self._truth, tar, label), lambda: stamp)

    def _truth(self, tar: StoragePath, label: _Member | None, size: tuple[int, int]) -> TrueLabels:
        if not self.config.classes:
            return TrueLabels()
        if label is None:
            return TrueLabels(notes=["no label"])
        value = _parse_label(tar.read(label.offset, label.size), label)
        return one_hot_label(class_index(value, self.config.classes), len(self.config.classes), size)


def expand_braces(pattern: str) -> list[str]:
    """Expand braces as a shell does, but not nested ones: `a-{08..10}.tar` to a-08.tar, a-09.tar, a-10.tar."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        step = 1 if last >= first else -1
        words = [f"{i:0{len(numbers[1])}}" for i in range(first, last + step, step)]
    else:
        words = braces[1].split(",")
    return [
        path for word in words for path in expand_braces(pattern[: braces.start()] + word + pattern[braces.end() :])
    ]


def _members(tar: StoragePath) -> Iterator[_Member]:
    """Yield the regular files in a tar, in its order, without hidden ones and names without a suffix."""
    total = tar.stamp()[0]
    try:
        with open_file(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                base = info.name.rpartition("/")[2]
                if info.issparse() or not 0 <= info.offset_data <= info.offset_data + info.size <= total:
                    raise tarfile.ReadError(f"member {printable(info.name)!r} is sparse, or reaches out of the file")
                if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not base.startswith(".") and "." in base:
                    yield _Member(printable(info.name), info.offset_data, info.size)
            file.seek(archive.offset)
            if any(file.read(tarfile.RECORDSIZE)):
                raise tarfile.ReadError(
                    "there is more after its end, as in tars that `cat` joined: `tar -A` joins them"
                )
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise_shortage(error, tar)
        raise DataError(f"{tar}: not a whole, uncompressed tar ({error})") from error


def _samples(members: Iterable[_Member]) -> Iterator[_Sample]:
    """Group neighbouring members into samples; a key without an image is a sample without one."""
    for key, group in itertools.groupby(members, key=lambda member: member.key):
        samples = list(_split_key(list(group)))
        yield from samples or [(key, None, None)]


def _split_key(group: list[_Member]) -> Iterator[_Sample]:
    """Yield the samples among the members of one WebDataset key, by the rule at the top of this file."""
    images = [member for member in group if member.suffix in IMAGE_SUFFIXES]
    plain = sorted((i for i in images if i.stem == i.key), key=lambda i: IMAGE_SUFFIXES.index(i.suffix))
    for image in plain[:1] or images:
        labels = {member.suffix: member for member in group if member.stem == image.stem}
        yield image.stem, image, next((labels[suffix] for suffix in LABEL_SUFFIXES if suffix in labels), None)


def _parse_label(data: bytes, member: _Member) -> object:
    try:
        return load_json(data)["label"] if member.suffix == ".json" else data.decode().strip()
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{member.name} holds no label ({error!r})") from error
