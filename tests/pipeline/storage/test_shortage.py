"""Shortages of the machine: told as such by whatever reads files, and never as damage."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
import torch
from PIL import Image

from ingest import incremental
from pipeline.data.decode import decode_image
from pipeline.errors import DataError, Shortage
from pipeline.sources import parquet
from pipeline.storage.atomic import atomic_write
from pipeline.storage.root import Root, local_file
from pipeline.storage.shortage import explain_shortage, shortage_of
from pipeline.stores.images import read_index
from pipeline.stores.labels import read_labels
from pipeline.stores.rejections import PATH, read_rejections
from teachers.labelling.label_folder import read_facts


@pytest.mark.parametrize(
    ("error", "resource"),
    [
        (MemoryError(), "memory"),
        (pa.ArrowMemoryError("malloc of size 1024 failed"), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (OSError("Memory mapping file failed: Cannot allocate memory"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1024 bytes"), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "memory"),
        (RuntimeError("std::bad_alloc"), "memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "space"),
        (OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"), "space"),
        (safetensors.SafetensorError("I/O error: No space left on device (os error 28)"), "space"),
        (OSError(errno.EFBIG, "File too large"), "file size"),
        (safetensors.SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), "file size"),
        (OSError("Error writing bytes to file. Detail: [errno 27] File too large"), "file size"),
        (OSError(errno.EMFILE, "Too many open files"), "open files"),
        (RuntimeError("can't start new thread"), "threads"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), None),
        (OSError(errno.EIO, "Input/output error"), None),
        (ValueError("3 is no 2"), None),
        (pa.ArrowInvalid("Parquet magic bytes not found in footer"), None),
        (DataError("x: out of memory"), None),
    ],
)
def test_shortage_of_knows_what_is_short(error: Exception, resource: str | None) -> None:
    assert shortage_of(error) == resource


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left"),
            "run: this machine is short of space: the disk that holds /disk",
        ),
        (
            pa.ArrowMemoryError("malloc of size 3221225472 failed"),
            r"short of memory \(3.0 GiB at once\). Fin",
        ),
        (
            OSError(errno.EFBIG, "File too large", "/disk/model.safetensors"),
            r"run: .* short of file size \(.*File too large: '/disk/model\.safetensors'\)\. .*ulimit -f.*FAT",
        ),
        (OSError(errno.EMFILE, "Too many open files"), r"short of open files .*Raise the limit \(`ulimit -n`\)"),
        (RuntimeError("can't start new thread"), r"short of threads \(can't start new thread\).*ulimit -u"),
    ],
)
def test_explain_shortage_says_what_to_do(error: Exception, says: str) -> None:
    with pytest.raises(Shortage, match=says) as raised, explain_shortage("run", "/disk"):
        raise error
    assert raised.value.exit_code == 4


@pytest.mark.parametrize("error", [ValueError("x"), DataError("x"), OSError(errno.EIO, "x")])
def test_explain_shortage_leaves_other_errors(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, explain_shortage("run", "/disk"):
        raise error
    assert raised.value is error


def read_parquet_set(file: Path) -> object:
    return parquet.Source(parquet.Config(kind="parquet", path=str(file))).spaces()


READERS: dict[str, Callable[[Path], object]] = {
    "images.parquet": read_index,
    "labels.parquet": lambda file: read_labels(local_file(file)),
    PATH: lambda file: read_rejections(Root.of(str(file).removesuffix(PATH))),
    "set.parquet": read_parquet_set,
    "sources.parquet": incremental._read,
    "facts.parquet": lambda file: read_facts(file, 1),
    "image.png": lambda file: decode_image(file.read_bytes()),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "error", [pa.ArrowMemoryError("malloc of size 4096 failed"), OSError(errno.EMFILE, "Too many open files")]
)
def test_readers_tell_a_shortage_and_no_damage(
    name: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> object:
        raise error

    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".png":
        Image.new("RGB", (4, 4)).save(file)
    else:
        pq.write_table(pa.table({"key": ["a"]}), file)
    for place in (pq, Image):
        for function in {"ParquetFile", "read_table", "open"} & set(vars(place)):
            monkeypatch.setattr(place, function, fail)
    with pytest.raises(Shortage):
        READERS[name](file)


@pytest.mark.parametrize("name", ["images.parquet", "labels.parquet"])
def test_readers_tell_damage_that_asks_for_impossible_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> object:
        raise pa.ArrowMemoryError(f"malloc of size {2**60} failed")

    pq.write_table(pa.table({"key": ["a"]}), tmp_path / name)
    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(DataError, match="not a readable"):
        READERS[name](tmp_path / name)


def test_atomic_write_names_the_file_in_errors_of_the_system(tmp_path: Path) -> None:
    says = r"No space left on device: '.*list\.json'"
    with pytest.raises(OSError, match=says), atomic_write(tmp_path / "list.json"), open("/dev/full", "wb") as full:
        full.write(b"x")
    assert list(tmp_path.iterdir()) == []
