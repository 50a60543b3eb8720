"""The step that measures a backbone's frozen features with classifiers."""

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
from evaluation.label_subsets import TASK, LabelRequest, asked_of, parts
from evaluation.measurement import ALL, CLEAN, FILE, Measurement
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

PROBED = 16
"""Images that a backbone is timed on."""


def probe(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write `measured.json`: a record per probe, number of labels, seed and corruption.

    `config`: `start`, `probes`, `set`, `splits`, `labels`, `seeds`, `seed`, `corruptions`. Raises ConfigError if the
    set has fewer labels than asked for. A set without held-out labels is not measured on, and the counts say why.
    """
    with error_context(config["name"]):
        asked = asked_of(config, inputs).get(TASK)
    records: list[Measurement] = []
    if asked:
        start = backbone_from_config(StartConfig.model_validate(config["start"]), inputs, config["seed"])
        records = list(_Probing(config, asked, Eye(start, inputs.runtime), out / WORK).records())
    write_json(out / FILE, [record.to_json() for record in records])
    return {"records": len(records), **({} if asked else {"why": "no class labels to learn from, or none held out"})}


class Draw(NamedTuple):
    """`labels` images drawn by a seed, because `asked` was asked for: positions of those to learn from, and of those to
    decide by, none if these have a split of their own.
    """

    asked: Amount
    labels: int
    seed: int
    rows: NDArray[np.int64]
    aside: NDArray[np.int64]


class Eye:
    """A frozen backbone, laid out for this machine."""

    def __init__(self, start: InitialBackbone, runtime: Runtime) -> None:
        self.runtime = runtime
        encoder = start.build_encoder().eval()
        images = torch.rand(PROBED, 3, start.size, start.size)

        def call(model: Any, choice: autotune.ComputeConfig) -> None:
            with torch.inference_mode(), choice.autocast():
                model(images.to(choice.device).contiguous(memory_format=choice.memory_format))

        self.choice = autotune.autotune(runtime, [start.name, start.size, "features"], encoder, call)
        self.encoder: Encoder = self.choice.place(encoder)

    def see(self, images: ImageDataset, chosen: Sequence[int], change: Callable[[Any], Any] = identity) -> Tensor:
        """Features (N, D) float32 of these images, changed before they are looked at."""
        with self.choice.autocast():
            return extract_features(self.encoder, images, chosen, self.runtime, change)


class _Probing:
    """The probes of one backbone on one set."""

    def __init__(self, config: Mapping[str, Any], asked: LabelRequest, eye: Eye, scratch: Path) -> None:
        self.config, (self.splits, self.counts), self.eye, self.scratch = config, asked, eye, scratch
        self.called = StartConfig.model_validate(config["start"]).name
        self.done = 0
        test = self.splits.test
        self.answers = [test.values(index)[TASK] for index in range(len(test))]

    @functools.cached_property
    def tests(self) -> list[tuple[str, Tensor]]:
        """Features of the images that are reported on: as they are, and with every corruption if asked for."""
        test = self.splits.test
        everything = range(len(test))
        found = [(CLEAN, self.eye.see(test, everything))]
        if self.config["corruptions"]:
            found += [(name, self.eye.see(test, everything, change)) for name, change in corruptions.changes()]
        return found

    @functools.cached_property
    def draws(self) -> list[Draw]:
        """All that is learned from, by the number of labels and then the seed."""
        seeds = [self.config["seed"] + turn for turn in range(self.config["seeds"])]
        orders = {seed: self.splits.order(seed) for seed in seeds}
        return [
            Draw(asked, count, seed, *parts(orders[seed], count, self.splits.val is None))
            for asked, count in self.counts.items()
            for seed in seeds
        ]

    @functools.cached_property
    def drawn(self) -> NDArray[np.int64]:
        """Positions of the images that are in any draw, in their order."""
        return np.unique(np.concatenate([rows for draw in self.draws for rows in (draw.rows, draw.aside)]))

    @functools.cached_property
    def known(self) -> LabelledFeatures:
        """Features and classes of the images that are drawn."""
        features = self.eye.see(self.splits.train, self.drawn.tolist())
        return LabelledFeatures(features, torch.from_numpy(self.splits.numbers[self.drawn]))

    @functools.cached_property
    def val(self) -> LabelledFeatures | None:
        """Those to decide by, if they have a split of their own."""
        val = self.splits.val
        if val is None:
            return None
        return LabelledFeatures(self.eye.see(val, range(len(val))), torch.from_numpy(class_ids(val, TASK)))

    def records(self) -> Iterator[Measurement]:
        """What comes out of every probe, number of labels and seed."""
        for draw in self.draws:
            problem = self._problem(draw)
            for name in self.config["probes"]:
                probe: ModuleType = importlib.import_module(f"evaluation.probes.{name}")
                if draw.seed != self.config["seed"] and not self._differs(draw, probe):
                    continue
                self._tell(f"{name}, {draw.labels} labels, seed {draw.seed}")
                scratch = self.scratch / f"{name}-{draw.asked}-{draw.seed}"
                solution = probe.fit(dataclasses.replace(problem, scratch=scratch))
                yield from self._report((name, probe), draw, solution)

    def _differs(self, draw: Draw, probe: ModuleType) -> bool:
        """Whether seeds come to different things: with all labels, where none is set apart, nothing is drawn."""
        return bool(probe.RANDOM) or draw.asked != "all" or self.splits.val is None

    def _tell(self, line: str) -> None:
        config, runtime = self.config, self.eye.runtime
        runtime.check_stop(config["name"])
        total = len(config["labels"]) * config["seeds"] * len(config["probes"])
        runtime.progress(config["name"], self.done / total, line)
        self.done += 1

    def _problem(self, draw: Draw) -> ProbeTask:
        train, eye = self.splits.train.subset(draw.rows), self.eye
        known = self._only(draw.rows), self.val or self._only(draw.aside)
        return ProbeTask(*known, self.splits.classes, draw.seed, eye.encoder, train, self.scratch, eye.runtime)

    def _only(self, rows: NDArray[np.int64]) -> LabelledFeatures:
        at = np.searchsorted(self.drawn, rows)
        return LabelledFeatures(self.known.features[at], self.known.classes[at])

    def _report(self, probe: tuple[str, ModuleType], draw: Draw, solution: ProbeResult) -> Iterator[Measurement]:
        values: dict[str, list[float]] = defaultdict(list)
        for corruption, features in self.tests:
            accuracy = self._accuracy(solution.classify(features))
            values[corruption].append(accuracy)
            if corruption != CLEAN:
                values[ALL].append(accuracy)
        name, about = probe
        for corruption, found in values.items():
            yield Measurement(
                start=self.called,
                backbone=self.eye.encoder.name,
                protocol=f"{name} v{about.VERSION}",
                about=about.ABOUT if corruption == CLEAN else f"{about.ABOUT}; {corruptions.ABOUT}",
                dataset=self.config["set"],
                task=TASK,
                split=self.splits.name,
                n=len(self.splits.test),
                asked=draw.asked,
                labels=draw.labels,
                seed=draw.seed,
                metric="accuracy",
                better="higher",
                value=float(np.mean(found)),
                corruption=corruption,
                settings=solution.settings,
            )

    def _accuracy(self, probabilities: Tensor) -> float:
        metric = Accuracy()
        for found, answer in zip(probabilities.numpy(), self.answers, strict=True):
            metric.update({"probs": found}, answer)
        return metric.compute()["accuracy"]
