"""Measure the maps of a frozen backbone on one set and task with the probes that read them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tasks
from evaluation import corruptions
from evaluation.dense_probe import DenseProbeData, DenseProbeResult, LabelledMaps, update_metric
from evaluation.extraction import Change, FeatureExtractor, image_changes
from evaluation.label_subsets import LabelRequest, probe_module
from evaluation.measurement import Measurement, measurements
from evaluation.probe import MAX_MAP_IMAGES
from pipeline.data.dataset import ImageDataset
from pipeline.models.features import identity
from pipeline.recipe.evaluation import Amount, StartConfig
from tasks.task import Task

CHUNK = 256
"""Test images whose maps are in memory at once."""


class _Fitted(NamedTuple):
    """A fitted probe: on `labels` labels, drawn by `seed`, for the amount `asked`."""

    name: str
    task: Task
    """Of the label space that the labels of this trial gave."""
    result: DenseProbeResult
    asked: Amount
    labels: int
    seed: int


class DenseProbing:
    """Extract the maps of one backbone on one set, and run the probes of one task on them."""

    def __init__(
        self, config: Mapping[str, Any], request: LabelRequest, extractor: FeatureExtractor, scratch: Path
    ) -> None:
        self.config, self.extractor, self.scratch = config, extractor, scratch
        self.splits, self.counts = request
        self.space = self.splits.space
        self.task = tasks.model(self.space)
        self.start = StartConfig.model_validate(config["start"]).name

    def records(self, probes: Sequence[str]) -> Iterator[Measurement]:
        """Yield the records of these probes, for every number of labels and seed.

        All probes are fitted before any is scored: the maps of the test images are made once, and are not kept.
        """
        config, fitted = self.config, list[_Fitted]()
        draws: dict[int, Amount] = {}  # amounts above the limit are one
        for asked, count in self.counts.items():
            draws.setdefault(min(count, MAX_MAP_IMAGES), asked)
        trials = list(itertools.product(draws.items(), range(config["seed"], config["seed"] + config["seeds"])))
        for number, ((labels, asked), seed) in enumerate(trials):
            train, val = self._labelled(labels, seed)
            task = tasks.model(self.task.fit_space(train.values))
            for name in probes:
                self.extractor.runtime.check_stop(config["name"])
                about = f"{name}, {self.space.task}, {labels} labels, seed {seed}"
                self.extractor.runtime.progress(config["name"], number / len(trials), about)
                data = self._data(task, (train, val), seed, f"{name}-{self.space.task}-{labels}-{seed}")
                fitted.append(_Fitted(name, task, probe_module(name).fit(data), asked, labels, seed))
        for each, scores in zip(fitted, self._scores(fitted), strict=True):
            yield from self._measure(each, scores)

    def _labelled(self, count: int, seed: int) -> tuple[LabelledMaps, LabelledMaps]:
        """Return the maps to learn from and to validate on."""
        train, val = self.splits.split(self.splits.order(seed), count)
        learned = self._maps(self.splits.train, train.tolist())
        return learned, self._val if self.splits.val else self._maps(self.splits.train, val.tolist())

    @functools.cached_property
    def _val(self) -> LabelledMaps:
        assert self.splits.val
        return self._maps(self.splits.val, range(min(len(self.splits.val), MAX_MAP_IMAGES)))

    def _scores(self, fitted: Sequence[_Fitted]) -> list[list[tuple[str, dict[str, float]]]]:
        """Return the metrics on the test images of each fitted probe, by corruption: unchanged images first."""
        scores: list[list[tuple[str, dict[str, float]]]] = [[] for _ in fitted]
        for corruption, change in image_changes(self.config["corruptions"]):
            metrics = [self.task.metrics() for _ in fitted]
            for start in range(0, len(self.splits.test), CHUNK):
                rows = range(start, min(start + CHUNK, len(self.splits.test)))
                images = self._maps(self.splits.test, rows, change)
                for metric, each in zip(metrics, fitted, strict=True):
                    update_metric(metric, each.result.module, each.task, images)
            for found, metric in zip(scores, metrics, strict=True):
                found.append((corruption, metric.compute()))
        return scores

    def _maps(self, images: ImageDataset, rows: Sequence[int], change: Change = identity) -> LabelledMaps:
        name, keys = self.space.task, images.keys()
        maps = self.extractor.extract_maps(images, rows, change)
        values = [images.values(row)[name] for row in rows]
        sizes = [images.size(row) for row in rows]
        return LabelledMaps([keys[row] for row in rows], self.extractor.backbone.size, maps, values, sizes)

    def _data(self, task: Task, maps: tuple[LabelledMaps, LabelledMaps], seed: int, folder: str) -> DenseProbeData:
        backbone = self.extractor.backbone
        return DenseProbeData(
            name=self.config["name"],
            task=task,
            train=maps[0],
            val=maps[1],
            strides=backbone.strides,
            channels=backbone.channels,
            width=self.config["width"],
            proposals=self.config["proposals"],
            seed=seed,
            scratch=self.scratch / folder,
            runtime=self.extractor.runtime,
        )

    def _measure(self, fitted: _Fitted, scores: Sequence[tuple[str, Mapping[str, float]]]) -> Iterator[Measurement]:
        probe, result = probe_module(fitted.name), fitted.result
        return measurements(
            scores,
            self.task.better,
            (probe.ABOUT, f"{probe.ABOUT}; {corruptions.ABOUT}"),
            start=self.start,
            backbone=self.extractor.backbone.name,
            protocol=f"{fitted.name} v{probe.VERSION}",
            dataset=self.config["set"],
            task=self.space.task,
            split=self.splits.name,
            n=len(self.splits.test),
            asked=fitted.asked,
            labels=fitted.labels,
            seed=fitted.seed,
            steps=result.cost.steps,
            images=result.cost.images,
            seconds=round(result.cost.seconds, 2),
            settings=result.settings,
        )
