"""Names out of data files: where they lead, and where not."""

from __future__ import annotations

import functools
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.sources import BaseSource, _files, coco, csv
from pipeline.sources._named_files import NamedFiles
from pipeline.storage.path import StoragePath

HOSTILE = [
    "/etc/hostname",
    "../../../outside.png",
    "train/../../../outside.png",
    "http://example.org/a.png",
    "file:///etc/hostname",
    "simplecache::http://example.org/a.png",
    "github://org:repo@main/a.png",
    "..",
    ".",
    "",
    "a\0.png",
    "a\ud800.png",
    "\\\\server\\share\\a.png",
    "..\\..\\..\\outside.png",
]


SPACED = ".\t./.\n./outside.png"
"""Readers of URLs leave the white space out."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a set's images, with one file; another lies outside of the set."""
    images = tmp_path / "set" / "images"
    (images / "train").mkdir(parents=True)
    for file in (images / "train" / "a.png", tmp_path / "outside.png"):
        Image.new("RGB", (8, 8)).save(file)
    return images


def named_files(folder: Path, *others: Path) -> NamedFiles:
    first, *rest = [StoragePath.of(str(path)) for path in (folder, *others)]
    return NamedFiles(first, rest, first)


@pytest.mark.parametrize("name", HOSTILE)
def test_named_files_find_no_file_outside_of_the_folders(name: str, folder: Path) -> None:
    with pytest.raises(DataError, match=r"leads to no file in .*set/images; .*elsewhere"):
        named_files(folder).find(name)


@pytest.mark.parametrize("name", ["train/a.png", "train\\a.png", "./train//a.png", "other/../train/a.png"])
def test_named_files_read_names_below_the_folder(name: str, folder: Path) -> None:
    files = named_files(folder)
    file = files.find(name)
    assert file.path == str(folder / "train" / "a.png")
    assert files.read(file) == (folder / "train" / "a.png").read_bytes()


@pytest.mark.parametrize("name", ["../../outside.png", "{}/outside.png"])
def test_named_files_read_from_other_folders_that_are_stated(name: str, folder: Path, tmp_path: Path) -> None:
    files = named_files(folder, tmp_path)
    assert files.read(files.find(name.format(tmp_path))) == (tmp_path / "outside.png").read_bytes()


def test_named_files_take_urls_below_remote_folders() -> None:
    remote, other = StoragePath.of("memory://bucket/images"), StoragePath.of("memory://bucket/more")
    files = NamedFiles(remote, [other], remote)
    (other / "b.png").write(b"bytes")
    assert files.read(files.find(f"{other}/b.png")) == b"bytes"
    assert files.read(files.find("../more/b.png")) == b"bytes"
    for name in (f"{other.parent}/secret/b.png", "../secret.png", "/bucket/secret/b.png", "file:///etc/hostname"):
        with pytest.raises(DataError, match="leads to no file"):
            files.find(name)


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a web server of this machine that serves the folder of the test."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_named_files_read_from_web_servers(folder: Path, website: str) -> None:
    web = StoragePath.of(f"{website}/set/images")
    files = NamedFiles(web, [], web)
    for name in ("train/a.png", f"{website}/set/images/train/a.png"):
        assert files.read(files.find(name)) == (folder / "train" / "a.png").read_bytes()
    for name in (
        "../../outside.png",
        "%2e%2e/%2E./outside.png",
        f"{website}/outside.png",
        "..%2f..%5coutside.png",
        SPACED,
    ):
        with pytest.raises(DataError, match="leads to no file in http"):
            files.find(name)


def test_named_files_refuse_links_that_lead_out(folder: Path, tmp_path: Path) -> None:
    (folder / "out.png").symlink_to(tmp_path / "outside.png")
    (folder / "in.png").symlink_to(folder / "train" / "a.png")
    (folder / "away").symlink_to(tmp_path)
    files = named_files(folder)
    assert files.read(files.find("in.png"))
    for name in ("out.png", "away/outside.png"):
        with pytest.raises(DataError, match=f"is a link to {tmp_path}/outside.png, which is not in {folder}"):
            files.read(files.find(name))
    assert named_files(folder, tmp_path).read(files.find("out.png"))


def test_named_files_follow_links_into_the_folder_of_the_set(folder: Path) -> None:
    (folder.parent / "original.png").write_bytes((folder / "train" / "a.png").read_bytes())
    (folder / "link.png").symlink_to("../original.png")
    files = NamedFiles(StoragePath.of(str(folder)), [], StoragePath.of(str(folder.parent)))
    assert files.read(files.find("link.png"))
    with pytest.raises(DataError, match="leads to no file"):
        files.find("../original.png")


def test_named_files_follow_a_folder_that_is_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(folder)
    files = named_files(tmp_path / "linked")
    assert files.read(files.find("train/a.png"))


def pipe(file: Path) -> None:
    os.mkfifo(file)


def folder_at(file: Path) -> None:
    file.mkdir()


@pytest.mark.parametrize(
    ("make", "reason"), [(pipe, "is no file, but a folder, pipe or device"), (folder_at, "no file")]
)
def test_named_files_read_regular_files_alone(make: Callable[[Path], None], reason: str, folder: Path) -> None:
    make(folder / "x.png")
    files = named_files(folder)
    with pytest.raises(DataError, match=reason):
        files.read(files.find("x.png"))


def test_storage_path_reads_no_device() -> None:
    assert stat.S_ISCHR(os.stat("/dev/zero").st_mode)
    with pytest.raises(DataError, match="/dev/zero: is no file, but a folder, pipe or device"):
        StoragePath.of("/dev/zero").read()


def test_read_image_refuses_files_that_are_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "train" / "large.png"
    with open(file, "wb") as opened:
        opened.truncate(_files.MAX_IMAGE_BYTES + 1)  # takes no space
    with pytest.raises(DataError, match="has 2,147,483,649 bytes; an image may have 2,147,483,648"):
        _files.read_image(StoragePath.of(str(file)))


def coco_set(folder: Path, names: list[str], **options: object) -> BaseSource:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "car"}]}
    (folder.parent / "instances_train.json").write_text(json.dumps(content))
    return coco.Source(
        coco.Config.model_validate({"path": str(folder.parent), "images": {"train": "images"}, **options})
    )


def csv_set(folder: Path, names: list[str], **options: object) -> BaseSource:
    (folder.parent / "set.csv").write_text("image\n" + "".join(f"{name}\n" for name in names))
    return csv.Source(csv.Config.model_validate({"path": str(folder.parent), "images": "images", **options}))


@pytest.mark.parametrize("make", [coco_set, csv_set])
def test_sources_list_names_that_lead_out_and_read_the_others(make: Callable[..., BaseSource], folder: Path) -> None:
    hostile = ["../../outside.png", "/etc/hostname", "http://example.org/a.png"]
    source = make(folder, ["train/a.png", *hostile])
    (record,) = source.records()
    assert record.read() == (folder / "train" / "a.png").read_bytes()
    assert len(source.problems) == 3
    assert all(any(repr(name) in reason for _, reason in source.problems) for name in hostile)


@pytest.mark.parametrize("make", [coco_set, csv_set])
def test_sources_read_names_in_folders_elsewhere(make: Callable[..., BaseSource], folder: Path, tmp_path: Path) -> None:
    names = ["train/a.png", "../../outside.png", f"{tmp_path}/./outside.png"]
    source = make(folder, names, elsewhere=["../"])
    assert len([record.read() for record in source.records()]) == 2
    twice = [] if make is coco_set else ["listed twice"]  # the annotations of both entries are COCO's label
    assert [reason[:12] for _, reason in source.problems] == twice


@pytest.mark.parametrize("make", [coco_set, csv_set])
def test_sources_stamp_files_elsewhere_and_name_them_by_relative_paths(
    make: Callable[..., BaseSource], folder: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "outside.png").rename(photos / "a.png")
    source = make(folder, ["train/a.png", f"{photos}/a.png"], elsewhere=[str(photos)])
    names = {record.name for record in source.records()}
    assert names == {"images/train/a.png", "../photos/a.png"}
    stamps = {name: stamp for name, *stamp in source.file_stamps()}
    assert names < set(stamps)
    (photos / "a.png").write_bytes(b"longer or shorter")
    assert {name: stamp for name, *stamp in source.file_stamps()} != stamps
