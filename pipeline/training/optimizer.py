"""The optimiser of a training: its parameter groups, its learning rate schedule, and the optimiser itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import Lars
from torch import Tensor, nn

from pipeline.recipe.base import FitConfig

TRUST_COEFFICIENT = 0.001
"""Of LARS: that of the paper and of all who followed it."""


def lr_factor(step: int, steps: int, warmup: float, drops: Sequence[float] = ()) -> float:
    """Return the factor on the learning rate at `step` of `steps`, in [0, 1].

    Args:
        warmup: share of the steps in which the factor rises linearly.
        drops: shares of the steps from each of which on the factor is a tenth of what it was before; without any, it
            falls in a cosine to 0.
    """
    rise = int(steps * warmup)
    if step < rise:
        return (step + 1) / (rise + 1)
    if drops:
        return float(0.1 ** sum(step >= round(share * steps) for share in drops))
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def weight_decay(step: int, steps: int, config: FitConfig) -> float:
    """Return the weight decay at `step` of `steps`: constant, or in a cosine from the first to the last (DINO)."""
    if config.weight_decay_end is None:
        return config.weight_decay
    done = 0.5 * (1 - math.cos(math.pi * step / steps))
    return config.weight_decay + done * (config.weight_decay_end - config.weight_decay)


def set_weight_decay(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the weight decay of the groups that decay."""
    for group in optimizer.param_groups:
        if group["decays"]:
            group["weight_decay"] = value


def parameter_groups(module: nn.Module, config: FitConfig) -> list[dict[str, Any]]:
    """Split the trainable parameters into groups: backbone or not, matrices or not; `decays` marks weight decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            in_backbone = "backbone" in name.split(".")[:2]  # deeper down, it is the name of a head
            groups.setdefault((in_backbone, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr * (config.backbone_lr if in_backbone else 1.0),
            "weight_decay": config.weight_decay if (decays := is_matrix or config.decay == "all") else 0.0,
            "decays": decays,
        }
        for (in_backbone, is_matrix), parameters in groups.items()
    ]


def build_optimizer(module: nn.Module, config: FitConfig, scaled: bool = False) -> torch.optim.Optimizer:
    """Build the optimiser that the configuration names, over all trainable parameters.

    Of `scaled` losses (`torch.amp.GradScaler`) some steps are left out. AdamW and SGD are then fused, and decide that
    on the device; for LARS the scaler reads a number of the device in each step, which waits for it.

    LARS (You et al., 2017) is as SimCLR and BYOL use it: the step of a matrix w with gradient g is TRUST_COEFFICIENT
    |w| / (|g| + weight decay |w|) times SGD's, whether the matrix decays or not; that of biases and norms is SGD's.
    """
    groups = parameter_groups(module, config)
    if config.optimizer == "sgd":
        fused = scaled or None  # None: as torch chooses
        sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
        if scaled:  # only then: in its last digits it computes otherwise
            sgd.register_step_pre_hook(_add_moments)
        return sgd
    if config.optimizer == "lars":
        for group in groups:
            is_matrix = group["params"][0].ndim > 1
            group.update(momentum=config.momentum, nesterov=config.nesterov, always_adapt=is_matrix)
        return Lars(groups, lr=config.lr, trust_coeff=TRUST_COEFFICIENT)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


def _add_moments(sgd: torch.optim.Optimizer, *_: Any) -> None:
    """Give the parameters that have a gradient, and none before, a moment of zero.

    Fused SGD leaves the moments of a first step that it leaves out as memory was, and refuses a step in which some
    parameters have moments and others don't.
    """
    for group in sgd.param_groups:
        for parameter in group["params"]:
            if group["momentum"] and parameter.grad is not None and "momentum_buffer" not in sgd.state[parameter]:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Lay out the optimiser's moments as their parameters are: a fused step pairs them by their order in memory."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(value)
