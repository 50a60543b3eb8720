"""What sections of a recipe have in common, and the schedule of a training. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME)]


class NamedBackbone(NamedTuple):
    """A timm backbone that a section names: checked before a run, with its weights."""

    name: str
    image_size: int
    """Side of the square input, pixels."""
    weights: str | None
    """A file, `package:<module>/<file>`, or `timm`; None for random ones."""


class BaseConfig(BaseModel):
    """A part of the recipe: unknown keys are errors, values don't change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def named_backbones(self) -> Sequence[NamedBackbone]:
        """Return the timm backbones that the section names."""
        return ()

    def check(self) -> None:
        """Raise ConfigError for what only the libraries, torch among them, can tell: called before a run's first step,
        so that a misspelt model does not come to light hours later.
        """


EPOCHS = 10
"""Where neither epochs nor steps is given."""


class FitConfig(BaseConfig):
    """A training schedule."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the images; 10 if neither epochs nor steps is given."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps, instead of epochs."""
    batch: int = Field(default=32, ge=1)
    """Images per optimiser step, those of all processes that train together."""
    accumulate: int = Field(default=1, ge=1)
    """Into how many forward and backward passes a batch is split; must divide it. More, where memory runs out."""
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """AdamW, SGD with momentum, or LARS: SGD whose steps follow the norms of weight matrices, for large batches."""
    lr: float = Field(default=1e-3, gt=0)
    """Highest learning rate of the schedule."""
    backbone_lr: float = Field(default=1.0, ge=0)
    """Factor on the learning rate of the backbone."""
    weight_decay: float = Field(default=0.05, ge=0)
    """On weight matrices; biases and norms have none."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD and LARS."""
    nesterov: bool = False
    """Whether momentum looks ahead."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps with a linearly rising learning rate; a cosine to zero follows."""
    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of the steps after which the learning rate falls to a tenth, instead of the cosine."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest gradient norm; null for none."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the moving average of the weights, which is then what is kept."""

    @model_validator(mode="after")
    def _consistent(self) -> FitConfig:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"epochs ({self.epochs}) and steps ({self.steps}) are both given: give one of them")
        if self.batch % self.accumulate:
            raise ValueError(f"batch ({self.batch}) is not a multiple of accumulate ({self.accumulate})")
        return self

    def total_steps(self, images: int) -> int:
        """Optimiser steps for a set of `images`."""
        return self.steps or max(1, -(-int((self.epochs or EPOCHS) * images) // self.batch))
