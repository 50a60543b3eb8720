"""Run lengths of masks: the same text as pycocotools', read back by both; damaged text is refused."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as pycoco

from pipeline.stores.rle import (
    as_coco,
    contains,
    decode_mask,
    encode_mask,
    mask_area,
    mask_overlaps,
    resize_masks,
    rle_array,
    run_lengths,
    surest_objects,
)


@settings(max_examples=50)
@given(
    seed=st.integers(0, 999),
    share=st.sampled_from([0, 0.02, 0.5, 0.98, 1]),
    w=st.integers(1, 300),
    h=st.integers(1, 70),
)
def test_encode_mask_is_that_of_pycocotools_and_decode_mask_inverts_it(seed: int, share: float, w: int, h: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((h, w)) < share
    text = encode_mask(mask)
    assert text == pycoco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    np.testing.assert_array_equal(decode_mask(text, (w, h)), mask)
    assert mask_area(text, (w, h)) == mask.sum()
    y, x = int(rng.integers(h)), int(rng.integers(w))
    assert contains(text, (w, h), x, y) == mask[y, x]


@pytest.mark.parametrize("at", [(0, 0), (3, 2), (7, 4)])
def test_encode_mask_places_a_part_in_an_image(at: tuple[int, int]) -> None:
    part = np.random.default_rng(0).random((5, 4)) < 0.5
    part[-1, -1] = True
    whole = np.zeros((9, 11), bool)
    whole[at[1] : at[1] + 5, at[0] : at[0] + 4] = part
    assert encode_mask(part, at, (11, 9)) == encode_mask(whole)


@pytest.mark.parametrize(
    ("text", "size", "why"),
    [
        (b"", (4, 4), "is no compressed"),
        (b"o", (4, 4), "is no compressed"),
        (b"\x80\x81", (4, 4), "is no compressed"),
        (b"ooooooooo1", (4, 4), "more pixels than any image"),
        (encode_mask(np.ones((4, 4), bool)), (4, 5), "runs of 16 pixels in an image of 4 x 5"),
        (encode_mask(np.ones((4, 4), bool)), (3, 4), "runs of 16 pixels in an image of 3 x 4"),
        (b"8N:", (4, 4), "a run of -2 pixels"),
    ],
)
def test_run_lengths_refuses_what_fills_no_image(text: bytes, size: tuple[int, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        run_lengths(text, size)


@given(text=st.binary(max_size=30))
def test_run_lengths_of_any_bytes_fill_the_image_or_are_refused(text: bytes) -> None:
    try:
        runs = run_lengths(text, (6, 5))
    except ValueError:
        return
    assert runs.sum() == 30
    assert runs.min() >= 0


def test_mask_overlaps_is_that_of_the_pixels() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.random((3, 8, 9)) < 0.4, rng.random((2, 8, 9)) < 0.6
    expected = [[(a & b).sum() / (a | b).sum() for b in other] for a in one]
    found = mask_overlaps([encode_mask(mask) for mask in one], [encode_mask(mask) for mask in other], (9, 8))
    np.testing.assert_allclose(found, expected)
    assert mask_overlaps([], [encode_mask(one[0])], (9, 8)).shape == (0, 1)


def test_resize_masks_takes_the_nearest_pixel() -> None:
    mask = np.random.default_rng(2).random((6, 8)) < 0.5
    [large] = resize_masks([encode_mask(mask)], (8, 6), (0.0, 0.0, 1.0, 1.0), (16, 18))
    np.testing.assert_array_equal(decode_mask(large, (16, 18)), mask.repeat(3, axis=0).repeat(2, axis=1))
    [right] = resize_masks([encode_mask(mask)], (8, 6), (0.5, 0.0, 1.5, 1.0), (8, 6))
    np.testing.assert_array_equal(decode_mask(right, (8, 6)), np.pad(mask[:, 4:], ((0, 0), (0, 4))))


def test_surest_objects_gives_each_pixel_to_the_highest_score() -> None:
    masks = np.zeros((3, 2, 4), bool)
    masks[0, :, :3] = masks[1, :, 1:] = masks[2, 0, 2] = True
    value = {
        "scores": np.array([0.5, 0.5, 0.9], np.float32),
        "size": np.array([4, 2], np.int32),
        "masks": rle_array(map(encode_mask, masks)),
    }
    assert surest_objects(value, (4, 2)).tolist() == [[0, 0, 2, 1], [0, 0, 0, 1]]


def test_rle_array_takes_no_more_memory_than_its_texts() -> None:
    texts = [bytes(1_000_000), *[b"04"] * 1000]
    tracemalloc.start()
    found = rle_array(texts)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tolist() == texts
    assert most < 1_000_000


def test_as_coco_is_what_pycocotools_reads() -> None:
    mask = np.eye(5, 7, dtype=bool)
    np.testing.assert_array_equal(pycoco.decode(as_coco(encode_mask(mask), (7, 5))), mask)
