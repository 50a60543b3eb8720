"""The ingest step: bytes untouched and in order, labels beside them, and a list of all that was left out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest.dataset import IngestedSet
from ingest.true_labels import held_out_keys, true_label_dataset
from pipeline.errors import DataError, Stopped
from pipeline.steps.artifact import MANIFEST, Artifact, Inputs, read_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from tests.disk import folder_of
from tests.ingest.photos import (
    GROUND,
    HEIGHT,
    WIDTH,
    IngestResult,
    add,
    add_bad,
    add_image,
    add_mask,
    mask,
    picture,
    step_for,
)

Read = Callable[..., IngestResult]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Make and return the folder of the set."""
    for folder in ("images", "masks"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
    return tmp_path / "photos"


@pytest.fixture
def read(photos: Path, tmp_path: Path, runtime: Runtime) -> Read:
    """Return a function that ingests the set, with the options of `step_for`."""

    def run(**options: Any) -> IngestResult:
        made = Workspace(Root.of(tmp_path / "other")).make(step_for(photos, **options), Inputs({}, runtime))
        return IngestResult(folder_of(made), {name: count for name, count in made.counts.items() if name != "read_now"})

    return run


@pytest.fixture
def make(photos: Path, runtime: Runtime) -> Callable[[], Artifact]:
    """Return a function that ingests the set and returns the artifact."""
    return lambda: Workspace(runtime.root).make(step_for(photos), Inputs({}, runtime))


def test_ingest_fills_shards_in_order_and_indexes_every_byte(
    photos: Path, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On several threads, with the slowest file first and more files than are read at once."""
    monkeypatch.setattr("ingest.ingest.IN_FLIGHT", 3)
    picture(0, 400, 300).save(photos / "images" / "00.png")
    for number in range(1, 7):
        add_image(photos, f"{number:02d}.{('jpg', 'png', 'webp', 'gif', 'bmp', 'tif')[number - 1]}", number)
    saved = sorted((photos / "images").iterdir())
    many = dataclasses.replace(runtime, workers=4)
    made = Workspace(Root.of(tmp_path / "other")).make(step_for(photos, "folder"), Inputs({}, many))
    found = IngestResult(folder_of(made), made.counts)
    assert [shard.name for shard in found.shards()] == ["shard-000000", "shard-000001", "shard-000002"]
    assert [len(shard) for shard in found.shards()] == [3, 3, 1]
    assert found.names() == [f"images/{path.name}" for path in saved]
    cuts = []
    for shard in found.shards():
        tar = shard.tar.load(Path.read_bytes)
        rows = [shard.row(index) for index in range(len(shard))]
        cuts += [tar[row.offset : row.offset + row.length] for row in rows]
    assert cuts == [path.read_bytes() for path in saved]
    assert [row.key for row in found.rows()] == [hashlib.sha256(cut).hexdigest()[:16] for cut in cuts]


def test_ingest_indexes_content_of_files_not_their_suffix(photos: Path, read: Read) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture(1).save(photos / "images" / "a.jpg", exif=exif)
    picture(2).save(photos / "images" / "b.jpg", format="PNG")
    rows = read(kind="folder").rows()
    assert [(row.suffix, row.width, row.height) for row in rows] == [("jpg", HEIGHT, WIDTH), ("png", WIDTH, HEIGHT)]


def test_ingest_writes_shards_that_webdataset_reads(photos: Path, read: Read) -> None:
    webdataset = pytest.importorskip("webdataset")
    data = [add_image(photos, f"{number}.png", number) for number in range(5)]
    found = read(kind="folder", shard_images=2)
    tars = [str(shard.tar) for shard in found.shards()]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [row.key for row in found.rows()]
    assert [sample["png"] for sample in samples] == data


def test_ingest_writes_true_labels_beside_images(photos: Path, read: Read) -> None:
    add(photos, "train", range(5))
    add(photos, "val", range(5, 6))
    found = read()
    numbers = {"train": iter(range(5)), "val": iter([5])}
    for split, number in numbers.items():
        for shard in found.shards(split):
            labels = found.labels(shard, split)
            assert labels.keys == shard.keys
            assert labels.metadata["space"] == GROUND.to_json()
            assert (labels.metadata["maker"], labels.metadata["image_shard"]) == ("truth:photos", shard.sha256)
            for index in range(len(shard)):
                value = labels.value(index)
                assert value is not None
                np.testing.assert_array_equal(value["classes"], mask(next(number)))
        assert next(number, None) is None, "every image has been met"


def test_ingest_of_set_without_labels_writes_images_alone(photos: Path, read: Read) -> None:
    add_image(photos, "a.png", 1)
    found = read(kind="folder")
    assert not (found.out / "labels").exists()
    assert read_json(found.out / "set.json")["spaces"] == {}


def test_ingest_keeps_and_notes_image_without_label(photos: Path, read: Read) -> None:
    add(photos, "train", range(3))
    (photos / "masks" / "train" / "01.png").unlink()
    found = read()
    (shard,) = found.shards()
    rows = list(found.labels(shard).rows())
    assert [row["status"] for row in rows] == ["ok", "none", "ok"]
    assert [row["reason"] for row in rows] == [None, "the set has no label for it", None]
    assert [row["key"] for row in rows] == shard.keys
    assert found.read_list("notes") == [("images/train/01.png", "train", "no mask")]
    noted = {"notes": 1, "frequent_notes": {"no mask": 1}}
    assert found.counts == {"images": 3, "images.train": 3, "labels.segmentation.train": 2, **noted}


def write_boxes(photos: Path, boxes: Sequence[tuple[list[int], int]]) -> None:
    """Save an image, and a COCO file with these boxes, each with whether it is a crowd."""
    add_image(photos, "train/a.png", 1)
    annotations = [{"image_id": 1, "category_id": 1, "bbox": box, "iscrowd": crowd} for box, crowd in boxes]
    content = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "car"}]}
    (photos / "instances_train.json").write_text(json.dumps({**content, "annotations": annotations}))


def test_ingest_bounds_the_share_of_dropped_annotations(photos: Path, read: Read) -> None:
    """Crowds are left out on purpose and clipped boxes are kept: neither counts."""
    good, empty, clipped = [0, 0, 4, 4], [0, 0, 0, 4], [0, 0, 999, 4]
    write_boxes(photos, [(good, 0), (clipped, 0), (good, 1), (empty, 0)])
    says = (
        r"data.photos: 1 of 4 annotations can't be used, more than max_bad = 0.05 allows. Most frequent: "
        r".*empty box dropped \(1\)"
    )
    with pytest.raises(DataError, match=says):
        read(kind="coco")
    counts = read(kind="coco", max_bad=0.25).counts
    assert (counts["annotations"], counts["dropped"], counts["notes"]) == (4, 1, 3)


def spoil(photos: Path) -> None:
    """Save six good images, four that can't be used for four reasons, and a mask without an image."""
    add(photos, "train", range(4))
    add(photos, "val", range(4, 6))
    data = add_image(photos, "train/cut.jpg", 20)
    (photos / "images" / "train" / "cut.jpg").write_bytes(data[:-60])
    (photos / "images" / "train" / "0-empty.png").touch()
    (photos / "images" / "val" / "words.jpg").write_text("see the other folder")
    add_image(photos, "val/large.png", 21)
    add_mask(photos, "val/large.png", np.zeros((HEIGHT, WIDTH + 1), np.uint8))
    add_mask(photos, "train/alone.png", mask(22))


def test_ingest_quarantines_bad_files_with_reasons(photos: Path, read: Read) -> None:
    spoil(photos)
    size = (photos / "images" / "train" / "cut.jpg").stat().st_size
    found = read(max_bad=0.5)
    assert found.read_list("quarantine") == [
        ("images/train/0-empty.png", "train", "empty file"),
        ("images/train/cut.jpg", "train", f"truncated after {size} bytes"),
        ("images/val/large.png", "val", "mask masks/val/large.png: it is 13x8, the upright image 12x8"),
        ("images/val/words.jpg", "val", "not an image (it begins with b'see the other fo')"),
        ("masks/train/alone.png", "", "a mask without an image"),
    ]


def test_ingest_keeps_good_files_beside_bad_ones(photos: Path, read: Read) -> None:
    spoil(photos)
    found = read(max_bad=0.5)
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        assert found.names(split) == [f"images/{split}/{number:02d}.png" for number in numbers]
        kept = [shard.read(index) for shard in found.shards(split) for index in range(len(shard))]
        assert kept == [(photos / name).read_bytes() for name in found.names(split)]
        for shard in found.shards(split):
            assert found.labels(shard, split).keys == shard.keys
            assert all(row["status"] == "ok" for row in found.labels(shard, split).rows())


def test_ingest_counts_what_it_wrote(photos: Path, read: Read) -> None:
    spoil(photos)
    add_image(photos, "train/no-mask.png", 30)
    add_image(photos, "train/twice.png", 0)  # the picture of train/00.png
    found = read(max_bad=0.5)
    counted = Counter({"images": 0})
    for split in ("train", "val"):
        counted["images"] += len(found.rows(split))
        counted[f"images.{split}"] = len(found.rows(split))
        rows = [row for shard in found.shards(split) for row in found.labels(shard, split).rows()]
        counted[f"labels.segmentation.{split}"] = sum(row["status"] == "ok" for row in rows)
    lists = {"quarantined": "quarantine", "duplicates": "duplicates", "notes": "notes"}
    told = {"frequent_notes": {"no mask": 1}}
    assert found.counts == {**counted, **told, **{count: len(found.read_list(table)) for count, table in lists.items()}}
    about = read_json(found.out / "set.json")
    assert {**about["counts"], **told} == found.counts
    assert about["splits"] == {"train": 2, "val": 1}
    assert about["spaces"] == {"segmentation": GROUND.to_json()}
    assert (counted["images"], counted["labels.segmentation.train"]) == (7, 4)


def test_ingest_writes_empty_lists(photos: Path, read: Read) -> None:
    add(photos, "train", range(1))
    found = read()
    assert [found.read_list(table) for table in ("quarantine", "duplicates", "notes")] == [[], [], []]


def test_ingest_refuses_more_bad_files_than_max_bad(photos: Path, read: Read) -> None:
    add(photos, "train", range(15))
    add_bad(photos, 5)
    with pytest.raises(DataError) as raised:
        read(max_bad=0.24)
    text = str(raised.value)
    assert "data.photos: 5 of 20 files can't be used, more than max_bad = 0.24 allows." in text
    for number in range(3):
        assert f"images/train/bad-{number}.jpg: not an image (it begins with b'no picture {number}')" in text
    assert "bad-3" not in text, "a few are enough"


@pytest.mark.parametrize(("bad", "good", "most"), [(1, 19, 0.05), (5, 15, 0.25), (3, 7, 0.3), (29, 71, 0.29)])
def test_ingest_accepts_bad_files_up_to_max_bad(bad: int, good: int, most: float, photos: Path, read: Read) -> None:
    add(photos, "train", range(good))
    add_bad(photos, bad)
    found = read(max_bad=most)
    assert (found.counts["quarantined"], found.counts["images"]) == (bad, good)


def test_ingest_with_max_bad_0_refuses_one_bad_file(photos: Path, read: Read) -> None:
    add(photos, "train", range(3))
    add_bad(photos, 1)
    with pytest.raises(DataError, match=r"1 of 4 files can't be used, more than max_bad = 0 allows\. First: .*bad-0"):
        read(max_bad=0)


def test_ingest_refuses_set_without_usable_image(photos: Path, read: Read) -> None:
    (photos / "images" / "train").mkdir()
    add_bad(photos, 2)
    first = r"images/train/bad-0\.jpg: not an image .*; images/train/bad-1\.jpg"
    with pytest.raises(DataError, match=rf"data\.photos: not one usable image\. {first}"):
        read(kind="folder", max_bad=1)


def test_ingest_stores_duplicate_once(photos: Path, read: Read) -> None:
    """It keeps its first name, though its shard is closed by then."""
    add(photos, "train", range(5))
    add_image(photos, "train/again.png", 0)
    add_mask(photos, "train/again.png", mask(0))
    found = read(shard_images=2)
    assert found.names() == [f"images/train/{number:02d}.png" for number in range(5)]
    assert len({row.key for row in found.rows()}) == 5
    same = "same bytes as images/train/00.png"
    assert found.read_list("duplicates") == [("images/train/again.png", "train", same)]
    assert "conflicts" not in found.counts
    assert (found.counts["duplicates"], found.counts["images"], found.counts["labels.segmentation.train"]) == (1, 5, 5)


def test_ingest_counts_images_with_two_labels_as_unusable(photos: Path, read: Read) -> None:
    add(photos, "train", range(5))
    add_image(photos, "train/again.png", 0)
    add_mask(photos, "train/again.png", mask(1))
    reason = "same bytes as images/train/00.png, but another label, which is not used"
    with pytest.raises(DataError, match=rf"1 of 6 files can't be used, .* First: images/train/again\.png: {reason}"):
        read(max_bad=0.1)
    found = read(max_bad=0.2)
    assert (found.counts["conflicts"], found.counts["images"]) == (1, 5)
    assert found.read_list("duplicates") == [("images/train/again.png", "train", reason)]


def test_held_out_keys_hold_image_that_is_in_two_splits(photos: Path, make: Callable[[], Artifact]) -> None:
    """It is tested on, and training can leave it out by its key."""
    add(photos, "train", range(4))
    add_image(photos, "test/other.png", 2)  # the picture of train/02.png
    add_mask(photos, "test/other.png", mask(2))
    found = IngestedSet(make())
    (shared,) = (key for shard in found.images("test").shards for key in shard.keys)
    trained = [key for shard in found.images("train").shards for key in shard.keys]
    assert len(trained) == 4
    assert trained[2] == shared
    assert held_out_keys(found) == {shared}
    assert "duplicates" not in found.counts
    dataset = true_label_dataset(found, "train", {"masks": "segmentation"}, held_out_keys(found))
    assert [dataset.read(index)[0] for index in range(len(dataset))] == [*trained[:2], trained[3]]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_ingest_twice_gives_the_same_bytes(photos: Path, tmp_path: Path, runtime: Runtime) -> None:
    """Also with other numbers of threads."""
    spoil(photos)
    add_image(photos, "train/no-mask.png", 30)
    add_image(photos, "train/twice.png", 0)
    made = []
    for workers in (1, 4):
        workspace = Workspace(Root.of(tmp_path / str(workers)))
        inputs = Inputs({}, dataclasses.replace(runtime, workers=workers))
        made.append(contents(folder_of(workspace.make(step_for(photos, max_bad=0.5), inputs))))
        made[-1].pop(MANIFEST)
    assert made[0] == made[1]
    # three shards of images with their index and their labels, three lists, the page on the set, and the files seen
    assert len(made[0]) == 3 * 3 + 3 + 1 + 1


def test_ingest_stops_and_is_completed_by_the_next_run(
    photos: Path, runtime: Runtime, tmp_path: Path, make: Callable[[], Artifact]
) -> None:
    add(photos, "train", range(5))
    undisturbed = Workspace(Root.of(tmp_path / "other")).make(step_for(photos), Inputs({}, runtime))
    runtime.stop.set()
    with pytest.raises(Stopped, match=r"Stopped in data\.photos"):
        make()
    assert Workspace(runtime.root).newest("data.photos") is None
    runtime.stop.clear()
    made = make()
    assert made.digest == undisturbed.digest
    assert {*contents(folder_of(made))} == {*contents(folder_of(undisturbed))}
