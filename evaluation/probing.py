"""Step that measures a backbone's frozen features with probes."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation import corruptions
from evaluation.label_subsets import TASK, LabelRequest, label_requests, split_train_val
from evaluation.measurement import ALL_CORRUPTIONS, CLEAN, MEASUREMENTS_FILE, Measurement
from evaluation.probe import LabelledFeatures, ProbeResult, ProbeTask
from ingest.true_labels import class_ids
from pipeline.data.dataset import ImageDataset
from pipeline.errors import error_context
from pipeline.models.encoder import Encoder
from pipeline.models.features import extract_features, identity
from pipeline.models.initial import InitialBackbone, backbone_from_config
from pipeline.recipe.evaluation import Amount, StartConfig
from pipeline.steps.artifact import WORK, Inputs, write_json
from pipeline.steps.runtime import Runtime
from pipeline.training import autotune
from tasks.classification.model import Accuracy

TIMING_IMAGES = 16
"""Batch size at which the ways to run a backbone are timed."""


def probe(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write `measured.json`: a record per probe, number of labels, seed and corruption.

    A set without held-out labels is not measured on, and the counts give the reason.

    Args:
        config: `start`, `probes`, `set`, `splits`, `labels`, `seeds`, `seed`, `corruptions`.

    Raises ConfigError if the set has fewer labels than asked for.
    """
    with error_context(config["name"]):
        request = label_requests(config, inputs).get(TASK)
    records: list[Measurement] = []
    if request:
        start = backbone_from_config(StartConfig.model_validate(config["start"]), inputs, config["seed"])
        extractor = FeatureExtractor(start, inputs.runtime)
        records = list(_Probing(config, request, extractor, out / WORK).records())
    write_json(out / MEASUREMENTS_FILE, [record.to_json() for record in records])
    return {"records": len(records), **({} if request else {"why": "no class labels to learn from, or none held out"})}


class LabelSubset(NamedTuple):
    """`labels` labelled images drawn by a seed, for the amount `asked`."""

    asked: Amount
    labels: int
    seed: int
    train: NDArray[np.int64]
    """Positions of the images to train on."""
    val: NDArray[np.int64]
    """Positions of the images to validate on; none if these have a split of their own."""


class FeatureExtractor:
    """A frozen backbone, run the fastest way that this machine has."""

    def __init__(self, start: InitialBackbone, runtime: Runtime) -> None:
        self.runtime = runtime
        encoder = start.build_encoder().eval()
        images = torch.rand(TIMING_IMAGES, 3, start.size, start.size)

        def call(model: Any, compute: autotune.ComputeConfig) -> None:
            with torch.inference_mode(), compute.autocast():
                model(images.to(compute.device).contiguous(memory_format=compute.memory_format))

        self.compute = autotune.autotune(runtime, [start.name, start.size, "features"], encoder, call)
        self.encoder: Encoder = self.compute.place(encoder)

    def extract(self, images: ImageDataset, rows: Sequence[int], change: Callable[[Any], Any] = identity) -> Tensor:
        """Return features (N, D) float32 of the images at `rows`, after `change`."""
        with self.compute.autocast():
            return extract_features(self.encoder, images, rows, self.runtime, change)


class _Probing:
    """Runs the probes of one backbone on one set."""

    def __init__(
        self, config: Mapping[str, Any], request: LabelRequest, extractor: FeatureExtractor, scratch: Path
    ) -> None:
        self.config, self.extractor, self.scratch = config, extractor, scratch
        self.splits, self.counts = request
        self.start = StartConfig.model_validate(config["start"]).name
        self.done = 0
        test = self.splits.test
        self.truth = [test.values(index)[TASK] for index in range(len(test))]

    @functools.cached_property
    def tests(self) -> list[tuple[str, Tensor]]:
        """Features of the test images by corruption: unchanged first, then with every corruption if asked for."""
        test = self.splits.test
        rows = range(len(test))
        features = [(CLEAN, self.extractor.extract(test, rows))]
        if self.config["corruptions"]:
            features += [
                (name, self.extractor.extract(test, rows, change))
                for name, change in corruptions.corruption_functions()
            ]
        return features

    @functools.cached_property
    def subsets(self) -> list[LabelSubset]:
        """All subsets of labels to train on, by the number of labels and then the seed."""
        seeds = range(self.config["seed"], self.config["seed"] + self.config["seeds"])
        orders = {seed: self.splits.order(seed) for seed in seeds}
        return [
            LabelSubset(asked, count, seed, *split_train_val(orders[seed], count, self.splits.val is None))
            for asked, count in self.counts.items()
            for seed in seeds
        ]

    @functools.cached_property
    def drawn(self) -> NDArray[np.int64]:
        """Positions of the images that are in any subset, sorted."""
        return np.unique(np.concatenate([rows for subset in self.subsets for rows in (subset.train, subset.val)]))

    @functools.cached_property
    def drawn_features(self) -> LabelledFeatures:
        """Features and classes of the images at `drawn`."""
        features = self.extractor.extract(self.splits.train, self.drawn.tolist())
        return LabelledFeatures(features, torch.from_numpy(self.splits.train_classes[self.drawn]))

    @functools.cached_property
    def val(self) -> LabelledFeatures | None:
        """Features and classes of the validation images, if they have a split of their own."""
        val = self.splits.val
        if val is None:
            return None
        return LabelledFeatures(self.extractor.extract(val, range(len(val))), torch.from_numpy(class_ids(val, TASK)))

    def records(self) -> Iterator[Measurement]:
        """Yield the records of every probe, number of labels and seed."""
        for subset in self.subsets:
            task = self._task(subset)
            for name in self.config["probes"]:
                probe: ModuleType = importlib.import_module(f"evaluation.probes.{name}")
                if subset.seed != self.config["seed"] and not self._depends_on_seed(subset, probe):
                    continue
                self._report_progress(f"{name}, {subset.labels} labels, seed {subset.seed}")
                scratch = self.scratch / f"{name}-{subset.asked}-{subset.seed}"
                result = probe.fit(dataclasses.replace(task, scratch=scratch))
                yield from self._measure((name, probe), subset, result)

    def _depends_on_seed(self, subset: LabelSubset, probe: ModuleType) -> bool:
        """Return False if all seeds give the same result: all labels are used and none is drawn for validation."""
        return bool(probe.RANDOM) or subset.asked != "all" or self.splits.val is None

    def _report_progress(self, line: str) -> None:
        config, runtime = self.config, self.extractor.runtime
        runtime.check_stop(config["name"])
        total = len(config["labels"]) * config["seeds"] * len(config["probes"])
        runtime.progress(config["name"], self.done / total, line)
        self.done += 1

    def _task(self, subset: LabelSubset) -> ProbeTask:
        return ProbeTask(
            train=self._features(subset.train),
            val=self.val or self._features(subset.val),
            classes=self.splits.classes,
            seed=subset.seed,
            encoder=self.extractor.encoder,
            images=self.splits.train.subset(subset.train),
            scratch=self.scratch,
            runtime=self.extractor.runtime,
        )

    def _features(self, rows: NDArray[np.int64]) -> LabelledFeatures:
        """Return the drawn features at positions in `train`."""
        positions = np.searchsorted(self.drawn, rows)
        return LabelledFeatures(self.drawn_features.features[positions], self.drawn_features.classes[positions])

    def _measure(
        self, probe: tuple[str, ModuleType], subset: LabelSubset, result: ProbeResult
    ) -> Iterator[Measurement]:
        values: dict[str, list[float]] = defaultdict(list)
        for corruption, features in self.tests:
            accuracy = self._accuracy(result.classify(features))
            values[corruption].append(accuracy)
            if corruption != CLEAN:
                values[ALL_CORRUPTIONS].append(accuracy)
        name, module = probe
        for corruption, accuracies in values.items():
            yield Measurement(
                start=self.start,
                backbone=self.extractor.encoder.name,
                protocol=f"{name} v{module.VERSION}",
                about=module.ABOUT if corruption == CLEAN else f"{module.ABOUT}; {corruptions.ABOUT}",
                dataset=self.config["set"],
                task=TASK,
                split=self.splits.name,
                n=len(self.splits.test),
                asked=subset.asked,
                labels=subset.labels,
                seed=subset.seed,
                metric="accuracy",
                better="higher",
                value=float(np.mean(accuracies)),
                corruption=corruption,
                settings=result.settings,
            )

    def _accuracy(self, probabilities: Tensor) -> float:
        metric = Accuracy()
        for predicted, answer in zip(probabilities.numpy(), self.truth, strict=True):
            metric.update({"probs": predicted}, answer)
        return metric.compute()["accuracy"]
