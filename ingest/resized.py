"""Copies of a set's training images at the size that trainings need: made by a step, and read by trainings alone.

images/<first 16 digits of an image shard's sha256>.tar  .parquet

The copies have the keys and the order of the originals, and their index tells the originals' sizes, so that all that is
joined with an image or drawn for it stays the same. Labels are made and networks are measured on the originals.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ingest.dataset import IngestedSet
from ingest.incremental import image_shard
from pipeline.data.dataset import CACHE_SHARE, ImageDataset
from pipeline.data.decode import decode_image
from pipeline.data.prefetch import prefetch
from pipeline.errors import DataError
from pipeline.steps.artifact import INHERITED_FILES, WORK, Artifact, Inputs
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import in_parallel, link_or_copy
from pipeline.storage.shortage import raise_shortage
from pipeline.stores.images import ImageRow, ImageShard, ShardWriter

RESIZED = "resized"
"""The kind of the step, and the recipe's section that asks for it."""
FOLDER = "images"
QUALITY = 95
"""Of JPEG, on Pillow's scale. Colours are kept at full resolution."""
IN_FLIGHT = 64
"""Images in the making at once."""


def store_resized(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Store the training images of a set once more, as JPEGs whose shorter side is reduced to `short_side` pixels.

    Images that are no larger keep their bytes, and so do those that can't be decoded, which are logged and counted.
    Shards that the previous artifact has are taken from it; those of an interrupted attempt are kept.

    Args:
        config: `set`, the name of the set, and `short_side`.

    Raises DataError if the bytes of an original have changed.
    """
    shards = IngestedSet(inputs[f"data.{config['set']}"]).images("train").shards
    previous = inputs.previous
    inherited = {name: name for shard in shards for name in _files(shard) if previous and previous.has(name)}
    made = [shard for shard in shards if _files(shard)[0] not in inherited]
    in_parallel(len, shards)  # loads indexes, which a remote root would give one by one
    undecodable = _Resizing(config, inputs.runtime, out / WORK).run(made)
    for name in itertools.chain.from_iterable(map(_files, made)):
        link_or_copy(out / WORK / name, out / name)
    sides = np.concatenate([np.min(shard.sizes, axis=1) for shard in shards]) if shards else np.zeros(0)
    return {
        "images": len(sides),
        "larger": int((sides > config["short_side"]).sum()),
        "resized_now": sum(map(len, made)),
        **({"undecodable": undecodable} if undecodable else {}),
        INHERITED_FILES: inherited,
    }


def read_resized(dataset: ImageDataset, inputs: Inputs) -> ImageDataset:
    """Return a dataset that reads its images from the copies among the inputs of a training, where there are any."""
    copies = {address: shard for made in inputs.of_kind(RESIZED).values() for address, shard in _copies(made)}
    shards = (dataclasses.replace(each, images=copies.get(each.images.address, each.images)) for each in dataset.shards)
    return ImageDataset(list(shards))


def _copies(made: Artifact) -> Iterator[tuple[str, ImageShard]]:
    """Yield the addresses of image shards, each with the shard of their copies."""
    for name in made.manifest["files"]:
        if name.startswith(f"{FOLDER}/") and name.endswith(".tar"):
            shard = image_shard(made, name)
            yield shard.name, shard


def _files(shard: ImageShard) -> tuple[str, str]:
    """Return the paths in the artifact of tar and index of an image shard's copies."""
    return f"{FOLDER}/{shard.address}.tar", f"{FOLDER}/{shard.address}.parquet"


class _Copy(NamedTuple):
    row: ImageRow
    data: bytes
    problem: str = ""
    """Why it was not resized, though it is larger."""


class _Resizing:
    """Resizes the images of shards on threads, and writes the shards one after the other."""

    def __init__(self, config: Mapping[str, Any], runtime: Runtime, work: Path) -> None:
        self.name, self.short_side = config["set"], config["short_side"]
        self.runtime, self.work = runtime, work
        self.step = f"{RESIZED}.{self.name}"

    def run(self, shards: Sequence[ImageShard]) -> int:
        """Write the copies of those shards that are not in `work`. Return how many images could not be resized."""
        pending = [shard for shard in shards if not (self.work / _files(shard)[0]).exists()]
        rows = ((shard, row) for shard in pending for row in range(len(shard)))
        total, done, problems, began = sum(map(len, pending)), 0, 0, time.perf_counter()
        with contextlib.closing(prefetch(self._copy, rows, self.runtime.threads, IN_FLIGHT)) as copies:
            for shard in pending:
                problems += self._write(shard, itertools.islice(copies, len(shard)))
                done += len(shard)
                rate = done / (time.perf_counter() - began)
                self.runtime.progress(self.step, done / total, f"{done}/{total} images, {rate:.0f} images/s")
        return problems

    def _write(self, shard: ImageShard, copies: Iterator[_Copy]) -> int:
        writer, problems = ShardWriter(self.work / FOLDER, shard.address), 0
        try:
            for copy in copies:
                self.runtime.check_stop(self.step)
                writer.add_row(copy.row, copy.data)
                if copy.problem:
                    problems += 1
                    self.runtime.log(f"image {copy.row.key} ({copy.row.source}) keeps its bytes: {copy.problem}")
            writer.close()
        finally:
            writer.discard()
        return problems

    def _copy(self, place: tuple[ImageShard, int]) -> _Copy:
        """Read an image, and resize it if it is larger. Runs on a thread."""
        shard, number = place
        shard.download(CACHE_SHARE)
        row, data = shard.row(number), shard.read_original(number, self.name)
        if min(row.width, row.height) <= self.short_side:
            return _Copy(row, data)
        scale = self.short_side / min(row.width, row.height)
        try:
            small = resize_image(data, (round(row.width * scale), round(row.height * scale)))
        except DataError as error:
            return _Copy(row, data, str(error))
        return _Copy(dataclasses.replace(row, suffix="jpg"), small)


def resize_image(data: bytes, size: tuple[int, int]) -> bytes:
    """Return an image file as an upright RGB JPEG of `size` (width, height) pixels, without EXIF.

    Raises DataError, with the reason, if it can't be decoded, or is too long for a JPEG.
    """
    image = decode_image(data, at_least=size)
    small, buffer = image.resize(size, Image.Resampling.BICUBIC), io.BytesIO()
    small.info = {}  # else Pillow saves the original's comment
    try:
        small.save(buffer, "JPEG", quality=QUALITY, subsampling="4:4:4")
    except OSError as error:
        raise_shortage(error, "encoding an image")
        raise DataError(f"{size[0]}x{size[1]} pixels can't be saved as a JPEG ({error})") from error
    return buffer.getvalue()
