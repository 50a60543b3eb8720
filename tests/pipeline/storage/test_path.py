"""Storage paths: the same behavior on local disks, in memory and on S3."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from botocore.exceptions import ClientError

from pipeline.errors import ConfigError, DataError
from pipeline.storage.path import StoragePath, require_exists, subfolders, walk
from tests.s3 import listening, system


def names(root: Path | str) -> list[str]:
    place = StoragePath.of(str(root))
    return [file.relative_to(place) for file in walk(place)]


def touch(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_walk_is_sorted_and_skips_hidden_files(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "a.jpg", "b/10.jpg", ".hidden.jpg", "b/.cache/x.jpg", "c d/é ü.v1.jpg", "~x.jpg")
    assert names(tmp_path) == ["a.jpg", "b/10.jpg", "b/2.jpg", "c d/é ü.v1.jpg", "~x.jpg"]
    assert [file.read().decode() for file in walk(StoragePath.of(str(tmp_path)))] == names(tmp_path)


def test_walk_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "far/1.jpg", "set/2.jpg")
    root = tmp_path / "set"
    (root / "linked").symlink_to(tmp_path / "far")
    (root / "linked too").symlink_to(tmp_path / "far")
    (root / "up").symlink_to(root)
    (tmp_path / "far" / "back").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert names(root) == ["2.jpg", "gone.jpg", "itself", "linked/1.jpg", "linked too/1.jpg"]
    gone = StoragePath.of(str(root)) / "gone.jpg"
    assert gone.stamp() == (-1, 0)
    with pytest.raises(DataError, match=r"gone.jpg: there is no such file"):
        gone.read()


def test_walk_ends_where_folders_link_to_one_another(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(12)]
    for folder in folders:
        folder.mkdir()
        for other in folders:
            (folder / f"to {other.name}").symlink_to(other)
    with pytest.raises(DataError, match=r"is reached by 4 links to folders in one another; 3 are followed"):
        names(tmp_path)


@pytest.mark.parametrize("text", ["/tmp/\ud800", "s3://b/\ud800", "zip://::FILE", "tar://::FILE"])
def test_storage_path_of_what_can_not_be_opened(text: str, tmp_path: Path) -> None:
    (tmp_path / "no archive").write_bytes(b"text")
    with pytest.raises(ConfigError, match=r"^path "):
        StoragePath.of(text.replace("FILE", str(tmp_path / "no archive")))


def test_stamp_of_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    for name, target in (("gone", "nowhere"), ("itself", "itself")):
        (tmp_path / name).symlink_to(tmp_path / target)
        assert StoragePath.of(str(tmp_path / name)).stamp() == (-1, 0)


def test_walk_skips_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    touch(tmp_path, "1.jpg")
    assert names(tmp_path) == ["1.jpg"]


def test_relative_to_is_printable_for_names_that_are_not_utf8(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system only takes UTF-8")
    assert names(tmp_path) == ["caf\\xe9.jpg"]
    assert [file.read() for file in walk(StoragePath.of(str(tmp_path)))] == [b"x"]


def test_storage_path_of_relative_home_and_file_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "set/1.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in ("set", "./set/", "set/../set", "~/set", str(tmp_path / "set"), f"file://{tmp_path}/set"):
        assert names(text) == ["1.jpg"]
        assert str(StoragePath.of(text)) == str(tmp_path / "set")


def test_relative_to_tells_a_root_from_a_longer_name(tmp_path: Path) -> None:
    root = StoragePath.of(str(tmp_path / "set"))
    assert (root / "a" / "b.jpg").relative_to(root) == "a/b.jpg"
    assert StoragePath.of(str(tmp_path / "set2" / "b.jpg")).relative_to(root) == "../set2/b.jpg"
    assert StoragePath.of("memory://bucket/b.jpg").relative_to(root) == "memory:///bucket/b.jpg"
    assert StoragePath.of("/b.jpg").relative_to(StoragePath.of("/")) == "b.jpg"
    assert str(root / "/else/x.jpg") == "/else/x.jpg"


def test_read_of_a_range_beyond_the_end_raises(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    file = StoragePath.of(str(tmp_path / "x"))
    assert file.read(3, 4) == b"3456"
    with pytest.raises(DataError, match="ends 2 bytes before the end"):
        file.read(8, 4)


def test_stamp_sees_changes(tmp_path: Path) -> None:
    touch(tmp_path, "x")
    file = StoragePath.of(str(tmp_path / "x"))
    before = file.stamp()
    assert before == (1, (tmp_path / "x").stat().st_mtime_ns)
    os.utime(tmp_path / "x", ns=(1, 1))
    assert file.stamp() != before


@pytest.mark.parametrize(("number", "kind"), [(errno.ESTALE, ConfigError), (errno.EIO, DataError)])
def test_stamp_names_a_file_that_can_not_be_read(
    number: int, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise OSError(number, "odd")

    monkeypatch.setattr(os, "stat", failing)
    with pytest.raises(kind, match=rf"^{tmp_path}/x: can't be read.*\(odd\)"):
        StoragePath.of(str(tmp_path / "x")).stamp()


def test_require_exists_names_path_and_option(tmp_path: Path) -> None:
    touch(tmp_path, "x")
    with pytest.raises(ConfigError, match=f"path: there is no folder {tmp_path}/none"):
        require_exists(StoragePath.of(str(tmp_path / "none")), "path", "folder")
    with pytest.raises(ConfigError, match=r"path: .*/x is not a folder"):
        require_exists(StoragePath.of(str(tmp_path / "x")), "path", "folder")
    with pytest.raises(ConfigError, match="nosuch://x"):
        StoragePath.of("nosuch://x")


def test_walk_subfolders_and_stamp_of_a_remote_folder() -> None:
    system = fsspec.filesystem("memory")
    for name in ("b/2.jpg", "a.jpg", "b/.x/1.jpg", "c/1.jpg"):
        system.pipe_file(f"/places/{name}", name.encode())
    root = StoragePath.of("memory://places")
    assert names("memory://places") == ["a.jpg", "b/2.jpg", "c/1.jpg"]
    assert [folder.name for folder in subfolders(root)] == ["b", "c"]
    assert (root / "b/2.jpg").read() == b"b/2.jpg"
    assert str(root / "a.jpg") == "memory:///places/a.jpg"
    before = (root / "a.jpg").stamp()
    assert before == (root / "a.jpg").stamp()
    system.pipe_file("/places/a.jpg", b"A.jpg")
    assert (root / "a.jpg").stamp() != before


SPECIAL = "a b/ü#?d*[e]%20'\"&+;=:,@/..x~"
"""A name with characters that are special in URLs, shells and globs."""


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePath:
    """Return an empty folder on each kind of storage."""
    if request.param == "local":
        return StoragePath.of(str(tmp_path / "folder"))
    return StoragePath.of(
        f"{request.getfixturevalue('bucket') if request.param == 's3' else 'memory:/'}/{tmp_path.name}"
    )


def test_write_files_read_and_remove(folder: StoragePath) -> None:
    assert folder.files() == {}
    (folder / "a/b").write(b"12")
    (folder / "a/b").write(b"123")
    (folder / ".c").write(b"")
    assert folder.files() == {"a/b": 3, ".c": 0}
    assert (folder / "a/b").read() == b"123"
    assert (folder / ".c").read() == b""
    (folder / "a/b").remove()
    (folder / "a/b").remove()
    assert folder.files() == {".c": 0}


def test_child_takes_special_characters_as_they_are(folder: StoragePath, tmp_path: Path) -> None:
    file = folder.child(SPECIAL)
    file.write(b"odd")
    assert folder.files() == {SPECIAL: 3}
    assert [each.name for each in folder.folders()] == ["a b"]
    assert file.read() == file.read_if_exists() == b"odd"
    assert file.read(1, 2) == b"dd"
    assert file.modified()
    assert file.exists()
    if not file.local:
        (tmp_path / "there").write_bytes(b"other")
        file.upload(tmp_path / "there")
        file.download(tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"other"
    file.remove()
    assert folder.files() == {}


def test_read_of_an_empty_range_makes_no_request(folder: StoragePath) -> None:
    (folder / "x").write(b"12345")
    assert (folder / "x").read(2, 0) == b""
    assert folder.local or (folder / "none").read(0, 0) == b""


def test_walk_has_the_same_order_on_all_storages(folder: StoragePath) -> None:
    in_order = ["a/z", "a b/z", "a.jpg", "a.tar/1", "a.tar/2", "b"]
    for name in reversed(in_order):
        (folder / name).write(b"")
    assert [file.relative_to(folder) for file in walk(folder)] == in_order


def test_exists_and_is_folder_tell_files_from_folders(folder: StoragePath) -> None:
    (folder / "a/b").write(b"1")
    kinds = {name: ((folder / name).exists(), (folder / name).is_folder()) for name in ("a", "a/b", "c", "a/b/c")}
    assert kinds == {"a": (True, True), "a/b": (True, False), "c": (False, False), "a/b/c": (False, False)}


def test_methods_on_a_missing_file(folder: StoragePath, tmp_path: Path) -> None:
    file = folder / "none"
    assert file.read_if_exists() is None
    assert file.modified() is None
    assert file.folders() == []
    with pytest.raises(DataError, match="none: there is no such file"):
        file.read()
    if not file.local:
        with pytest.raises(DataError, match="none: there is no such file"):
            file.download(tmp_path / "back")


def test_read_of_a_range_beyond_the_end_raises_on_all_storages(folder: StoragePath) -> None:
    (folder / "x").write(b"12345")
    assert (folder / "x").read(2, 3) == b"345"
    with pytest.raises(DataError, match="x: ends 1 bytes before"):
        (folder / "x").read(3, 3)
    with pytest.raises(DataError, match="x: "):
        (folder / "x").read(9, 3)


def test_append_adds_at_the_end(folder: StoragePath) -> None:
    for line in (b"a\n", b"b\n", b"c\n"):
        (folder / "sub/lines").append(line)
    assert (folder / "sub/lines").read() == b"a\nb\nc\n"


def test_create_makes_a_file_once(folder: StoragePath) -> None:
    file = folder / "x"
    assert file.create(b"first")
    assert not file.create(b"second")
    assert file.read() == b"first"
    assert folder.files() == {"x": 5}


def test_files_leaves_out_folder_markers(bucket: str) -> None:
    """The marker of an empty folder, a marker among files, and a file named like the folder are no files in it."""
    folder = StoragePath.of(f"{bucket}/folder")
    system().pipe_file(f"{folder.path}/", b"")
    assert folder.files() == {}
    assert list(walk(folder)) == []
    system().pipe_file(f"{folder.path}/sub/", b"")
    system().pipe_file(f"{folder.path}/sub/x", b"12")
    assert folder.files() == {"sub/x": 2}
    system().pipe_file(f"{folder.path}2", b"123")
    assert (folder.parent / "folder2").files() == {}
    assert StoragePath.of(bucket).files() == {"folder/sub/x": 2, "folder2": 3}


def test_is_folder_takes_few_requests(bucket: str) -> None:
    folder = StoragePath.of(f"{bucket}/folder")
    (folder / "x").write(b"")
    for place, expected in ((StoragePath.of(bucket), {"HEAD": 1}), (folder, {"HEAD": 1, "GET": 1})):
        with listening() as requests:
            assert place.is_folder()
        assert requests.count() == expected


def test_upload_sends_one_part_at_a_time(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(151 << 20)
    place, at_once, most = StoragePath.of(f"{bucket}/large"), 0, 0
    call = place.fs._call_s3

    async def counted(method: str, *given: Any, **options: Any) -> Any:
        nonlocal at_once, most
        at_once += method == "upload_part"
        most = max(most, at_once)
        try:
            return await call(method, *given, **options)
        finally:
            at_once -= method == "upload_part"

    monkeypatch.setattr(place.fs, "_call_s3", counted)
    place.upload(tmp_path / "large")
    assert most == 1
    assert place.stamp()[0] == 151 << 20


@pytest.mark.parametrize("where", ["local", "s3"])
def test_create_succeeds_for_one_of_many_threads(where: str, request: pytest.FixtureRequest) -> None:
    base = str(request.getfixturevalue("tmp_path" if where == "local" else "bucket"))
    files = [StoragePath.of(f"{base}/{number}") for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        created = [sum(pool.map(lambda who, f=file: f.create(b"%d" % who), range(8))) for file in files]
    assert created == [1] * 20


@pytest.mark.parametrize(
    ("codes", "created"), [(["ConditionalRequestConflict"] * 3, True), (["PreconditionFailed"], False)]
)
def test_create_understands_other_answers_of_storages(
    bucket: str, monkeypatch: pytest.MonkeyPatch, codes: list[str], created: bool
) -> None:
    """S3 asks to retry when two create a file at the same moment; other storages name no condition."""
    file = StoragePath.of(f"{bucket}/x")
    create = file.fs.pipe_file

    def refuse(*given: Any, **options: Any) -> None:
        if not codes:
            return create(*given, **options)
        raise OSError(errno.EIO, "no") from ClientError({"Error": {"Code": codes.pop()}}, "PutObject")

    monkeypatch.setattr(file.fs, "pipe_file", refuse)
    assert file.create(b"x") is created


def test_files_and_exists_see_writes_of_others_at_once(bucket: str) -> None:
    folder = StoragePath.of(f"{bucket}/folder")
    (folder / "a").write(b"1")
    assert folder.files() == {"a": 1}
    system().pipe_file(f"{folder.path}/b", b"12")
    system().pipe_file(f"{folder.path}/a", b"12")
    assert folder.files() == {"a": 2, "b": 2}
    assert (folder / "b").exists()
    system().rm_file(f"{folder.path}/b")
    assert not (folder / "b").exists()
    assert folder.files() == {"a": 2}


def test_methods_take_one_request_each(bucket: str, tmp_path: Path) -> None:
    folder = StoragePath.of(f"{bucket}/folder")
    file = folder / "x"
    (tmp_path / "file").write_bytes(b"abc")
    calls: list[tuple[str, Callable[[], object]]] = [
        ("PUT", lambda: file.upload(tmp_path / "file")),
        ("GET", file.read_if_exists),
        ("GET", lambda: file.read(1, 1)),
        ("GET", (folder / "none").read_if_exists),
        ("GET", folder.files),
        ("GET", lambda: file.download(tmp_path / "back")),
        ("HEAD", file.modified),
        ("DELETE", file.remove),
    ]
    for method, call in calls:
        with listening() as requests:
            call()
        assert requests.count() == {method: 1}


def test_write_leaves_the_old_file_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StoragePath.of(str(tmp_path / "x"))
    file.write(b"before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.write(b"after")
    assert file.read() == b"before"
    assert os.listdir(tmp_path) == ["x"]
