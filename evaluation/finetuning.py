"""Step that fine-tunes networks from one backbone on one set, with all labels or with few."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from evaluation import corruptions
from evaluation.label_subsets import Splits, label_requests
from evaluation.measurement import CLEAN, MEASUREMENTS_FILE, Measurement, max_or_min, measurements
from evaluation.schedules import SCHEDULES, FinetuneSchedule
from ingest.resized import read_resized
from pipeline.data.bands import Pixels
from pipeline.data.dataset import ImageDataset
from pipeline.errors import error_context
from pipeline.models.backbone import register_statistics
from pipeline.models.initial import InitialBackbone, backbone_from_config
from pipeline.recipe.base import FitConfig
from pipeline.recipe.evaluation import Amount, StartConfig
from pipeline.steps.artifact import WORK, Artifact, Inputs, parse_lines, read_json, write_json
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import LabelSpace
from tasks.network import Network, NetworkConfig
from tasks.prediction import Predictor, Preprocessing, network_predictor
from tasks.scoring import score
from tasks.training import TrainingPlan, WeightedSum, fitted_space, train_network

FINISHED_FILE = "done.jsonl"
"""File in the step's scratch with the records of finished trials, so that the next attempt skips them.

A line holds the trial's name under `lesson`, so that files of older versions are still read.
"""


def finetune(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write `measured.json`: a record per task of the set, number of labels, seed, metric and corruption.

    Settings are chosen by the task's leading metric on validation images, with the first seed, for each number of
    labels. Finished trials are kept if the step is stopped.

    Args:
        config: `start`, `set`, `splits`, `schedule`, `labels`, `seeds`, `seed`, `corruptions`, and the `width` and
            `proposals` of the networks.

    Raises ConfigError if the set has fewer labels than asked for.
    """
    scratch = out / WORK
    scratch.mkdir(parents=True, exist_ok=True)
    finetuning = _Finetuning(config, inputs, scratch)
    records = list(finetuning.records())
    write_json(out / MEASUREMENTS_FILE, records)
    return {"records": len(records), "trained": finetuning.trained}


@dataclasses.dataclass(frozen=True)
class FinetuneTrial:
    """One network to fine-tune: for a task, on a number of labels, with a seed."""

    task: str
    splits: Splits
    asked: Amount
    labels: int
    seed: int

    @property
    def name(self) -> str:
        return trial_name(self.task, self.asked, self.seed)

    @property
    def about(self) -> str:
        """Description in words."""
        return f"{self.task}, {self.labels} labels, seed {self.seed}"

    def datasets(self) -> tuple[ImageDataset, ImageDataset]:
        """Return the images to train and to validate on."""
        train, val = self.splits.split(self.splits.order(self.seed), self.labels)
        return self.splits.train.subset(train), self.splits.val or self.splits.train.subset(val)


def trial_name(task: str, asked: Amount, seed: int) -> str:
    """Return the name of a trial."""
    return f"{task}-{asked}-{seed}"


class _Finetuning:
    """Runs all trials of one backbone on one set."""

    def __init__(self, config: Mapping[str, Any], inputs: Inputs, scratch: Path) -> None:
        self.config, self.inputs, self.scratch = config, inputs, scratch
        self.start = StartConfig.model_validate(config["start"])
        self.schedule: FinetuneSchedule = SCHEDULES[config["schedule"]]
        self.runtime = dataclasses.replace(inputs.runtime, progress=self._report_progress)
        self.progress_range = (0.0, 1.0, "")
        self.trained = 0

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records of every trial; finished trials are not run again."""
        done, trials = self._finished(), list(self._trials())
        settings: dict[tuple[str, Amount], Mapping[str, Any]] = {}
        for number, trial in enumerate(trials):
            if trial.name not in done:
                self.progress_range = (number / len(trials), 1 / len(trials), trial.about)
                done[trial.name] = self._run(trial, settings.get((trial.task, trial.asked)))
                self._save(trial.name, done[trial.name])
            settings.setdefault((trial.task, trial.asked), done[trial.name][0]["settings"])
            yield from done[trial.name]

    def _finished(self) -> dict[str, list[dict[str, Any]]]:
        """Return records by trial: of an artifact with other labels or seeds, and of an earlier attempt at this one."""
        done: dict[str, list[dict[str, Any]]] = defaultdict(list)
        previous = self.inputs.previous
        for record in previous.load(MEASUREMENTS_FILE, read_json) if previous and self._same_inputs(previous) else ():
            done[trial_name(record["task"], record["asked"], record["seed"])].append(record)
        file = self.scratch / FINISHED_FILE
        if file.exists():
            done |= {line["lesson"]: line["records"] for line in parse_lines(file.read_bytes())}
        return done

    def _same_inputs(self, previous: Artifact) -> bool:
        """Return True if an artifact was made from this step's inputs and may be reused."""
        digests = {name: made["digest"] for name, made in previous.manifest["inputs"].items()}
        return not self.inputs.force and digests == {name: made.digest for name, made in self.inputs.artifacts.items()}

    def _trials(self) -> Iterator[FinetuneTrial]:
        with error_context(self.config["name"]):
            requests = label_requests(self.config, self.inputs)
        for task, (splits, counts) in requests.items():
            for asked, count in counts.items():
                for number in range(self.config["seeds"]):
                    yield FinetuneTrial(task, splits, asked, count, self.config["seed"] + number)

    def _report_progress(self, _: str, done: float, line: str) -> None:
        """Report the progress of one training as that of the step."""
        before, share, about = self.progress_range
        self.inputs.runtime.progress(self.config["name"], before + share * done, f"{about}: {line}")

    def _save(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        with open(self.scratch / FINISHED_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps({"lesson": name, "records": records}) + "\n")
        self.inputs.runtime.root.upload(self.scratch / FINISHED_FILE)
        for folder in self.scratch.glob(f"{name}-*"):
            shutil.rmtree(folder)

    def _run(self, trial: FinetuneTrial, chosen: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """Train with the chosen settings, or with all of the schedule's grid, and return the records of the best."""
        train, val = trial.datasets()
        grid = [chosen] if chosen else self.schedule.grid(len(train), len(trial.splits.train))
        before, share, _ = self.progress_range
        runs = []
        for number, settings in enumerate(grid):
            about = f"{trial.about}, settings {number + 1} of {len(grid)}" if len(grid) > 1 else trial.about
            self.progress_range = (before + share * number / len(grid), share / len(grid), about)
            runs.append(self._train(trial, settings, (train, val), str(number)))
        better = runs[0].predictor.heads[trial.task].better
        leading, direction = next(iter(better.items()))
        best = max_or_min(direction)(runs, key=lambda run: run.scores.get(leading, 0.0))  # of all, or of none
        return [record.to_json() for record in self._measure(trial, best, better)]

    def _train(
        self, trial: FinetuneTrial, settings: Mapping[str, Any], datasets: tuple[ImageDataset, ImageDataset], name: str
    ) -> FineTuned:
        train, val = read_resized(datasets[0], self.inputs), datasets[1]
        fit, runtime = FitConfig.model_validate(settings), self.runtime
        start = backbone_from_config(self.start, self.inputs, trial.seed, trial.splits.own_statistics)
        blank = self.schedule.blank_head
        space = fitted_space(trial.splits.space, datasets[0], trial.task)
        network = build_finetuning_network(start, {trial.task: space}, self.config, blank, trial.seed)
        folder = self.scratch / f"{trial.name}-{name}"
        plan = TrainingPlan(self.config["name"], fit, self.schedule.augment, trial.seed, folder)
        trained = train_network(network, WeightedSum({trial.task: 1.0}), train, plan, runtime)
        self.trained += 1
        predictor = network_predictor(network.cpu()).setup(runtime, network.config.architecture())
        scores = score(predictor, val, trial.task, runtime)
        steps, seconds = fit.total_steps(len(train)), trained.fitted.seconds
        return FineTuned(predictor, start.name, dict(settings), steps, steps * fit.batch, seconds, scores)

    def _measure(self, trial: FinetuneTrial, run: FineTuned, better: Mapping[str, str]) -> Iterator[Measurement]:
        return measurements(
            corruption_scores(run.predictor, trial, self.config["corruptions"], self.runtime),
            better,
            (self.schedule.about, corruptions.ABOUT),
            start=self.start.name,
            backbone=run.backbone,
            protocol=f"finetune {self.config['schedule']} v{self.schedule.version}",
            dataset=self.config["set"],
            task=trial.task,
            split=trial.splits.name,
            n=len(trial.splits.test),
            asked=trial.asked,
            labels=trial.labels,
            seed=trial.seed,
            steps=run.steps,
            images=run.images,
            seconds=round(run.seconds, 2),
            settings=run.settings,
        )


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A fine-tuned network with its settings, its cost, and its metrics on validation images."""

    predictor: Predictor
    backbone: str
    settings: dict[str, Any]
    steps: int
    images: int
    seconds: float
    scores: dict[str, float]


def build_finetuning_network(
    start: InitialBackbone, spaces: Mapping[str, LabelSpace], config: Mapping[str, Any], blank: bool, seed: int
) -> Network:
    """Build a network with new heads on a backbone's initial weights and image statistics.

    `config` has the `width` and `proposals` of the heads. With `blank`, linear classifiers start from zeros.
    """
    heads = {name: space.to_json() for name, space in spaces.items()}
    settings = {key: config[key] for key in ("width", "proposals")}
    settings |= {"image_size": start.size, "channels": start.channels}
    network = Network(NetworkConfig(backbone=start.name, heads=heads, seed=seed, **settings))
    if start.weights is not None:
        network.backbone.model.load_state_dict(start.weights)
    register_statistics(network.backbone, start.statistics)
    if blank:
        for head in network.heads.values():
            if isinstance(head, nn.Linear):
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)
    return network


def corruption_scores(
    predictor: Predictor, trial: FinetuneTrial, corrupted: bool, runtime: Runtime
) -> list[tuple[str, dict[str, float]]]:
    """Return the metrics on the test images, unchanged ones first, and on each corruption of them if asked for."""
    test = trial.splits.test
    scores = [(CLEAN, score(predictor, test, trial.task, runtime))]
    if corrupted:
        clean = predictor.preprocessing
        for name, change in corruptions.corruption_functions():
            predictor.preprocessing = CorruptedPreprocessing(**dataclasses.asdict(clean), change=change)
            scores.append((name, score(predictor, test, trial.task, runtime)))
        predictor.preprocessing = clean
    return scores


@dataclasses.dataclass(frozen=True)
class CorruptedPreprocessing(Preprocessing):
    """Preprocessing that corrupts the image at its end."""

    change: Any = None

    def __call__(self, image: Pixels, size: tuple[int, int]) -> NDArray[np.uint8]:
        corrupted: NDArray[np.uint8] = self.change(super().__call__(image, size))
        return corrupted
