"""Copies of training images at the size that trainings need: what they keep, and how they are made again."""

from __future__ import annotations

import dataclasses
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.plan.resized_steps import COPY
from ingest import resized
from ingest.dataset import IngestedSet
from ingest.resized import read_resized, store_resized
from ingest.true_labels import dataset_shards, true_label_dataset
from pipeline.data.dataset import ImageDataset
from pipeline.data.decode import decode_image
from pipeline.errors import DataError, Stopped
from pipeline.recipe.augment import AugmentConfig
from pipeline.steps.artifact import Artifact, Inputs, Step, verify
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from tests.disk import folder_of
from tests.ingest.photos import Make, StopAfter, add_image, is_same_file, picture

SIDE = 32
STEP = Step("resized.photos", COPY, ("resized", "photos"), {"set": "photos", "short_side": SIDE}, ("data.photos",))
PLAIN = AugmentConfig(area=0.8, brightness=0, contrast=0, saturation=0)
Copy = Callable[..., Artifact]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Save two larger images, two that are not, and one of 16 bits as 0.png to 4.png, and 5.jpg, lying on a side."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(90, 60), (60, 90), (33, 32), (20, 15)]):
        picture(number, *size).save(folder / f"{number}.png")
    Image.fromarray(np.full((64, 80), 40000, np.uint16)).save(folder / "4.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upper = np.zeros((60, 80, 3), np.uint8)
    upper[:30] = 255
    Image.fromarray(upper).save(folder / "5.jpg", exif=exif, comment=b"secret", quality=95)
    return folder


@pytest.fixture
def copy(runtime: Runtime) -> Copy:
    """Return a function that copies the images of an ingested set: (artifact, fields of the runtime) -> artifact."""

    def make(data: Artifact, force: bool = False, **more: object) -> Artifact:
        inputs = Inputs({"data.photos": data}, dataclasses.replace(runtime, **more), force)  # type: ignore[arg-type]
        return Workspace(inputs.runtime.root).get_or_make(STEP, inputs)[0]

    return make


def originals(data: Artifact) -> ImageDataset:
    return ImageDataset(dataset_shards(IngestedSet(data), "train", lambda shard: {}))


def copies(data: Artifact, made: Artifact) -> ImageDataset:
    """Return the training images of a set as trainings read them."""
    inputs = Inputs({"data.photos": data, "resized.photos": made}, Runtime(made.root))
    return read_resized(originals(data), inputs)


def test_store_resized_reduces_larger_images_alone(photos: Path, make: Make, copy: Copy) -> None:
    data = make(photos, "folder")
    made = copy(data)
    assert (made.counts["images"], made.counts["larger"], made.counts["resized_now"]) == (6, 4, 6)
    old, new = ([images.read(index)[1] for index in range(6)] for images in (originals(data), copies(data, made)))
    assert [decode_image(image).size for image in new] == [(48, 32), (32, 48), (33, 32), (20, 15), (40, 32), (32, 43)]
    assert [one == other for one, other in zip(old, new, strict=True)] == [False, False, True, True, False, False]
    assert decode_image(new[4]).getpixel((5, 5)) == (156, 156, 156)


def test_store_resized_turns_images_upright_without_exif(photos: Path, make: Make, copy: Copy) -> None:
    data = make(photos, "folder")
    image = Image.open(io.BytesIO(copies(data, copy(data)).read(5)[1]))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 43))
    assert not image.getexif()
    assert "comment" not in image.info
    assert np.asarray(image)[:, 20:].mean() > 240
    assert np.asarray(image)[:, :12].mean() < 15


def test_read_resized_keeps_keys_order_and_sizes(photos: Path, make: Make, copy: Copy) -> None:
    data = make(photos, "folder", shard_images=2)
    before, after = originals(data), copies(data, copy(data))
    assert after.keys() == before.keys()
    assert [after.size(index) for index in range(6)] == [before.size(index) for index in range(6)]
    assert np.array_equal(after.order(3, 1), before.order(3, 1))
    for old, new in zip(before.shards, after.shards, strict=True):
        assert new.images.name == old.images.address
        assert new.images.table["source"] == old.images.table["source"]


def test_read_resized_leaves_other_sets_as_they_are(photos: Path, make: Make) -> None:
    data = make(photos, "folder")
    after = read_resized(originals(data), Inputs({"data.photos": data}, Runtime(data.root)))
    assert [shard.images.tar for shard in after.shards] == [shard.images.tar for shard in originals(data).shards]


def write_boxes(folder: Path) -> None:
    """Write a COCO set of images with a white rectangle on black, which is the image's box."""
    rng, images, boxes = np.random.default_rng(0), [], []
    (folder / "images" / "train").mkdir(parents=True)
    for number in range(8):
        width, height = (int(side) for side in rng.integers(150, 400, 2))
        x, y, w, h = (int(part) for part in (width * 0.3, height * 0.2, width * 0.37, height * 0.45))
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y : y + h, x : x + w] = 255
        Image.fromarray(pixels).save(folder / "images" / "train" / f"{number}.jpg", quality=95)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
        boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, w, h], "iscrowd": 0})
    text = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "white"}]}
    (folder / "instances_train.json").write_text(json.dumps(text), "utf-8")


def edges(pixels: np.ndarray) -> np.ndarray:
    """Return (x0, y0, x1, y1) of what is white in an image, to a part of a pixel."""
    gray = pixels.mean(axis=2) / 255
    row, column = gray[gray.sum(axis=1).argmax()], gray[:, gray.sum(axis=0).argmax()]
    ends = []
    for line in (row, column):
        middle = int(np.average(np.arange(len(line)), weights=line))
        ends.append((middle - line[:middle].sum(), middle + line[middle:].sum()))
    return np.array([ends[0][0], ends[1][0], ends[0][1], ends[1][1]])


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_read_resized_keeps_labels_aligned(resize: str, tmp_path: Path, make: Make, copy: Copy) -> None:
    """A box, and what is in it, stay at the same place of a view, within half a pixel."""
    write_boxes(tmp_path / "boxes")
    data = make(tmp_path / "boxes", "coco", hold_out=0)
    before = true_label_dataset(IngestedSet(data), "train", {"boxes": "detection"})
    after = read_resized(before, Inputs({"resized.photos": copy(data)}, Runtime(data.root)))
    assert len(before) == 8
    for index in range(8):
        for seed in range(4):
            view = index, SIDE - 8, resize, PLAIN, (seed,)
            one, other = before.sample(*view), after.sample(*view)  # type: ignore[arg-type]
            assert (one.key, one.valid) == (other.key, other.valid)
            [[box], [same]] = (sample.values["boxes"]["boxes"] for sample in (one, other))
            assert np.array_equal(box, same)
            ends = [edges(sample.image[: sample.valid[1], : sample.valid[0]]) for sample in (one, other)]
            assert np.abs(ends[1] - ends[0]).max() < 0.5
            assert np.abs(ends[1] - box).max() < 0.5


def test_store_resized_is_the_same_with_any_number_of_threads(photos: Path, make: Make, copy: Copy) -> None:
    data = make(photos, "folder", shard_images=2)
    assert copy(data).digest == copy(data, force=True, workers=4).digest


def test_store_resized_copies_new_shards_alone(pool: Path, make: Make, copy: Copy) -> None:
    first = copy(make(pool, "folder"))
    assert first.counts["resized_now"] == 9
    for number in (5, 55, 95):
        add_image(pool, f"{number:02d}.png", number)
    data = make(pool, "folder")
    grown = copy(data)
    assert (grown.counts["images"], grown.counts["resized_now"]) == (12, 3)
    assert all(is_same_file(first, grown, name) for name in first.manifest["files"])
    (pool / "images" / "05.png").unlink()
    (pool / "images" / "10.png").unlink()
    shrunk = copy(make(pool, "folder"))
    assert (shrunk.counts["images"], shrunk.counts["resized_now"]) == (10, 4)
    assert len(shrunk.manifest["files"]) == 8, "shards that are gone are not taken along"
    assert not list(verify(shrunk))


def test_store_resized_goes_on_from_whole_shards(photos: Path, make: Make, copy: Copy, tmp_path: Path) -> None:
    data = make(photos, "folder", shard_images=2)
    root = Root.of(tmp_path / "killed")
    with pytest.raises(Stopped, match=r"resized\.photos"):
        copy(data, root=root, stop=StopAfter(3))
    [folder] = (tmp_path / "killed" / "artifacts" / "resized.photos").iterdir()
    [kept] = folder.glob("work/images/*.tar")
    (folder / "work" / "images" / f".{'0' * 16}.tar.123.part").write_bytes(b"of a process that was killed")
    inode = kept.stat().st_ino
    made = copy(data, root=root, stop=threading.Event())
    assert folder_of(made) == folder
    assert (folder / "images" / kept.name).stat().st_ino == inode
    assert made.digest == copy(data).digest
    assert sorted(path.suffix for path in folder.rglob("*") if path.is_file()) == sorted(
        [".json", *[".tar", ".parquet"] * 3]
    )


def test_damaged_copies_are_told_and_made_again(photos: Path, make: Make, copy: Copy, runtime: Runtime) -> None:
    data = make(photos, "folder", shard_images=2)
    made = copy(data)
    broken = copies(data, made)
    tar = Path(broken.shards[0].images.tar.path)
    whole = tar.read_bytes()
    view = 0, SIDE, "stretch", AugmentConfig(), (0,)
    tar.write_bytes(whole[:600] + bytes(len(whole) - 600))
    with pytest.raises(DataError, match=rf"{tar}: image {broken.keys()[0]}: .*must artifacts verify --repair"):
        broken.sample(*view)  # type: ignore[arg-type]
    assert [problem for _, problem in verify(made)] == ["its bytes changed since it was made"]
    tar.write_bytes(whole[:600])
    with pytest.raises(DataError, match="cut short"):
        broken.sample(*view)  # type: ignore[arg-type]
    again = copy(data)
    assert (again.digest, tar.read_bytes()) == (made.digest, whole)


def test_store_resized_keeps_images_that_it_cannot_decode(
    photos: Path, make: Make, copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, lines = make(photos, "folder"), list[str]()
    bad = originals(data).read(1)[1]

    def resize(data: bytes, size: tuple[int, int]) -> bytes:
        if data == bad:
            raise DataError("damaged image data (a test)")
        return whole(data, size)

    whole = resized.resize_image
    monkeypatch.setattr(resized, "resize_image", resize)
    made = copy(data, log=lines.append)
    assert made.counts["undecodable"] == 1
    assert copies(data, made).read(1) == originals(data).read(1)
    assert any("1.png) keeps its bytes: damaged image data (a test)" in line for line in lines)


def test_store_resized_refuses_originals_that_have_changed(
    photos: Path, make: Make, runtime: Runtime, tmp_path: Path
) -> None:
    data = make(photos, "folder")
    tar = Path(originals(data).shards[0].images.tar.path)
    content = tar.read_bytes()
    tar.write_bytes(content[:700] + b"x" + content[701:])
    with pytest.raises(DataError, match=r"is damaged in it\. `must run` with --force data\.photos"):
        store_resized(STEP.config, Inputs({"data.photos": data}, runtime), tmp_path / "out")


def test_resize_image_refuses_what_is_too_long_for_a_jpeg(noise: Callable[..., np.ndarray]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(0, 8, 8)).save(buffer, "PNG")
    with pytest.raises(DataError, match="70000x32 pixels can't be saved as a JPEG"):
        resized.resize_image(buffer.getvalue(), (70000, 32))
