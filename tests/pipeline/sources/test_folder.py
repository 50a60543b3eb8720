"""The folder source: nested folders, odd names, links, remote folders."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from PIL import Image

from pipeline.data.decode import inspect_image
from pipeline.errors import ConfigError, DataError
from pipeline.sources import folder


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path, "JPEG")


def open_source(path: Path | str) -> folder.Source:
    return folder.Source(folder.Config(path=str(path)))


def test_folder_source_reads_nested_odd_and_linked_names(tmp_path: Path) -> None:
    wanted = ["a b.jpg", "deep/er/日本.JPEG", "deep/v1.2.final.png", "linked/x.jpg"]
    for name in wanted[:3]:
        image(tmp_path / "set" / name)
    image(tmp_path / "far" / "x.jpg")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "round").symlink_to(tmp_path / "set")
    image(tmp_path / "set" / ".thumbs" / "x.jpg")
    image(tmp_path / "set" / "._a b.jpg")
    (tmp_path / "set" / "notes.txt").write_text("no image")
    records = list(open_source(tmp_path / "set").records())
    assert [record.name for record in records] == wanted
    assert {record.split for record in records} == {"train"}
    assert all(inspect_image(record.read()).width == 4 for record in records)
    assert records[0].truth((4, 3)).values == {}


def test_folder_source_selects_by_suffix_not_by_content(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("not an image")
    image(tmp_path / "really a jpeg.png")
    bad, wrong = sorted(open_source(tmp_path).records(), key=lambda record: record.name, reverse=True)
    with pytest.raises(DataError, match="not an image"):
        inspect_image(bad.read())
    assert inspect_image(wrong.read()).suffix == "jpg"


def test_folder_source_counts_files_that_it_passes_over(tmp_path: Path) -> None:
    others = ("e/IMG_1.CR2", "e/IMG_2.cr2", "e/f.jpg/notes.txt", "LICENSE", ".x")
    for name in ("a.jpg", "b.JFIF", "c.jpe", "d.ppm", "f.HEIC", *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = open_source(tmp_path)
    for _ in range(2):
        assert [record.name for record in source.records()] == ["a.jpg", "b.JFIF", "c.jpe", "d.ppm", "f.HEIC"]
        assert source.skipped == {".cr2": 2, ".txt": 1, "": 1}


def test_folder_source_file_stamps_change_with_images_only(tmp_path: Path) -> None:
    image(tmp_path / "b.jpg")
    image(tmp_path / "a" / "c.jpg")
    before = open_source(tmp_path).file_stamps()
    assert [row[0] for row in before] == ["a/c.jpg", "b.jpg"]
    (tmp_path / "notes.txt").write_text("no image")
    assert open_source(tmp_path).file_stamps() == before
    image(tmp_path / "d.jpg")
    assert open_source(tmp_path).file_stamps() != before


def test_folder_source_names_missing_or_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"path: there is no folder {tmp_path}/nowhere"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(DataError, match=f"{tmp_path}: no images found"):
        list(open_source(tmp_path).records())


def test_folder_source_reads_remote_folder(tmp_path: Path) -> None:
    image(tmp_path / "x.jpg")
    fsspec.filesystem("memory").pipe_file("/pool/deep/x.jpg", (tmp_path / "x.jpg").read_bytes())
    (record,) = open_source("memory://pool").records()
    assert record.name == "deep/x.jpg"
    assert inspect_image(record.read()).height == 3
