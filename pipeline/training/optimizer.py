"""How parameters move: the schedule of the learning rate, the groups that share one, and the optimiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import Lars
from torch import Tensor, nn

from pipeline.recipe.base import FitConfig

TRUST = 0.001
"""Of LARS: the trust coefficient of the paper, and of all who followed it."""


def learning_rate(step: int, steps: int, warmup: float, drops: Sequence[float] = ()) -> float:
    """The factor on the learning rate at `step` of `steps`: a linear rise over `warmup` of them, then a cosine to 0; or
    1, and a tenth of what it was from every one of the shares `drops` of the steps on.
    """
    rise = int(steps * warmup)
    if step < rise:
        return (step + 1) / (rise + 1)
    if drops:
        return float(0.1 ** sum(step >= round(share * steps) for share in drops))
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def parameter_groups(module: nn.Module, config: FitConfig) -> list[dict[str, Any]]:
    """Trainable parameters in four groups: backbone or not, matrices with weight decay and the rest without."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            inside = "backbone" in name.split(".")[:2]  # of the network; a head may be called backbone too
            groups.setdefault((inside, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr * (config.backbone_lr if backbone else 1.0),
            "weight_decay": config.weight_decay if matrix else 0.0,
        }
        for (backbone, matrix), parameters in groups.items()
    ]


def build_optimizer(module: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """The optimiser that the configuration names, over all trainable parameters."""
    groups = parameter_groups(module, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    if config.optimizer == "lars":
        moving = {"momentum": config.momentum, "nesterov": config.nesterov}
        return Lars([{**group, **moving} for group in _adapted(groups)], lr=config.lr, trust_coeff=TRUST)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _adapted(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups for LARS (You et al., 2017), as SimCLR and BYOL use it: the step of a matrix w with gradient g is
    TRUST |w| / (|g| + weight decay |w|) times SGD's, whether it decays or not; that of biases and norms is SGD's.
    """
    return [{**group, "always_adapt": any(one.ndim > 1 for one in group["params"])} for group in groups]


def lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Moments in their parameters' memory layout: the fused step pairs them up as they lie in memory."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(value)
