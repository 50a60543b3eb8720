"""MoCo's queue of keys, and the keys of a step: what two encoders are contrasted by (He et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.training.collectives import Collectives, Gathered
from selfsup.components.losses import info_nce
from selfsup.components.method import StageSetting

MAX_QUEUE = 65_536
MIN_GROUP = 8
"""Fewest images of a process whose keys share batch statistics."""


class KeyQueue(nn.Module):
    """Unit keys of the latest images, at first random ones.

    `keys` (K, D); `images`: the position in the set of each key's image, -1 for random keys; `ptr`: the oldest key.
    """

    keys: Tensor
    images: Tensor
    ptr: Tensor

    def __init__(self, length: int | None, dim: int, setting: StageSetting) -> None:
        """`length`: K; None for 65,536, or for as many images as whole batches hold, if they are fewer."""
        super().__init__()
        count = length or min(MAX_QUEUE, max(setting.images // setting.batch, 1) * setting.batch)
        self.register_buffer("keys", F.normalize(torch.randn(count, dim), dim=1))
        self.register_buffer("images", torch.full((count,), -1))
        self.register_buffer("ptr", torch.tensor(0))

    def contrast(self, query: Tensor, key: Tensor, index: Tensor, temperature: float) -> Tensor:
        """Return InfoNCE of queries and keys (B, D) of the images at `index` (B,), with the queue as negatives."""
        same_image = index[:, None] == self.images[None, :]
        return info_nce(query, key, self.keys.clone(), temperature, same_image)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, index: Tensor) -> None:
        """Replace the oldest keys by these unit keys (N, D) of images at `index` (N,), those of all processes."""
        length = len(self.keys)
        keys, index = keys[-length:], index[-length:]
        positions = (self.ptr + torch.arange(len(keys), device=keys.device)) % length
        self.keys[positions] = keys
        self.images[positions] = index
        self.ptr.copy_((self.ptr + len(keys)) % length)


def shuffled_keys(encoder: Callable[[Tensor], Tensor], images: Tensor, collectives: Collectives) -> Gathered:
    """Return the keys (B, D) float32 of all processes, whose images are shuffled among them (section 3.3).

    Each computes them in two random groups, or in one if they had fewer than MIN_GROUP images. Normalised with its
    query's batch, a key could be recognised by the batch statistics that they share. The paper has no such groups, but
    a single process needs them, and so do SyncBatchNorms, which normalise a group in all processes together.
    """
    everyone, own = collectives.all_gather(images)
    order = collectives.broadcast(torch.randperm(len(everyone), device=images.device))
    shares = order.tensor_split(collectives.world_size)
    groups = shares[collectives.rank].chunk(2 if len(shares[-1]) >= 2 * MIN_GROUP else 1)
    shuffled = torch.cat([encoder(everyone[group]) for group in groups])
    return Gathered(collectives.all_gather(shuffled.float()).rows[order.argsort()], own)
