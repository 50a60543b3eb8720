"""What a recipe says of comparing self-supervised methods. No torch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.recipe.base import Name
from pipeline.recipe.evaluation import Measuring, UniqueItems
from pipeline.recipe.stage import SCRATCH, STUDENT, Share

NO_STAGE, SUPERVISED = "none", "supervised"
"""Rows that every comparison has beside its methods: the start as it is, and supervised training on the same images."""
COMPARE = "compare"
"""The section of a recipe, and the beginning of the names of the steps that train or measure for it."""
TRIAL = "trial"
"""The key of a measuring step's configuration that says which row it measures."""
BACKBONES = "backbones"
"""A method's key for the backbones that it is for; it is left out on the others."""
COMMON = ("name", "data", "start", "backbone", "image_size", "share", "long_tail", "steps", "epochs", "batch")
"""Keys of a stage that all methods have in common here."""
Steps = Annotated[int, Field(ge=1)]


class CompareConfig(Measuring):
    """Self-supervised methods on the same images, with the same number of steps and the same measurements."""

    data: list[str] = Field(min_length=1)
    """Sets whose training images are learned from."""
    set: Name | None = None
    """The labelled set that is measured on; null for the first of `data`."""
    methods: dict[Name, dict[str, Any]] = Field(min_length=1)
    """Methods by the names they are to have here: each says what a stage says, but for what all have in common, and
    with `backbones: [...]` that it is for these alone."""
    starts: Annotated[list[str], UniqueItems] = Field(default=[STUDENT], min_length=1)
    """What every method starts from, each as in `evaluate.starts`."""
    backbones: Annotated[list[str], UniqueItems] = []
    """timm models for what starts from scratch, crossed with the methods; the student's if there are none."""
    shares: Annotated[list[Share], UniqueItems] = Field(default=[1.0], min_length=1)
    """Shares of the images, the smaller ones parts of the larger ones."""
    long_tail: Share | None = None
    """As a stage's: thins out the classes of the images for all rows alike. What is measured on stays as it is."""
    steps: Annotated[list[Steps], UniqueItems] = Field(default=[1000], min_length=1)
    """Optimiser steps; the schedule follows from them."""
    batch: int = Field(default=64, ge=2)
    """Images in a step."""
    image_size: int | None = Field(default=None, multiple_of=32, ge=32)
    """Side of the square input, pixels; null for the student's."""
    supervised: dict[str, Any] = {}
    """How supervised training on the same images differs from the schedule of a teacher, as in {lr: 0.0005}."""
    probes: Annotated[list[str], UniqueItems] = ["linear"]
    """As in `evaluate`, on the one set."""
    finetune: bool = False
    """Whether networks are fine-tuned as well, by `schedule`."""
    seeds: int = Field(default=3, ge=1)
    """Runs of everything: training, draws of images and of labels."""
    splits: Literal["test", "val"] = "test"
    """Held-out split that is preferred; the other is used where the set lacks it."""

    @model_validator(mode="after")
    def _methods_differ_in_themselves_alone(self) -> CompareConfig:
        for name, settings in self.methods.items():
            _check_method(name, settings)
        for key in COMMON:
            if key in self.supervised:
                raise ValueError(f"supervised.{key}: all rows have it in common; say it for all, or leave it out")
        return self

    @property
    def measured_on(self) -> str:
        """The set that is measured on."""
        return self.set or self.data[0]

    def trials(self, backbones: Mapping[str, str]) -> Iterator[Trial]:
        """Everything that is trained or measured, seed by seed; `backbones`: what the student and each start but
        scratch have.
        """
        scratch, pairs = self.backbones or [backbones[STUDENT]], self.pairs(backbones)
        alone = dict.fromkeys([*((SCRATCH, name) for name in scratch), (STUDENT, backbones[STUDENT]), *pairs])
        for seed in range(self.seeds):
            yield from (Trial(NO_STAGE, *pair, share=None, steps=None, seed=seed) for pair in alone)
            for pair, share, steps in itertools.product(pairs, self.shares, self.steps):
                for method in self._methods_on(pair[1]):
                    yield Trial(method, *pair, share=share, steps=steps, seed=seed)

    def pairs(self, backbones: Mapping[str, str]) -> list[tuple[str, str]]:
        """Each start with its backbone, scratch with every one: what methods are trained from."""
        scratch = self.backbones or [backbones[STUDENT]]
        fixed = {start: [backbones[start]] for start in self.starts if start != SCRATCH}
        return [(start, name) for start in self.starts for name in fixed.get(start, scratch)]

    def _methods_on(self, backbone: str) -> list[str]:
        """The methods for a backbone, and supervised training, where the images have labels."""
        mine = [name for name, said in self.methods.items() if backbone in said.get(BACKBONES, [backbone])]
        return [SUPERVISED, *mine] if self.measured_on in self.data else mine


def _check_method(name: str, settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a method that is called like another row, is none, or says what all have in common."""
    if name in (NO_STAGE, SUPERVISED):
        raise ValueError(f"methods: {name!r} is a row of every comparison; call the method another name")
    if "method" not in settings:
        raise ValueError(f"methods.{name} says no method: write {{method: simclr}}, for example")
    for key in COMMON:
        if key in settings:
            raise ValueError(f"methods.{name}.{key}: all methods have it in common; say it for all, or leave it")
    if BACKBONES in settings and not _are_names(settings[BACKBONES]):
        said = settings[BACKBONES]
        raise ValueError(f"methods.{name}.{BACKBONES} is {said!r}: write a list of timm models, as in [resnet18]")


def _are_names(said: Any) -> bool:
    return isinstance(said, list) and bool(said) and all(isinstance(each, str) for each in said)


def comparison_of(section: Sequence[str]) -> str:
    """Return the name of the comparison that a section, as `Step.section`, is a part of; "" for other sections."""
    return section[1] if section[0] == COMPARE else ""


def row_name(method: str, start: str) -> str:
    """What a row is called, in words."""
    if method == NO_STAGE:
        known = {SCRATCH: "from scratch", STUDENT: "the student, no stage"}
        return known.get(start, f"{start}, no stage")
    return f"{'supervised on the same images' if method == SUPERVISED else method}, from {start}"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A row of a comparison with one seed: a method, what it starts from, and how far it goes."""

    method: str
    start: str
    backbone: str
    share: float | None
    """Of the images; None without a stage."""
    steps: int | None
    seed: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def name(self) -> str:
        """What its steps are called behind `compare.`; the start by its last part."""
        length = [] if self.share is None else [f"share{self.share:g}", f"steps{self.steps}"]
        return ".".join([self.method, self.start.rpartition("/")[2], self.backbone, *length, f"seed{self.seed}"])
