"""Instance masks: labels on disk and cropped, average precision against pycocotools, the mask head, pasting."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as pycoco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.data.augment import Placement
from pipeline.errors import DataError
from pipeline.stores.labels import LabelSpace, Value, explain_label_errors
from pipeline.stores.rle import as_coco, decode_mask, encode_mask, mask_area, resize_masks, rle_array
from tasks.drawing import palette
from tasks.masks.label import TaskLabel, image_size
from tasks.masks.model import TaskModel, paste_mask
from tasks.network import Network
from tasks.prediction import check_finite_label, to_numpy

SPACE = LabelSpace("masks", ("cup", "spoon", "plate"))
LABEL, TASK = TaskLabel(SPACE), TaskModel(SPACE)
SIZE = (60, 40)


def objects(
    masks: list[NDArray[np.bool_]], scores: Any = None, classes: Any = None, size: tuple[int, int] = SIZE
) -> Value:
    """Return the label of these masks, with the smallest boxes around them."""
    boxes = [[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in (np.nonzero(mask) for mask in masks)]
    count = len(masks)
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.asarray(np.ones(count) if scores is None else scores, np.float32),
        "classes": np.asarray(np.zeros(count) if classes is None else classes, np.int32),
        "size": np.array(size, np.int32),
        "masks": rle_array(encode_mask(mask) for mask in masks),
    }


def ellipse(x: float, y: float, width: float, height: float, size: tuple[int, int] = SIZE) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[: size[1], : size[0]] + 0.5
    return ((columns - x) / width) ** 2 + ((rows - y) / height) ** 2 <= 1


def random_objects(rng: np.random.Generator, count: int, size: tuple[int, int] = SIZE) -> Value:
    places = rng.random((count, 4)) * [*size, size[0] / 3, size[1] / 3] + [0, 0, 2, 2]
    masks = [ellipse(x, y, width, height, size) for x, y, width, height in places.tolist()]
    return objects(masks, rng.random(count), rng.integers(0, 3, count), size)


def near(rng: np.random.Generator, value: Value) -> Value:
    """Return the objects moved by a pixel or two: some missing, some of another class."""
    size = image_size(value)
    kept = [index for index in range(len(value["masks"])) if rng.random() < 0.8]
    masks = [np.roll(decode_mask(value["masks"][index], size), rng.integers(-2, 3, 2), (0, 1)) for index in kept]
    classes = np.where(rng.random(len(kept)) < 0.1, 0, value["classes"][kept])
    return objects(masks, rng.random(len(kept)), classes, size)


def test_encode_keeps_masks_without_loss_and_states_their_areas() -> None:
    value = random_objects(np.random.default_rng(0), 5)
    row = LABEL.encode(value)
    back = LABEL.decode(row)
    for name, array in value.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
    decoded = [decode_mask(mask, SIZE) for mask in back["masks"]]
    assert row["areas"] == [int(mask.sum()) for mask in decoded]
    for text, mask in zip(row["masks"], decoded, strict=True):
        given = {"size": [SIZE[1], SIZE[0]], "counts": text}
        np.testing.assert_array_equal(pycoco.decode(given), mask)


def test_decode_drops_masks_with_their_boxes() -> None:
    value = objects([ellipse(10, 10, 5, 5), ellipse(40, 20, 9, 7)], [0.4, 0.9], [0, 1])
    kept = LABEL.decode(LABEL.encode(value), 0.5)
    assert (kept["classes"].tolist(), kept["masks"].tolist()) == ([1], value["masks"].tolist()[1:])


@pytest.mark.parametrize(
    "damage",
    [
        {"masks": ["o1"]},
        {"masks": ["~~"]},
        {"masks": [""]},
        {"masks": [None]},
        {"masks": []},
        {"areas": [7]},
        {"width": 61},
        {"masks": ["0" + "o" * 30 + "1"]},
    ],
    ids=str,
)
def test_decode_of_damaged_masks_is_a_data_error(damage: dict[str, Any]) -> None:
    row = LABEL.encode(objects([ellipse(10, 10, 5, 5)]))
    with pytest.raises(DataError, match="the label of k is damaged"), explain_label_errors("file", "k"):
        LABEL.decode(row | damage)


def test_flip_mirrors_masks() -> None:
    mask = ellipse(12, 9, 8, 4)
    flipped = LABEL.flip(objects([mask]))
    np.testing.assert_array_equal(decode_mask(flipped["masks"][0], SIZE), mask[:, ::-1])


def test_crop_cuts_masks_and_drops_objects_without_a_pixel() -> None:
    ring = ellipse(30, 20, 18, 18) & ~ellipse(30, 20, 15, 15)
    value = objects([ring, ellipse(25, 20, 4, 4)], [0.9, 0.8], [0, 1])
    middle = LABEL.crop(value, (0.3, 0.3, 0.7, 0.7), (32, 48))
    assert middle["classes"].tolist() == [1], "of the ring no pixel is in the middle, though most of its box is"
    assert middle["size"].tolist() == [48, 32]
    cut = decode_mask(middle["masks"][0], (48, 32))
    expected = ellipse(25, 20, 4, 4)[12:28, 18:42].repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(cut, expected)


def test_distance_compares_masks_not_boxes() -> None:
    halves = np.tri(40, 40, dtype=bool), ~np.tri(40, 40, -1, dtype=bool).T
    lower, upper = (objects([mask], size=(40, 40)) for mask in (halves[0], ~halves[0] | np.eye(40, dtype=bool)))
    assert LABEL.distance(lower, upper) == 1
    assert LABEL.distance(lower, lower) == 0
    twice = {**lower, "boxes": lower["boxes"] * 2, "size": np.array([80, 80], np.int32)}
    twice["masks"] = resize_masks(lower["masks"], (40, 40), (0.0, 0.0, 1.0, 1.0), (80, 80))
    assert LABEL.distance(twice, lower) == LABEL.distance(lower, twice) == 0


def test_describe_at_looks_into_masks() -> None:
    ring = ellipse(30, 20, 18, 18) & ~ellipse(30, 20, 10, 10)
    value = objects([ring], [0.75], [2])
    assert LABEL.describe_at(value, (15.5 / 60, 0.5)) == "plate 75%"
    assert LABEL.describe_at(value, (0.5, 0.5)) == ""
    assert LABEL.describe(value) == "1 mask"


def test_draw_tints_the_pixels_of_the_surest_object() -> None:
    value = objects([ellipse(20, 20, 15, 15), ellipse(40, 20, 15, 15)], [0.6, 0.9], [0, 1])
    image = Image.new("RGB", (120, 80))
    tinted, plain = np.asarray(LABEL.draw(image, value)), np.asarray(LABEL.draw_plain(image, value))
    colors = palette(3)
    np.testing.assert_allclose(tinted[55, 30] / 0.45, colors[0], atol=3)
    np.testing.assert_allclose(tinted[40, 60] / 0.45, colors[1], atol=3)
    assert not plain[55, 30].any(), "only contours"
    assert plain.any()


def coco_scores(pairs: list[tuple[Value, Value]]) -> dict[str, float]:
    """Return AP and AP50 of masks by pycocotools."""
    truth: list[dict[str, Any]] = []
    guesses: list[dict[str, Any]] = []
    for number, (predicted, true) in enumerate(pairs, start=1):
        size = image_size(true)
        for mask, name in zip(true["masks"], true["classes"].tolist(), strict=True):
            about = {"image_id": number, "category_id": name + 1, "area": mask_area(mask, size), "iscrowd": 0}
            truth.append({**about, "id": len(truth) + 1, "segmentation": as_coco(mask, size)})
        for mask, name, score in zip(
            predicted["masks"], predicted["classes"].tolist(), predicted["scores"].tolist(), strict=True
        ):
            about = {"image_id": number, "category_id": name + 1, "score": score}
            guesses.append({**about, "segmentation": as_coco(mask, size)})
    images = [{"id": number, "width": SIZE[0], "height": SIZE[1]} for number in range(1, len(pairs) + 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        categories = [{"id": n, "name": str(n)} for n in (1, 2, 3)]
        known.dataset = {"images": images, "annotations": truth, "categories": categories}
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(guesses), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"ap": float(evaluation.stats[0]), "ap50": float(evaluation.stats[1])}


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_of_masks_agrees_with_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = [random_objects(rng, count) for count in (3, 0, 6, 8, 5)]
    pairs = [(near(rng, value), value) for value in truth]
    pairs[1] = (random_objects(rng, 2), truth[1])
    metric = TASK.metrics()
    for predicted, true in pairs:
        metric.update(predicted, true)
    scores = metric.compute()
    assert scores == pytest.approx(coco_scores(pairs), abs=1e-9)
    assert 0.05 < scores["ap"] < scores["ap50"] < 1


def test_scored_examples_are_right_where_masks_match() -> None:
    ring = ellipse(30, 20, 18, 18) & ~ellipse(30, 20, 13, 13)
    true = objects([ellipse(30, 20, 18, 18), ellipse(5, 5, 4, 4)])
    examples = TASK.scored_examples(objects([ring, ellipse(5, 5, 4, 4)], [0.9, 0.3]), true)
    assert examples is not None
    assert examples.right.tolist() == [0, 1], "the ring has the disc's box"


@pytest.mark.parametrize("box", [(3.0, 4.0, 31.0, 32.0), (2.5, 3.25, 50.75, 39.0), (10.2, 10.2, 10.9, 10.9)])
def test_paste_mask_fills_the_pixels_whose_centers_are_in_the_box(box: tuple[float, ...]) -> None:
    pasted = paste_mask(np.ones((28, 28), np.float32), box, SIZE)
    columns, rows = np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5
    inside = ((rows >= box[1]) & (rows < box[3]))[:, None] & ((columns >= box[0]) & (columns < box[2]))
    assert pasted is not None
    np.testing.assert_array_equal(decode_mask(pasted, SIZE), inside)


def test_paste_mask_interpolates_between_cells() -> None:
    cells = np.zeros((28, 28), np.float32)
    cells[:, 14:] = 1
    pasted = paste_mask(cells, (0, 0, 56, 28), SIZE)
    assert pasted is not None
    expected = np.zeros((40, 60), bool)
    expected[:28, 28:56] = True
    np.testing.assert_array_equal(decode_mask(pasted, SIZE), expected)
    assert paste_mask(np.zeros((28, 28), np.float32), (0, 0, 56, 28), SIZE) is None
    assert paste_mask(np.ones((28, 28), np.float32), (10.6, 3, 11.4, 9), SIZE) is None, "no center is inside"


@pytest.fixture
def network(make_network: Callable[..., Network]) -> Network:
    return make_network({"things": SPACE}, image_size=64)


def test_value_has_masks_in_pixels_of_the_image_and_none_in_the_padding(network: Network) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        prediction = to_numpy(TASK.predict(network.eval()(images)["things"], [(64, 64), (64, 20)]))
    assert prediction["images"][0]["masks"].shape[1:] == (28, 28)
    assert (prediction["images"][1]["boxes"][:, 3] <= 20).all()
    value = TASK.value(prediction, 1, Placement((640, 200), (64, 20)))
    check_finite_label(value)
    assert len(value["masks"]) == len(value["boxes"]) > 0
    for mask, box in zip(value["masks"], value["boxes"], strict=True):
        y, x = np.nonzero(decode_mask(mask, (640, 200)))
        assert (x + 0.5 >= box[0]).all()
        assert (x + 0.5 <= box[2]).all()
        assert (y + 0.5 >= box[1]).all()
        assert (y + 0.5 <= box[3]).all()


def test_loss_takes_images_with_and_without_objects_and_trains_the_mask_head(network: Network) -> None:
    values = [objects([], size=(64, 64)), objects([ellipse(30, 30, 20, 15, (64, 64))], classes=[2], size=(64, 64))]
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for rows in ([0, 1], [0]):
        network.zero_grad()
        target = TASK.collate([values[row] for row in rows])
        given = {"things": {"rows": torch.arange(len(rows)), "target": target}}
        loss = network.train().losses(images[: len(rows)], given)["things"]
        loss.backward()
        assert loss.isfinite()
        for name, parameter in network.heads["things"].named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            if "mask_fcn_logits" in name:
                assert bool(parameter.grad.any()) == (len(rows) == 2)


def test_head_is_that_of_detection_with_a_mask_head_as_wide_as_the_pyramid(network: Network) -> None:
    detection = {name for name, _ in network.heads["things"].named_parameters() if ".mask_" not in name}
    assert {name.split(".")[0] for name in detection} == {"rpn", "boxes"}
    heads: Any = network.heads["things"].boxes
    convolutions = [each for each in heads.mask_head.modules() if isinstance(each, torch.nn.Conv2d)]
    assert [each.out_channels for each in convolutions] == [network.config.width] * 4
    assert heads.mask_predictor.mask_fcn_logits.out_channels == 4, "the classes, and the background"


def test_predict_is_float32_under_autocast(network: Network) -> None:
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        [found] = TASK.predict(network.eval()(images)["things"])["images"]
    assert {found[name].dtype for name in ("boxes", "scores", "masks")} == {torch.float32}


def test_constant_label_is_the_mean_box_of_the_most_frequent_class_filled() -> None:
    values = [objects([ellipse(15, 10, 15, 10), ellipse(45, 30, 15, 10)], classes=[1, 1]), objects([])]
    guess = TASK.constant_label(values)
    assert (guess["classes"].tolist(), guess["size"].tolist()) == ([1], [64, 64])
    np.testing.assert_allclose(guess["boxes"], [[16, 16, 48, 48]])
    mask = decode_mask(guess["masks"][0], (64, 64))
    assert mask[16:48, 16:48].all()
    assert mask.sum() == 32 * 32
    assert len(TASK.constant_label([objects([])])["masks"]) == 0
