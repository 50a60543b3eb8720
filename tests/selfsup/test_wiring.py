"""Losses of each method recomputed by hand: which network sees which view, and what is compared with what."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from selfsup.components.method import Policy, ViewKind, Views
from selfsup.mae import patchify
from selfsup.stages.objective import StageObjective
from tests.selfsup import formulas
from tests.selfsup.formulas import double, softmax, unit
from tests.selfsup.small_methods import LARGE, initialized, make, views

COLOURLESS = Policy(jitter=0, grayscale=0, blur=0)


@torch.no_grad()
def embedded(method: Any, large: Sequence[Tensor], small: Sequence[Tensor] = ()) -> list[Tensor]:
    """Return the embeddings of views, those of one size in one pass."""
    features = [method.backbone(torch.cat(list(alike))) for alike in (large, small) if alike]
    found: list[Tensor] = list(method.head(torch.cat(features)).split(len(large[0])))
    return found


def with_other_momentum_encoder(name: str, attribute: str, **more: Any) -> Any:
    """Make a method whose momentum encoder differs from the network that it follows."""
    method = make(name, **more)
    with torch.no_grad():
        for one in getattr(method, attribute).network.parameters():
            one.add_(torch.randn_like(one), alpha=0.2)
    return method


def test_simclr_losses_with_labels_are_nt_xent_plus_suncet() -> None:
    """One of each, at the same temperature; all views go through backbone and head together."""
    method = make("simclr", labels={"images": 4})
    first, second, labelled = (
        torch.randint(256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(number)).byte()
        for number in range(3)
    )
    classes = torch.tensor([0, 1] * 4)
    before = copy.deepcopy(method)
    objective = StageObjective(method, [ViewKind(32, COLOURLESS)] * 2)
    batch = Views([*"abcdefgh"], [first, second], torch.arange(8), labelled, classes, 1, 10, 0)
    total, logged = objective(batch, {"images": 1.0, "labelled": 1.0})
    *pair, of_class = embedded(before, [images / 255 for images in (first, second, labelled)])
    contrast, supervised = formulas.nt_xent(pair[0], pair[1], 0.1), formulas.suncet(of_class, classes, 0.1)
    assert {name: loss.item() for name, loss in logged.items()} == pytest.approx(
        {"simclr": contrast, "suncet": supervised}, rel=1e-4
    )
    assert total.item() == pytest.approx(contrast + supervised, rel=1e-4)


def test_moco_losses_match_first_view_to_keys_of_second_and_enqueue_them() -> None:
    method = with_other_momentum_encoder("mocov2", "key_encoder", queue=16, key_momentum=1.0)
    before, batch = copy.deepcopy(method), views(method)
    found = method.losses(batch)["mocov2"].item()
    keys = before.key_encoder(batch.unlabelled[1])
    torch.testing.assert_close(method.queue.keys[:8], normalize(keys, dim=1), rtol=1e-4, atol=1e-5)
    [query] = embedded(before, batch.unlabelled[:1])
    assert found == pytest.approx(formulas.info_nce(query, keys, before.queue.keys, 0.2), rel=1e-4)


@pytest.mark.parametrize(("images", "groups"), [(32, [16, 16]), (17, [9, 8]), (15, [15])])
def test_moco_keys_are_computed_in_two_random_groups(images: int, groups: list[int]) -> None:
    method = with_other_momentum_encoder("mocov2", "key_encoder", queue=64, key_momentum=1.0)
    batch, seen = views(method, index=torch.arange(images)), list[Tensor]()
    method.key_encoder.network.eval().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    method.losses(batch)
    assert [len(group) for group in seen] == groups
    assert not torch.equal(torch.cat(seen), batch.unlabelled[1]), "in another order than the queries"
    wanted = normalize(method.key_encoder(batch.unlabelled[1]), dim=1)
    torch.testing.assert_close(method.queue.keys[:images], wanted, rtol=1e-4, atol=1e-5)


def test_byol_losses_predict_target_of_the_other_view() -> None:
    method = with_other_momentum_encoder("byol", "target", target_momentum=1.0)
    before, batch = copy.deepcopy(method), views(method)
    found = method.losses(batch)["byol"].item()
    with torch.no_grad():
        predictions = [unit(before.predictor(before.head(before.backbone(view)))) for view in batch.unlabelled]
        targets = [unit(before.target.network(view)) for view in batch.unlabelled]
    expected = [(2 - 2 * (predictions[one] * targets[other]).sum(1)).mean() for one, other in ((0, 1), (1, 0))]
    assert found == pytest.approx(sum(expected), rel=1e-4)


@pytest.mark.parametrize(("step", "temperature"), [(0, 0.04), (1, 0.05), (3, 0.07), (9, 0.07)])
def test_dino_losses_match_centered_teacher_of_other_large_views(step: int, temperature: float) -> None:
    method = with_other_momentum_encoder("dino", "teacher", setting=LARGE, teacher_momentum=1.0)
    method.center.copy_(0.2 * torch.randn(24))
    before, batch = copy.deepcopy(method), views(method, step=step)
    found = method.losses(batch)["dino"].item()
    large, small = batch.unlabelled[:2], batch.unlabelled[2:]
    outputs = before.teacher(torch.cat(large)).split(8)
    targets = [softmax((double(each) - double(before.center)) / temperature) for each in outputs]
    student = [double(each) for each in embedded(before, large, small)]
    assert len(student) == 4
    assert found == pytest.approx(formulas.between_views(targets, student, 0.1), rel=1e-4)


@pytest.mark.parametrize(("is_full", "step", "uses_queue"), [(True, 5, True), (True, 4, False), (False, 5, False)])
def test_swav_codes_of_large_views_include_the_queue(is_full: bool, step: int, uses_queue: bool) -> None:
    """Each view has its own queue, which is used once it is full and half of the ten steps are done."""
    method: Any = make("swav", LARGE, queue=12, queue_from=0.5)
    if is_full:
        method.queue.copy_(normalize(torch.randn(2, 12, 16), dim=2))
    before, batch = copy.deepcopy(method), views(method, step)
    found = method.losses(batch)["swav"].item()
    z = [unit(each) for each in embedded(before, batch.unlabelled[:2], batch.unlabelled[2:])]
    queues, prototypes = double(before.queue), unit(before.prototypes.weight)
    evened = [np.concatenate([own, queue]) if uses_queue else own for own, queue in zip(z, queues, strict=False)]
    codes = [formulas.codes(every @ prototypes.T, 0.05, 3)[:8] for every in evened]
    assert (len(codes), len(z)) == (2, 4)
    assert found == pytest.approx(formulas.between_views(codes, [each @ prototypes.T for each in z], 0.1), rel=1e-4)
    expected = [np.concatenate([own, queue])[:12] for own, queue in zip(z, queues, strict=False)]
    np.testing.assert_allclose(method.queue.numpy(), expected, rtol=1e-3, atol=1e-5)


def test_deepcluster_losses_classify_every_view_by_each_clustering() -> None:
    method: Any = initialized("deepclusterv2", LARGE, local_views=1)
    before = copy.deepcopy(method)
    index = torch.tensor([3, 0, 12, 7, 15, 1, 9, 4])
    batch = views(method, index=index)
    found = method.losses(batch)["deepclusterv2"].item()
    z = [unit(each) for each in embedded(before, batch.unlabelled[:2], batch.unlabelled[2:])]
    centres, classes = double(method.centroids), method.assignments.numpy()[:, index.numpy()]
    assert (len(z), len(centres)) == (3, 2)
    expected = []
    for of_clustering, clustering in zip(classes, centres, strict=True):
        for view in z:
            expected += list(-np.log(softmax(view @ clustering.T / 0.1)[np.arange(8), of_clustering]))
    assert found == pytest.approx(np.mean(expected), rel=1e-4)
    np.testing.assert_allclose(method.memory[:, index].numpy(), z[:2], rtol=1e-3, atol=1e-5)


def reconstructed(method: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the predicted patches and which were masked, drawn the same way every time."""
    torch.manual_seed(5)
    with torch.no_grad():
        prediction, masked = method._reconstruct(method.backbone.normalize(images))
    return prediction, masked


def over_pixels(patches: Tensor, side: int) -> Tensor:
    """Repeat a value per patch (B, N) for its pixels (B, 1, S, S)."""
    grid = patches.view(len(patches), 1, *[round(patches.shape[1] ** 0.5)] * 2)
    return grid.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)


def test_mae_reconstructs_from_visible_patches_only() -> None:
    method: Any = make("mae", LARGE)
    [images] = views(method).unlabelled
    prediction, masked = reconstructed(method, images)
    assert masked.sum(dim=1).tolist() == [12] * 8
    hidden = over_pixels(masked, method.patch_size)
    assert torch.equal(reconstructed(method, torch.where(hidden, 1 - images, images))[0], prediction)
    for number in range(8):
        for patch in (~masked[number]).nonzero().flatten():
            one = torch.zeros_like(masked)
            one[number, patch] = True
            moved = (
                reconstructed(method, torch.where(over_pixels(one, method.patch_size), 1 - images, images))[0]
                - prediction
            )
            assert (moved.abs().amax(dim=2).amax(dim=1) > 0).tolist() == [each == number for each in range(8)]


def test_mae_losses_are_the_error_on_masked_patches() -> None:
    method: Any = make("mae", LARGE)
    batch = views(method)
    [images] = batch.unlabelled
    prediction, masked = reconstructed(method, images)
    for shown in (images, torch.where(over_pixels(masked, method.patch_size), images**2, images)):
        patches = double(patchify(method.backbone.normalize(shown), 16))
        spread = np.sqrt(patches.var(2, ddof=1, keepdims=True) + 1e-6)
        error = (double(prediction) - (patches - patches.mean(2, keepdims=True)) / spread) ** 2
        torch.manual_seed(5)
        batch.unlabelled[0] = shown
        assert method.losses(batch)["mae"].item() == pytest.approx(error.mean(2)[masked.numpy()].mean(), rel=1e-4)


def test_mae_without_attention_reconstructs_from_own_or_mask_token_and_position() -> None:
    method: Any = make("mae", LARGE)
    method.decoder_blocks = method.backbone.model.blocks = torch.nn.Identity()
    [images] = views(method).unlabelled
    prediction, masked = reconstructed(method, images)
    model = method.backbone.model
    with torch.no_grad():
        own = method.decoder_embed(model.norm(model._pos_embed(model.patch_embed(method.backbone.normalize(images)))))[
            :, 1:
        ]
        tokens = torch.where(masked[:, :, None], method.mask_token, own)
        torch.testing.assert_close(
            prediction, method.decoder_pred(method.decoder_norm(tokens + method.decoder_pos_embed))
        )
