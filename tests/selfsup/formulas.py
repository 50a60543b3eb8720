"""The papers' formulas in plain NumPy, in double precision, as references for the losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def vectors(count: int, dim: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def double(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().double().numpy())


def unit(tensor: Tensor) -> Array:
    array = double(tensor)
    return np.asarray(array / np.linalg.norm(array, axis=1, keepdims=True))


def softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def softmax_without_self(z: Array, temperature: float) -> Array:
    scores = z @ z.T / temperature
    np.fill_diagonal(scores, -np.inf)
    return softmax(scores)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> float:
    count = len(first)
    p = softmax_without_self(unit(torch.cat([first, second])), temperature)
    rows = np.arange(2 * count)
    return float(-np.log(p[rows, (rows + count) % (2 * count)]).mean())


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> float:
    positive = (unit(query) * unit(key)).sum(1, keepdims=True)
    p = softmax(np.concatenate([positive, unit(query) @ unit(queue).T], 1) / temperature)
    return float(-np.log(p[:, 0]).mean())


def suncet(z: Tensor, labels: Tensor, temperature: float) -> float:
    """Return the negative log-likelihood of the leave-one-out classifier: the p of all others, summed by class."""
    one_hot = np.eye(int(labels.max()) + 1)[labels.numpy()]
    predicted = softmax_without_self(unit(z), temperature) @ one_hot
    return float(-np.log(predicted[np.arange(len(z)), labels.numpy()]).mean())


def supcon(z: Tensor, labels: Tensor, temperature: float) -> float:
    """Return SupCon's L_out, image by image."""
    p, terms = softmax_without_self(unit(z), temperature), []
    for i, label in enumerate(labels):
        positives = [j for j in range(len(labels)) if j != i and labels[j] == label]
        terms.append(-np.mean([np.log(p[i, j]) for j in positives]))
    return float(np.mean(terms))


def codes(scores: Array, epsilon: float, rounds: int) -> Array:
    """Return SwAV's codes (algorithm 1): columns and rows of exp(scores / epsilon) divided by their sums in turn."""
    q = np.exp(scores / epsilon)
    images, prototypes = q.shape
    for _ in range(rounds):
        q = q / q.sum(axis=0, keepdims=True) / prototypes
        q = q / q.sum(axis=1, keepdims=True) / images
    return np.asarray(q * images)


def between_views(targets: Sequence[Array], scores: Sequence[Array], temperature: float) -> float:
    """Return the mean cross entropy of a view's target with softmax(scores / temperature) of every other view."""
    cross_entropies = []
    for own, q in enumerate(targets):
        for other, s in enumerate(scores):
            if own != other:
                cross_entropies.append(-(q * np.log(softmax(s / temperature))).sum(axis=1).mean())
    return float(np.mean(cross_entropies))
