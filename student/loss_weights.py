"""Weights of the losses of the student's heads: by the teachers' schedules (MuST), equal, given, learned, or by how
large the losses are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.recipe.student import StudentConfig
from student.dataset import StudentHead
from tasks.training import WeightedSum


def task_weight(student_batch: float, student_lr: float, teacher_batch: float, teacher_lr: float) -> float:
    """Return MuST's weight of a teacher's loss, w = (b_s lr_t) / (b_t lr_s) (Ghiasi et al., ICCV 2021).

    With it an example's step in the student, w lr_s / b_s, equals its step in the teacher, lr_t / b_t, if one optimizer
    trains both: `task_weight(4096, 1.6, 256, 0.32)` is 3.2. Neither a `backbone_lr` is in it nor `clip`, which bounds
    the gradients of all heads together. Raises ConfigError unless all four are positive and finite.
    """
    names = ("student batch", "student lr", "teacher batch", "teacher lr")
    for name, value in zip(names, (student_batch, student_lr, teacher_batch, teacher_lr), strict=True):
        if not 0 < value < math.inf:  # false for NaN as well
            raise ConfigError(f"task_weight: {name} is {value!r}; it has to be a positive number.")
    return (student_batch * teacher_lr) / (teacher_batch * student_lr)


class UncertaintyWeighting(nn.Module):
    """Learned weights: sum_i exp(-s_i) L_i + s_i / 2 with s_i free, whose optimum is s_i = log(2 L_i).

    It is the form of Kendall et al. (CVPR 2018) for classification, for all tasks. The weights begin at 1 and learn at
    the network's rate: AdamW moves s_i by no more than the sum of the learning rates, which a short training may not
    have enough of to reach the optimum.

    `shares`: by head, what a microbatch's mean loss counts in its step, in [0, 1]: its part of the head's labels in the
    step, times the share of the step's images that have one.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.log_variance = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in names})

    def forward(self, losses: Mapping[str, Tensor], shares: Mapping[str, float]) -> Tensor:
        terms = ((name, self.log_variance[name], loss) for name, loss in losses.items())
        return torch.stack([shares[name] * ((-s).exp() * loss + 0.5 * s) for name, s, loss in terms]).sum()


class RunningLossWeighting(nn.Module):
    """Weights in inverse proportion to the running mean of each loss, w_i = (1 / m_i) / (mean over heads of 1 / m).

    A loss then moves the network in proportion to the share of it that is gained, as if its logarithm were minimised,
    up to one factor for all: no head outweighs others because its loss is a large number, as a cross entropy over many
    classes is. m is the mean over about the last 20 steps that have a label for the head, all processes together.
    Heads without such a step weigh 1.

    `running` (heads,): m, 0 before the first step.
    """

    DECAY = 0.95
    SMALLEST = 1e-6
    """What a loss counts as at least, so that one that is learned perfectly does not take all the weight."""
    running: Tensor

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.register_buffer("running", torch.zeros(len(names)))

    def weights(self) -> Tensor:
        """Return the weights (heads,)."""
        is_known = self.running > 0
        inverse = torch.where(is_known, 1 / self.running.clamp(min=self.SMALLEST), 0.0)
        mean = inverse.sum() / is_known.sum().clamp(min=1)
        return torch.where(is_known, inverse / mean.clamp(min=self.SMALLEST), 1.0)

    def forward(self, losses: Mapping[str, Tensor], shares: Mapping[str, float]) -> Tensor:
        weights = dict(zip(self.names, self.weights(), strict=True))
        return torch.stack([weights[name] * shares[name] * loss for name, loss in losses.items()]).sum()

    def observe(self, losses: Mapping[str, float]) -> None:
        """Take the losses of a step into the means."""
        for number, name in enumerate(self.names):
            if loss := losses.get(name, 0.0):
                before = float(self.running[number]) or loss
                self.running[number] = self.DECAY * before + (1 - self.DECAY) * loss


def final_weights(weighting: nn.Module) -> dict[str, float]:
    """Return the weights by head that a training ended with."""
    match weighting:
        case UncertaintyWeighting():
            return {name: (-s).exp().item() for name, s in weighting.log_variance.items()}
        case RunningLossWeighting():
            return dict(zip(weighting.names, weighting.weights().tolist(), strict=True))
        case WeightedSum():
            return weighting.weights
    raise TypeError(weighting)


def build_loss_weighting(config: StudentConfig, heads: Mapping[str, StudentHead]) -> nn.Module:
    """Return the module that combines the losses by the recipe's rule.

    Raises ConfigError if the rule needs the schedule of a teacher that has none: its weight has to be given.
    """
    optimizers = {head.teacher: head.schedule.optimizer if head.schedule else None for head in heads.values()}
    config.check_weights(optimizers)
    if config.weighting == "uncertainty":
        return UncertaintyWeighting(list(heads))
    if config.weighting == "running":
        return RunningLossWeighting(list(heads))
    return WeightedSum({name: _weight(config, head) for name, head in heads.items()})


def _weight(config: StudentConfig, head: StudentHead) -> float:
    if head.teacher in config.loss_weights:
        return config.loss_weights[head.teacher]
    if config.weighting == "equal" or head.schedule is None:  # `check_weights` passes that only for equal weights
        return 1.0
    return task_weight(config.batch, config.lr, head.schedule.batch, head.schedule.lr)
