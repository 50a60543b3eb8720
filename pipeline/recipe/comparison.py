"""The recipe's `compare` section: self-supervised methods on the same images. No torch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.recipe.base import Name, UniqueItems
from pipeline.recipe.evaluation import MeasurementConfig
from pipeline.recipe.stage import SCRATCH, STUDENT, Share

NO_STAGE, SUPERVISED = "none", "supervised"
"""Rows beside those of methods: no stage, from scratch and from each start; supervised training on the same images."""
COMPARE = "compare"
"""The section of a recipe, and the beginning of the names of the steps that train or measure for it."""
TRIAL = "trial"
"""Key of a measurement's configuration that says which row it measures."""
BACKBONES = "backbones"
"""A method's key for the backbones that it is trained on; on others it is left out."""
COMMON = ("name", "data", "start", "backbone", "image_size", "share", "long_tail", "steps", "epochs", "batch")
"""Keys of a stage that all methods of a comparison share."""
Steps = Annotated[int, Field(ge=1)]


class CompareConfig(MeasurementConfig):
    """Self-supervised methods on the same images, with the same number of steps and the same measurements."""

    data: Annotated[list[str], UniqueItems] = Field(min_length=1)
    """Sets whose training images the methods learn from."""
    set: Name | None = None
    """Labelled set to measure on; null for the first of `data`."""
    methods: dict[Name, dict[str, Any]] = Field(min_length=1)
    """Methods by name, each with the keys of a stage except those that all share: `name`, `data`, `start`, `backbone`,
    `image_size`, `share`, `long_tail`, `steps`, `epochs`, `batch`. None has `validate`. `backbones: [...]` restricts a
    method to these."""
    settings: Literal["published", "shared"] = "published"
    """Train each method by the schedule that it was published with, or all by the one that a teacher has by default:
    every key of *schedule* but the shared ones and `accumulate`, and no `drop_path`. What a method states itself holds
    either way."""
    starts: Annotated[list[str], UniqueItems] = Field(default=[STUDENT], min_length=1)
    """What every method starts from, as in `evaluate.starts`. Each, and scratch, is also measured without a stage."""
    backbones: Annotated[list[str], UniqueItems] = []
    """timm models for starts from scratch, each combined with every method; none for the student's."""
    shares: Annotated[list[Share], UniqueItems] = Field(default=[1.0], min_length=1)
    """Shares of the images; smaller shares are subsets of larger ones."""
    long_tail: Share | None = None
    """Long tail of the training images, as of a stage, the same for all rows. Held-out images are not thinned out."""
    steps: Annotated[list[Steps], UniqueItems] = Field(default=[1000], min_length=1)
    """Optimizer steps; the schedule follows from them."""
    batch: int = Field(default=64, ge=2)
    """Images per step."""
    image_size: int | None = Field(default=None, multiple_of=32, ge=32)
    """Side of the square input, pixels; null for the student's."""
    supervised: dict[str, Any] = {}
    """Schedule of the supervised baseline where it differs from a teacher's defaults, as in {lr: 0.0005}."""
    probes: Annotated[list[str], UniqueItems] = ["linear"]
    """Probes, as in `evaluate`, on the one set."""
    finetune: bool = False
    """True to fine-tune as well, by `schedule`."""
    seeds: int = Field(default=3, ge=1)
    """Repetitions: each row's training, and its draws of images and labels. What rows start from is trained once."""
    splits: Literal["test", "val"] = "test"
    """Held-out split to measure on; the other one if the set lacks it."""

    @model_validator(mode="after")
    def _methods_differ_in_themselves_alone(self) -> CompareConfig:
        for name, settings in self.methods.items():
            _check_method(name, settings)
        _refuse_validation("supervised", self.supervised)
        for key in COMMON:
            if key in self.supervised:
                raise ValueError(f"supervised.{key}: all rows have it in common; say it for all, or leave it out")
        return self

    @property
    def measured_on(self) -> str:
        """The labelled set to measure on."""
        return self.set or self.data[0]

    def trials(self, backbones: Mapping[str, str]) -> Iterator[Trial]:
        """Yield all rows, seed by seed. `backbones`: timm names, of the student and of each start but scratch."""
        scratch, pairs = self.backbones or [backbones[STUDENT]], self.pairs(backbones)
        alone = dict.fromkeys([*((SCRATCH, name) for name in scratch), *pairs])
        for seed in range(self.seeds):
            yield from (Trial(NO_STAGE, *pair, share=None, steps=None, seed=seed) for pair in alone)
            for pair, share, steps in itertools.product(pairs, self.shares, self.steps):
                for method in self._methods_on(pair[1]):
                    yield Trial(method, *pair, share=share, steps=steps, seed=seed)

    def pairs(self, backbones: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return (start, backbone) pairs that methods are trained from: scratch with each of `backbones`."""
        scratch = self.backbones or [backbones[STUDENT]]
        fixed = {start: [backbones[start]] for start in self.starts if start != SCRATCH}
        return [(start, name) for start in self.starts for name in fixed.get(start, scratch)]

    def _methods_on(self, backbone: str) -> list[str]:
        """Return the methods for a backbone, and supervised training where the images have labels."""
        methods = [name for name, keys in self.methods.items() if backbone in keys.get(BACKBONES, [backbone])]
        return [SUPERVISED, *methods] if self.measured_on in self.data else methods


def _check_method(name: str, settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a method with the name of another row, without a method, or with a shared key."""
    if name in (NO_STAGE, SUPERVISED):
        raise ValueError(f"methods: {name!r} is a row of every comparison; call the method another name")
    if "method" not in settings:
        raise ValueError(f"methods.{name} names no method: write {{method: simclr}}, for example")
    _refuse_validation(f"methods.{name}", settings)
    for key in COMMON:
        if key in settings:
            raise ValueError(f"methods.{name}.{key}: all methods have it in common; say it for all, or leave it")
    if BACKBONES in settings and not _are_names(settings[BACKBONES]):
        raise ValueError(
            f"methods.{name}.{BACKBONES} is {settings[BACKBONES]!r}: write a list of timm models, as in [resnet18]"
        )


def _refuse_validation(place: str, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a row is to be measured on the way: it might see fewer images than the others."""
    if settings.get("validate") is not None:
        raise ValueError(f"{place}.validate: all rows train on equally many images, to the end: leave it out")


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def comparison_of(section: Sequence[str]) -> str:
    """Return the name of the comparison that a section, as `Step.section`, is a part of; "" for other sections."""
    return section[1] if section[0] == COMPARE else ""


def row_name(method: str, start: str) -> str:
    """Return the name of a row, in words; a start that is a path goes by its file's name."""
    start = start.rpartition("/")[2]
    if method == NO_STAGE:
        known = {SCRATCH: "from scratch", STUDENT: "the student, no stage"}
        return known.get(start, f"{start}, no stage")
    return f"{'supervised on the same images' if method == SUPERVISED else method}, from {start}"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A row of a comparison with one seed."""

    method: str
    start: str
    backbone: str
    share: float | None
    """Share of the images; None without a stage."""
    steps: int | None
    seed: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def name(self) -> str:
        """The end of the names of its steps; a start that is a path by its file's name."""
        length = [] if self.share is None else [f"share{self.share:g}", f"steps{self.steps}"]
        return ".".join([self.method, self.start.rpartition("/")[2], self.backbone, *length, f"seed{self.seed}"])
