"""The losses of the self-supervised methods, as the papers write them.

All are means over anchors, pairs or patches, in float32 whatever comes in. Embeddings need not be normalised, a queue
has to be. Where images are compared with each other, `own` are the rows of those that are anchors: one process's, of
rows that were gathered from all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.components.kmeans import dot_products

ALL = slice(None)
"""Every row is an anchor."""
_NO_CHANCE = -1e4
"""A logit whose softmax is 0, and whose logarithm is finite."""


def nt_xent(first: Tensor, second: Tensor, temperature: float, own: slice = ALL) -> Tensor:
    """Return SimCLR's NT-Xent (Chen et al., ICML 2020, eq. 1) of two views' embeddings (B, D) of the same images.

    The mean over all 2B views i, or both views of the `own` images, of -log exp(s_ip / t) / sum_{k != i} exp(s_ik / t),
    where s are cosines and p is the other view of i's image.
    """
    views = torch.arange(2 * len(first), device=first.device)
    anchors = views.view(2, -1)[:, own].flatten()
    logits = _logits_without_self(torch.cat([first, second]), anchors, temperature)
    return F.cross_entropy(logits, (anchors + len(first)) % len(views))


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float, same_image: Tensor | None = None) -> Tensor:
    """Return MoCo's InfoNCE (He et al., CVPR 2020, eq. 1) of queries and keys (B, D) and a queue of negatives (K, D).

    The mean over queries of the cross entropy of [q.k, q.queue] / t with class 0; no gradient for keys and queue.
    `same_image` (B, K) bool: entries of the queue that are of the query's own image, and so no negatives.
    """
    q, k = _unit(query), _unit(key.detach())
    positive = (q * k).sum(dim=1, keepdim=True)
    negatives = dot_products(q, queue.detach())
    negatives = negatives if same_image is None else negatives.masked_fill(same_image, -torch.inf)
    logits = torch.cat([positive, negatives], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def suncet(embeddings: Tensor, labels: Tensor, temperature: float, smoothing: float = 0.0, own: slice = ALL) -> Tensor:
    """Return SuNCEt (Assran et al., 2020, eq. 1) of labelled images: embeddings (N, D), class numbers (N,).

    The mean over anchors i of -log sum_{j in P(i)} p_ij, with p_ij the softmax of the cosines over all other images and
    P(i) those of i's class: the negative log-likelihood of a leave-one-out soft nearest-neighbour classifier. With
    `smoothing` s, the cross entropy of its class probabilities with labels of which s is spread evenly over the classes
    present. 0 without anchors; not finite if an image is alone in its class.
    """
    logits, same_class = _labelled_logits(embeddings, labels, temperature, own)
    total = torch.logsumexp(logits, dim=1)
    true = total - torch.logsumexp(logits.masked_fill(~same_class, -torch.inf), dim=1)
    if not smoothing:
        return _mean(true)
    members = (labels[:, None] == labels[None, :]).float()
    # (A, N): log-probability of the class of each image, where a class is as often as it has images
    of_class = (logits.softmax(dim=1) @ members).clamp_min(torch.finfo(torch.float32).tiny).log()
    weights = 1 / members.sum(dim=1)
    return _mean((1 - smoothing) * true - smoothing * (of_class * weights).sum(dim=1) / weights.sum())


def supcon(embeddings: Tensor, labels: Tensor, temperature: float, own: slice = ALL) -> Tensor:
    """Return SupCon (Khosla et al., NeurIPS 2020, eq. 2, L_out) of embeddings (N, D), class numbers (N,).

    The mean over anchors of -1/|P(i)| sum_{j in P(i)} log p_ij, with p and P as in `suncet`: the sum over positives is
    outside the logarithm. Without the paper's factor of temperature over base temperature.
    """
    logits, same_class = _labelled_logits(embeddings, labels, temperature, own)
    log_p = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    return -_mean(log_p.masked_fill(~same_class, 0).sum(dim=1) / same_class.sum(dim=1))


def _labelled_logits(embeddings: Tensor, labels: Tensor, temperature: float, own: slice) -> tuple[Tensor, Tensor]:
    """Return cosines of anchors over temperature (A, N), -inf with themselves, and which others are of their class."""
    anchors = torch.arange(len(labels), device=labels.device)[own]
    same_class = labels[anchors, None] == labels[None, :]
    same_class[torch.arange(len(anchors), device=labels.device), anchors] = False
    return _logits_without_self(embeddings, anchors, temperature), same_class


def mean_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the mean over images of the cross entropy of logits (N, K) with class numbers (N,); 0 without images."""
    return _mean(F.cross_entropy(logits, classes, reduction="none"))


def _mean(losses: Tensor) -> Tensor:
    """Return the mean of anchors' losses (A,), 0 with a graph if there are none: then other processes have some."""
    return losses.mean() if len(losses) else losses.sum()


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.float(), dim=1)


def _logits_without_self(embeddings: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """Return cosines of the anchors, numbers (A,) of embeddings (N, D), over temperature (A, N).

    -inf where an anchor meets itself, so that no image is compared with itself.
    """
    z = _unit(embeddings)
    logits = dot_products(z[anchors], z) / temperature
    logits[torch.arange(len(anchors), device=z.device), anchors] = -torch.inf
    return logits


def byol(prediction: Tensor, target: Tensor) -> Tensor:
    """Return BYOL's loss in one direction (Grill et al., NeurIPS 2020, eq. 2): the mean of 2 - 2 cos of (B, D) each."""
    return (2 - 2 * F.cosine_similarity(prediction.float(), target.detach().float(), dim=1)).mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return SwAV's codes Q (Caron et al., NeurIPS 2020, eq. 3 to 5, alg. 1) of scores (B, K): (B, K).

    Rows sum to 1. Columns sum to B / K after enough iterations: all prototypes are used alike. Computed in logarithms,
    so that no exponential overflows.
    """
    log_q = scores.float() / epsilon
    for _ in range(iterations):
        log_q = log_q - torch.logsumexp(log_q, dim=0, keepdim=True)
        log_q = log_q - torch.logsumexp(log_q, dim=1, keepdim=True)
    return log_q.exp()


def swapped_prediction(scores: Sequence[Tensor], codes: Sequence[Tensor], temperature: float) -> Tensor:
    """Return SwAV's loss (eq. 2 and 6) of the scores (B, K) of all views and the codes of the first of them.

    The mean over all pairs of a code and another view of the cross entropy of softmax(score / t) with the code.
    """
    log_p = [F.log_softmax(score.float() / temperature, dim=1) for score in scores]
    pairs = itertools.product(enumerate(codes), enumerate(log_p))
    return torch.stack([-(q * p).sum(dim=1).mean() for (t, q), (s, p) in pairs if s != t]).mean()


def dino(
    student: Sequence[Tensor], teacher: Sequence[Tensor], center: Tensor, temperatures: tuple[float, float]
) -> Tensor:
    """Return DINO's loss (Caron et al., ICCV 2021, eq. 3, alg. 1).

    `student`, `teacher`: outputs (B, K) for all views, and for the first of them. `center`: (K,). `temperatures`: the
    student's and the teacher's. The mean over all pairs of a teacher's and another student's view of the cross entropy
    between their softmaxes.
    """
    student_temperature, teacher_temperature = temperatures
    targets = [((output.detach().float() - center) / teacher_temperature).softmax(dim=1) for output in teacher]
    return swapped_prediction(student, targets, student_temperature)


def masked_reconstruction(prediction: Tensor, patches: Tensor, masked: Tensor) -> Tensor:
    """Return MAE's loss (He et al., CVPR 2022, section 3) of predicted and true patches (B, N, P).

    The mean squared error over the patches that are `masked` (B, N) bool, each true patch normalised by its own mean
    and standard deviation.
    """
    patches = patches.float()
    mean, variance = patches.mean(dim=2, keepdim=True), patches.var(dim=2, keepdim=True)
    target = (patches - mean) / (variance + 1e-6).sqrt()
    error = (prediction.float() - target).square().mean(dim=2)
    return (error * masked).sum() / masked.sum()


def queue_distillation(student: Tensor, teacher: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return the mean over images of KL(t || s): softmaxes of cosines over temperature with a queue's vectors (K, D).

    `student`, `teacher`: vectors (B, D), no gradient for the teacher's. Rows of the queue that are 0 are left out; at
    least one is not. As in LightlyTrain, the queue already holds the teacher's vectors of these images.
    """
    is_empty = ~queue.any(dim=1)
    log_t, log_s = (
        (dot_products(_unit(vectors), queue) / temperature).masked_fill(is_empty, _NO_CHANCE).log_softmax(dim=1)
        for vectors in (teacher.detach(), student)
    )
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def map_distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean over cells of KL(t || s): softmaxes of a cell's cosines over temperature with all of its image.

    `student` (B, D, h, w), resized bilinearly to the teacher's map (B, C, H, W), which gets no gradient.
    """
    resized = F.interpolate(student.float(), teacher.shape[-2:], mode="bilinear")
    log_t, log_s = (_log_similarities(maps, temperature) for maps in (teacher.detach(), resized))
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def _log_similarities(maps: Tensor, temperature: float) -> Tensor:
    """Return the logarithms of softmaxes over cosines between the cells of each map (B, C, H, W): (B H W, H W)."""
    cells = _unit(maps.flatten(2)).transpose(1, 2)
    return (dot_products(cells, cells) / temperature).log_softmax(dim=2).flatten(0, 1)


def graph_contrast(first: Tensor, second: Tensor, graph: Tensor, temperature: float, own: slice = ALL) -> Tensor:
    """Return CoMatch's loss (Li et al., ICCV 2021, eq. 10) of two views' embeddings (B, D) and a `label_graph` Q.

    The mean over the `own` images b of -sum_j Q_bj log P_bj, where P is the softmax over j of the cosines of the first
    view of b with the second view of j, over temperature.
    """
    log_p = (dot_products(_unit(first[own]), _unit(second)) / temperature).log_softmax(dim=1)
    return -(graph * log_p).sum(dim=1).mean()


def label_graph(labels: Tensor, threshold: float, own: slice = ALL) -> Tensor:
    """Return how much alike the pseudo labels (B, K) of images b and j are (CoMatch, eq. 8): (A, B), rows sum to 1.

    In proportion to their scalar product where it reaches the threshold, to 1 for b itself, and else 0.
    """
    anchors = torch.arange(len(labels), device=labels.device)[own]
    similarity = dot_products(labels[own].float(), labels.float())
    similarity = similarity.masked_fill(similarity < threshold, 0)
    similarity[torch.arange(len(anchors), device=labels.device), anchors] = 1
    return F.normalize(similarity, p=1, dim=1)
