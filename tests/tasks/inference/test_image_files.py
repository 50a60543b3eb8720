"""Images in files, folders, patterns and videos."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import ConfigError, DataError
from tasks.inference.image_files import ImageFiles
from tests.videos import number_in, write_video


@pytest.fixture
def folder(tmp_path: Path, noise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "[deep]").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.JPG", "[deep]/c.webp", ".hidden.png")):
        Image.fromarray(noise(number)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("notes", "utf-8")
    return tmp_path / "in"


def names(*paths: str) -> list[str]:
    return [record.name for record in ImageFiles(paths)]


def test_image_files_are_named_as_a_user_would_type_them(folder: Path) -> None:
    assert names("in") == ["in/[deep]/c.webp", "in/a.JPG", "in/b.png"]
    assert names("in/") == names("in")
    assert names("in/b.png", "in/*.JPG") == ["in/b.png", "in/a.JPG"]
    assert names("in/**/*.webp") == ["in/[deep]/c.webp"]
    assert names("in/[deep]") == ["in/[deep]/c.webp"], "a folder, not a pattern"
    assert names(str(folder / "b.png")) == [str(folder / "b.png")]
    assert ImageFiles(["in", "in/b.png"]).count() == 4
    for record in ImageFiles(["in"]):
        assert record.read() == Path(record.name).read_bytes()


def test_image_files_of_a_folder_are_those_that_the_model_takes(folder: Path) -> None:
    (folder / "d.npy").write_bytes(b"numbers")
    images = ImageFiles(["in"])
    assert images.count() == 3
    assert images.skipped == {".txt": 1, ".npy": 1}
    images.channels = 5
    assert [record.name for record in images][-1] == "in/d.npy"
    assert images.skipped == {".txt": 1}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere: there is no such file or folder"),
        ("in/*.gif", r"in/\*\.gif: there is no file or folder that matches this"),
        ("file:///nowhere/a.png", "there is no such file or folder"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_image_files_refuse_paths_without_images(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageFiles(["in", path])


@pytest.mark.usefixtures("folder")
def test_image_files_hold_frames_of_videos() -> None:
    pytest.importorskip("av")
    write_video(Path("in/clip.mp4"), 25)
    Path("in/damaged.mp4").write_bytes(b"no video")
    found = {record.name: record for record in ImageFiles(["in"], every=10)}
    frames = [f"in/clip.mp4#{number:06d}" for number in (0, 10, 20)]
    assert list(found) == ["in/[deep]/c.webp", "in/a.JPG", "in/b.png", *frames, "in/damaged.mp4"]
    assert [number_in(Image.open(io.BytesIO(found[name].read()))) for name in frames] == [0, 10, 20]
    with pytest.raises(DataError, match="damaged"):
        found["in/damaged.mp4"].read()


@pytest.mark.usefixtures("folder")
def test_image_files_need_the_extra_for_videos_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in/clip.mp4").write_bytes(b"a video")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ConfigError, match="videos need the extra video"):
        ImageFiles(["in/clip.mp4"])
    record = list(ImageFiles(["in"]))[-1]
    with pytest.raises(DataError, match="videos need the extra video"):
        record.read()
