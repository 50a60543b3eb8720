"""The video source: which frames it takes, what they are called, and what it does with damaged files."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord, video
from tests.videos import number_in, picture, write_video

pytest.importorskip("av")


def open_source(root: Path, **options: Any) -> video.Source:
    config = video.Config.model_validate({"path": str(root), **options})
    return video.Source(video.Config.model_validate(config.model_dump(mode="json")))  # as a plan hands it on


def shown(record: SourceRecord) -> int:
    return number_in(Image.open(io.BytesIO(record.read())))


def frames(source: video.Source) -> dict[str, int]:
    """Return the number that each frame shows, by the record's name."""
    return {record.name: shown(record) for record in source.records()}


def test_video_source_takes_every_nth_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 70)
    assert frames(open_source(tmp_path)) == {
        "clip.mp4#000000": 0,
        "clip.mp4#000030": 30,
        "clip.mp4#000060": 60,
    }
    assert list(frames(open_source(tmp_path, every=23)).values()) == [0, 23, 46, 69]
    assert list(frames(open_source(tmp_path / "clip.mp4", every=1)).values()) == list(range(70))


@pytest.mark.parametrize(
    ("fps", "expected"), [(1, [0, 10, 20, 30]), (2.5, [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]), (100, list(range(40)))]
)
def test_video_source_takes_frames_per_second(fps: float, expected: list[int], tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 40)
    assert list(frames(open_source(tmp_path, fps=fps)).values()) == expected


def test_video_source_stores_frames_without_loss_or_as_jpeg(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mkv", 3, codec="ffv1")
    for form, suffix in (("png", "PNG"), ("jpeg", "JPEG")):
        files = [record.read() for record in open_source(tmp_path, every=1, form=form).records()]
        assert files == [record.read() for record in open_source(tmp_path, every=1, form=form).records()]
        for number, data in enumerate(files):
            image = Image.open(io.BytesIO(data))
            assert image.format == suffix
            difference = np.abs(np.asarray(image).astype(int) - picture(number)).max()
            assert difference == 0 if form == "png" else difference < 12


def test_video_source_reads_folders_and_counts_other_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write_video(tmp_path / "deep/b.MOV".lower(), 5)
    write_video(tmp_path / "a.avi", 5)
    (tmp_path / "notes.txt").write_text("x")
    source = open_source(tmp_path)
    assert frames(source) == {"a.avi#000000": 0, "deep/b.mov#000000": 0}
    assert source.skipped == {".txt": 1}
    assert [name for name, *_ in source.file_stamps()] == ["a.avi", "deep/b.mov"]
    assert source.spaces() == {}
    assert {record.split for record in source.records()} == {"train"}


def test_video_source_reads_frames_in_threads_and_any_order(tmp_path: Path) -> None:
    for name in "abcdef":
        write_video(tmp_path / f"{name}.mp4", 30)
    records = list(open_source(tmp_path, every=2).records())
    expected = [2 * number for _ in "abcdef" for number in range(15)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shown, records)) == expected
        assert list(pool.map(shown, reversed(records))) == expected[::-1]


def test_video_source_loses_the_rest_of_a_truncated_video(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 40)
    write_video(tmp_path / "b.mp4", 4)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    source = open_source(tmp_path, every=1)
    found = frames(source)
    left = len(found) - 4
    assert 0 < left < 40
    assert list(found.values()) == [*range(left), *range(4)]
    assert source.problems == [("a.mp4", f"truncated: {40 - left} of 40 frames are missing")]


def test_video_source_lists_videos_that_can_not_be_read(tmp_path: Path) -> None:
    write_video(tmp_path / "b.mp4", 4)
    (tmp_path / "a.mp4").write_bytes(b"text")
    source = open_source(tmp_path)
    assert list(frames(source)) == ["b.mp4#000000"]
    [(name, reason)] = source.problems
    assert name == "a.mp4"
    assert "a.mp4: damaged or no video" in reason
    (tmp_path / "b.mp4").unlink()
    with pytest.raises(DataError, match=r"no image can be used; the first problem: a.mp4"):
        list(source.records())


def test_video_source_refuses_folders_without_videos(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"path: no videos in .*known by their suffix are \.mp4"):
        open_source(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConfigError, match="path: no videos in"):
        open_source(tmp_path / "a.txt")
    with pytest.raises(ValidationError, match="every and fps both choose the frames"):
        open_source(tmp_path, every=3, fps=1)


def test_video_source_detect(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 2)
    assert video.Source.detect(str(tmp_path)) == {}
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg")
    assert video.Source.detect(str(tmp_path)) is None
