"""What an earlier reading of a set spares the next one: files that are known by name and stamp, and shards that stay.

Two readings count as earlier: that of the artifact before, and that of an attempt which was interrupted, whose shards
and notes are in `work`. What they hold is looked up by key, so it makes no difference which of them an image is from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.sources import Stamp, TrueLabels
from pipeline.sources._splits import SPLITS
from pipeline.steps.artifact import LOG, WORK, Artifact
from pipeline.storage.root import hash_file, in_parallel
from pipeline.stores.images import ImageShard, local_shard, write_table

SOURCES = f"{LOG}/sources.parquet"
"""In `log`, which is no part of the digest: the same images with new time stamps are the same set."""
PIECES = f"{WORK}/sources"
Size = tuple[int, int]
"""(width, height) in pixels of the upright image."""
SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False, metadata={"about": "the file, or the place in a file"}),
        pa.field("size", pa.int64(), nullable=False, metadata={"about": "of the file, bytes"}),
        pa.field("mtime", pa.int64(), nullable=False, metadata={"about": "ns; of a remote file, a hash of its state"}),
        pa.field("key", pa.string(), metadata={"about": "of the image, null if it is none"}),
        pa.field("reason", pa.string(), metadata={"about": "why it is no image"}),
    ]
)


class KnownFile(NamedTuple):
    """What a file was found to be: an image's key, or the reason why it is none."""

    key: str | None
    reason: str | None


class SourceIndex:
    """The files of a source by name. What is noted is safe in `work` after every `often` files."""

    def __init__(self, out: Path, before: Artifact | None, often: int) -> None:
        self._folder, self._often = out / PIECES, often
        self._folder.mkdir(parents=True, exist_ok=True)
        pieces = sorted(self._folder.glob("*.parquet"))
        earlier = [before.load(SOURCES, _read)] if before and before.has(SOURCES) else []
        tables = [SCHEMA.empty_table(), *earlier, *map(_read, pieces)]
        self._earlier = pa.concat_tables(tables).combine_chunks()
        self._rows = {name: row for row, name in enumerate(self._earlier.column("source").to_pylist())}
        self._stamps = np.stack([self._earlier.column(name).to_numpy() for name in ("size", "mtime")], axis=1)
        self._still = np.zeros(len(self._earlier), np.bool_)
        self._pieces, self._new = len(pieces), [SCHEMA.empty_table()]
        self._notes: list[tuple[str, int, int, str | None, str | None]] = []

    def find(self, name: str, stamp: Stamp | None) -> KnownFile | None:
        """What the file was, if it had this very stamp."""
        row = self._rows.get(name)
        if row is None or stamp is None or tuple(self._stamps[row].tolist()) != stamp:
            return None
        return KnownFile(*(self._earlier.column(column)[row].as_py() for column in ("key", "reason")))

    def keep(self, name: str) -> None:
        """The file is still what `find` said."""
        self._still[self._rows[name]] = True

    def note(self, name: str, stamp: Stamp, known: KnownFile) -> None:
        """The file was read."""
        self._notes.append((name, *stamp, *known))
        if len(self._notes) >= self._often:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._notes, strict=True) if self._notes else ((),) * len(SCHEMA)
        self._new.append(pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA))
        write_table(self._folder / f"{self._pieces:06d}.parquet", self._new[-1])
        self._pieces += 1
        self._notes = []

    def write(self, out: Path) -> None:
        """Leave what was kept and noted, for the next reading."""
        self._flush()
        (out / LOG).mkdir(exist_ok=True)
        write_table(out / SOURCES, pa.concat_tables([self._earlier.filter(self._still), *self._new]))


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, schema=SCHEMA)
    except (OSError, pa.ArrowException):
        return SCHEMA.empty_table()  # what is not known is read again


class SourceMatch(NamedTuple):
    """A record that says of an image in an earlier shard that it is still in the source."""

    number: int
    """Its place in the source."""
    name: str
    truth: Callable[[Size], TrueLabels]


@dataclasses.dataclass(frozen=True)
class ExistingShard:
    """An image shard of an earlier reading. Its hash is known if it was sealed; in `work` it is not."""

    split: str
    shard: ImageShard
    images: int

    @property
    def name(self) -> str:
        return self.shard.name

    @functools.cached_property
    def sha256(self) -> str:
        return self.shard.sha256 or hash_file(Path(self.shard.tar.place))

    @property
    def sealed(self) -> bool:
        return bool(self.shard.sha256)


class PreviousShards:
    """The shards of earlier readings, and the records that claim their images.

    Those in `work` come first: what they share with a shard of the artifact before, that one was broken up for.
    """

    def __init__(self, out: Path, before: Artifact | None, name: str) -> None:
        self.shards: list[ExistingShard] = []
        self._claims: dict[str, dict[str, tuple[SourceMatch, ...]]] = {split: {} for split in SPLITS}
        for split in SPLITS:
            shards = [local_shard(tar) for tar in unfinished(out / WORK, split)]
            shards += [image_shard(before, tar) for tar in shards_of(before, split)] if before else []
            try:
                indexes = in_parallel(lambda shard: shard.columns("key"), shards)
            except DataError as error:
                raise DataError(
                    f"{error} `must run` with --force data.{name} reads everything from the source again."
                ) from error
            for shard, index in zip(shards, indexes, strict=True):
                self._claims[split].update(dict.fromkeys(index.column("key").to_pylist(), ()))
                self.shards.append(ExistingShard(split, shard, len(index)))

    def has(self, split: str, key: str) -> bool:
        """Whether the image is in a shard of the split."""
        return key in self._claims[split]

    def claim(self, split: str, key: str, claim: SourceMatch) -> None:
        """The image is still in the source; of several claims the first counts."""
        self._claims[split][key] += (claim,)

    def take(self, shard: ExistingShard) -> Iterator[tuple[tuple[SourceMatch, ...], Size]]:
        """(claims, (width, height)) of every image of the shard; what is taken is gone."""
        columns = shard.shard.columns("key", "width", "height").to_pydict().values()
        for key, width, height in zip(*columns, strict=True):
            yield self._claims[shard.split].pop(key, ()), (width, height)


def unfinished(work: Path, split: str) -> list[Path]:
    """The whole shards of a split that an attempt has made before it was interrupted, in order."""
    return sorted((work / "images" / split).glob("shard-*.tar"))


def shards_of(made: Artifact, split: str) -> list[str]:
    """The image shards of a split of an ingested set, in order: the names of their tars in the artifact."""
    folder = f"images/{split}/"
    return sorted(name for name in made.manifest["files"] if name.startswith(folder) and name.endswith(".tar"))


def image_shard(made: Artifact, tar: str) -> ImageShard:
    """An image shard of an ingested set, by the name of its tar in the artifact."""
    return ImageShard(made.file(tar), made.file(f"{tar.removesuffix('.tar')}.parquet"))


def same_place(before: Artifact, config: Mapping[str, Any]) -> bool:
    """Whether names and stamps mean the same files as before."""
    return bool(before.manifest["config"]["source"].get("path") == config["source"].get("path"))
