"""Measure the maps of a frozen backbone on one set and task with the probes that read them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tasks
from evaluation import corruptions
from evaluation.extraction import FeatureExtractor
from evaluation.label_subsets import LabelRequest, split_train_val
from evaluation.map_probe import MOST_IMAGES, LabelledMaps, MapProbeData, MapProbeResult, score_on_maps
from evaluation.measurement import CLEAN, Measurement, mean_scores
from pipeline.data.dataset import ImageDataset
from pipeline.models.features import identity
from pipeline.recipe.evaluation import Amount, StartConfig

Change = Callable[[Any], Any]


class MapProbing:
    """Extract the maps of one backbone on one set, and run the probes of one task on them."""

    def __init__(
        self, config: Mapping[str, Any], request: LabelRequest, extractor: FeatureExtractor, scratch: Path
    ) -> None:
        self.config, self.extractor, self.scratch = config, extractor, scratch
        self.splits, self.counts = request
        self.task = tasks.model(self.splits.space)
        self.start = StartConfig.model_validate(config["start"]).name

    def records(self, probes: Sequence[str]) -> Iterator[Measurement]:
        """Yield the records of these probes, for every number of labels and seed."""
        config = self.config
        for asked, count in self.counts.items():
            for seed in range(config["seed"], config["seed"] + config["seeds"]):
                train, val = self._labelled(count, seed)
                for name in probes:
                    line = f"{name}, {self.task.space.task}, {count} labels, seed {seed}"
                    self.extractor.runtime.progress(config["name"], 0.0, line)
                    data = self._data(train, val, seed, self.scratch / f"{name}-{self.task.space.task}-{asked}-{seed}")
                    found = importlib.import_module(f"evaluation.probes.{name}").fit(data)
                    yield from self._measure(name, found, (asked, count, seed))

    def _labelled(self, count: int, seed: int) -> tuple[LabelledMaps, LabelledMaps]:
        """Return the maps to learn from and to validate on."""
        train, val = split_train_val(self.splits.order(seed), count, self.splits.val is None)
        learned = self._maps(self.splits.train, train[:MOST_IMAGES].tolist())
        if self.splits.val is None:
            return learned, self._maps(self.splits.train, val[:MOST_IMAGES].tolist())
        return learned, self._val

    @functools.cached_property
    def _val(self) -> LabelledMaps:
        assert self.splits.val
        return self._maps(self.splits.val, range(min(len(self.splits.val), MOST_IMAGES)))

    @functools.cached_property
    def _tests(self) -> list[tuple[str, LabelledMaps]]:
        """The test images' maps by corruption: unchanged first, then with every corruption if asked for."""
        corrupted = corruptions.corruption_functions() if self.config["corruptions"] else ()
        test = self.splits.test
        return [(name, self._maps(test, range(len(test)), change)) for name, change in ((CLEAN, identity), *corrupted)]

    def _maps(self, images: ImageDataset, rows: Sequence[int], change: Change = identity) -> LabelledMaps:
        name, keys = self.task.space.task, images.keys()
        maps = self.extractor.extract_maps(images, rows, change)
        values = [images.values(row)[name] for row in rows]
        return LabelledMaps([keys[row] for row in rows], maps, values, [images.size(row) for row in rows])

    def _data(self, train: LabelledMaps, val: LabelledMaps, seed: int, scratch: Path) -> MapProbeData:
        backbone = self.extractor.backbone
        return MapProbeData(
            name=self.config["name"],
            task=self.task,
            train=train,
            val=val,
            size=backbone.size,
            strides=backbone.strides,
            channels=backbone.channels,
            width=self.config["width"],
            proposals=self.config["proposals"],
            seed=seed,
            scratch=scratch,
            runtime=self.extractor.runtime,
        )

    def _measure(self, name: str, found: MapProbeResult, drawn: tuple[Amount, int, int]) -> Iterator[Measurement]:
        probe, (asked, labels, seed) = importlib.import_module(f"evaluation.probes.{name}"), drawn
        scores = [(corruption, score_on_maps(found.module, self.task, maps)) for corruption, maps in self._tests]
        for corruption, values in mean_scores(scores).items():
            for metric, value in values.items():
                yield Measurement(
                    start=self.start,
                    backbone=self.extractor.backbone.name,
                    protocol=f"{name} v{probe.VERSION}",
                    about=probe.ABOUT if corruption == CLEAN else f"{probe.ABOUT}; {corruptions.ABOUT}",
                    dataset=self.config["set"],
                    task=self.task.space.task,
                    split=self.splits.name,
                    n=len(self.splits.test),
                    asked=asked,
                    labels=labels,
                    seed=seed,
                    metric=metric,
                    better=self.task.better[metric],
                    value=value,
                    corruption=corruption,
                    steps=found.cost.steps,
                    images=found.cost.images,
                    seconds=round(found.cost.seconds, 2),
                    settings=found.settings,
                )
