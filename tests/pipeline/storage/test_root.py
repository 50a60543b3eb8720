"""Remote roots: copies through the cache, ranges for small reads, and as few requests as possible."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DataError
from pipeline.storage.cache import Cache
from pipeline.storage.path import StoragePath
from pipeline.storage.remote_file import RemoteFile
from pipeline.storage.root import Root, StoredFile, hash_file
from pipeline.stores.images import ImageShard
from pipeline.stores.label_writer import LabelWriter, store_metadata
from pipeline.stores.labels import LabelSpace, read_labels
from tests.s3 import listening

MakeImages = Callable[[str, Sequence[NDArray[np.uint8]]], ImageShard]
Noise = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def root(bucket: str) -> Root:
    return Root.of(f"{bucket}/root")


def uploaded(root: Root, path: str, data: bytes) -> StoredFile:
    """Return a file of the root that this machine has no copy of."""
    root.local_path(path).parent.mkdir(parents=True, exist_ok=True)
    root.local_path(path).write_bytes(data)
    facts = {"size": len(data), "sha256": hash_file(root.local_path(path))}
    root.publish(path, facts)
    shutil.rmtree(root.cache.folder)
    return root.file(path, facts)


def upload(root: Root, file: Path) -> StoredFile:
    return uploaded(root, file.name, file.read_bytes())


def test_stored_file_is_downloaded_once(root: Root) -> None:
    file = uploaded(root, "a.txt", b"abc")
    with listening() as requests:
        assert [file.load(Path.read_bytes) for _ in range(3)] == [b"abc"] * 3
        assert file.read(1, 2) == b"bc"
        assert file.scan(lambda source: isinstance(source, Path))
    assert requests.count() == {"GET": 1}


def test_root_publish_moves_the_file_to_the_cache(root: Root) -> None:
    root.local_path().mkdir(parents=True)
    root.local_path("a.txt").write_bytes(b"abc")
    facts = {"size": 3, "sha256": hash_file(root.local_path("a.txt"))}
    root.publish("a.txt", facts)
    with listening() as requests:
        assert root.file("a.txt", facts).load(Path.read_bytes) == b"abc"
    assert requests.count() == {}
    assert not root.local_path("a.txt").exists(), "it is in the cache alone, and may go"


@pytest.mark.parametrize("data", [b"abd", b"ab", b"abcd"])
def test_stored_file_load_names_a_file_unlike_its_manifest(root: Root, data: bytes) -> None:
    file = uploaded(root, "a.txt", b"abc")
    file.path.write(data)
    with pytest.raises(DataError, match=rf"^{file}: (its bytes changed since|{len(data)} bytes, where .* says 3)"):
        file.load(Path.read_bytes)
    file.path.remove()
    with pytest.raises(DataError, match=rf"^{file}: there is no such file"):
        file.load(Path.read_bytes)


def test_stored_file_read_fetches_only_the_range(root: Root) -> None:
    data = bytes(range(256)) * 1000
    file = uploaded(root, "a.bin", data)
    with listening() as requests:
        assert file.read(1000, 16) == data[1000:1016]
        assert file.scan(lambda source: not isinstance(source, Path))
    assert requests.count() == {"GET": 1}
    assert not (root.cache.folder / "files").exists()


def test_stored_file_download_caches_what_fits_the_share(root: Root) -> None:
    small, large = uploaded(root, "small", bytes(100)), uploaded(root, "large", bytes(101))
    tight = Cache(root.cache.folder, 400)
    for file, copied in ((small, True), (large, False)):
        here = StoredFile(file.path, file.size, file.sha256, tight)
        here.download(1 / 4)
        with listening() as requests:
            here.download(1 / 4)
            assert here.read(0, 5) == bytes(5)
        assert requests.count() == ({} if copied else {"GET": 1})


def test_remote_file_seeks_and_tells(root: Root) -> None:
    data = bytes(range(256))
    file = RemoteFile(uploaded(root, "a.bin", data).path, 256)
    assert (file.read(4), file.tell()) == (data[:4], 4)
    assert (file.seek(-6, os.SEEK_END), file.read(100), file.read(1)) == (250, data[250:], b"")
    assert (file.seek(10), file.seek(5, os.SEEK_CUR), file.read(2)) == (10, 15, data[15:17])


def test_image_shard_read_fetches_one_image_unless_downloaded(
    root: Root, make_images: MakeImages, noise: Noise
) -> None:
    shard = make_images("shard-000000", [noise(seed) for seed in range(40)])
    tar, index = Path(shard.tar.path), Path(shard.tar.path).with_suffix(".parquet")
    files = [upload(root, tar), upload(root, index)]
    remote = ImageShard(*files)
    assert (remote.sha256, remote.keys) == (shard.sha256, shard.keys)
    for wanted in (3, 17):
        with listening() as requests:
            assert remote.read(wanted) == shard.read(wanted)
        assert requests.count() == {"GET": 1}
    assert not remote.tar.cache.find(remote.tar._cache_key)
    with listening() as requests, ThreadPoolExecutor(4) as pool:

        def read(row: int) -> bytes:
            remote.download(1 / 4)
            return remote.read(row)

        assert list(pool.map(read, range(40))) == [shard.read(row) for row in range(40)]
    assert requests.count() == {"GET": 1}, "one tar, whatever the number of its images"


def test_read_labels_fetches_only_ranges_for_some_columns(
    root: Root, tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks  # noqa: PLC0415

    label = tasks.label(LabelSpace("normals"))
    writer = LabelWriter(tmp_path / "s.parquet", label, store_metadata(label, "test", "s"))
    for number in range(300):
        writer.add(f"{number:016x}", label.encode({"normals": noise(number, 64, 64).astype(np.float32) - 127.5}))
    writer.close()
    remote = upload(root, tmp_path / "s.parquet")
    fetched: list[int] = []
    read = StoragePath.read

    def counted(place: StoragePath, start: int, size: int) -> bytes:
        fetched.append(size)
        return read(place, start, size)

    monkeypatch.setattr(StoragePath, "read", counted)
    table = read_labels(remote, ["key", "status"])
    assert table.column("key").to_pylist() == [f"{number:016x}" for number in range(300)]
    assert len(fetched) <= 4
    assert sum(fetched) < remote.size / 4
    assert read_labels(remote).num_rows == 300
    remote.path.write(b"PAR1 no more")
    with pytest.raises(
        DataError, match=rf"^{remote}: not a readable label shard|^{remote}: its bytes|^{remote}: 12 bytes"
    ):
        read_labels(StoredFile(remote.path, 12, "0" * 64, remote.cache))


def test_stored_file_load_reads_parquet_from_a_hidden_cache_folder(root: Root, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "t.parquet")
    file = upload(root, tmp_path / "t.parquet")
    hidden = StoredFile(file.path, file.size, file.sha256, Cache(tmp_path / ".cache" / "_must", 10**6))
    assert hidden.load(pq.read_table).to_pydict() == {"a": [1, 2]}


def test_root_can_be_pickled(any_root: Root) -> None:
    (any_root / "a.txt").write(b"abc")
    again = copy.deepcopy(any_root)  # by the protocol that multiprocessing uses
    assert (str(again), again.local_path("x")) == (str(any_root), any_root.local_path("x"))
    assert (again / "a.txt").read() == b"abc"


def test_root_local_path_is_a_scratch_folder_per_root(bucket: str) -> None:
    one, other = Root.of(f"{bucket}/one"), Root.of(f"{bucket}/other")
    assert one.local_path() != other.local_path()
    assert one.local_path("a/b") == one.local_path() / "a" / "b"


def test_root_of_refuses_a_url_as_path() -> None:
    with pytest.raises(ConfigError, match=r"root 's3:/bucket/root': a URL loses a slash as a Path; give it as text"):
        Root.of(Path("s3://bucket/root"))


def test_root_local_path_of_a_local_root_is_inside_it(tmp_path: Path) -> None:
    root = Root.of(tmp_path / "root")
    assert root.local_path("a/b") == tmp_path / "root" / "a" / "b"
    assert Path(root / "a/b") == tmp_path / "root" / "a" / "b"
    with pytest.raises(TypeError, match="is not on this machine"):
        os.fspath(StoragePath.of("memory://x"))
