"""Measure what a few labels add to self-supervised pretraining: SimCLR with and without SuNCEt on handwritten digits.

    python -m benchmarks.suncet_digits

The data are scikit-learn's digits (8 x 8, enlarged to 16 x 16): 1,200 to train on, of which 6 of each class have
labels, and 597 to test on. Every step sees 128 views with either method. The classifiers learn from the backbone's
features of the 60 labelled images.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from timm.models import register_model
from torch import Tensor, nn

from benchmarks.measure import RESULTS, describe_environment, format_mean, save_result
from evaluation.probe import LabelledFeatures, ProbeData
from evaluation.probes import soft_nn
from flows.plan.stage_steps import STAGE, STAGE_POOL
from flows.plan.steps import build_steps
from ingest.dataset import IngestedSet
from ingest.true_labels import class_ids, true_label_dataset
from pipeline.models.features import extract_features
from pipeline.models.initial import backbone_from_artifact
from pipeline.recipe.reader import parse_recipe
from pipeline.steps.artifact import Artifact, Inputs, Step
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from selfsup.stages.labelled_sampler import class_sampler, image_classes
from selfsup.stages.step import load_images, stage_config

TRAIN_IMAGES, SIDE, PER_CLASS = 1200, 16, 6
STEPS = (25, 50, 100, 200, 400)
RECIPE = """
name: digits
data: {{digits: {{kind: imagefolder, path: "{path}"}}}}
teachers: {{gabor: {{kind: analytic}}}}
pool: [digits]
student: {{weighting: equal}}
"""
SETTINGS: dict[str, Any] = {
    "method": "simclr",
    "data": ["digits"],
    "start": "scratch",
    "backbone": "digits_cnn",
    "image_size": SIDE,
    "batch": 64,
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 1e-4,
    "warmup": 0.05,
    "clip": 1.0,
    "temperature": 0.2,
    "dim": 64,
    "augment": {"area": [0.5, 1.0], "flip": 0, "hue": 0, "saturation": 0, "grayscale": 0, "blur": 0},
}
LABELS = {"method": "suncet", "per_class": PER_CLASS, "images": 4, "temperature": 0.2}
METHODS: dict[str, dict[str, Any]] = {"SimCLR": {}, "SimCLR+SuNCEt": {"labels": LABELS}}


class DigitsCNN(nn.Module):
    """A network of five convolutions, 16 to 64 channels wide."""

    def __init__(self) -> None:
        super().__init__()
        widths, self.num_features = [3, 16, 16, 32, 32, 64], 64
        self.feature_info = [{"num_chs": 64, "reduction": 4}]
        self.layers = nn.Sequential(
            *(
                part
                for number, (before, after) in enumerate(itertools.pairwise(widths))
                for part in (
                    nn.Conv2d(before, after, 3, stride=2 if number in (1, 3) else 1, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                )
            )
        )

    def forward_intermediates(self, images: Tensor, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Return the last map, and a list of it alone: the model gives no other."""
        features = self.layers(images)
        return features, [features]

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the vectors."""
        return features.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.layers(images))


@register_model
def digits_cnn(**_: Any) -> nn.Module:
    """Build the network for `timm.create_model`."""
    return DigitsCNN()


def write_digits(folder: Path) -> None:
    """Write the digits to `<split>/<class>/<number>.png`."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    for position, number in enumerate(order):
        gray = Image.fromarray((digits.images[number] * 255 / 16).astype(np.uint8)).resize((SIDE, SIDE))
        split = "train" if position < TRAIN_IMAGES else "test"
        file = folder / split / str(digits.target[number]) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        gray.convert("RGB").save(file)


def evaluate(trained: Artifact, inputs: Inputs, settings: dict[str, Any], seed: int) -> dict[str, float]:
    """Return the test accuracy of a linear probe and a soft nearest-neighbour classifier trained on the few labels."""
    backbone = backbone_from_artifact(trained).build()
    stage = stage_config({**settings, "labels": LABELS})
    images = load_images(stage, inputs, seed)
    classes = image_classes(stage, inputs, images)
    assert stage.labels is not None
    few = np.concatenate(class_sampler(stage.labels, classes, seed).members)
    few_features = extract_features(backbone, images, few.tolist(), inputs.runtime)
    dataset = true_label_dataset(IngestedSet(inputs["data.digits"]), "test", {"kind": "classification"})
    truth = class_ids(dataset, "kind")
    features = extract_features(backbone, dataset, range(len(dataset)), inputs.runtime)
    probe = LogisticRegression(max_iter=2000).fit(few_features.numpy(), classes.numbers[few])
    labelled = LabelledFeatures(few_features, torch.from_numpy(classes.numbers[few]))
    context = (images, Path(inputs.runtime.root.local_path("probe")), inputs.runtime)
    neighbours = soft_nn.fit(ProbeData(labelled, labelled, len(classes.names), seed, backbone, *context)).classify(
        features
    )
    return {
        "probe": float((probe.predict(features.numpy()) == truth).mean()),
        "sNN": float((neighbours.argmax(1).numpy() == truth).mean()),
    }


def run(root: Root, sets: dict[str, Artifact], name: str, steps: int, seed: int) -> dict[str, float]:
    """Train one stage, and return the test accuracies on its features."""
    runtime = Runtime(root, "cpu", "32", 1)
    settings = {"name": "digits", **SETTINGS, **METHODS[name], "steps": steps}
    pool = Step("pool.digits", STAGE_POOL, ("stages", "digits"), {"pool": settings["data"]}, tuple(sets))
    inputs = Inputs({**sets, pool.name: Workspace(root).get_or_make(pool, Inputs(sets, runtime))[0]}, runtime)
    config = {"name": "stage.digits", "stage": settings, "seed": seed, "start": None}
    step = Step("stage.digits", STAGE, ("stages", "digits"), config, tuple(inputs.artifacts))
    trained, _ = Workspace(root).get_or_make(step, inputs)
    return evaluate(trained, inputs, settings, seed)


def main(seeds: Annotated[int, typer.Option(help="Number of runs of each kind.", min=2)] = 5) -> None:
    """Measure, print, and write `suncet_digits` to the results."""
    torch.set_num_threads(1)
    environment = describe_environment("cpu")
    accuracy: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder) / "digits")
        root = Root.of(Path(folder) / "root")
        [ingest, *_] = build_steps(parse_recipe(RECIPE.format(path=Path(folder) / "digits"), "digits"))
        sets = {"data.digits": Workspace(root).make(ingest, Inputs({}, Runtime(root)))}
        for steps in STEPS:
            for name in METHODS:
                accuracy[name][str(steps)] = [run(root, sets, name, steps, seed) for seed in range(seeds)]
                print(name, steps, accuracy_cell(accuracy[name][str(steps)]), flush=True)
    table = [("steps", *(f"{name}: linear probe, soft nearest neighbours" for name in METHODS))]
    table += [(str(steps), *(accuracy_cell(accuracy[name][str(steps)]) for name in METHODS)) for steps in STEPS]
    half, whole = (
        statistics.mean(each["sNN"] for each in accuracy[name][steps])
        for name, steps in (("SimCLR+SuNCEt", "200"), ("SimCLR", "400"))
    )
    table.append(("", f"SimCLR, 400 steps: {100 * whole:.1f}", f"SuNCEt, 200 steps: {100 * half:.1f}"))
    result = {
        "measured": environment,
        "seeds": seeds,
        "test_images": 597,
        "labels": 10 * PER_CLASS,
        "accuracy": accuracy,
    }
    title = f"SuNCEt on digits, accuracy in %, mean ± deviation of {seeds} seeds"
    save_result(RESULTS / "suncet_digits.json", title, result, table)


def accuracy_cell(runs: list[dict[str, float]]) -> str:
    """Format mean ± deviation of each classifier's accuracy."""
    return ", ".join(format_mean([accuracy[key] for accuracy in runs]) for key in ("probe", "sNN"))


if __name__ == "__main__":
    typer.run(main)
