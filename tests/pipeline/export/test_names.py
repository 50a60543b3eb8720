"""Names of exported images: safe, told apart, and as near to the file's own as can be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.export import ExportSample, with_names
from pipeline.export._names import ExportNames, safe_path

KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    ("source", "suffix", "name"),
    [
        ("train/a.jpg", "jpg", "street/train/a.jpg"),
        ("a.JPEG", "jpg", "street/a.JPEG"),
        ("a.jpg", "png", "street/a.jpg.png"),
        ("part.parquet#12", "jpg", "street/part.parquet#12.jpg"),
        ("v1.2/7.seg.png", "png", "street/v1.2/7.seg.png"),
        ("shard.tar/7.png", "png", "street/shard_tar/7.png"),
        ("images/train/a.jpg", "jpg", "street/train/a.jpg"),
        ("../../etc/a.jpg", "jpg", "street/etc/a.jpg"),
        ("/etc/a.jpg", "jpg", "street/etc/a.jpg"),
        ("..\\..\\a.jpg", "jpg", "street/a.jpg"),
        ("https://host/b/a.jpg?x=1", "jpg", "street/https_/host/b/a.jpg_x=1.jpg"),
        ("con/NUL.png", "png", "street/_con/_NUL.png"),
        (".hidden/.a.jpg", "jpg", "street/__hidden/_.a.jpg"),
        ("__MACOSX/a.jpg", "jpg", "street/___MACOSX/a.jpg"),
        ("a\n\0b.jpg", "jpg", "street/a__b.jpg"),
        ("a<b>|c.jpg", "jpg", "street/a_b__c.jpg"),
        ("dots.. ./ a. .jpg", "jpg", "street/dots/a.jpg"),
        (".jpg", "jpg", "street/_.jpg"),
        ("..", "jpg", "street/_.jpg"),
        ("", "jpg", "street/_.jpg"),
        ("u\u0308.jpg", "jpg", "street/\u00fc.jpg"),
    ],
)
def test_export_names_are_those_of_the_files_made_safe(source: str, suffix: str, name: str) -> None:
    assert ExportNames().name("street", source, KEY, suffix) == name


def test_export_names_are_told_apart_by_the_key() -> None:
    names = ExportNames()
    sources = ["a.jpg", "a.png", "A.jpg", "a.jpg", f"a_{KEY}.jpg"]
    made = [names.name("one", source, f"{number:016x}", "jpg") for number, source in enumerate(sources)]
    assert made[:2] == ["one/a.jpg", "one/a.png.jpg"]
    assert made[2:4] == [f"one/A_{2:016x}.jpg", f"one/a_{3:016x}.jpg"]
    assert names.name("two", "a.jpg", KEY, "jpg") == "two/a.jpg", "sets have a folder each"
    assert names.name("one", "a.jpg", KEY, "jpg") == f"one/a_{KEY}_{KEY}.jpg", "that name was a file's own"
    assert len({name.casefold() for name in made}) == len(made)


def test_safe_path_can_be_made_however_long_a_name_is(tmp_path: Path) -> None:
    for name in ("\u00c5" * 3000, "/".join(["\u00c5" * 200] * 300), "/".join("abc" * 2000)):
        path = safe_path("street", name)
        assert path.startswith("street/")
        file = tmp_path / "labels" / f"{path}_{KEY}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        assert len(os.path.basename(file).encode()) < 255


def test_safe_path_never_leaves_its_set() -> None:
    for name in ("../x", "a/../../x", "./x", "//x", "\\\\host\\x", "C:\\x", "~/x", ". ./.. /x"):
        path = safe_path("street", name)
        assert path.startswith("street/")
        assert os.path.normpath(path) == path


def test_with_names_gives_files_or_keys() -> None:
    sample = ExportSample(KEY, b"", "jpg", (4, 2), "b/a.jpg", {}, dataset="street")
    assert [each.file_name for each in with_names([sample], "source")] == ["street/b/a.jpg"]
    assert [each.file_name for each in with_names([sample], "hash")] == [f"{KEY}.jpg"]
    with pytest.raises(ConfigError, match="--names 'key' is unknown"):
        with_names([sample], "key")
