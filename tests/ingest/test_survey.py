"""The survey of a set, which the doctor shows: what its images and labels hold, and what is odd about them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from ingest.ingest import open_source
from ingest.survey import SAMPLE, SetSurvey, survey


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (24, 16), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def classes(folder: Path, **counts: int) -> SetSurvey:
    """Write images as `<split>_<class>=count`, and return the survey of the set."""
    for number, (name, count) in enumerate(counts.items()):
        split, _, class_name = name.partition("_")
        for image in range(count):
            picture(folder / split / class_name / f"{image}.png", 1000 * number + image)
    return survey(open_source({"kind": "imagefolder", "path": str(folder)}))


def test_survey_counts_images_and_classes_by_split(tmp_path: Path) -> None:
    found = classes(tmp_path, train_cat=6, train_dog=3, val_cat=2, val_dog=2)
    assert found.describe() == "train 9, val 4; 24 x 16 pixels, RGB"
    assert found.tasks["classification"].describe() == "labels of 9 train, 4 val; of images cat 62%, dog 38%"
    assert list(found.warnings()) == []


def test_survey_warns_of_a_class_in_one_split_alone(tmp_path: Path) -> None:
    found = classes(tmp_path, train_cat=6, train_dog=5, val_cat=2)
    assert list(found.warnings()) == ["the class 'dog' occurs in train, but not in val, of the images looked at"]


def test_survey_looks_at_samples_spread_over_a_split(tmp_path: Path) -> None:
    found = classes(tmp_path, train_cat=SAMPLE + 5, train_dog=SAMPLE + 5)
    assert found.opened == SAMPLE
    assert found.tasks["classification"].describe().endswith("cat 50%, dog 50%")


def test_survey_finds_equal_images_in_two_splits(tmp_path: Path) -> None:
    classes(tmp_path, train_cat=2, train_dog=2, val_cat=2, val_dog=2)
    shutil.copy(tmp_path / "train/cat/0.png", tmp_path / "val/cat/copy.png")
    found = survey(open_source({"kind": "imagefolder", "path": str(tmp_path)}))
    assert [{*pair} for pair in found.duplicates] == [{"train/cat/0.png", "val/cat/copy.png"}]
    assert any("1 images are in two splits" in warning for warning in found.warnings())


def test_survey_names_images_that_cannot_be_opened(tmp_path: Path) -> None:
    classes(tmp_path, train_cat=2, train_dog=2)
    whole = (tmp_path / "train/cat/1.png").read_bytes()
    (tmp_path / "train/cat/1.png").write_bytes(whole[: len(whole) // 2])
    found = survey(open_source({"kind": "imagefolder", "path": str(tmp_path)}))
    (warning,) = found.warnings()
    assert warning.startswith("of 4 images that were opened: train/cat/1.png: ")


def test_survey_tells_sizes_and_channels(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(10, 8))
    picture(tmp_path / "b.png", size=(40, 30), mode="L")
    found = survey(open_source({"kind": "folder", "path": str(tmp_path)}))
    assert found.describe() == "train 2; 10 x 8 to 40 x 30 pixels, RGB, L"
    assert found.tasks == {}


def test_survey_counts_boxes_and_what_is_dropped(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    boxes = [[1, 1, 5, 5], [2, 2, 60, 5], [50, 50, 5, 5]]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0} for n, box in enumerate(boxes, start=1)
    ]
    images = [{"id": 1, "file_name": "a.png", "width": 24, "height": 16}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(content), "utf-8")
    entry = {"kind": "coco", "path": str(tmp_path), "annotations": {"train": "a.json"}, "images": {"train": "images"}}
    found = survey(open_source({**entry, "max_bad": 1.0}))
    assert found.tasks["detection"].describe() == "labels of 1 train; of objects cat 100%"
    assert sorted(found.warnings()) == [
        "box clipped to the image: 1 times in 1 images",
        "box outside the image dropped: 1 times in 1 images",
    ]


def test_survey_tells_the_unknown_share_of_masks(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    mask = np.full((16, 24), 255, np.uint8)
    mask[:1] = 0
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    entry = {"kind": "masks", "path": str(tmp_path), "classes": ["sky", "road"], "ignore": [255], "hold_out": 0}
    found = survey(open_source(entry))
    assert found.tasks["segmentation"].describe() == "labels of 1 train; of pixels sky 100%; unknown: 94%"
    assert "94% of the labels for segmentation is unknown" in list(found.warnings())


def test_survey_reads_generated_sets() -> None:
    entry = {"kind": "scenes", "count": 6, "seed": 1, "size": 48, "val": 2, "tasks": ["detection", "depth", "normals"]}
    found = survey(open_source(entry))
    assert found.images == {"train": 6, "val": 2} or sum(found.images.values()) == 8
    assert set(found.tasks) == {"detection", "depth", "normals"}
    assert not found.unreadable


def test_survey_tells_the_range_of_arrays(tmp_path: Path) -> None:
    for number in range(2):
        picture(tmp_path / f"images/{number}.png", number, size=(4, 4))
        (tmp_path / "dem").mkdir(exist_ok=True)
        heights = np.full((4, 4, 2), [number * 50.5 - 9, np.nan])
        np.save(tmp_path / f"dem/{number}.npy", heights + np.array([0, 7 * number]))
    keys = {"arrays": "dem", "array_channels": ["height", "slope"], "unit": "m", "hold_out": 0.0}
    found = survey(open_source({"kind": "rasters", "path": str(tmp_path), **keys}))
    expected = "; numbers: height -9 to 41.5 m; unknown: 50%"
    assert found.tasks["regression"].describe().endswith(expected)
