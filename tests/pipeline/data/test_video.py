"""Single frames of videos, pixel for pixel as they were put in."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.video import Video, load_av
from pipeline.errors import ConfigError, DataError
from pipeline.storage.path import StoragePath
from tests.videos import number_in, picture, write_video

av = pytest.importorskip("av")


def opened(file: Path) -> Video:
    return Video(StoragePath.of(str(file)))


KINDS = [("a.mp4", "mpeg4"), ("a.mov", "mpeg4"), ("a.mkv", "mpeg4"), ("a.avi", "mpeg4"), ("a.ts", "mpeg2video")]


@pytest.mark.parametrize(("name", "codec"), KINDS)
@pytest.mark.parametrize("numbers", [range(40), (39, 0, 38, 17, 18, 3, 3, 30)])
def test_video_frame_returns_the_frame_of_that_number(name: str, codec: str, numbers: Any, tmp_path: Path) -> None:
    write_video(tmp_path / name, codec=codec, g="12", bf="2" if codec == "mpeg2video" else "0")
    video = opened(tmp_path / name)
    assert [number_in(video.frame(number)) for number in numbers] == list(numbers)
    index = video.index
    assert len(index.seconds) == 40
    np.testing.assert_allclose(index.seconds, np.arange(40) / 10, atol=1e-3)
    assert index.missing == 0
    video.close()
    assert number_in(video.frame(5)) == 5, "opens again"


def test_video_frame_of_h264_with_frames_out_of_order(tmp_path: Path) -> None:
    try:
        write_video(tmp_path / "a.mp4", codec="libx264", g="10", bf="3")
    except (av.FFmpegError, ValueError):
        pytest.skip("PyAV without x264")
    video = opened(tmp_path / "a.mp4")
    assert [number_in(video.frame(number)) for number in (*range(0, 40, 3), 25, 1, 39)] == [*range(0, 40, 3), 25, 1, 39]


def test_video_frame_is_lossless_and_the_same_each_time(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", codec="ffv1")
    for number in (7, 30, 7):
        assert np.array_equal(np.asarray(opened(tmp_path / "a.mkv").frame(number)), picture(number))


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_video_frame_is_upright(rotation: int, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", rotation=rotation, qscale="1")
    image = np.asarray(opened(tmp_path / "a.mp4").frame(9))
    plain = np.rot90(picture(9), rotation // 90)
    assert image.shape == plain.shape
    assert np.abs(image.astype(int) - plain).mean() < 12


def test_video_frame_in_threads(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    video, numbers = opened(tmp_path / "a.mp4"), [*range(40), *range(39, -1, -3)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda number: number_in(video.frame(number)), numbers)) == numbers
    assert threading.active_count() < 50


def test_video_index_of_truncated_files(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mp4")
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2])
    video = opened(tmp_path / "half.mp4")
    left = len(video.index.seconds)
    assert 0 < left < 40
    assert video.index.missing == 40 - left
    assert [number_in(video.frame(number)) for number in range(left)] == list(range(left))
    with pytest.raises(DataError, match=rf"half.mp4: frame {left} of {left} can't be decoded"):
        video.frame(left)


@pytest.mark.parametrize("data", [b"", b"text" * 100, b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", None])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".mpg", ".flv", ".wmv"])
def test_video_refuses_what_is_none(data: bytes | None, suffix: str, tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mp4")
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(whole[:40] if data is None else data)
    with pytest.raises(DataError, match=rf"a{suffix}: (damaged or no video|holds no video|its video has no known)"):
        opened(tmp_path / f"a{suffix}").index  # noqa: B018 - a property that reads the file
    with pytest.raises(DataError, match="damaged or no video"):
        opened(tmp_path / f"nowhere{suffix}").frame(0)


def test_load_av_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"videos need the extra video: uv pip install -e .*\[video\]"):
        load_av()
