"""What each method makes of its networks, recomputed by hand: which network sees which view, and what is compared."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from selfsup.components.method import Policy, ViewKind
from selfsup.mae import to_patches
from selfsup.stages.objective import StageObjective
from selfsup.stages.stream import ViewBatch
from tests.selfsup import formulas
from tests.selfsup.formulas import double, softmax, unit
from tests.selfsup.small import LARGE, begun, make, views

COLOURLESS = Policy(jitter=0, grayscale=0, blur=0)


@torch.no_grad()
def embedded(method: Any, large: Sequence[Tensor], small: Sequence[Tensor] = ()) -> list[Tensor]:
    """What backbone and head make of views, those of one size in one pass."""
    features = [method.backbone(torch.cat(list(alike))) for alike in (large, small) if alike]
    found: list[Tensor] = list(method.head(torch.cat(features)).split(len(large[0])))
    return found


def apart(name: str, follower: str, **more: Any) -> Any:
    """A method whose follower says something else than what it follows."""
    method = make(name, **more)
    with torch.no_grad():
        for one in getattr(method, follower).network.parameters():
            one.add_(torch.randn_like(one), alpha=0.2)
    return method


def test_simclr_with_labels_minimises_nt_xent_plus_suncet() -> None:
    """One of each, at the same temperature; all views go through backbone and head together."""
    method = make("simclr", labels={"images": 4})
    first, second, labelled = (
        torch.randint(256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(number)).byte()
        for number in range(3)
    )
    classes = torch.tensor([0, 1] * 4)
    before = copy.deepcopy(method)
    learning = StageObjective(method, [ViewKind(32, COLOURLESS)] * 2, 10, torch.contiguous_format)
    batch = ViewBatch([*"abcdefgh"], [first, second], torch.arange(8), labelled, classes, 1, 0)
    total, told = learning(batch, {"images": 1.0, "labelled": 1.0})
    *pair, of_class = embedded(before, [images / 255 for images in (first, second, labelled)])
    contrast, supervised = formulas.nt_xent(pair[0], pair[1], 0.1), formulas.suncet(of_class, classes, 0.1)
    assert {name: loss.item() for name, loss in told.items()} == pytest.approx(
        {"simclr": contrast, "suncet": supervised}, rel=1e-4
    )
    assert total.item() == pytest.approx(contrast + supervised, rel=1e-4)


def test_moco_tells_the_first_view_by_the_keys_network_of_the_second_and_queues_its_keys() -> None:
    method = apart("mocov2", "keys", queue=16, key_momentum=1.0)
    before, batch = copy.deepcopy(method), views(method)
    found = method.losses(batch)["mocov2"].item()
    keys = before.keys(batch.unlabelled[1])
    torch.testing.assert_close(method.queue[:8], normalize(keys, dim=1), rtol=1e-4, atol=1e-5)
    [query] = embedded(before, batch.unlabelled[:1])
    assert found == pytest.approx(formulas.info_nce(query, keys, before.queue, 0.2), rel=1e-4)


def test_moco_normalises_keys_in_two_random_groups_and_gives_each_image_its_own() -> None:
    method = apart("mocov2", "keys", queue=64, key_momentum=1.0)
    batch, seen = views(method, index=torch.arange(32)), list[Tensor]()
    method.keys.network.eval().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    method.losses(batch)
    assert [len(group) for group in seen] == [16, 16]
    assert not torch.equal(torch.cat(seen), batch.unlabelled[1]), "in another order than the queries"
    wanted = normalize(method.keys(batch.unlabelled[1]), dim=1)
    torch.testing.assert_close(method.queue[:32], wanted, rtol=1e-4, atol=1e-5)


def test_byol_foretells_of_each_view_what_the_target_says_of_the_other() -> None:
    method = apart("byol", "target", target_momentum=1.0)
    before, batch = copy.deepcopy(method), views(method)
    found = method.losses(batch)["byol"].item()
    with torch.no_grad():
        said = [unit(before.predictor(before.head(before.backbone(view)))) for view in batch.unlabelled]
        wanted = [unit(before.target.network(view)) for view in batch.unlabelled]
    expected = [(2 - 2 * (said[one] * wanted[other]).sum(1)).mean() for one, other in ((0, 1), (1, 0))]
    assert found == pytest.approx(sum(expected), rel=1e-4)


def test_dino_wants_of_every_view_what_its_surer_and_centred_teacher_says_of_the_other_large_ones() -> None:
    method = apart("dino", "teacher", setting=LARGE, teacher_momentum=1.0)
    method.center.copy_(0.2 * torch.randn(24))
    before, batch = copy.deepcopy(method), views(method, step=3)
    found = method.losses(batch)["dino"].item()
    large, small = batch.unlabelled[:2], batch.unlabelled[2:]
    said = before.teacher(torch.cat(large)).split(8)
    wanted = [softmax((double(each) - double(before.center)) / 0.04) for each in said]
    student = [double(each) for each in embedded(before, large, small)]
    assert len(student) == 4
    assert found == pytest.approx(formulas.between_views(wanted, student, 0.1), rel=1e-4)


@pytest.mark.parametrize(("is_full", "step", "is_counted_in"), [(True, 5, True), (True, 4, False), (False, 5, False)])
def test_swav_has_codes_of_large_views_evened_out_with_the_queue(is_full: bool, step: int, is_counted_in: bool) -> None:
    """Of each view by its own queue, once that is full and half of ten steps are done."""
    method: Any = make("swav", LARGE, queue=12, queue_from=0.5)
    if is_full:
        method.queue.copy_(normalize(torch.randn(2, 12, 16), dim=2))
    before, batch = copy.deepcopy(method), views(method, step)
    found = method.losses(batch)["swav"].item()
    z = [unit(each) for each in embedded(before, batch.unlabelled[:2], batch.unlabelled[2:])]
    queues, prototypes = double(before.queue), unit(before.prototypes.weight)
    evened = [np.concatenate([own, queue]) if is_counted_in else own for own, queue in zip(z, queues, strict=False)]
    codes = [formulas.codes(every @ prototypes.T, 0.05, 3)[:8] for every in evened]
    assert (len(codes), len(z)) == (2, 4)
    assert found == pytest.approx(formulas.between_views(codes, [each @ prototypes.T for each in z], 0.1), rel=1e-4)
    expected = [np.concatenate([own, queue])[:12] for own, queue in zip(z, queues, strict=False)]
    np.testing.assert_allclose(method.queue.numpy(), expected, rtol=1e-3, atol=1e-5)


def test_deepcluster_classifies_every_view_by_each_clustering() -> None:
    method: Any = begun("deepclusterv2", LARGE, small_views=1)
    before = copy.deepcopy(method)
    index = torch.tensor([3, 0, 12, 7, 15, 1, 9, 4])
    batch = views(method, index=index)
    found = method.losses(batch)["deepclusterv2"].item()
    z = [unit(each) for each in embedded(before, batch.unlabelled[:2], batch.unlabelled[2:])]
    centres, classes = double(method.centres), method.assigned.numpy()[:, index.numpy()]
    assert (len(z), len(centres)) == (3, 2)
    expected = []
    for of_clustering, clustering in zip(classes, centres, strict=True):
        for view in z:
            expected += list(-np.log(softmax(view @ clustering.T / 0.1)[np.arange(8), of_clustering]))
    assert found == pytest.approx(np.mean(expected), rel=1e-4)
    np.testing.assert_allclose(method.bank[:, index].numpy(), z[:2], rtol=1e-3, atol=1e-5)


def painted(method: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The method's picture of all patches and which were hidden, drawn the same way every time."""
    torch.manual_seed(5)
    with torch.no_grad():
        prediction, masked = method._paint(images)
    return prediction, masked


def over_pixels(patches: Tensor, side: int) -> Tensor:
    """What is true of patches (B, N), row by row, for their pixels (B, 1, S, S)."""
    grid = patches.view(len(patches), 1, *[round(patches.shape[1] ** 0.5)] * 2)
    return grid.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)


def test_mae_paints_from_visible_patches_alone() -> None:
    method: Any = make("mae", LARGE)
    [images] = views(method).unlabelled
    prediction, masked = painted(method, images)
    assert masked.sum(dim=1).tolist() == [12] * 8
    hidden = over_pixels(masked, method.side)
    assert torch.equal(painted(method, torch.where(hidden, 1 - images, images))[0], prediction)
    for number in range(8):
        for patch in (~masked[number]).nonzero().flatten():
            one = torch.zeros_like(masked)
            one[number, patch] = True
            moved = painted(method, torch.where(over_pixels(one, method.side), 1 - images, images))[0] - prediction
            assert (moved.abs().amax(dim=2).amax(dim=1) > 0).tolist() == [each == number for each in range(8)]


def test_maes_loss_is_the_error_on_hidden_patches() -> None:
    method: Any = make("mae", LARGE)
    batch = views(method)
    [images] = batch.unlabelled
    prediction, masked = painted(method, images)
    for shown in (images, torch.where(over_pixels(masked, method.side), images**2, images)):
        patches = double(to_patches(shown, 16))
        spread = np.sqrt(patches.var(2, ddof=1, keepdims=True) + 1e-6)
        error = (double(prediction) - (patches - patches.mean(2, keepdims=True)) / spread) ** 2
        torch.manual_seed(5)
        batch.unlabelled[0] = shown
        assert method.losses(batch)["mae"].item() == pytest.approx(error.mean(2)[masked.numpy()].mean(), rel=1e-4)


def test_without_attention_mae_paints_each_patch_from_its_own_token_or_the_hidden_one_and_its_place() -> None:
    method: Any = make("mae", LARGE)
    method.blocks = method.backbone.model.blocks = torch.nn.Identity()
    [images] = views(method).unlabelled
    prediction, masked = painted(method, images)
    model = method.backbone.model
    with torch.no_grad():
        own = method.embed(model.norm(model._pos_embed(model.patch_embed(method.backbone.normalised(images)))))[:, 1:]
        tokens = torch.where(masked[:, :, None], method.hidden, own)
        torch.testing.assert_close(prediction, method.paint(method.norm(tokens + method.places)))
