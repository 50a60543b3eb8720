"""HPT's comparison: its recipes, and the shifted images."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from benchmarks import hpt
from pipeline.recipe.reader import read_recipe


def test_domains_of_hpt_are_comparisons_of_its_recipe() -> None:
    for changes in hpt.SIZES.values():
        recipe = read_recipe(hpt.RECIPE, [*changes, "compare.street.starts=[base.safetensors, scratch]"])
        assert tuple(recipe.compare) == hpt.DOMAINS
        sizes = {recipe.student.image_size, *(comparison.image_size for comparison in recipe.compare.values())}
        assert len(sizes) == 1, "the student, by which a backbone in a file is read, and all comparisons"


def test_shift_image_is_gray_dark_and_reproducible() -> None:
    bright, buffer = np.full((32, 32, 3), (250, 200, 240), np.uint8), io.BytesIO()
    Image.fromarray(bright).save(buffer, "PNG")
    shifted = [hpt.shift_image(buffer.getvalue(), number) for number in (1, 1, 2)]
    assert shifted[0] == shifted[1] != shifted[2]
    pixels = np.asarray(Image.open(io.BytesIO(shifted[0])))
    assert pixels.shape == (32, 32)
    assert pixels.mean() < 0.6 * bright.mean()
    assert pixels.std() > 5
