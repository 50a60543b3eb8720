"""Helpers that make sets to measure backbones on, and run the steps that measure."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.measurement import MEASUREMENTS_FILE
from pipeline.data.dataset import ImageDataset
from pipeline.steps.artifact import Artifact, Inputs, read_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from tests.steps import make_step

COLOURS = {"dark": (40, 40, 60), "red": (230, 40, 40), "green": (40, 220, 60)}
"""Classes that any backbone can separate, by color."""
SIZE = 32
Record = dict[str, Any]
MakeKinds = Callable[..., Artifact]


def noise_of(number: int, kind: str) -> NDArray[np.uint8]:
    """Return a noise image determined by its number; for a class of COLOURS, weak noise on that color."""
    rng = np.random.default_rng(number)
    if kind not in COLOURS:
        return rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return np.clip(np.array(COLOURS[kind]) + rng.integers(-20, 20, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


def read_set(root: Root, name: str, **source: Any) -> Artifact:
    """Ingest a set, given its keys in the recipe."""
    step = make_step(f"data.{name}", "ingest.ingest:ingest", {"name": name, "source": source, "shard_images": 4})
    return Workspace(root).make(step, Inputs({}, Runtime(root, "cpu", "32", 1)))


def kinds_in(folder: Path, pictures: Mapping[str, Sequence[int]], name: str = "kinds") -> Artifact:
    """Ingest a set of classes, given image numbers by `<split>/<class>`; equal numbers are equal images."""
    splits, kinds = ({place.split("/")[number] for place in pictures} for number in (0, 1))
    for split in splits:
        for kind in kinds:
            (folder / name / split / kind).mkdir(parents=True)
    for place, numbers in pictures.items():
        for number in numbers:
            Image.fromarray(noise_of(number, place.split("/")[1])).save(folder / name / place / f"{number}.png")
    return read_set(Root.of(folder / "root"), name, kind="imagefolder", path=str(folder / name))


def keys_of(dataset: ImageDataset) -> set[str]:
    """Return the keys of all images of a dataset."""
    return {dataset.read(index)[0] for index in range(len(dataset))}


def scratch(name: str = "scratch", size: int = SIZE, backbone: str = "test_resnet") -> dict[str, Any]:
    """Return the start `scratch` as in a step's configuration."""
    return {"name": name, "step": None, "backbone": backbone, "weights": None, "image_size": size}


@dataclasses.dataclass
class Bench:
    """A folder in which measuring steps are run."""

    runtime: Runtime
    sets: dict[str, Artifact]

    def run(self, function: str, inputs: Mapping[str, Artifact], config: Mapping[str, Any], **more: Any) -> Artifact:
        """Run a step and return its artifact."""
        name, incremental_keys = str(config["name"]), ("labels", "seeds") if "finetuning" in function else None
        step = make_step(name, function, dict(config), tuple(inputs), incremental_keys=incremental_keys)
        runtime = dataclasses.replace(self.runtime, **more)
        return Workspace(runtime.root).get_or_make(step, Inputs(inputs, runtime))[0]

    def probe(self, *probes: str, on: str, before: Artifact | None = None, **config: Any) -> list[Record]:
        """Return the records of the probes of a backbone, by default one from scratch."""
        versions = {each: importlib.import_module(f"evaluation.probes.{each}").VERSION for each in probes}
        told = {"name": "probe.it", "start": scratch(), "probes": list(probes), "versions": versions, **self.common(on)}
        inputs = {**({"before": before} if before else {}), f"data.{on}": self.sets[on]}
        return records_of(self.run("evaluation.probing:probe", inputs, told | config))

    def tune(self, on: str, before: Artifact | None = None, **config: Any) -> Artifact:
        """Fine-tune a backbone, by default one from scratch, by the schedule `tiny`; return the artifact."""
        told = {"name": "finetune.it", "start": scratch(), "schedule": "tiny", "width": 16, "proposals": 8}
        more = {key: config.pop(key) for key in ("stop", "progress", "root") if key in config}
        inputs = {**({"before": before} if before else {}), f"data.{on}": self.sets[on]}
        return self.run("evaluation.finetuning:finetune", inputs, told | self.common(on) | config, **more)

    @staticmethod
    def common(on: str) -> dict[str, Any]:
        """Return the settings that both kinds of steps share, with the recipe's defaults."""
        return {"set": on, "splits": "test", "labels": ["all"], "seeds": 1, "seed": 0, "corruptions": False}


def records_of(made: Artifact) -> list[Record]:
    """Return the records in an artifact."""
    found: list[Record] = made.load(MEASUREMENTS_FILE, read_json)
    return found
