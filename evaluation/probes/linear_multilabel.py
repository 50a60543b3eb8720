"""Logistic regression of every class on frozen features, by L-BFGS: the linear probe for several classes per image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evaluation.probe import MAX_ITERATIONS, PENALTY_GRID, LabelledFeatures, ProbeData, ProbeResult
from tasks.multilabel.label import TaskLabel

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
READS = "vector"
LABEL = TaskLabel
ABOUT = (
    "logistic regression of each class on standardised features of the whole images in which it is known, the L2 "
    f"penalty of all classes out of {len(PENALTY_GRID)} (C = {PENALTY_GRID[0]:g} to {PENALTY_GRID[-1]:g}) by mAP on "
    f"validation images, at most {MAX_ITERATIONS} iterations"
)
RANDOM = False


def fit(data: ProbeData) -> ProbeResult:
    """Return the classifier with the penalty that is best on validation images, the strongest one on a tie."""
    from tasks.multilabel.model import RankingScores

    mean, std = data.train.features.mean(0), data.train.features.std(0, correction=0).clamp_min(1e-6)

    def standardize(features: Tensor) -> Tensor:
        return (features - mean) / std

    train = LabelledFeatures(standardize(data.train.features), data.train.classes)
    models = [logistic_regression(train, c, data.device) for c in PENALTY_GRID]
    scores = []
    for weight, bias in models:
        metric = RankingScores()
        predicted = standardize(data.val.features) @ weight + bias
        for one, other in zip(predicted.numpy(), data.val.classes.numpy(), strict=True):
            metric.update({"probs": one}, {"probs": other})
        scores.append(metric.compute().get("map"))  # None of all: too few labels to tell
    best = max(range(len(PENALTY_GRID)), key=lambda number: scores[number] or 0)
    weight, bias = models[best]
    settings = {"C": PENALTY_GRID[best], "validation": scores[best]}
    return ProbeResult(lambda features: (standardize(features) @ weight + bias).sigmoid(), settings)


def logistic_regression(data: LabelledFeatures, c: float, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Return weights (D, K) and biases (K,) that minimize, for each class k, |w_k|^2 / 2 + c sum_n BCE_nk.

    The sum is over the images in which the class is known. Computed on the device, returned on the CPU.
    """
    import torch
    import torch.nn.functional as F

    from pipeline.models.precision import exact_products

    features, known = data.features.to(device), (~data.classes.isnan()).float().to(device)
    target = data.classes.nan_to_num().to(device)
    weight = torch.zeros(features.shape[1], target.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(target.shape[1], device=device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        logits = features @ weight + bias
        losses = F.binary_cross_entropy_with_logits(logits, target, weight=known, reduction="sum")
        loss = (losses + weight.square().sum() / (2 * c)) / len(target)
        loss.backward()
        return float(loss.detach())

    with exact_products():
        optimizer.step(closure)
    return weight.detach().cpu(), bias.detach().cpu()
