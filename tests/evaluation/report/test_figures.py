"""Pictures with labels, as objects and as HTML."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tasks
from evaluation.report.figures import Picture, class_colors, labelled
from evaluation.report.html import ENVIRONMENT
from pipeline.stores.labels import LabelSpace, Value
from tasks.drawing import palette, thumbnail

BOXES = LabelSpace("detection", ("car", "tree"))
MASKS = LabelSpace("segmentation", ("car", "tree"))
MACROS: Any = ENVIRONMENT.get_template("macros.html").module


def boxes(count: int) -> Value:
    return {
        "boxes": np.tile(np.array([1, 1, 20, 20], np.float32), (count, 1)),
        "scores": np.ones(count, np.float32),
        "classes": np.zeros(count, np.int32),
        "size": np.array([32, 24], np.int32),
    }


@pytest.mark.parametrize(("size", "expected"), [((400, 100), (192, 48)), ((16, 32), (96, 192)), ((5000, 1), (192, 1))])
def test_thumbnail_keeps_the_shape_and_has_the_longer_side_asked_for(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert thumbnail(Image.new("RGB", size), 192).size == expected


def test_strip_holds_the_image_itself_and_its_words_escaped() -> None:
    made = MACROS.strip([Picture(Image.new("RGB", (8, 6), (200, 30, 30)), '<b>"x".jpg', "2 < 3")])
    found = re.search(r'src="data:image/jpeg;base64,([^"]+)"', made)
    assert found
    image = Image.open(io.BytesIO(base64.b64decode(found[1])))
    assert image.size == (8, 6)
    assert np.abs(np.asarray(image)[0, 0] - np.array([200, 30, 30])).max() < 8
    assert "<b>" not in made
    assert "&lt;b&gt;&#34;x&#34;.jpg" in made
    assert "2 &lt; 3" in made


def test_strip_tells_its_style_the_number_of_pictures() -> None:
    made = MACROS.strip([Picture(Image.new("RGB", (4, 4)), str(number)) for number in range(3)])
    assert made.count("<figure>") == 3
    assert "--pictures:3" in made


def test_labelled_draws_the_label_and_counts_it() -> None:
    blank = Image.new("RGB", (64, 48))
    picture = labelled(blank, tasks.label(BOXES), boxes(1), "things", "true label")
    assert picture.note == "true label · 1 box"
    assert np.asarray(picture.image).any()
    assert not np.asarray(blank).any(), "the image itself is left alone"


def test_describe_says_how_much_a_label_holds() -> None:
    classes = np.array([[0, 65535], [1, 65535]], np.uint16)
    assert tasks.label(BOXES).describe(boxes(0)) == "0 boxes"
    assert tasks.label(MASKS).describe({"classes": classes}) == "50% of the pixels"
    kinds = LabelSpace("classification", ("tench, Tinca tinca", "hen"))
    assert tasks.label(kinds).describe({"probs": np.zeros(2, np.float32)}) == "no class"
    assert tasks.label(kinds).describe({"probs": np.array([0.75, 0.25], np.float32)}) == "tench 75%"
    depth = np.append(np.zeros(99, np.float32), np.arange(1, 102, dtype=np.float32)).reshape(20, 10)
    assert tasks.label(LabelSpace("depth")).describe({"depth": depth}) == "2.0 to 100.0 m"
    assert tasks.label(LabelSpace("depth", scale="relative")).describe({"depth": depth}) == "2.0 to 100.0"
    assert tasks.label(LabelSpace("depth")).describe({"depth": np.zeros((2, 2), np.float32)}) == "unknown"
    assert tasks.label(LabelSpace("normals")).describe({"normals": np.zeros((2, 2, 3), np.float32)}) == ""


def test_swatches_have_the_colors_of_the_drawings() -> None:
    red, green, blue = palette(2)[1]
    made = MACROS.swatches(class_colors(MASKS, [1]))
    assert f"rgb({red},{green},{blue})" in made
    assert "tree" in made
    assert "car" not in made
