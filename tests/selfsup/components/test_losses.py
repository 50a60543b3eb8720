"""The losses against plain NumPy in double precision and against lightly, and their properties in the papers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.components import losses
from selfsup.components.kmeans import nearest_centroid, spherical_kmeans
from tests.selfsup import formulas
from tests.selfsup.formulas import double, softmax, softmax_without_self, unit, vectors


@pytest.fixture
def lightly() -> Any:
    """lightly's losses."""
    return pytest.importorskip("lightly.loss")


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])


def test_nt_xent_equals_formula() -> None:
    first, second = vectors(8), vectors(8, seed=1)
    assert losses.nt_xent(first, second, 0.2).item() == pytest.approx(formulas.nt_xent(first, second, 0.2), rel=1e-5)


def test_nt_xent_equals_lightly(lightly: Any) -> None:
    first, second = vectors(8), vectors(8, seed=1)
    theirs = lightly.NTXentLoss(temperature=0.2)(first, second).item()
    assert losses.nt_xent(first, second, 0.2).item() == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_suncet_smoothing_is_cross_entropy_with_smoothed_labels(smoothing: float) -> None:
    embeddings = vectors(12)
    p = softmax_without_self(unit(embeddings), 0.2)
    one_hot = np.eye(3)[LABELS.numpy()]
    smooth = (1 - smoothing) * one_hot + smoothing / 3
    expected = -(smooth * np.log(p @ one_hot)).sum(1).mean()
    assert losses.suncet(embeddings, LABELS, 0.2, smoothing).item() == pytest.approx(expected, rel=1e-5)


def by_part(loss: Callable[[slice], Tensor], count: int, bounds: Sequence[int]) -> Tensor:
    """Return the sum of the losses of the anchors between bounds, each weighted by its share of all."""
    parts = [slice(*pair) for pair in itertools.pairwise(bounds)]
    return torch.stack([loss(part) * (part.stop - part.start) / count for part in parts]).sum()


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, own: losses.nt_xent(z, z.flip(0) + 1, 0.2, own),
        lambda z, own: losses.suncet(z, LABELS, 0.2, own=own),
        lambda z, own: losses.suncet(z, LABELS, 0.2, 0.1, own),
        lambda z, own: losses.supcon(z, LABELS, 0.2, own),
    ],
    ids=["nt_xent", "suncet", "suncet with smoothing", "supcon"],
)
def test_nt_xent_suncet_and_supcon_of_parts_of_the_anchors_add_up(loss: Callable[[Tensor, slice], Tensor]) -> None:
    z = vectors(12).requires_grad_()
    whole = loss(z, losses.ALL)
    parts = by_part(lambda own: loss(z, own), 12, (0, 1, 5, 12))
    torch.testing.assert_close(parts, whole)
    gradients = [torch.autograd.grad(each, z)[0] for each in (whole, parts)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("loss", [losses.suncet, losses.supcon])
def test_suncet_and_supcon_without_anchors_are_zero_with_a_graph(loss: Callable[..., Tensor]) -> None:
    z = vectors(12).requires_grad_()
    found = loss(z, LABELS, 0.2, own=slice(3, 3))
    found.backward()
    assert found.item() == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_info_nce_equals_formula() -> None:
    query, key, queue = vectors(8), vectors(8, seed=1), F.normalize(vectors(32, seed=2), dim=1)
    expected = formulas.info_nce(query, key, queue, 0.2)
    assert losses.info_nce(query, key, queue, 0.2).item() == pytest.approx(expected, rel=1e-5)


def test_info_nce_equals_lightly(lightly: Any) -> None:
    query, key, queue = vectors(8), vectors(8, seed=1), F.normalize(vectors(32, seed=2), dim=1)
    theirs = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(32, 16))
    theirs.memory_bank.bank = queue.clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    assert losses.info_nce(query, key, queue, 0.2).item() == pytest.approx(theirs(query, key).item(), rel=1e-4)


def test_info_nce_of_random_and_of_collapsed_features() -> None:
    queue = F.normalize(vectors(512, 128), dim=1)
    far = losses.info_nce(vectors(256, 128, 1), vectors(256, 128, 2), queue, 1.0).item()
    assert far == pytest.approx(math.log(513), abs=0.05)
    same = torch.ones(4, 128)
    collapsed = losses.info_nce(same, same, F.normalize(torch.ones(512, 128), dim=1), 0.2)
    assert collapsed.item() == pytest.approx(math.log(513), rel=1e-5)


def test_info_nce_leaves_out_same_image() -> None:
    query, key, queue = vectors(4), vectors(4, seed=1), F.normalize(vectors(8, seed=2), dim=1)
    own = torch.zeros(4, 8, dtype=torch.bool)
    own[:, 5:] = True
    expected = losses.info_nce(query, key, queue[:5], 0.2)
    torch.testing.assert_close(losses.info_nce(query, key, queue, 0.2, own), expected)


def test_losses_and_kmeans_are_exact_under_autocast() -> None:
    """Features in a narrow cone, as rectified ones are: they differ in the last digits."""
    z = (vectors(64) * 0.1 + 1).bfloat16()
    labels = torch.arange(16).repeat(4)
    points = F.normalize(z.float(), dim=1)
    queue = F.normalize(vectors(64, seed=3) * 0.1 + 1, dim=1)

    def found() -> list[Tensor]:
        torch.manual_seed(0)
        centres, assigned = spherical_kmeans(points, 8, 3)
        return [
            losses.nt_xent(z[:32], z[32:], 0.1),
            losses.suncet(z, labels, 0.1),
            losses.info_nce(z, z.roll(1, 0), queue, 0.2),
            centres,
            assigned,
        ]

    exact = found()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = found()
    assert all(torch.equal(one, other) for one, other in zip(exact, rounded, strict=True))


def test_info_nce_gives_keys_and_queue_no_gradient() -> None:
    query, key, queue = (vectors(8, seed=seed).requires_grad_() for seed in range(3))
    losses.info_nce(query, key, queue, 0.2).backward()
    assert query.grad is not None
    assert key.grad is None
    assert queue.grad is None


def test_suncet_equals_formula() -> None:
    z = vectors(12)
    p = softmax_without_self(unit(z), 0.1)
    same = (LABELS[:, None] == LABELS[None, :]).numpy() & ~np.eye(12, dtype=bool)
    expected = -np.log((p * same).sum(1)).mean()
    assert losses.suncet(z, LABELS, 0.1).item() == pytest.approx(expected, rel=1e-5)
    assert formulas.suncet(z, LABELS, 0.1) == pytest.approx(expected), "log-likelihood of its classifier"
    by_class = [
        -np.log((p[np.ix_(members, members)]).sum(1))
        for members in (np.flatnonzero(LABELS.numpy() == number) for number in range(3))
    ]
    assert np.concatenate(by_class).mean() == pytest.approx(expected)


def test_suncet_is_nca_with_a_gaussian_kernel_on_the_sphere() -> None:
    z, temperature = unit(vectors(12)), 0.1
    kernel = np.exp(-((z[:, None] - z[None, :]) ** 2).sum(2) / (2 * temperature))
    np.fill_diagonal(kernel, 0)
    same = (LABELS[:, None] == LABELS[None, :]).numpy()
    expected = -np.log((kernel * same).sum(1) / kernel.sum(1)).mean()
    assert losses.suncet(vectors(12), LABELS, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_suncet_of_two_views_per_image_is_nt_xent() -> None:
    first, second = vectors(8), vectors(8, seed=1)
    pairs = torch.arange(8).repeat(2)
    both = torch.cat([first, second])
    expected = losses.nt_xent(first, second, 0.1).item()
    assert losses.suncet(both, pairs, 0.1).item() == pytest.approx(expected, rel=1e-5)
    assert losses.supcon(both, pairs, 0.1).item() == pytest.approx(expected, rel=1e-5), "one positive each"


def test_supcon_equals_formula() -> None:
    z = vectors(12)
    p = softmax_without_self(unit(z), 0.1)
    same = (LABELS[:, None] == LABELS[None, :]).numpy() & ~np.eye(12, dtype=bool)
    logs = np.log(p, where=same, out=np.zeros_like(p))
    expected = -(logs.sum(1) / same.sum(1)).mean()
    assert losses.supcon(z, LABELS, 0.1).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("members", [2, 3, 4, 6])
def test_supcon_is_more_than_suncet_unless_each_image_has_one_positive(members: int) -> None:
    """Jensen: a mean of logarithms is below the logarithm of the mean, unless the values are equal."""
    z, labels, positives = vectors(12), torch.arange(12 // members).repeat(members), members - 1
    more = losses.supcon(z, labels, 0.1).item() - losses.suncet(z, labels, 0.1).item() - math.log(positives)
    if positives == 1:
        assert more == pytest.approx(0, abs=1e-5)
    else:
        assert more > 0.1
    alike = torch.ones(12, 16)
    bound = losses.suncet(alike, labels, 0.1).item() + math.log(positives)
    assert losses.supcon(alike, labels, 0.1).item() == pytest.approx(bound, rel=1e-5)


def test_suncet_of_equal_embeddings_is_log_of_their_counts() -> None:
    same = torch.ones(12, 16)
    assert losses.suncet(same, LABELS, 0.1).item() == pytest.approx(math.log((12 - 1) / (4 - 1)), rel=1e-5)


def test_suncet_of_separated_classes_is_small() -> None:
    """Twenty orthogonal directions, three images each."""
    labels = torch.arange(20).repeat(3)
    found = losses.suncet(torch.eye(20)[labels], labels, 0.1).item()
    assert found == pytest.approx(0.001293, abs=1e-6)


def test_suncet_is_invariant_to_scale_order_and_rotation() -> None:
    z, order = vectors(12), torch.randperm(12, generator=torch.Generator().manual_seed(3))
    expected = losses.suncet(z, LABELS, 0.1).item()
    rotation = torch.linalg.qr(vectors(16, 16, 5)).Q
    scales = torch.rand(12, 1, generator=torch.Generator().manual_seed(4)) + 0.1
    for other, labels in ((z * scales, LABELS), (z[order], LABELS[order]), (z @ rotation, LABELS)):
        assert losses.suncet(other, labels, 0.1).item() == pytest.approx(expected, rel=1e-5)
    z.requires_grad_()
    losses.suncet(z, LABELS, 0.1).backward()
    assert z.grad is not None
    torch.testing.assert_close((z.grad * z).sum(dim=1), torch.zeros(12), atol=1e-6, rtol=0)


def test_suncet_is_finite_at_tiny_temperatures() -> None:
    z = vectors(12).half()
    found = losses.suncet(z, LABELS, 0.001)
    assert found.isfinite()
    assert found.dtype == torch.float32


@pytest.mark.parametrize("loss", [losses.suncet, losses.supcon])
def test_labelled_losses_are_not_finite_for_a_class_with_one_image(loss: Callable[..., Tensor]) -> None:
    """They don't look at values to raise an error: fit tells which images had no finite loss."""
    assert not loss(vectors(3), torch.tensor([1, 1, 7]), 0.1).isfinite()


def test_byol_equals_formula() -> None:
    prediction, target = vectors(8).requires_grad_(), vectors(8, seed=1).requires_grad_()
    found = losses.byol(prediction, target)
    expected = (2 - 2 * (unit(prediction) * unit(target)).sum(1)).mean()
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert prediction.grad is not None
    assert target.grad is None


def test_byol_equals_lightly(lightly: Any) -> None:
    prediction, target = vectors(8), vectors(8, seed=1)
    theirs = lightly.NegativeCosineSimilarity()(prediction, target).item()
    assert losses.byol(prediction, target).item() == pytest.approx(2 + 2 * theirs, rel=1e-5)


def test_sinkhorn_uses_prototypes_alike() -> None:
    scores = vectors(64, 8)
    codes = losses.sinkhorn(scores, 0.5, 100)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(codes.sum(dim=0), torch.full((8,), 64 / 8), rtol=1e-3, atol=0)
    few = losses.sinkhorn(scores, 0.05, 3)
    torch.testing.assert_close(few.sum(dim=1), torch.ones(64))


@pytest.mark.parametrize("rounds", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_sinkhorn_equals_formula(epsilon: float, rounds: int) -> None:
    scores = vectors(64, 8)
    expected = formulas.codes(double(scores), epsilon, rounds)
    np.testing.assert_allclose(losses.sinkhorn(scores, epsilon, rounds).numpy(), expected, rtol=1e-3, atol=1e-6)


def test_sinkhorn_equals_lightly(lightly: Any) -> None:
    theirs = lightly.swav_loss.sinkhorn(vectors(64, 8), iterations=3, epsilon=0.05)
    torch.testing.assert_close(losses.sinkhorn(vectors(64, 8), 0.05, 3), theirs, rtol=1e-3, atol=1e-6)


def test_swapped_prediction_equals_formula() -> None:
    scores = [vectors(16, 8, seed) for seed in range(4)]
    codes = [losses.sinkhorn(large, 0.05, 3) for large in scores[:2]]
    array = [double(each) for each in scores]
    expected = formulas.between_views([formulas.codes(large, 0.05, 3) for large in array[:2]], array, 0.1)
    assert losses.swapped_prediction(scores, codes, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_swapped_prediction_equals_lightly(lightly: Any) -> None:
    large, small = [vectors(16, 8, seed) for seed in (0, 1)], [vectors(16, 8, seed) for seed in (2, 3)]
    codes = [losses.sinkhorn(scores, 0.05, 3) for scores in large]
    found = losses.swapped_prediction([*large, *small], codes, 0.1).item()
    theirs = lightly.SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)(large, small).item()
    assert found == pytest.approx(theirs, rel=1e-3)


def test_dino_equals_formula() -> None:
    teacher, student = [vectors(8, 32, s) for s in (0, 1)], [vectors(8, 32, s) for s in (2, 3, 4, 5)]
    center = vectors(1, 32, 6)[0]
    wanted = [softmax((double(each) - double(center)) / 0.04) for each in teacher]
    expected = formulas.between_views(wanted, [double(each) for each in student], 0.1)
    assert losses.dino(student, teacher, center, (0.1, 0.04)).item() == pytest.approx(expected, rel=1e-5)


def test_dino_equals_lightly(lightly: Any) -> None:
    teacher, student = [vectors(8, 32, s) for s in (0, 1)], [vectors(8, 32, s) for s in (2, 3, 4, 5)]
    center = vectors(1, 32, 6)[0]
    theirs = lightly.DINOLoss(output_dim=32, student_temp=0.1, warmup_teacher_temp=0.04, warmup_teacher_temp_epochs=1)
    theirs.center.copy_(center)
    expected = theirs(teacher, student, teacher_temp=0.04).item()
    assert losses.dino(student, teacher, center, (0.1, 0.04)).item() == pytest.approx(expected, rel=1e-3)


def test_dino_of_uniform_outputs_is_their_entropy() -> None:
    flat = [torch.zeros(4, 32)] * 2
    assert losses.dino(flat, flat, torch.zeros(32), (0.1, 0.04)).item() == pytest.approx(math.log(32), rel=1e-5)


def test_masked_reconstruction_reads_masked_patches_only() -> None:
    patches, prediction = vectors(40, 12).view(4, 10, 12), vectors(40, 12, 1).view(4, 10, 12)
    masked = torch.rand(4, 10, generator=torch.Generator().manual_seed(0)) < 0.75
    array = patches.double().numpy()
    wanted = (array - array.mean(2, keepdims=True)) / np.sqrt(array.var(2, ddof=1, keepdims=True) + 1e-6)
    expected = ((prediction.double().numpy() - wanted) ** 2).mean(2)[masked.numpy()].mean()
    assert losses.masked_reconstruction(prediction, patches, masked).item() == pytest.approx(expected, rel=1e-5)
    changed = torch.where(masked[:, :, None], prediction, prediction + 9)
    assert losses.masked_reconstruction(changed, patches, masked).item() == pytest.approx(expected, rel=1e-5)


def test_spherical_kmeans_never_loses_cosine() -> None:
    points = F.normalize(vectors(200, 8), dim=1)
    sums = []
    for iterations in range(8):
        torch.manual_seed(0)
        centres, assigned = spherical_kmeans(points, 6, iterations)
        assert torch.equal(assigned, nearest_centroid(points, centres))
        torch.testing.assert_close(centres.norm(dim=1), torch.ones(6))
        sums.append((points * centres[assigned]).sum().item())
    assert sums == sorted(sums)


def test_spherical_kmeans_of_fewer_points_than_clusters() -> None:
    points = F.normalize(vectors(3, 8), dim=1)
    centres, assigned = spherical_kmeans(points, 5, 3)
    assert centres.shape == (5, 8)
    assert (points * centres[assigned]).sum(dim=1).min() > 0.99
