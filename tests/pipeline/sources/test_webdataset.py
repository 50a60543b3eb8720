"""The webdataset source: tars of samples, read in any order."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from pipeline.data.decode import decode_image
from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord, webdataset


def picture(shade: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("L", (3, 2), shade).save(out, kind)
    return out.getvalue()


def write(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], mode: Any = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def open_source(path: Path | str, **options: Any) -> webdataset.Source:
    return webdataset.Source(webdataset.Config(path=str(path), **options))


def probs(record: SourceRecord) -> list[float]:
    found: list[float] = record.truth((3, 2)).values["classification"]["probs"].tolist()
    return found


def test_webdataset_source_reads_samples_in_any_order(tmp_path: Path) -> None:
    for tar in range(3):
        write(tmp_path / f"pool-{tar}.tar", {f"{i}.png": picture(10 * tar + i) for i in range(4)})
    records = list(open_source(tmp_path).records())
    assert [record.name for record in records] == [
        f"pool-{t}.tar#{i}" for t, i in itertools.product(range(3), range(4))
    ]
    shades = [decode_image(record.read()).getpixel((0, 0)) for record in reversed(records)]
    assert shades == [(10 * t + i,) * 3 for t, i in reversed(list(itertools.product(range(3), range(4))))]


@pytest.mark.parametrize(
    ("label", "content"),
    [("cls", b"1"), ("cls", b"dog\n"), ("txt", b"dog"), ("json", b'{"label": 1}'), ("json", b'{"label": "dog"}')],
)
def test_webdataset_source_reads_labels(tmp_path: Path, label: str, content: bytes) -> None:
    write(tmp_path / "x.tar", {f"a.{label}": content, "a.jpg": picture(0, "JPEG")})
    source = open_source(tmp_path, classes=["cat", "dog"])
    assert source.spaces()["classification"].classes == ("cat", "dog")
    (record,) = source.records()
    assert probs(record) == [0, 1]


def test_webdataset_source_has_no_labels_without_classes(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {"a.jpg": picture(0, "JPEG"), "a.txt": b"a caption, not a class"})
    source = open_source(tmp_path)
    assert source.spaces() == {}
    (record,) = source.records()
    assert record.truth((3, 2)).values == {}
    assert record.truth((3, 2)).notes == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.cls", b"2", "label '2' is not among the 2 classes: cat, dog"),
        ("a.cls", b"-1", "label '-1' is not among"),
        ("a.txt", b"emu", "label 'emu' is not among"),
        ("a.json", b'{"caption": "x"}', "a.json holds no label"),
        ("a.json", b"{", "a.json holds no label"),
        ("a.json", b'{"label": true}', "label True is not among"),
    ],
)
def test_webdataset_source_quarantines_images_with_bad_labels(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    write(tmp_path / "x.tar", {name: content, "a.png": picture(0), "b.png": picture(0)})
    bad, unlabelled = open_source(tmp_path, classes=["cat", "dog"]).records()
    with pytest.raises(DataError, match=reason):
        bad.truth((3, 2))
    assert unlabelled.truth((3, 2)).notes == ["no label"]


def test_webdataset_source_reads_keys_with_dots(tmp_path: Path) -> None:
    members = {
        "day.1/photo.v1.png": picture(1),
        "day.1/photo.v1.cls": b"0",
        "day.1/photo.v2.png": picture(2),
        "day.1/photo.v2.cls": b"1",
        "7.seg.png": picture(70),
        "7.png": picture(7),
        "7.cls": b"1",
        "8.jpg": picture(8, "JPEG"),
        "8.png": picture(80),
    }
    write(tmp_path / "x.tar", members)
    records = {record.name: record for record in open_source(tmp_path, classes=["cat", "dog"]).records()}
    assert list(records) == ["x.tar#day.1/photo.v1", "x.tar#day.1/photo.v2", "x.tar#7", "x.tar#8"]
    shades = [decode_image(record.read()).getpixel((0, 0)) for record in records.values()]
    assert shades == [(1, 1, 1), (2, 2, 2), (7, 7, 7), (8, 8, 8)]
    assert [probs(record)[1] for record in list(records.values())[:3]] == [0, 1, 1]


def test_webdataset_source_skips_hidden_members_folders_and_links(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {"._a.png": b"mac", ".x/a.png": picture(1), "__MACOSX": b"", "ü b.png": picture(3)})
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "ü b.png"
        tar.addfile(link)
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert [record.name for record in open_source(tmp_path).records()] == ["x.tar#.x/a", "x.tar#ü b"]


def test_webdataset_source_reports_repeated_keys_and_missing_images(tmp_path: Path) -> None:
    members = [("a.png", picture(1)), ("b.cls", b"0"), ("c.png", picture(2)), ("a.png", picture(3))]
    write(tmp_path / "x.tar", members)
    source = open_source(tmp_path)
    assert [record.name for record in source.records()] == ["x.tar#a", "x.tar#c"]
    assert source.problems == [
        ("x.tar#b", "a sample without an image"),
        ("x.tar#a", "the tar had this key before"),
    ]


def test_webdataset_source_reads_patterns_and_splits(tmp_path: Path) -> None:
    for name in ("train-000009", "train-000010", "val-0", "other"):
        write(tmp_path / "shards" / f"{name}.tar", {"a.png": picture(0)})
    pattern = f"{tmp_path}/shards/{{train-{{000009..000010}},val-0}}.tar"
    records = list(open_source(pattern.replace("{train-{000009..000010},val-0}", "train-{000009..000010}")).records())
    assert [(record.name, record.split) for record in records] == [
        ("train-000009.tar#a", "train"),
        ("train-000010.tar#a", "train"),
    ]
    assert [record.split for record in open_source(f"{tmp_path}/shards/val-0.tar").records()] == ["val"]
    with pytest.raises(ConfigError, match=r"there is no path .*train-000011.tar"):
        open_source(f"{tmp_path}/shards/train-{{000010..000012}}.tar")


def test_expand_braces() -> None:
    assert webdataset.expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert webdataset.expand_braces("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]
    assert webdataset.expand_braces("plain.tar") == ["plain.tar"]
    assert webdataset.expand_braces("{5..3}.tar") == ["5.tar", "4.tar", "3.tar"]


def test_webdataset_source_refuses_tars_that_go_on_after_their_end(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {"a.png": picture(1)})
    write(tmp_path / "y.tar", {"b.png": picture(2)})
    joined = (tmp_path / "x.tar").read_bytes() + (tmp_path / "y.tar").read_bytes()
    (tmp_path / "y.tar").unlink()
    (tmp_path / "x.tar").write_bytes(joined)
    with pytest.raises(DataError, match=r"x.tar: not a whole, .*there is more after its end, as in tars that `cat`"):
        list(open_source(tmp_path).records())


@pytest.mark.parametrize(
    "headers", [{"size": "-1024"}, {"size": "9" * 23}, {"GNU.sparse.map": "abc"}, {"GNU.sparse.size": "99999999999"}]
)
def test_webdataset_source_refuses_members_of_impossible_sizes(headers: dict[str, str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.png")
        info.size, info.pax_headers = len(picture(1)), headers
        tar.addfile(info, io.BytesIO(picture(1)))
    with pytest.raises(DataError, match=r"x.tar: not a whole, uncompressed tar"):
        list(open_source(tmp_path).records())


def test_webdataset_source_holds_out_a_share(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {f"{i}.png": b"" for i in range(200)})
    splits = [record.split for record in open_source(tmp_path, hold_out=0.25).records()]
    assert 30 < splits.count("test") < 72


def test_webdataset_source_refuses_broken_and_compressed_tars(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {f"{i}.bmp": picture(i, "BMP") * 50 for i in range(20)})
    whole = (tmp_path / "x.tar").read_bytes()
    for length in (0, 300, len(whole) // 3):
        (tmp_path / "x.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"x.tar: not a whole, uncompressed tar"):
            list(open_source(tmp_path).records())
    write(tmp_path / "x.tar", {"a.png": picture(1)}, "w:gz")
    with pytest.raises(DataError, match=r"x.tar: not a whole, uncompressed tar"):
        list(open_source(tmp_path).records())
    (tmp_path / "x.tar").unlink()
    with pytest.raises(ConfigError, match=r"no .tar files in .*compressed ones have to be unpacked"):
        open_source(tmp_path)


def test_webdataset_source_reads_remote_tars(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {"a.png": picture(1), "b.png": picture(2)})
    fsspec.filesystem("memory").pipe_file("/tars/test-0.tar", (tmp_path / "x.tar").read_bytes())
    first, second = open_source("memory://tars/test-{0..0}.tar").records()
    assert (second.name, second.split, second.read()) == ("test-0.tar#b", "test", picture(2))
    assert first.read() == picture(1)
