"""The labels of several stores in one picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from browser.answers import Answers
from browser.filters import ImageSelection
from browser.together import GAP, PER_ROW, draw_together
from tests.browser.copies import copied
from tests.conftest import World

SIDE = 96


def labelled_image(answers: Answers, *conditions: str) -> tuple[str, int]:
    key = answers.images(ImageSelection(["labelled=yes", *conditions]), 1, 0)["images"][0]["key"]
    return key, answers.image_id(key)


def drawn(answers: Answers, image: int, *names: str) -> Image.Image:
    return draw_together(answers.pictures, image, [(answers.store(name), 0.0) for name in names], SIDE)[0]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))[:SIDE]


@pytest.mark.parametrize("name", ["boxes", "masks", "kinds"])
def test_draw_together_lays_boxes_masks_and_words_over_the_image(answers: Answers, name: str) -> None:
    _, image = labelled_image(answers)
    plain, one = drawn(answers, image), drawn(answers, image, name)
    assert plain.size == one.size
    assert (pixels(plain) != pixels(one)).any()


def test_draw_together_sets_maps_below_the_image(answers: Answers) -> None:
    _, image = labelled_image(answers)
    plain = drawn(answers, image)
    two = drawn(answers, image, "depth", "gabor")
    assert two.width == plain.width
    assert two.height == plain.height + GAP + round((plain.width - GAP) // 2 * plain.height / plain.width)
    assert (pixels(plain) == pixels(two)).all(), "the image itself stays as it is"
    many = drawn(answers, image, *["depth"] * (PER_ROW + 1))
    assert many.height > plain.height
    assert many.getpixel((many.width - 1, many.height - 1)) == (0, 0, 0, 0), "what is left over is transparent"


def test_draw_together_tints_the_image_once(answers: Answers) -> None:
    _, image = labelled_image(answers)
    one, two = drawn(answers, image, "masks"), drawn(answers, image, "masks", "masks")
    assert (pixels(one) == pixels(two)).all()
    assert two.height > one.height, "further masks are below"


def test_draw_together_draws_true_labels_another_way(answers: Answers) -> None:
    _, image = labelled_image(answers, "set=truth")
    plain = drawn(answers, image)
    for task in ("detection", "segmentation", "classification"):
        true = drawn(answers, image, f"true-truth-{task}")
        assert true.size == plain.size, task
        assert (pixels(true) != pixels(plain)).any(), task


def test_together_is_served_and_cached_if_it_is_whole(page: TestClient, answers: Answers) -> None:
    key, _ = labelled_image(answers, "set=pool")
    found = page.get(f"/api/together/{key}", params={"store": ["boxes", "depth"], "t": "boxes:0.9", "side": SIDE})
    assert found.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(found.content)).mode in ("RGBA", "RGB")
    assert "max-age" in found.headers["Cache-Control"]
    missing = page.get(f"/api/together/{key}", params={"store": ["true-truth-depth"], "side": SIDE})
    assert missing.headers["Cache-Control"] == "no-store"
    refused = page.get(f"/api/together/{key}", params={"store": ["boxes", "nobody"]})
    assert refused.status_code == 400
    assert "no label store 'nobody'; there are boxes" in refused.json()["error"]
    assert page.get(f"/api/together/{key}", params={"store": ["boxes"] * 99}).status_code == 422


def test_draw_together_leaves_out_a_damaged_label(world: World, tmp_path: Path) -> None:
    answers = copied(world, tmp_path / "root")
    _, image = labelled_image(answers)
    file = answers.loading.label_file(answers.store("boxes").name, image)
    assert file
    Path(str(file)).write_bytes(b"damaged")
    store = answers.store("boxes")
    found, is_whole = draw_together(answers.pictures, image, [(store, 0.5)], SIDE)
    assert not is_whole
    assert found.tobytes() == drawn(answers, image).tobytes()
    assert str(file) in answers.loading.progress.damaged
