"""Pretexts: rotations and jigsaws of images, responses as targets, and what is trained by which."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from selfsup.pretext import GRID, ORDERS, rotate, shuffle_tiles, tile_orders
from tests.selfsup.small_methods import config, make, views

CHOICES = [["rotation"], ["jigsaw"], ["colors", "edges"], ["jigsaw", "rotation", "gabor"]]


def test_rotate_turns_each_image_by_its_own_quarter_turns() -> None:
    images = torch.rand(5, 3, 8, 8)
    turns = torch.tensor([0, 1, 2, 3, 1])
    for image, number, turned in zip(images, turns.tolist(), rotate(images, turns), strict=True):
        np.testing.assert_array_equal(turned.permute(1, 2, 0), np.rot90(image.permute(1, 2, 0), number))


@pytest.mark.parametrize("side", [9, 32, 48])
def test_shuffle_tiles_puts_the_tile_that_is_asked_for_in_each_place(side: int) -> None:
    images = torch.rand(4, 3, side, side)
    orders = torch.tensor(ORDERS[:4])
    shuffled = shuffle_tiles(images, orders)
    assert shuffled.shape == images.shape
    tile = side // GRID
    kept = GRID * tile
    torch.testing.assert_close(shuffled[0, :, :kept, :kept], images[0, :, :kept, :kept])
    for place, source in enumerate(orders[2].tolist()):
        (row, column), (y, x) = divmod(place, GRID), divmod(source, GRID)
        found = shuffled[2, :, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
        torch.testing.assert_close(found, images[2, :, y * tile : (y + 1) * tile, x * tile : (x + 1) * tile])


def test_shuffle_tiles_is_undone_by_the_inverse_order() -> None:
    images, orders = torch.rand(3, 3, 48, 48), torch.tensor(ORDERS[5:8])
    torch.testing.assert_close(shuffle_tiles(shuffle_tiles(images, orders), orders.argsort(dim=1)), images)


def test_tile_orders_are_permutations_far_from_each_other() -> None:
    orders = np.array(ORDERS)
    assert orders.shape == (30, 9)
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    apart = (orders[:, None] != orders[None]).sum(axis=2)
    assert apart[~np.eye(30, dtype=bool)].min() >= 7
    assert tile_orders(30) == ORDERS


def test_pretexts_learn_the_turn_and_the_responses_of_the_turned_image() -> None:
    method: Any = make("pretext", pretexts=["rotation", "hog"], weights={"hog": 3.0})
    method.eval()
    batch = views(method)
    torch.manual_seed(5)
    found = method.losses(batch)
    torch.manual_seed(5)
    turns = torch.randint(4, (8,))
    turned = rotate(batch.unlabelled[0], turns)
    vector, maps = method.backbone.readout(turned)
    torch.testing.assert_close(found["rotation"], F.cross_entropy(method.heads["rotation"](vector), turns))
    responses = F.adaptive_avg_pool2d(method.banks["hog"](turned * 255), maps[-1].shape[-2:])
    error = (method.heads["hog"](maps[-1]).sigmoid() - responses).abs().mean()
    torch.testing.assert_close(found["hog"], 3 * error)


@pytest.mark.parametrize("pretexts", CHOICES, ids=str)
def test_pretexts_train_the_backbone_in_any_choice(pretexts: list[str]) -> None:
    method: Any = make("pretext", pretexts=pretexts)
    losses = method.losses(views(method))
    assert list(losses) == pretexts
    torch.stack(list(losses.values())).sum().backward()
    assert all(one.grad is not None for one in method.parameters() if one.requires_grad)
    assert all(one.grad.any() for one in method.heads.parameters())


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"pretexts": []}, "at least 1 item"),
        ({"pretexts": ["gabor", "gabor"]}, "'gabor' is there twice"),
        ({"pretexts": ["colorize"]}, "'rotation', 'jigsaw'"),
        ({"pretexts": ["gabor"], "weights": {"hog": 2}}, r"weights names 'hog', and pretexts are gabor"),
    ],
)
def test_pretext_config_refuses(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        config("pretext", **keys)
