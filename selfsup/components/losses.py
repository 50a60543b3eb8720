"""The losses of the self-supervised methods, as the papers write them. Float32 inside, whatever comes in; all are
means, over anchors, pairs or patches.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import DataError
from selfsup.components.kmeans import products


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss (Chen et al., ICML 2020, eq. 1): embeddings (B, D) of two views of the same images -> scalar.

    The mean over all 2B views i of -log exp(s_ip / t) / sum_{k != i} exp(s_ik / t), where s are cosines and p is the
    other view of i's image.
    """
    z = _unit(torch.cat([first, second]))
    count = len(first)
    partner = torch.arange(2 * count, device=z.device).roll(count)
    return F.cross_entropy(_without_self(products(z, z) / temperature), partner)


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float, own: Tensor | None = None) -> Tensor:
    """MoCo's loss (He et al., CVPR 2020, eq. 1): queries and keys (B, D), a queue of negatives (K, D) -> scalar.

    The mean over queries of the cross entropy of [q.k, q.queue] / t with class 0; no gradient for keys and queue. `own`
    (B, K): which entries of the queue are no negatives of a query.
    """
    query, key = _unit(query), _unit(key.detach())
    positive = (query * key).sum(dim=1, keepdim=True)
    negatives = products(query, queue.detach())
    negatives = negatives if own is None else negatives.masked_fill(own, -torch.inf)
    logits = torch.cat([positive, negatives], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def suncet(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """SuNCEt (Assran et al., 2020, eq. 1): embeddings (N, D) of labelled images, class numbers (N,) -> scalar.

    The mean over anchors of -log sum_{j in P(i)} p_ij, with p_ij the softmax of the cosines over all other images and
    P(i) those of i's class: the negative log-likelihood of a leave-one-out soft nearest-neighbour classifier. DataError
    for an image that is alone in its class.
    """
    cosines, same = _labelled(embeddings, labels, temperature)
    of_class = cosines.masked_fill(~same, -torch.inf)
    return (torch.logsumexp(cosines, dim=1) - torch.logsumexp(of_class, dim=1)).mean()


def supcon(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """SupCon (Khosla et al., NeurIPS 2020, eq. 2, L_out): embeddings (N, D), class numbers (N,) -> scalar.

    The mean over anchors of -1/|P(i)| sum_{j in P(i)} log p_ij, with p and P as in `suncet`: the sum over positives is
    outside the logarithm. Without the paper's factor of temperature over base temperature.
    """
    cosines, same = _labelled(embeddings, labels, temperature)
    log_p = cosines - torch.logsumexp(cosines, dim=1, keepdim=True)
    return -(log_p.masked_fill(~same, 0).sum(dim=1) / same.sum(dim=1)).mean()


def _labelled(embeddings: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cosines over the temperature (N, N), -inf on the diagonal, and which other images are of the same class."""
    z = _unit(embeddings)
    same = labels[:, None] == labels[None, :]
    same.fill_diagonal_(False)
    alone = labels[~same.any(dim=1)]
    if len(alone):
        raise DataError(f"One image alone of class {int(alone[0])} in a batch: each needs another one of its class.")
    return _without_self(products(z, z) / temperature), same


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.float(), dim=1)


def _without_self(similarities: Tensor) -> Tensor:
    """The same with -inf on the diagonal: nobody is compared with itself."""
    own = torch.eye(len(similarities), dtype=torch.bool, device=similarities.device)
    return similarities.masked_fill(own, -torch.inf)


def byol(prediction: Tensor, target: Tensor) -> Tensor:
    """BYOL's loss (Grill et al., NeurIPS 2020, eq. 2) for one direction: (B, D) each -> the mean of 2 - 2 cos."""
    return (2 - 2 * F.cosine_similarity(prediction.float(), target.detach().float(), dim=1)).mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """SwAV's codes (Caron et al., NeurIPS 2020, alg. 1): scores (B, K) -> (B, K), rows of which sum to 1, and columns,
    once enough iterations were made, to B / K: all prototypes are used alike. In logarithms: no exponential overflows.
    """
    log = scores.float() / epsilon
    for _ in range(iterations):
        log = log - torch.logsumexp(log, dim=0, keepdim=True)
        log = log - torch.logsumexp(log, dim=1, keepdim=True)
    return log.exp()


def swapped_prediction(scores: Sequence[Tensor], codes: Sequence[Tensor], temperature: float) -> Tensor:
    """SwAV's loss (eq. 2): scores (B, K) of all views, codes of the first of them -> scalar.

    The mean over all pairs of a code and another view of the cross entropy of softmax(score / t) with the code.
    """
    return _over_pairs(scores, codes, temperature)


def distillation(
    student: Sequence[Tensor], teacher: Sequence[Tensor], center: Tensor, temperatures: tuple[float, float]
) -> Tensor:
    """DINO's loss (Caron et al., ICCV 2021, alg. 1): the student's outputs (B, K) for all views, the teacher's for the
    first of them, the centre (K,), and (student's, teacher's) temperature -> scalar.

    The mean over all pairs of a teacher's and another student's view of the cross entropy between their softmaxes.
    """
    mine, theirs = temperatures
    targets = [((output.detach().float() - center) / theirs).softmax(dim=1) for output in teacher]
    return _over_pairs(student, targets, mine)


def _over_pairs(scores: Sequence[Tensor], targets: Sequence[Tensor], temperature: float) -> Tensor:
    """The mean cross entropy over pairs of a target and the scores of another view."""
    logs = [F.log_softmax(score.float() / temperature, dim=1) for score in scores]
    pairs = itertools.product(enumerate(targets), enumerate(logs))
    return torch.stack([-(q * p).sum(dim=1).mean() for (t, q), (s, p) in pairs if s != t]).mean()


def masked_reconstruction(prediction: Tensor, patches: Tensor, masked: Tensor) -> Tensor:
    """MAE's loss (He et al., CVPR 2022, section 3): predicted and true patches (B, N, P), `masked` (B, N) -> scalar.

    The mean squared error over masked patches alone, each patch normalised by its own mean and standard deviation.
    """
    patches = patches.float()
    mean, variance = patches.mean(dim=2, keepdim=True), patches.var(dim=2, keepdim=True)
    wanted = (patches - mean) / (variance + 1e-6).sqrt()
    error = (prediction.float() - wanted).square().mean(dim=2)
    return error[masked].mean()
