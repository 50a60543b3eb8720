"""How the losses of the student's heads are weighed against each other."""

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
    """MuST's weight of a teacher's loss, w = (b_s lr_t) / (b_t lr_s).

    With it one example moves the student, w lr_s / b_s, as far as it moved the teacher, lr_t / b_t. ConfigError
    unless all four are positive and finite.
    """
    named = {
        "student batch": student_batch,
        "student lr": student_lr,
        "teacher batch": teacher_batch,
        "teacher lr": teacher_lr,
    }
    for name, value in named.items():
        if not 0 < value < math.inf:  # so that NaN is refused as well
            raise ConfigError(f"task_weight: {name} is {value!r}; it has to be a positive number.")
    return (student_batch * teacher_lr) / (teacher_batch * student_lr)


class Uncertainty(nn.Module):
    """Learned weights: sum_i exp(-s_i) L_i + s_i / 2 with s_i free (Kendall et al., CVPR 2018, up to a factor).

    Of a piece of a step's batch, each summand times the loss's share of the step.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.log_variance = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in names})

    def forward(self, losses: Mapping[str, Tensor], shares: Mapping[str, float]) -> Tensor:
        return torch.stack([shares[name] * self._term(name, loss) for name, loss in losses.items()]).sum()

    def _term(self, name: str, loss: Tensor) -> Tensor:
        return (-self.log_variance[name]).exp() * loss + 0.5 * self.log_variance[name]


def combination(config: StudentConfig, heads: Mapping[str, StudentHead]) -> tuple[nn.Module, dict[str, float]]:
    """The module that combines losses by the recipe's rule, and the fixed weights (empty if they are learned).

    ConfigError if the rule needs a teacher's schedule and it has none: its weight has to be given.
    """
    config.check_weights({head.teacher: head.schedule is not None for head in heads.values()})
    if config.weighting == "uncertainty":
        return Uncertainty(list(heads)), {}
    weights = {name: _weight(config, head) for name, head in heads.items()}
    return WeightedSum(weights), weights


def _weight(config: StudentConfig, head: StudentHead) -> float:
    if head.teacher in config.loss_weights:
        return config.loss_weights[head.teacher]
    if config.weighting == "equal" or head.schedule is None:  # without one, only equal weights have passed the check
        return 1.0
    return task_weight(config.batch, config.lr, head.schedule.batch, head.schedule.lr)
