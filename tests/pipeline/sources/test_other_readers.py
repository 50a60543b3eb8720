"""Labels value for value as the readers see them that a set's format comes from."""

from __future__ import annotations

import contextlib
import csv as csv_module
import io
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import webdataset
from PIL import Image
from pycocotools.coco import COCO
from torchvision.datasets import ImageFolder

from pipeline.sources import BaseSource, coco, csv, depth, imagefolder, masks, parquet
from pipeline.sources import webdataset as webdataset_source

SIZE = (40, 30)
NAMES = ["car", "Zebra crossing", "10", "2", "caf\u00e9", "\u732b", "a.b", "under_score", "(x)", "it's"]
seeds = pytest.mark.parametrize("seed", range(4))


def picture(number: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def truths(source: BaseSource, task: str) -> dict[str, Any]:
    """Return the true label of every image, by the image's name."""
    values = {record.name: record.truth(SIZE).values.get(task) for record in source.records()}
    assert not source.problems
    return values


def class_names(source: BaseSource) -> dict[str, str | None]:
    """Return the class of every image, by the image's name; None without a label."""
    classes = source.spaces()["classification"].classes
    found = truths(source, "classification")
    return {name: classes[int(value["probs"].argmax())] if value else None for name, value in found.items()}


def names_of(value: Any, classes: Sequence[str]) -> set[str]:
    """Return the names of the classes that are present."""
    return {name for name, prob in zip(classes, value["probs"], strict=True) if prob == 1}


@seeds
def test_coco_source_reads_boxes_as_pycocotools(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    ids = rng.sample(range(1, 10**9), 6)
    categories = [
        {"id": number, "name": name} for number, name in zip(rng.sample(range(1, 99), 5), NAMES, strict=False)
    ]
    (tmp_path / "images" / "train").mkdir(parents=True)
    images = [{"id": number, "file_name": f"{number}.png", "width": SIZE[0], "height": SIZE[1]} for number in ids]
    for number in ids:
        picture(number % 1000).save(tmp_path / "images" / "train" / f"{number}.png")
    boxes = [
        {
            "id": number,
            "image_id": rng.choice(ids),
            "category_id": rng.choice(categories)["id"],
            "bbox": [rng.uniform(0, 10), rng.randrange(10), rng.uniform(1, 20), rng.randrange(1, 15)],
            "iscrowd": int(rng.random() < 0.2),
            "area": 1,
            "segmentation": [[0, 0, 1, 1, 0, 1]],
        }
        for number in rng.sample(range(1000), 25)
    ]
    content = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": boxes, "categories": categories}
    (tmp_path / "instances_train.json").write_text(json.dumps(content))
    source = coco.Source(coco.Config(path=str(tmp_path), multilabel=True))
    classes = source.spaces()["detection"].classes
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(tmp_path / "instances_train.json"))
    for name, value in truths(source, "detection").items():
        anns = theirs.loadAnns(theirs.getAnnIds(imgIds=int(Path(name).stem), iscrowd=False))
        wanted = [(theirs.cats[ann["category_id"]]["name"], *ann["bbox"]) for ann in anns]
        x0, y0, x1, y1 = value["boxes"].T
        found = zip((classes[n] for n in value["classes"]), x0, y0, x1 - x0, y1 - y0, strict=True)
        assert sorted(round_all(found)) == sorted(round_all(wanted))
    for name, value in truths(source, "multilabel").items():
        anns = theirs.loadAnns(theirs.getAnnIds(imgIds=int(Path(name).stem)))
        assert names_of(value, classes) == {theirs.cats[ann["category_id"]]["name"] for ann in anns}


def round_all(boxes: Any) -> list[tuple[Any, ...]]:
    return [(name, *(round(float(number), 3) for number in box)) for name, *box in boxes]


@seeds
def test_imagefolder_source_numbers_classes_as_torchvision(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    for number, name in enumerate(rng.sample(NAMES, 5)):
        (tmp_path / name / "deeper").mkdir(parents=True)
        for place in (f"{name}/{number}.png", f"{name}/deeper/{number}.png"):
            picture(number).save(tmp_path / place)
    source, theirs = imagefolder.Source(imagefolder.Config(path=str(tmp_path))), ImageFolder(str(tmp_path))
    assert list(source.spaces()["classification"].classes) == theirs.classes
    wanted = {str(Path(path).relative_to(tmp_path)): theirs.classes[number] for path, number in theirs.samples}
    assert class_names(source) == wanted


FEATURES = {
    "classes": datasets.ClassLabel(names=NAMES[:4]),
    "names": datasets.Value("string"),
    "large names": datasets.Value("large_string"),
    "small classes": datasets.Value("uint8"),
}


@seeds
@pytest.mark.parametrize("feature", FEATURES)
def test_parquet_source_reads_labels_as_datasets(feature: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    numbers = [0, 1, 2, 3, *(rng.randrange(4) for _ in range(6))]
    labels = [NAMES[number] for number in numbers] if "names" in feature else numbers
    features = datasets.Features({"image": datasets.Image(), "label": FEATURES[feature]})
    made = datasets.Dataset.from_dict({"image": [picture(n) for n in range(len(labels))], "label": labels}, features)
    made.to_parquet(str(tmp_path / "train.parquet"))
    theirs = datasets.load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), cache_dir=tmp_path / "cache")
    column = theirs["train"]["label"]
    classes = tuple(NAMES[:4]) if feature == "small classes" else ()
    source = parquet.Source(parquet.Config(path=str(tmp_path / "train.parquet"), classes=classes))
    names = [label if isinstance(label, str) else NAMES[label] for label in column]
    assert list(class_names(source).values()) == names


@seeds
@pytest.mark.parametrize("feature", ["classes", "names"])
@pytest.mark.parametrize("length", [-1, 2])
def test_parquet_source_reads_lists_of_labels_as_datasets(feature: str, length: int, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    numbers = [rng.sample(range(4), 2 if length == 2 else rng.randrange(4)) for _ in range(8)] + [[0, 1], [2, 3]]
    labels = [[NAMES[number] for number in each] for each in numbers] if feature == "names" else numbers
    kinds = datasets.Sequence(FEATURES[feature], length=length)
    features = datasets.Features({"image": datasets.Image(), "label": kinds})
    made = datasets.Dataset.from_dict({"image": [picture(n) for n in range(len(labels))], "label": labels}, features)
    made.to_parquet(str(tmp_path / "train.parquet"))
    theirs = datasets.load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), cache_dir=tmp_path / "cache")
    source = parquet.Source(parquet.Config(path=str(tmp_path)))
    classes = source.spaces()["multilabel"].classes
    found = [names_of(value, classes) for value in truths(source, "multilabel").values()]
    named = theirs["train"]["label"]
    assert found == [{NAMES[each] if feature == "classes" else each for each in row} for row in named]


@seeds
@pytest.mark.parametrize("field", ["cls", "json"])
def test_webdataset_source_reads_labels_as_webdataset(field: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    file = tmp_path / "train-000.tar"
    with webdataset.TarWriter(str(file)) as writer:
        for number in range(8):
            label: Any = rng.randrange(3)
            key = f"{rng.choice(('a', 'b/c'))}/{number:03}"
            writer.write(
                {"__key__": key, "png": picture(number), field: {"label": label} if field == "json" else label}
            )
    theirs = webdataset.WebDataset(str(file), shardshuffle=False).decode("pil")
    wanted = {sample["__key__"]: sample[field]["label"] if field == "json" else sample[field] for sample in theirs}
    classes = ("dog", "cat", "bird")
    source = webdataset_source.Source(webdataset_source.Config(path=str(file), classes=classes))
    found = {name.partition("#")[2]: name_of for name, name_of in class_names(source).items()}
    assert found == {key: classes[label] for key, label in wanted.items()}


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "I"])
def test_masks_source_reads_ids_as_pillow(mode: str, tmp_path: Path) -> None:
    """A palette's indices are the ids, not its colours."""
    ids = np.random.default_rng(1).integers(0, 2 if mode == "1" else 3, (SIZE[1], SIZE[0]))
    stored = Image.fromarray(ids.astype(np.uint8))
    if mode == "1":
        stored = Image.fromarray(ids.astype(bool))
    elif mode == "P":
        stored.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    elif mode != "L":
        stored = Image.fromarray(ids.astype(np.uint16 if mode == "I;16" else np.int32))
    for folder, image in (("images", picture(1)), ("masks", stored)):
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / ("a.tif" if mode == "I" and folder == "masks" else "a.png"))
    (value,) = truths(masks.Source(masks.Config(path=str(tmp_path), classes=("x", "y", "z"))), "segmentation").values()
    with Image.open(next((tmp_path / "masks").iterdir())) as theirs:
        np.testing.assert_array_equal(value["classes"], np.asarray(theirs))


@pytest.mark.parametrize(
    ("dtype", "suffix", "unit_m"),
    [("uint8", "png", 0.1), ("uint16", "png", 0.001), ("int32", "tif", 0.001), ("float32", "tif", 1.0)],
)
def test_depth_source_reads_numbers_as_pillow(dtype: str, suffix: str, unit_m: float, tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).integers(0, 200, (SIZE[1], SIZE[0])).astype(dtype)
    if dtype == "float32":
        numbers += np.float32(0.25) * (numbers > 0)
        numbers[0, :3] = (np.nan, np.inf, -1)
    for folder, image, name in (("rgb", picture(1), "a.png"), ("depth", Image.fromarray(numbers), f"a.{suffix}")):
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / name)
    (value,) = truths(depth.Source(depth.Config(path=str(tmp_path), unit_m=unit_m)), "depth").values()
    with Image.open(tmp_path / "depth" / f"a.{suffix}") as theirs:
        wanted = np.nan_to_num(np.asarray(theirs).astype(np.float32), nan=0, posinf=0).clip(0) * unit_m
    np.testing.assert_allclose(value["depth"], wanted, rtol=1e-6)


def test_csv_source_reads_a_column_per_class_as_pandas(tmp_path: Path) -> None:
    names = NAMES[:3]
    cells = list(itertools.product(["1", "1.0", "True"], ["0", "0.0", "False", ""], ["-1", "-1.0", "1"]))
    rows = [{"image": f"{number}.png", **dict(zip(names, row, strict=True))} for number, row in enumerate(cells)]
    with open(tmp_path / "set.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv_module.DictWriter(file, ["image", *names])
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        picture(1).save(tmp_path / row["image"])
    source = csv.Source(csv.Config(path=str(tmp_path / "set.csv"), labels=tuple(names), uncertain="positive"))
    found = truths(source, "multilabel")
    table = pandas.read_csv(tmp_path / "set.csv", index_col="image")
    for image, row in table.iterrows():
        wanted = [abs(float(value)) if value != "" else np.nan for value in row.replace({"True": 1, "False": 0})]
        np.testing.assert_array_equal(found[str(image)]["probs"], np.array(wanted, np.float32))


@pytest.mark.parametrize("quoting", [csv_module.QUOTE_ALL, csv_module.QUOTE_MINIMAL, csv_module.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_source_reads_cells_as_the_csv_module(quoting: Any, encoding: str, end: str, tmp_path: Path) -> None:
    names = [*NAMES, 'a "quoted" one', "with, comma"]
    rows = [{"image": f"{number}.png", "label": name, "more": number} for number, name in enumerate(names)]
    for row in rows:
        picture(1).save(tmp_path / str(row["image"]))
    with open(tmp_path / "set.csv", "w", newline="", encoding=encoding) as file:
        writer = csv_module.DictWriter(file, ["more", "image", "label"], quoting=quoting, lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)
    with open(tmp_path / "set.csv", newline="", encoding="utf-8-sig") as file:
        theirs = {row["image"]: row["label"] for row in csv_module.DictReader(file)}
    assert class_names(csv.Source(csv.Config(path=str(tmp_path / "set.csv")))) == theirs
