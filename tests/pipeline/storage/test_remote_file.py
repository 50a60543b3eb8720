"""Open remote files: they read like local ones, and a lost connection is not taken for a damaged file."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import ClientPayloadError

from pipeline.errors import ConfigError, DataError
from pipeline.sources import parquet, webdataset
from pipeline.storage import remote_file
from pipeline.storage.path import StoragePath
from pipeline.storage.remote_file import open_file
from pipeline.storage.root import hash_if_exists
from tests.s3 import listening

DATA = bytes(range(256)) * 40


@pytest.fixture
def cut_answers(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that cuts all answers short after a number of further requests."""
    system = StoragePath.of(bucket).fs
    cat_file = system.cat_file

    def after(requests: int) -> None:
        left = [None] * requests

        def cut(*given: Any, **options: Any) -> Any:
            if not left:
                raise ClientPayloadError("Response payload is not completed")
            left.pop()
            return cat_file(*given, **options)

        monkeypatch.setattr(system, "cat_file", cut)

    return after


@pytest.mark.parametrize("storage", ["local", "s3"])
def test_open_file_and_hash_if_exists_read_any_storage(storage: str, request: pytest.FixtureRequest) -> None:
    base = str(request.getfixturevalue("tmp_path" if storage == "local" else "bucket"))
    file = StoragePath.of(f"{base}/x")
    file.write(DATA)
    with open_file(file) as source:
        assert [source.read(10), source.seek(-10, io.SEEK_END), source.read()] == [DATA[:10], 10230, DATA[-10:]]
    assert hash_if_exists(file) == hashlib.sha256(DATA).hexdigest()
    assert hash_if_exists(file.parent / "none") is None


def test_open_file_reads_ahead(bucket: str) -> None:
    file = StoragePath.of(f"{bucket}/x")
    file.write(DATA)
    with listening() as requests, open_file(file) as source:
        assert b"".join(source.read(100) for _ in range(103)) == DATA
    assert requests.count() == {"HEAD": 1, "GET": 1}


def test_hash_if_exists_without_answer_is_a_config_error(bucket: str, cut_answers: Callable[[int], None]) -> None:
    file = StoragePath.of(f"{bucket}/x")
    file.write(DATA)
    cut_answers(0)
    with pytest.raises(ConfigError, match=rf"^{file}: the storage does not answer"):
        hash_if_exists(file)


def test_open_file_without_answer_is_no_damaged_tar(
    bucket: str, cut_answers: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "READ_AHEAD", 1024)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for number in range(4):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = 2000
            archive.addfile(info, io.BytesIO(bytes(2000)))
    file = StoragePath.of(f"{bucket}/x.tar")
    file.write(packed.getvalue()[:300])
    source = webdataset.Source(webdataset.Config(path=str(file)))
    with pytest.raises(DataError, match=rf"^{file}: not a whole, uncompressed tar"):
        list(source.records())
    file.write(packed.getvalue())
    assert len(list(source.records())) == 4
    cut_answers(2)
    with pytest.raises(ConfigError, match=rf"^{file}: the storage does not answer"):
        list(source.records())


def test_open_file_without_answer_is_no_damaged_parquet(
    bucket: str, cut_answers: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "READ_AHEAD", 1024)
    pq.write_table(pa.table({"image": [DATA] * 100}), tmp_path / "x.parquet", compression="none", use_dictionary=False)
    file = StoragePath.of(f"{bucket}/x.parquet")
    file.upload(tmp_path / "x.parquet")
    source = parquet.Source(parquet.Config(path=str(file)))
    records = source.records()
    next(records)
    cut_answers(0)
    with pytest.raises(ConfigError, match=rf"^{file}: the storage does not answer"):
        list(source.records())
