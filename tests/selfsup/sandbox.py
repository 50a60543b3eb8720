"""A root of its own for stages to run in, and readers of the artifacts that they leave."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from pipeline.data.dataset import ImageDataset
from pipeline.models.checkpoint import read_tensors
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from selfsup.stages.step import load_images, stage_config
from tests.disk import folder_of
from tests.steps import make_step

SMALL = {
    "name": "garments",
    "method": "simclr",
    "data": ["truth"],
    "start": "scratch",
    "backbone": "test_resnet",
    "image_size": 32,
    "batch": 4,
    "steps": 4,
    "lr": 0.01,
}
TWO = {"method": "suncet", "images": 2}
SEED = 3
"""Seed of all stages."""


@dataclasses.dataclass
class StageSandbox:
    """A root in which stages train on some sets."""

    sets: dict[str, Artifact]
    runtime: Runtime

    def inputs(self, stage: dict[str, Any]) -> Inputs:
        """Return a stage's pool and sets."""
        pool = make_step(
            f"pool.{stage['name']}", "ingest.pool:gather_for_stage", {"pool": stage["data"]}, tuple(self.sets)
        )
        made, _ = Workspace(self.runtime.root).get_or_make(pool, Inputs(self.sets, self.runtime))
        return Inputs(
            {pool.name: made, **{f"data.{name}": self.sets[f"data.{name}"] for name in stage["data"]}}, self.runtime
        )

    def run(
        self, before: Artifact | None = None, teachers: Mapping[str, Artifact] = MappingProxyType({}), **settings: Any
    ) -> Artifact:
        """Train a stage of these settings, from the backbone of the artifact `before`; `teachers` by step."""
        stage, start = {**SMALL, **settings}, "before" if before else None
        config: dict[str, Any] = {"name": "stage.one", "stage": stage, "seed": SEED, "start": start}
        found = self.inputs(stage)
        others = {**teachers, **({"before": before} if before else {})}
        given = dataclasses.replace(found, artifacts={**found.artifacts, **others})
        step = make_step(f"stage.{stage['name']}", "selfsup.stages.step:run_stage", config, tuple(given.artifacts))
        made, _ = Workspace(self.runtime.root).get_or_make(step, given)
        return made

    def images(self, **settings: Any) -> ImageDataset:
        """Return the images of a stage of these settings."""
        stage = {**SMALL, **settings}
        return load_images(stage_config(stage), self.inputs(stage), SEED)


def weights(made: Artifact) -> dict[str, torch.Tensor]:
    return read_tensors(folder_of(made) / "backbone.safetensors")[1]


def log(made: Artifact) -> list[dict[str, Any]]:
    lines = (folder_of(made) / "log" / "train.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]
