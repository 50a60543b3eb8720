"""The step that fine-tunes whole networks from one backbone on one set, with all labels or with few."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from evaluation import corruptions
from evaluation.label_subsets import Splits, asked_of, parts
from evaluation.measurement import ALL, CLEAN, FILE, Measurement, best_of
from evaluation.schedules import SCHEDULES, FinetuneSchedule
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
from tasks.training import TrainingPlan, WeightedSum, train_network

DONE = "done.jsonl"
"""In the step's scratch: the records of what is done, so that a later attempt goes on from there."""


def finetune(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write `measured.json`: a record per task of the set, number of labels, seed, metric and corruption.

    `config`: `start`, `set`, `splits`, `schedule`, `labels`, `seeds`, `seed`, `corruptions`, and the `width` and the
    `proposals` of the networks. Settings are decided on by the task's leading metric on validation images, with the
    first seed, for each number of labels. What is done is kept if the step is stopped. Raises ConfigError if the set
    has fewer labels than asked for.
    """
    scratch = out / WORK
    scratch.mkdir(parents=True, exist_ok=True)
    if inputs.force:
        (scratch / DONE).unlink(missing_ok=True)
    tuning = _Tuning(config, inputs, scratch)
    records = list(tuning.records())
    write_json(out / FILE, records)
    return {"records": len(records), "trained": tuning.trained}


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What is learned once: a task on so many labels, with a seed."""

    task: str
    splits: Splits
    asked: Amount
    labels: int
    seed: int

    @property
    def name(self) -> str:
        return named(self.task, self.asked, self.seed)

    @property
    def about(self) -> str:
        """It in words."""
        return f"{self.task}, {self.labels} labels, seed {self.seed}"

    def datasets(self) -> tuple[ImageDataset, ImageDataset]:
        """Images to learn from and to decide by."""
        rows, aside = parts(self.splits.order(self.seed), self.labels, self.splits.val is None)
        return self.splits.train.subset(rows), self.splits.val or self.splits.train.subset(aside)


def named(task: str, asked: Amount, seed: int) -> str:
    """What a lesson is called."""
    return f"{task}-{asked}-{seed}"


class _Tuning:
    """All that is fine-tuned from one backbone on one set."""

    def __init__(self, config: Mapping[str, Any], inputs: Inputs, scratch: Path) -> None:
        self.config, self.inputs, self.scratch = config, inputs, scratch
        self.about = StartConfig.model_validate(config["start"])
        self.schedule: FinetuneSchedule = SCHEDULES[config["schedule"]]
        self.runtime = dataclasses.replace(inputs.runtime, progress=self._tell)
        self.at = (0.0, 1.0, "")
        self.trained = 0

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of every lesson, those that are known as they are."""
        done, lessons = self._known(), list(self._lessons())
        chosen: dict[tuple[str, Amount], Mapping[str, Any]] = {}
        for number, lesson in enumerate(lessons):
            if lesson.name not in done:
                self.at = (number / len(lessons), 1 / len(lessons), lesson.about)
                done[lesson.name] = self._solve(lesson, chosen.get((lesson.task, lesson.asked)))
                self._keep(lesson.name, done[lesson.name])
            chosen.setdefault((lesson.task, lesson.asked), done[lesson.name][0]["settings"])
            yield from done[lesson.name]

    def _known(self) -> dict[str, list[dict[str, Any]]]:
        """Records by lesson: of an artifact with other labels or seeds, and of an earlier attempt at this one."""
        done: dict[str, list[dict[str, Any]]] = defaultdict(list)
        before = self.inputs.previous
        for record in before.load(FILE, read_json) if before and self._made_of_the_same(before) else ():
            done[named(record["task"], record["asked"], record["seed"])].append(record)
        if (self.scratch / DONE).exists():
            done |= {line["lesson"]: line["records"] for line in parse_lines((self.scratch / DONE).read_bytes())}
        return done

    def _made_of_the_same(self, before: Artifact) -> bool:
        """Whether that artifact read what this step reads."""
        read = {name: made["digest"] for name, made in before.manifest["inputs"].items()}
        return not self.inputs.force and read == {name: made.digest for name, made in self.inputs.artifacts.items()}

    def _lessons(self) -> Iterator[Lesson]:
        with error_context(self.config["name"]):
            found = asked_of(self.config, self.inputs)
        for task, (splits, counts) in found.items():
            for asked, count in counts.items():
                for turn in range(self.config["seeds"]):
                    yield Lesson(task, splits, asked, count, self.config["seed"] + turn)

    def _tell(self, _: str, done: float, line: str) -> None:
        """Progress of one training as that of the step."""
        before, share, about = self.at
        self.inputs.runtime.progress(self.config["name"], before + share * done, f"{about}: {line}")

    def _keep(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        with open(self.scratch / DONE, "a", encoding="utf-8") as file:
            file.write(json.dumps({"lesson": name, "records": records}) + "\n")
        self.inputs.runtime.keep(self.scratch / DONE)
        for folder in self.scratch.glob(f"{name}-*"):
            shutil.rmtree(folder)

    def _solve(self, lesson: Lesson, chosen: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """The records of what does best on validation images out of the schedule's grid, or of what was chosen."""
        train, val = lesson.datasets()
        grid = [chosen] if chosen else self.schedule.grid(len(train), len(lesson.splits.train))
        before, share, _ = self.at
        runs = []
        for number, settings in enumerate(grid):
            which = f"{lesson.about}, settings {number + 1} of {len(grid)}" if len(grid) > 1 else lesson.about
            self.at = (before + share * number / len(grid), share / len(grid), which)
            runs.append(self._run(lesson, settings, (train, val), str(number)))
        better = runs[0].predictor.heads[lesson.task].better
        leading, direction = next(iter(better.items()))
        best = best_of(direction)(runs, key=lambda run: run.scores[leading])
        return [record.to_json() for record in self._report(lesson, best, better)]

    def _run(
        self, lesson: Lesson, settings: Mapping[str, Any], datasets: tuple[ImageDataset, ImageDataset], name: str
    ) -> FineTuned:
        train, val = datasets
        fit, runtime = FitConfig.model_validate(settings), self.runtime
        network = self._network(lesson)
        folder = self.scratch / f"{lesson.name}-{name}"
        plan = TrainingPlan(self.config["name"], fit, self.schedule.augment, lesson.seed, folder)
        trained = train_network(network, WeightedSum({lesson.task: 1.0}), train, plan, runtime)
        self.trained += 1
        predictor = network_predictor(network.cpu()).setup(runtime, network.config.architecture())
        scores = score(predictor, val, {lesson.task: lesson.task}, runtime)
        return FineTuned(
            predictor, dict(settings), fit.total_steps(len(train)), fit.batch, trained.fitted.seconds, scores
        )

    def _network(self, lesson: Lesson) -> Network:
        start = backbone_from_config(self.about, self.inputs, lesson.seed)
        return network_of(start, {lesson.task: lesson.splits.space}, self.config, self.schedule.blank_head, lesson.seed)

    def _report(self, lesson: Lesson, run: FineTuned, better: Mapping[str, str]) -> Iterator[Measurement]:
        found = measured_on(run.predictor, lesson, self.config["corruptions"], self.runtime)
        for corruption, scores in found.items():
            for metric, value in scores.items():
                yield Measurement(
                    start=self.about.name,
                    backbone=run.backbone,
                    protocol=f"finetune {self.config['schedule']} v{self.schedule.version}",
                    about=self.schedule.about if corruption == CLEAN else corruptions.ABOUT,
                    dataset=self.config["set"],
                    task=lesson.task,
                    split=lesson.splits.name,
                    n=len(lesson.splits.test),
                    asked=lesson.asked,
                    labels=lesson.labels,
                    seed=lesson.seed,
                    metric=metric,
                    better=better[metric],
                    value=value,
                    corruption=corruption,
                    steps=run.steps,
                    images=run.steps * run.batch,
                    seconds=round(run.seconds, 2),
                    settings=run.settings,
                )


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A network that was fine-tuned: with which settings, at what cost, and its metrics on validation images."""

    predictor: Predictor
    settings: dict[str, Any]
    steps: int
    batch: int
    seconds: float
    scores: dict[str, float]

    @property
    def backbone(self) -> str:
        network = self.predictor.network
        assert isinstance(network, Network)
        return network.config.backbone


def network_of(
    start: InitialBackbone, spaces: Mapping[str, LabelSpace], config: Mapping[str, Any], blank: bool, seed: int
) -> Network:
    """A network with fresh heads on a backbone that starts where it is told, its images normalised as they were there.

    `config` has the `width` and the `proposals` of the heads; `blank`: linear classifiers begin with zeros.
    """
    heads = {name: space.to_json() for name, space in spaces.items()}
    settings = {key: config[key] for key in ("width", "proposals")}
    network = Network(NetworkConfig(backbone=start.name, image_size=start.size, heads=heads, seed=seed, **settings))
    if start.weights is not None:
        network.backbone.model.load_state_dict(start.weights)
    register_statistics(network, start.statistics)
    if blank:
        for head in network.heads.values():
            if isinstance(head, nn.Linear):
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)
    return network


def measured_on(predictor: Predictor, lesson: Lesson, worse: bool, runtime: Runtime) -> dict[str, dict[str, float]]:
    """The metrics on the images that are reported on, by corruption: means over its severities."""
    head, test = {lesson.task: lesson.task}, lesson.splits.test
    found: dict[str, list[dict[str, float]]] = {CLEAN: [score(predictor, test, head, runtime)]}
    if worse:
        plain = predictor.preprocessing
        for name, change in corruptions.changes():
            predictor.preprocessing = Worse(plain.size, plain.crop_pct, plain.bicubic, change)
            scores = score(predictor, test, head, runtime)
            found.setdefault(name, []).append(scores)
            found.setdefault(ALL, []).append(scores)
        predictor.preprocessing = plain
    return {
        name: {metric: float(np.mean([one[metric] for one in scores])) for metric in scores[0]}
        for name, scores in found.items()
    }


@dataclasses.dataclass(frozen=True)
class Worse(Preprocessing):
    """Preprocessing that then corrupts the image."""

    change: Any = None

    def __call__(self, image: Any) -> Any:
        return self.change(super().__call__(image))
