"""The step that measures a backbone's frozen features with classifiers."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation import corruptions
from evaluation.few import Splits, count_of, order_of, parts, splits_of
from evaluation.measured import ALL, CLEAN, FILE, Measured
from evaluation.problem import Known, Problem, Solution
from pipeline import machine
from pipeline.artifacts import WORK, Inputs, write_json
from pipeline.encoder import Encoder
from pipeline.errors import ConfigError
from pipeline.evaluating import Amount, StartConfig
from pipeline.features import as_it_is, features_of
from pipeline.loader import Library
from pipeline.runtime import Runtime
from pipeline.starts import Start, of_config
from tasks.classification.model import Accuracy
from tasks.ingest import IngestedSet
from tasks.shelves import class_numbers

TASK = "classification"
PROBED = 16
"""Images that a backbone is timed on."""


def probe(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write `measured.json`: a record per probe, number of labels, seed and corruption.

    `config`: `start`, `probes`, `set`, `splits`, `labels`, `seeds`, `seed`, `corruptions`. Raises ConfigError if the
    set has fewer labels than asked for. A set without held-out labels is not measured on, and the counts say why.
    """
    found = IngestedSet(inputs[f"data.{config['set']}"])
    splits = splits_of(found, TASK, config["splits"])
    records: list[Measured] = []
    if splits:
        start = of_config(StartConfig.model_validate(config["start"]), inputs, config["seed"])
        records = list(_Probing(config, splits, Eye(start, inputs.runtime), out / WORK).records())
    write_json(out / FILE, [record.to_json() for record in records])
    if "trial" in config and not splits:
        raise ConfigError(
            f"{config['name']}: the set {config['set']!r} has no class labels to learn from, or none held out to "
            f"measure on; its splits: {found.splits}."
        )
    return {"records": len(records), **({} if splits else {"why": "no class labels to learn from, or none held out"})}


class Eye:
    """A frozen backbone, laid out for this machine."""

    def __init__(self, start: Start, runtime: Runtime) -> None:
        self.runtime = runtime
        encoder = start.encoder().eval()
        images = torch.rand(PROBED, 3, start.size, start.size)

        def call(model: Any, choice: machine.Choice) -> None:
            with torch.inference_mode(), choice.autocast():
                model(images.to(choice.device).contiguous(memory_format=choice.memory_format))

        self.choice = machine.choose(runtime, [start.name, start.size, "features"], encoder, call)
        self.encoder: Encoder = self.choice.place(encoder)

    def see(self, images: Library, chosen: Sequence[int], change: Callable[[Any], Any] = as_it_is) -> Tensor:
        """Features (N, D) float32 of these images, changed before they are looked at."""
        with self.choice.autocast():
            return features_of(self.encoder, images, chosen, self.runtime, change)


class _Probing:
    """The probes of one backbone on one set."""

    def __init__(self, config: Mapping[str, Any], splits: Splits, eye: Eye, scratch: Path) -> None:
        self.config, self.splits, self.eye, self.scratch = config, splits, eye, scratch
        self.called = StartConfig.model_validate(config["start"]).name
        self.done = 0
        self.answers = [splits.test.values(index)[TASK] for index in range(len(splits.test))]

    @property
    def classes(self) -> int:
        return len(self.answers[0]["probs"])

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
    def known(self) -> Known:
        """Features and classes of all images to learn from."""
        train = self.splits.train
        return Known(self.eye.see(train, range(len(train))), torch.from_numpy(class_numbers(train, TASK)))

    @functools.cached_property
    def val(self) -> Known | None:
        """Those to decide by, if they have a split of their own."""
        val = self.splits.val
        if val is None:
            return None
        return Known(self.eye.see(val, range(len(val))), torch.from_numpy(class_numbers(val, TASK)))

    def records(self) -> Iterator[Measured]:
        """What comes out of every probe, number of labels and seed."""
        for amount in self.config["labels"]:
            for turn in range(self.config["seeds"]):
                problem, count = self._problem(amount, self.config["seed"] + turn)
                for name in self.config["probes"]:
                    probe: ModuleType = importlib.import_module(f"evaluation.probes.{name}")
                    if turn and amount == "all" and not probe.RANDOM:
                        continue  # nothing is drawn: every seed comes to the same
                    self._tell(f"{name}, {count} labels, seed {problem.seed}")
                    scratch = self.scratch / f"{name}-{amount}-{problem.seed}"
                    solution = probe.fit(dataclasses.replace(problem, scratch=scratch))
                    yield from self._report((name, probe), (amount, count), problem.seed, solution)

    def _tell(self, line: str) -> None:
        config, runtime = self.config, self.eye.runtime
        runtime.check_stop(config["name"])
        total = len(config["labels"]) * config["seeds"] * len(config["probes"])
        runtime.progress(config["name"], self.done / total, line)
        self.done += 1

    def _problem(self, amount: Amount, seed: int) -> tuple[Problem, int]:
        """What is learned from so many labels, drawn by a seed; and how many they are."""
        train = self.splits.train
        count = count_of(amount, len(train), self.classes, self.config["set"], self.splits.val is None)
        rows, aside = parts(order_of(train, TASK, seed), count, self.splits.val is None)
        eye, known = self.eye, (self._only(rows), self.val or self._only(aside))
        return Problem(*known, self.classes, seed, eye.encoder, train.only(rows), self.scratch, eye.runtime), count

    def _only(self, rows: NDArray[np.int64]) -> Known:
        return Known(self.known.features[rows], self.known.classes[rows])

    def _report(
        self, probe: tuple[str, ModuleType], labels: tuple[Amount, int], seed: int, solution: Solution
    ) -> Iterator[Measured]:
        values: dict[str, list[float]] = defaultdict(list)
        for corruption, features in self.tests:
            accuracy = self._accuracy(solution.classify(features))
            values[corruption].append(accuracy)
            if corruption != CLEAN:
                values[ALL].append(accuracy)
        name, about = probe
        for corruption, found in values.items():
            yield Measured(
                start=self.called,
                backbone=self.eye.encoder.name,
                protocol=f"{name} v{about.VERSION}",
                about=about.ABOUT if corruption == CLEAN else f"{about.ABOUT}; {corruptions.ABOUT}",
                dataset=self.config["set"],
                task=TASK,
                split=self.splits.name,
                n=len(self.splits.test),
                asked=labels[0],
                labels=labels[1],
                seed=seed,
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
