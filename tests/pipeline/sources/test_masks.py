"""The masks source: class ids from files of any kind, and the file of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from pipeline.data.decode import inspect_image
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.reader import read_section
from pipeline.sources import SourceRecord, TrueLabels, masks

CLASSES = {"ignore_index": 11, "classes": {"2": "sky", "7": "road", "300": "far"}}
IDS = np.array([[2, 7, 11], [7, 7, 2]], np.uint8)
PLACES = [[0, 1, 65535], [1, 1, 0]]


def image(root: Path, name: str, size: tuple[int, int] = (3, 2), **options: Any) -> None:
    (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(root / "images" / name, **options)


def mask(root: Path, name: str, ids: NDArray[Any] | Image.Image = IDS) -> None:
    (root / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
    (ids if isinstance(ids, Image.Image) else Image.fromarray(ids)).save(root / "masks" / name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    return tmp_path


def open_source(root: Path, **options: Any) -> masks.Source:
    return masks.Source(masks.Config(path=str(root), **options))


def single_record(source: masks.Source) -> SourceRecord:
    (record,) = source.records()
    return record


def truth_of(record: SourceRecord) -> TrueLabels:
    found = inspect_image(record.read())
    return record.truth((found.width, found.height))


def test_masks_source_indexes_sparse_ids_and_ignores_void(root: Path) -> None:
    image(root, "train/a.jpg")
    mask(root, "train/a.png")
    source = open_source(root)
    assert source.spaces()["segmentation"].classes == ("sky", "road", "far")
    value = truth_of(single_record(source)).values["segmentation"]
    assert value["classes"].tolist() == PLACES
    assert value["classes"].dtype == np.uint16
    assert value["confidence"].dtype == np.float32
    assert value["confidence"].tolist() == np.ones((2, 3)).tolist()


def test_masks_source_reads_palettes_and_16_bits_as_ids(root: Path) -> None:
    palette = Image.fromarray(IDS)
    palette.putpalette([255, 0, 0] * 3 + [0, 99, 7] * 20)
    image(root, "train/palette.jpg")
    mask(root, "train/palette.png", palette)
    image(root, "train/wide.jpg")
    mask(root, "train/wide.tif", np.array([[2, 7, 11], [300, 300, 2]], np.uint16))
    first, second = (
        truth_of(record).values["segmentation"]["classes"].tolist() for record in open_source(root).records()
    )
    assert first == PLACES
    assert second == [[0, 1, 65535], [2, 2, 0]]


def test_masks_source_reads_split_folders(root: Path) -> None:
    for name in ("train/a", "val/deep/b.v2", "test/ü c"):
        image(root, f"{name}.jpg")
        mask(root, f"{name}.png")
    records = list(open_source(root).records())
    assert [(record.name, record.split) for record in records] == [
        ("images/test/ü c.jpg", "test"),
        ("images/train/a.jpg", "train"),
        ("images/val/deep/b.v2.jpg", "val"),
    ]
    assert all(truth_of(record).values for record in records)


def test_masks_source_holds_out_a_share(root: Path) -> None:
    for i in range(60):
        image(root, f"{i}.jpg")
        mask(root, f"{i}.png")
    splits = [record.split for record in open_source(root, hold_out=0.3).records()]
    assert 8 < splits.count("test") < 28
    assert splits.count("test") + splits.count("train") == 60


def test_masks_source_reports_unpaired_images_and_masks(root: Path) -> None:
    image(root, "train/a.jpg")
    image(root, "train/b.jpg")
    image(root, "train/b2.jpg")
    mask(root, "train/b.png")
    mask(root, "train/c.png")
    source = open_source(root)
    truths = [record.truth((3, 2)) for record in source.records()]
    assert [bool(truth.values) for truth in truths] == [False, True, False]
    assert truths[0].notes == ["no mask"]
    assert source.problems == [("masks/train/c.png", "a mask without an image")]


def test_masks_source_refuses_masks_that_fit_no_image(root: Path) -> None:
    image(root, "train/a.jpg")
    mask(root, "train/a_mask.png")
    with pytest.raises(DataError, match=r"no image under .*the first would have .*/masks/train/a.png"):
        list(open_source(root).records())


def test_masks_source_refuses_mask_of_another_size(root: Path) -> None:
    image(root, "train/a.jpg", (6, 4))
    mask(root, "train/a.png")
    with pytest.raises(DataError, match=r"masks/train/a.png: it is 3x2, the upright image 6x4$"):
        truth_of(single_record(open_source(root)))


def test_masks_source_suspects_exif_rotation(root: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    image(root, "train/a.jpg", (3, 2), exif=exif)
    mask(root, "train/a.png")
    with pytest.raises(
        DataError, match="3x2, the upright image 2x3: swapped, as a label of an image before the rotation"
    ):
        truth_of(single_record(open_source(root)))
    mask(root, "train/a.png", np.ascontiguousarray(IDS.T))
    assert truth_of(single_record(open_source(root))).values["segmentation"]["classes"].shape == (3, 2)


def test_masks_source_refuses_unlisted_id_unless_ignored(root: Path) -> None:
    image(root, "train/a.jpg")
    mask(root, "train/a.png", np.array([[2, 255, 7], [9, 255, 2]], np.uint8))
    with pytest.raises(
        DataError, match="class id 9, 255 is not among the classes; list it in `classes` or in `ignore`"
    ):
        truth_of(single_record(open_source(root)))
    found = truth_of(single_record(open_source(root, ignore=[255, 9]))).values["segmentation"]["classes"]
    assert found.tolist() == [[0, 65535, 1], [65535, 65535, 0]]


def test_masks_source_leaves_ignored_id_out_of_classes(root: Path) -> None:
    assert classes_with(root, ignore=[7]) == ("sky", "far")


def classes_with(root: Path, **options: Any) -> tuple[str, ...]:
    image(root, "train/a.jpg")
    mask(root, "train/a.png")
    return open_source(root, **options).spaces()["segmentation"].classes


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["zero", "one"], ("zero", "one")),
        ({3: "three", 1: "one"}, ("one", "three")),
        ({"3": "three", "1": "one"}, ("one", "three")),
        ({1: "road", 5: "car", 9: "road"}, ("road", "car")),
    ],
)
def test_masks_config_states_classes(root: Path, classes: Any, expected: tuple[str, ...]) -> None:
    (root / "classes.json").unlink()
    assert classes_with(root, classes=classes) == expected


@pytest.mark.parametrize("content", ['["sky", "road"]', '{"0": "sky", "1": "road"}', '{"classes": ["sky", "road"]}'])
def test_masks_source_reads_files_of_classes(root: Path, content: str) -> None:
    (root / "names.json").write_text(content)
    assert classes_with(root, classes="names.json") == ("sky", "road")


UNCLEAR = [
    *('{"0": "sky", "00": "road"}', '[{"id": 0, "name": "sky"}]', '["sky", null]', '{"1.5": "sky"}', '{"0": 5}'),
    *(f'{{"ignore_index": {value}, "classes": ["sky"]}}' for value in ("1.9", "true", "1e400", '"x"', "[null]")),
]


@pytest.mark.parametrize("content", ["{", "3", '{"sky": 0}', '{"-1": "sky"}', '{"70000": "sky"}', *UNCLEAR])
def test_masks_source_refuses_other_files_of_classes(root: Path, content: str) -> None:
    (root / "classes.json").write_text(content)
    with pytest.raises(ConfigError, match=r"classes: .*classes.json"):
        classes_with(root)


@pytest.mark.parametrize(
    ("name", "picture", "reason"),
    [
        ("a.jpg", Image.new("L", (3, 2)), "JPEG changes the numbers"),
        ("a.png", Image.new("RGB", (3, 2), "red"), "'RGB' are colours, not numbers"),
        ("a.tif", Image.fromarray(np.full((2, 3), -1, np.int32)), "int32 from -1 to -1, not ids"),
    ],
)
def test_masks_source_refuses_color_images(root: Path, name: str, picture: Image.Image, reason: str) -> None:
    image(root, "train/a.png")
    mask(root, f"train/{name}", picture)
    with pytest.raises(DataError, match=reason):
        truth_of(single_record(open_source(root)))


def test_masks_source_names_missing_and_nested_paths(root: Path) -> None:
    with pytest.raises(ConfigError, match=f"images: there is no folder {root}/images"):
        open_source(root)
    image(root, "a.jpg")
    with pytest.raises(ConfigError, match=f"masks: there is no folder {root}/semantic"):
        open_source(root, masks="semantic")
    with pytest.raises(ConfigError, match="lie in one another"):
        list(open_source(root, images=".", masks="images").records())
    with pytest.raises(ConfigError, match="classes: there is no file"):
        open_source(root, masks=str(root / "images"), classes="none.json")
    with pytest.raises(ValidationError, match="ignore"):
        open_source(root, ignore=[70000])


def test_masks_source_refuses_two_masks_for_one_image(root: Path) -> None:
    image(root, "a.jpg")
    mask(root, "a.png")
    mask(root, "a.tif")
    with pytest.raises(DataError, match=r"a.png and a.tif are labels of the same image"):
        list(open_source(root).records())


def test_masks_source_refuses_two_images_for_one_mask(root: Path) -> None:
    for name in ("a.jpg", "a.png", "unlabelled.jpg", "unlabelled.png"):
        image(root, name)
    mask(root, "b/a.png")
    image(root, "b/a.jpg")
    assert len(list(open_source(root).records())) == 5, "images without a mask may have any names"
    mask(root, "a.png")
    with pytest.raises(
        DataError, match=r"images/a.jpg and a.png are images of the same label, .*masks/a.png: keep one"
    ):
        list(open_source(root).records())


def test_masks_source_file_stamps_cover_images_masks_and_classes(root: Path) -> None:
    image(root, "a.jpg")
    mask(root, "a.png")
    assert [row[0] for row in open_source(root).file_stamps()] == ["classes.json", "images/a.jpg", "masks/a.png"]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"colors": {"sky": "#zzz"}}, "colors.sky: '#zzz' is no colour: '#804080' or [128, 64, 128] would work."),
        ({"ignore": ["red"]}, "ignore.0: 'red' is no colour: '#804080' or [128, 64, 128] would work."),
        ({"classes": {99999999999999999999: "sky"}}, "99999999999999999999 is no class id: 0 to 65534 would work."),
        ({"classes": {-1: "sky"}}, "classes.-1: -1 is no class id: 0 to 65534 would work."),
        ({"classes": {"sky": "blue"}}, "classes.sky: 'sky' is no class id: 0 to 65534 would work."),
    ],
)
def test_mask_keys_say_in_words_what_would_work(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_section(masks.Config, {"kind": "masks", "path": "p", **keys}, "r")
    assert str(raised.value).endswith(says), raised.value
    assert len(str(raised.value).splitlines()) == 1
