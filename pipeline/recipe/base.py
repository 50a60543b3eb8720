"""Base class of the recipe's sections, and the training schedule. No torch."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pydantic_core.core_schema import ValidationInfo, no_info_after_validator_function

from pipeline.errors import ConfigError

NAME = r"^[a-z][a-z0-9_]*$"
LONGEST_NAME = 100
"""Characters: files and folders are called by names, and no file system takes more than 255."""


@dataclasses.dataclass(frozen=True)
class Matching:
    """Refuse texts that do not match a pattern, and say in words what would work."""

    pattern: str
    noun: str
    wanted: str

    def check(self, text: str) -> str:
        if not re.search(self.pattern, text):
            raise ValueError(f"{text!r} is no {self.noun}: {self.wanted} would work")
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "pattern": self.pattern}


Name = Annotated[
    str,
    Field(max_length=LONGEST_NAME),
    Matching(NAME, "name", "lower-case letters, digits and '_', the first one a letter,"),
]
Optimizer = Literal["adamw", "sgd", "lars"]
MOST_REPEATS = 1000
"""How often a batch may have each image of a small set: with more, the first step would not end."""
LARGEST_REPEATING = 65_536
"""Images in the largest batch that may be larger than its set."""


def _once(values: list[Any]) -> list[Any]:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"{value!r} is there twice")
    return values


UniqueItems = AfterValidator(_once)
"""Refuse a list with an item twice."""


class NamedBackbone(NamedTuple):
    """A timm backbone that a section names: checked before a run, with its weights."""

    name: str
    image_size: int
    """Side of the square input, pixels."""
    weights: str | None
    """A file, `package:<module>/<file>`, or `timm`; None for random ones."""
    images: int = 2
    """Images of a forward and backward pass, over all processes that train together."""
    frozen: bool = False
    """True if it makes the forward pass alone."""


class GrowingModel(BaseModel):
    """A model that keys are added to, and whose dump stays the same while these have their defaults."""

    later_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that were not always there: left out of a dump, which steps are known by, while they have their defaults, so
    that what was made before stays."""

    @model_serializer(mode="wrap")
    def _leave_out_later_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        for key in self.later_keys:
            if key in fields and getattr(self, key) == type(self).model_fields[key].default:
                del fields[key]
        return fields


class BaseConfig(GrowingModel):
    """A section of the recipe: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _means_something(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse empty text, which an unset environment variable leaves, and yes or no where a number belongs."""
        for item in value if isinstance(value, list | tuple) else [value]:
            if item == "":
                raise ValueError("'' names nothing: write null, or leave the key out")
            if isinstance(item, bool) and not _takes_bool(cls.model_fields[str(info.field_name)].annotation):
                raise ValueError(f"{str(item).lower()} is neither a number nor a name; quote it if it is meant as text")
        return value

    def named_backbones(self) -> Sequence[NamedBackbone]:
        """Return the timm backbones that the section names."""
        return ()

    def model_names(self) -> Sequence[str]:
        """Return the names of timm models in the section."""
        return [each.name for each in self.named_backbones()]

    def check(self) -> None:
        """Raise ConfigError for a mistake that only torch, timm or another library can find, such as a misspelt model.

        Called before a run's first step, so that the mistake does not come to light hours later.
        """


def _takes_bool(annotation: Any) -> bool:
    """Return True for an annotation that has bool in it, or any type."""
    return annotation in (bool, Any) or any(map(_takes_bool, get_args(annotation)))


def _interval(value: Any) -> Any:
    """Return a number of steps or a share of them as it is; pydantic would take 1.0 for one step."""
    if not ((isinstance(value, int) and value >= 1) or (isinstance(value, float) and 0 < value < 1)):
        raise ValueError(f"{value!r} is neither a number of steps, 1 or more, nor a share of all steps below 1.0")
    return value


class ValidateConfig(BaseConfig):
    """Measure a training on held-out images on the way."""

    every: Annotated[Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)], BeforeValidator(_interval)] = (
        0.1
    )
    """Steps between validations, or a share of all steps; there is one at the end in any case."""
    keep: Literal["best", "last"] = "best"
    """The weights that are kept: the best by the metric of the curve, or the last ones."""
    patience: int | None = Field(default=None, ge=1)
    """Validations in a row without a better value after which the training ends; null to train to the end."""

    def every_steps(self, steps: int) -> int:
        """Return the steps between validations of a training of `steps` steps."""
        return self.every if isinstance(self.every, int) else max(1, round(self.every * steps))


warnings.filterwarnings("ignore", r'Field name "validate" in ".*" shadows', UserWarning)

EPOCHS = 10
"""The default if neither epochs nor steps is given."""


class FitConfig(BaseConfig):
    """A training schedule."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the images; 10 if neither epochs nor steps is given."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, instead of epochs."""
    batch: int = Field(default=32, ge=1)
    """Images per optimizer step, over all processes that train together."""
    accumulate: int = Field(default=1, ge=1)
    """Forward and backward passes that a batch is split into; must divide it. More are taken if memory runs out."""
    optimizer: Optimizer = "adamw"
    """AdamW, SGD with momentum, or LARS: SGD with steps in proportion to the norms of weights, for large batches."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    backbone_lr: float = Field(default=1.0, ge=0)
    """Factor on the learning rate of the backbone."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay."""
    weight_decay_end: float | None = Field(default=None, ge=0)
    """Weight decay at the end, to which it moves by a cosine; null for no change."""
    decay: Literal["matrices", "all"] = "matrices"
    """Let weight matrices alone decay, or biases and norms as well; not with LARS."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD and LARS."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of AdamW's mean of squared gradients."""
    nesterov: bool = False
    """True for Nesterov momentum."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps with a linearly rising learning rate; a cosine to zero follows."""
    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of the steps after which the learning rate falls to a tenth, instead of the cosine."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest gradient norm; null for none."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the moving average of the weights; the average is then what is saved."""
    validate: ValidateConfig | None = None  # type: ignore[assignment]  # pydantic has a deprecated method of this name
    """Measure the training on held-out images on the way, as in {every: 0.1, keep: best, patience: 3}. They are the
    split `val` of the labelled sets, never `test`."""

    @model_validator(mode="after")
    def _consistent(self) -> FitConfig:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"epochs ({self.epochs}) and steps ({self.steps}) are both given: give one of them")
        if self.optimizer == "lars" and self.decay == "all":
            raise ValueError(
                "decay is all, but LARS adapts whatever decays, biases and norms too: set decay to matrices"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is true and momentum 0.0, which leaves it nothing to do: give a momentum")
        if self.batch % self.accumulate:
            raise ValueError(f"batch ({self.batch}) is not a multiple of accumulate ({self.accumulate})")
        return self

    def optimizer_name(self) -> str:
        """Return the optimizer in words, with the momentum of those that have it: a learning rate means little
        without.
        """
        return self.optimizer if self.optimizer == "adamw" else f"{self.optimizer} with momentum {self.momentum}"

    def check_batch(self, images: int) -> None:
        """Raise ConfigError if a batch is so far above the number of images that it is a mistake."""
        most = max(images, min(MOST_REPEATS * images, LARGEST_REPEATING))
        if self.batch > most:
            raise ConfigError(
                f"batch ({self.batch}) is far more than the {images} images there are: {most} or fewer would work."
            )

    def total_steps(self, images: int) -> int:
        """Return the number of optimizer steps for a set of `images`."""
        return self.steps or max(1, -(-int((self.epochs or EPOCHS) * images) // self.batch))
