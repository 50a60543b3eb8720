"""Step that measures a frozen backbone with probes: its vectors here, its maps in `evaluation.dense_probing`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import tasks
from evaluation import corruptions
from evaluation.dense_probing import DenseProbing
from evaluation.extraction import FeatureExtractor, image_changes
from evaluation.label_subsets import LabelRequest, possible_requests, probe_module, probes_for
from evaluation.measurement import MEASUREMENTS_FILE, Measurement, measurements
from evaluation.probe import LabelledFeatures, ProbeData, ProbeResult
from ingest.true_labels import CLASSIFICATION, class_ids
from pipeline.data.dataset import ImageDataset
from pipeline.errors import error_context
from pipeline.models.initial import backbone_from_config
from pipeline.recipe.evaluation import Amount, StartConfig
from pipeline.steps.artifact import WORK, Inputs, write_json
from tasks.task import Task, stack

READS = ("vector", "maps")
"""Values of a probe's `READS`."""


def probe(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write `measured.json`: a record per probe, task, number of labels, seed and corruption.

    Tasks of the set without held-out labels are not measured on, and the counts give the reason.

    Args:
        config: `start`, `probes`, `set`, `splits`, `labels`, `seeds`, `seed`, `corruptions`, and the `width` and
            `proposals` of detectors.

    Raises ConfigError if the set has fewer labels than asked for.
    """
    with error_context(config["name"]):
        requests, reasons = possible_requests(config, inputs)
    records: list[Measurement] = []
    if requests:
        own = next(iter(requests.values())).splits.own_statistics
        start = backbone_from_config(StartConfig.model_validate(config["start"]), inputs, config["seed"], own)
        extractor = FeatureExtractor(start, inputs.runtime)
        for request in requests.values():
            chosen = probes_for(config["probes"], request.splits.space)
            vector, maps = ([name for name in chosen if reads == probe_module(name).READS] for reads in READS)
            if vector:
                records += _Probing(config, request, extractor, out / WORK).records(vector)
            if maps:
                records += DenseProbing(config, request, extractor, out / WORK).records(maps)
    write_json(out / MEASUREMENTS_FILE, [record.to_json() for record in records])
    return {"records": len(records), **({"why": reasons} if reasons else {})}


class LabelSubset(NamedTuple):
    """`labels` labelled images drawn by a seed, for the amount `asked`."""

    asked: Amount
    labels: int
    seed: int
    train: NDArray[np.int64]
    """Positions of the images to train on."""
    val: NDArray[np.int64]
    """Positions of the images to validate on; none if these have a split of their own."""


class _Probing:
    """Extract the features of one backbone on one set, and run the probes on them."""

    def __init__(
        self, config: Mapping[str, Any], request: LabelRequest, extractor: FeatureExtractor, scratch: Path
    ) -> None:
        self.config, self.extractor, self.scratch = config, extractor, scratch
        self.splits, counts = request
        self.task = tasks.model(self.splits.space)
        self.start = StartConfig.model_validate(config["start"]).name
        train, val = self.splits.train, self.splits.val
        seeds = range(config["seed"], config["seed"] + config["seeds"])
        orders = {seed: self.splits.order(seed) for seed in seeds}
        self.subsets = [
            LabelSubset(asked, count, seed, *self.splits.split(orders[seed], count))
            for asked, count in counts.items()
            for seed in seeds
        ]
        self.drawn = np.unique(np.concatenate([rows for subset in self.subsets for rows in (subset.train, subset.val)]))
        """Positions of the images that are in any subset, sorted."""
        self.drawn_features = self._labelled(train.subset(self.drawn))
        self.val = None if val is None else self._labelled(val)
        self.test_classes = _classes(self.splits.test, self.task)

    def _labelled(self, images: ImageDataset) -> LabelledFeatures:
        """Return the features of all these images, and their classes."""
        return LabelledFeatures(self.extractor.extract(images, range(len(images))), _classes(images, self.task))

    @functools.cached_property
    def tests(self) -> list[tuple[str, Tensor]]:
        """Features of the test images by corruption: unchanged first, then with every corruption if asked for."""
        test, changes = self.splits.test, image_changes(self.config["corruptions"])
        return [(name, self.extractor.extract(test, range(len(test)), change)) for name, change in changes]

    def records(self, probes: Sequence[str]) -> Iterator[Measurement]:
        """Yield the records of these probes, for every number of labels and seed."""
        config, runtime, done = self.config, self.extractor.runtime, 0
        total = len(config["labels"]) * config["seeds"] * len(probes)
        for subset in self.subsets:
            for name in probes:
                probe = probe_module(name)
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
            classes=len(self.splits.space.classes),
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

    def _score(self, predicted: Tensor) -> dict[str, float]:
        """Return the task's metrics of probabilities (N, K) for the test images."""
        true = self.test_classes
        if true.ndim == 1:
            true = F.one_hot(true, predicted.shape[1]).float()
        metric = self.task.metrics()
        for one, other in zip(predicted.numpy(), true.numpy(), strict=True):
            metric.update({"probs": one}, {"probs": other})
        return metric.compute()

    def _measure(
        self, probe: tuple[str, ModuleType], subset: LabelSubset, result: ProbeResult
    ) -> Iterator[Measurement]:
        scores = [(corruption, self._score(result.classify(features))) for corruption, features in self.tests]
        name, module = probe
        yield from measurements(
            scores,
            self.task.better,
            (module.ABOUT, f"{module.ABOUT}; {corruptions.ABOUT}"),
            start=self.start,
            backbone=self.extractor.backbone.name,
            protocol=f"{name} v{module.VERSION}",
            dataset=self.config["set"],
            task=self.task.space.task,
            split=self.splits.name,
            n=len(self.splits.test),
            asked=subset.asked,
            labels=subset.labels,
            seed=subset.seed,
            settings=result.settings,
        )


def _classes(images: ImageDataset, task: Task) -> Tensor:
    """Return the labels of all images, as `LabelledFeatures` has them."""
    name = task.space.task
    if name == CLASSIFICATION:
        return torch.from_numpy(class_ids(images, name))
    return stack([images.values(row)[name] for row in range(len(images))], "probs")
