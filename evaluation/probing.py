"""Step that measures a backbone's frozen features with probes."""

from __future__ import annotations

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
from evaluation.probe import LabelledFeatures, ProbeData, ProbeResult
from ingest.true_labels import class_ids
from pipeline.data.dataset import ImageDataset
from pipeline.errors import error_context
from pipeline.models.backbone import Backbone
from pipeline.models.features import extract_features, identity
from pipeline.models.initial import InitialBackbone, backbone_from_config
from pipeline.recipe.evaluation import Amount, StartConfig
from pipeline.steps.artifact import WORK, Inputs, write_json
from pipeline.steps.runtime import Runtime
from pipeline.training import autotune

AUTOTUNE_IMAGES = 16
"""Images of the forward pass that is timed."""


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
        backbone = start.build().eval()
        images = torch.rand(AUTOTUNE_IMAGES, 3, start.size, start.size)

        def call(model: Any, compute: autotune.ComputeConfig) -> None:
            with torch.inference_mode(), compute.autocast():
                model(images.to(compute.device).contiguous(memory_format=compute.memory_format))

        self.compute = autotune.autotune(runtime, [start.name, start.size, "features"], backbone, call)
        self.backbone: Backbone = self.compute.place(backbone)

    def extract(self, images: ImageDataset, rows: Sequence[int], change: Callable[[Any], Any] = identity) -> Tensor:
        """Return features (N, D) float32 of the images at `rows`, after `change`."""
        with self.compute.autocast():
            return extract_features(self.backbone, images, rows, self.runtime, change)


class _Probing:
    """Extract the features of one backbone on one set, and run the probes on them."""

    def __init__(
        self, config: Mapping[str, Any], request: LabelRequest, extractor: FeatureExtractor, scratch: Path
    ) -> None:
        self.config, self.extractor, self.scratch = config, extractor, scratch
        self.splits, counts = request
        self.start = StartConfig.model_validate(config["start"]).name
        train, val = self.splits.train, self.splits.val
        seeds = range(config["seed"], config["seed"] + config["seeds"])
        orders = {seed: self.splits.order(seed) for seed in seeds}
        self.subsets = [
            LabelSubset(asked, count, seed, *split_train_val(orders[seed], count, val is None))
            for asked, count in counts.items()
            for seed in seeds
        ]
        self.drawn = np.unique(np.concatenate([rows for subset in self.subsets for rows in (subset.train, subset.val)]))
        """Positions of the images that are in any subset, sorted."""
        drawn_classes = torch.from_numpy(self.splits.train_classes[self.drawn])
        self.drawn_features = LabelledFeatures(extractor.extract(train, self.drawn.tolist()), drawn_classes)
        self.val = None
        if val is not None:
            features = extractor.extract(val, range(len(val)))
            self.val = LabelledFeatures(features, torch.from_numpy(class_ids(val, TASK)))
        self.test_classes = class_ids(self.splits.test, TASK)

    @functools.cached_property
    def tests(self) -> list[tuple[str, Tensor]]:
        """Features of the test images by corruption: unchanged first, then with every corruption if asked for."""
        corrupted = corruptions.corruption_functions() if self.config["corruptions"] else ()
        test = self.splits.test
        return [
            (name, self.extractor.extract(test, range(len(test)), change))
            for name, change in ((CLEAN, identity), *corrupted)
        ]

    def records(self) -> Iterator[Measurement]:
        """Yield the records of every probe, number of labels and seed."""
        config, runtime, done = self.config, self.extractor.runtime, 0
        total = len(config["labels"]) * config["seeds"] * len(config["probes"])
        for subset in self.subsets:
            for name in config["probes"]:
                probe: ModuleType = importlib.import_module(f"evaluation.probes.{name}")
                depends_on_seed = probe.RANDOM or subset.asked != "all" or self.splits.val is None
                if subset.seed != config["seed"] and not depends_on_seed:
                    continue
                runtime.check_stop(config["name"])
                line = f"{name}, {subset.labels} labels, seed {subset.seed}"
                runtime.progress(config["name"], done / total, line)
                done += 1
                data = self._data(subset, self.scratch / f"{name}-{subset.asked}-{subset.seed}")
                yield from self._measure((name, probe), subset, probe.fit(data))

    def _data(self, subset: LabelSubset, scratch: Path) -> ProbeData:
        return ProbeData(
            train=self._features(subset.train),
            val=self.val or self._features(subset.val),
            classes=self.splits.classes,
            seed=subset.seed,
            backbone=self.extractor.backbone,
            images=self.splits.train.subset(subset.train),
            scratch=scratch,
            runtime=self.extractor.runtime,
        )

    def _features(self, rows: NDArray[np.int64]) -> LabelledFeatures:
        """Return the drawn features at positions in `train`."""
        positions = np.searchsorted(self.drawn, rows)
        return LabelledFeatures(self.drawn_features.features[positions], self.drawn_features.classes[positions])

    def _measure(
        self, probe: tuple[str, ModuleType], subset: LabelSubset, result: ProbeResult
    ) -> Iterator[Measurement]:
        values: dict[str, list[np.floating]] = defaultdict(list)
        for corruption, features in self.tests:
            accuracy = np.mean(result.classify(features).numpy().argmax(axis=1) == self.test_classes)
            values[corruption].append(accuracy)
            if corruption != CLEAN:
                values[ALL_CORRUPTIONS].append(accuracy)
        name, module = probe
        for corruption, accuracies in values.items():
            yield Measurement(
                start=self.start,
                backbone=self.extractor.backbone.name,
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
