"""Ingest a set again: which files are read, which shards stay the same file, and what becomes of the others."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.dataset import IngestedSet
from pipeline.data import decode
from pipeline.errors import ConfigError, DataError
from pipeline.steps.artifact import Inputs
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from tests.disk import folder_of
from tests.ingest.photos import (
    HEIGHT,
    WIDTH,
    IngestResult,
    Make,
    add,
    add_image,
    add_mask,
    is_same_file,
    mask,
    picture,
    read_list,
    shards,
    step_for,
    touch,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Save images with masks: 00.png to 05.png to train on, 06.png and 07.png for validation."""
    add(tmp_path / "photos", "train", range(6))
    add(tmp_path / "photos", "val", range(6, 8))
    return tmp_path / "photos"


def test_ingest_reads_only_new_images(pool: Path, make: Make) -> None:
    before = make(pool, "folder")
    assert shards(before) == {"0": ["10", "20", "30"], "1": ["40", "50", "60"], "2": ["70", "80", "90"]}
    for number in (5, 55, 95, 96):
        add_image(pool, f"{number:02d}.png", number)
    made = make(pool, "folder")
    assert shards(made) == shards(before) | {"3": ["05", "55", "95"], "4": ["96"]}
    assert all(
        is_same_file(before, made, f"images/train/shard-00000{n}.{end}") for n in range(3) for end in ("tar", "parquet")
    )
    assert (before.counts["read_now"], made.counts["read_now"]) == (9, 4)
    assert (made.counts["images"], IngestedSet(made).counts) == (13, {"images": 13, "images.train": 13})


def test_ingest_reads_files_with_new_stamps_once(pool: Path, make: Make) -> None:
    before = make(pool, "folder")
    for path in (pool / "images").iterdir():
        touch(path)
    made = make(pool, "folder")
    assert made.path != before.path
    assert made.digest == before.digest
    assert made.counts["read_now"] == 9
    add_image(pool, "5.png", 5)
    assert make(pool, "folder").counts["read_now"] == 1


@pytest.mark.parametrize("as_it_was", [True, False], ids=["with its time stamps", "without"])
def test_ingest_keeps_shards_of_a_moved_set(as_it_was: bool, pool: Path, make: Make, tmp_path: Path) -> None:
    """The set has grown before: packed from scratch it would have other shards."""
    make(pool, "folder")
    add_image(pool, "15.png", 15)
    before = make(pool, "folder")
    shutil.copytree(pool, tmp_path / "moved", copy_function=shutil.copy2 if as_it_was else shutil.copyfile)
    made = make(tmp_path / "moved", "folder")
    assert made.digest == before.digest
    assert made.counts["read_now"] == 10


def test_ingest_repacks_shard_without_reading_the_source(pool: Path, make: Make) -> None:
    before = make(pool, "folder")
    (pool / "images" / "50.png").unlink()
    made = make(pool, "folder")
    assert shards(made) == {"0": ["10", "20", "30"], "2": ["70", "80", "90"], "3": ["40", "60"]}
    assert is_same_file(before, made, "images/train/shard-000002.tar")
    assert (made.counts["read_now"], made.counts["images"]) == (0, 8)


def test_ingest_packs_new_images_before_repacked_ones(pool: Path, make: Make) -> None:
    make(pool, "folder")
    (pool / "images" / "20.png").unlink()
    (pool / "images" / "90.png").unlink()
    add_image(pool, "95.png", 95)
    add_image(pool, "96.png", 96)
    assert shards(make(pool, "folder")) == {"1": ["40", "50", "60"], "2": ["95", "96", "10"], "3": ["30", "70", "80"]}


def test_ingest_of_all_new_images_equals_a_first_ingest(
    pool: Path, make: Make, tmp_path: Path, runtime: Runtime
) -> None:
    make(pool, "folder")
    shutil.rmtree(pool / "images")
    for number in range(4):
        add_image(pool, f"{number}.png", number)
    fresh = Workspace(Root.of(tmp_path / "fresh")).make(step_for(pool, "folder"), Inputs({}, runtime))
    assert make(pool, "folder").digest == fresh.digest


def test_ingest_keeps_renamed_image_in_its_shard(pool: Path, make: Make) -> None:
    before = make(pool, "folder")
    (pool / "images" / "20.png").rename(pool / "images" / "99.png")
    (pool / "images" / "80.png").rename(pool / "80.png")
    made = make(pool, "folder")
    assert shards(made) == {"0": ["10", "99", "30"], "1": ["40", "50", "60"], "2": ["70", "80", "90"]}
    assert IngestResult(folder_of(made), {}).names()[7] == "80.png"
    assert all(is_same_file(before, made, f"images/train/shard-00000{number}.tar") for number in range(3))
    assert is_same_file(before, made, "images/train/shard-000001.parquet")
    assert made.counts["read_now"] == 2


def test_ingest_of_swapped_images_swaps_their_labels(photos: Path, make: Make) -> None:
    before = make(photos)
    one, two = (photos / "images" / "train" / f"0{number}.png" for number in (1, 4))
    aside = one.rename(photos / "aside")
    two.rename(one)
    aside.rename(two)
    touch(one)
    touch(two, 2)
    made = make(photos)
    assert shards(made) == {"0": ["00", "04", "02"], "1": ["03", "01", "05"]}
    assert is_same_file(before, made, "images/train/shard-000000.tar")
    found = IngestResult(folder_of(made), {})
    values = [found.labels(shard).value(1) for shard in found.shards()]
    assert all(value is not None for value in values)
    np.testing.assert_array_equal([value["classes"] for value in values if value], [mask(4), mask(1)])


def test_ingest_moves_image_to_another_split(photos: Path, make: Make) -> None:
    before = make(photos)
    (photos / "images" / "train" / "01.png").rename(photos / "images" / "val" / "01.png")
    (photos / "masks" / "train" / "01.png").rename(photos / "masks" / "val" / "01.png")
    made = make(photos)
    assert shards(made) == {"1": ["03", "04", "05"], "2": ["00", "02"]}
    assert shards(made, "val") == {"0": ["06", "07"], "1": ["01"]}
    assert is_same_file(before, made, "images/val/shard-000000.tar")


def test_ingest_sees_changed_file_of_same_name_and_size(pool: Path, make: Make) -> None:
    path = pool / "images" / "50.png"
    data = path.read_bytes()
    touch(path)
    make(pool, "folder")
    add_image(pool, "50.png", 51)
    path.write_bytes(path.read_bytes().ljust(max(len(data), path.stat().st_size), b"\0"))
    assert path.stat().st_size == len(data), "the pictures of this test have to be as large as each other"
    touch(path, 2_000_000_000)
    made = make(pool, "folder")
    assert shards(made) == {"0": ["10", "20", "30"], "2": ["70", "80", "90"], "3": ["50", "40", "60"]}
    assert hashlib.sha256(path.read_bytes()).hexdigest() == IngestResult(folder_of(made), {}).rows()[6].sha256


def test_ingest_gives_image_to_its_duplicate_when_deleted(photos: Path, make: Make) -> None:
    add_image(photos, "train/again.png", 1)
    add_mask(photos, "train/again.png", mask(9))
    before = make(photos, max_bad=0.2)
    assert read_list(before, "duplicates")[0][0] == "images/train/again.png"
    for kind in ("images", "masks"):
        (photos / kind / "train" / "01.png").unlink()
    made = make(photos, max_bad=0.2)
    assert is_same_file(before, made, "images/train/shard-000000.tar")
    assert shards(made)["0"] == ["00", "again", "02"]
    value = IngestResult(folder_of(made), {}).labels(IngestResult(folder_of(made), {}).shards()[0]).value(1)
    assert value is not None
    np.testing.assert_array_equal(value["classes"], mask(9))
    assert not read_list(made, "duplicates")
    assert made.counts["read_now"] == 0


def test_ingest_names_image_after_first_of_two_equal_files(pool: Path, make: Make) -> None:
    before = make(pool, "folder")
    add_image(pool, "05.png", 80)
    made = make(pool, "folder")
    assert is_same_file(before, made, "images/train/shard-000002.tar")
    assert shards(made)["2"] == ["70", "05", "90"]
    assert read_list(made, "duplicates") == [("images/80.png", "train", "same bytes as images/05.png")]


def test_ingest_reads_bad_file_again_when_changed(photos: Path, make: Make) -> None:
    bad = photos / "images" / "train" / "02.png"
    data = bad.read_bytes()
    bad.write_text("no picture")
    before = make(photos, max_bad=0.5)
    add(photos, "train", range(10, 11))
    made = make(photos, max_bad=0.5)
    assert read_list(made, "quarantine") == read_list(before, "quarantine") != []
    assert made.counts["read_now"] == 1
    bad.write_bytes(data)
    assert "02" in shards(make(photos, max_bad=0.5))["3"]


def test_ingest_drops_image_while_its_mask_is_bad(photos: Path, make: Make) -> None:
    before = make(photos, max_bad=0.5)
    add_mask(photos, "train/01.png", np.zeros((HEIGHT, WIDTH + 1), np.uint8))
    made = make(photos, max_bad=0.5)
    assert [row[0] for row in read_list(made, "quarantine")] == ["images/train/01.png"]
    assert shards(made) == {"1": ["03", "04", "05"], "2": ["00", "02"]}
    assert made.counts["read_now"] == 0
    add_mask(photos, "train/01.png", mask(1))
    touch(photos / "masks" / "train" / "01.png")
    made = make(photos, max_bad=0.5)
    assert shards(made) == {"1": ["03", "04", "05"], "2": ["00", "02"], "3": ["01"]}
    assert made.counts["images"] == before.counts["images"]


def test_ingest_gives_image_to_its_duplicate_when_mask_is_bad(photos: Path, make: Make) -> None:
    for name in ("again", "once more"):
        add_image(photos, f"train/{name}.png", 1)
        add_mask(photos, f"train/{name}.png", mask(9))
    before = make(photos, max_bad=0.5)
    add_mask(photos, "train/01.png", np.zeros((HEIGHT, WIDTH + 1), np.uint8))
    made = make(photos, max_bad=0.5)
    assert is_same_file(before, made, "images/train/shard-000000.tar")
    assert shards(made)["0"] == ["00", "again", "02"]
    assert [row[0] for row in read_list(made, "quarantine")] == ["images/train/01.png"]
    assert [row[0] for row in read_list(made, "duplicates")] == ["images/train/once more.png"]


def test_ingest_retries_file_that_could_not_be_read(pool: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    read = StoragePath.read

    def cut_off(place: StoragePath, *args: Any) -> bytes:
        if place.name == "20.png":
            raise DataError("the line is dead")
        return read(place, *args)

    with monkeypatch.context() as broken:
        broken.setattr(StoragePath, "read", cut_off)
        assert read_list(make(pool, "folder", max_bad=0.5), "quarantine")[0][2] == "the line is dead"
    add_image(pool, "95.png", 95)
    made = make(pool, "folder", max_bad=0.5)
    assert not read_list(made, "quarantine")
    assert made.counts["read_now"] == 2


def test_ingest_of_corrected_mask_changes_one_label_shard(photos: Path, make: Make) -> None:
    before = make(photos)
    add_mask(photos, "train/04.png", mask(77))
    made = make(photos)
    changed = {name for name, facts in before.manifest["files"].items() if made.manifest["files"][name] != facts}
    assert changed == {"labels/segmentation/train/shard-000001.parquet"}
    assert made.counts["read_now"] == 0


def test_ingest_ends_where_an_extra_is_missing_and_reads_all_once_it_is_there(
    pool: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(1).save(pool / "15.heic", "HEIF")
    with monkeypatch.context() as without:
        without.setattr(decode, "FORMATS", tuple(name for name in decode.FORMATS if name != "HEIF"))
        with pytest.raises(ConfigError, match=r"15\.heic: a HEIC image, which needs the extra heic: uv pip install"):
            make(pool, "folder", max_bad=0.5)
    assert make(pool, "folder", max_bad=0.5).counts["images"] == 10
