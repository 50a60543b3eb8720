"""Read what a run left behind: its folder, its events, and the manifests and logs of its steps."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.steps.artifact import LOG, Artifact, of_kind, parse_json, parse_lines, read_json
from pipeline.steps.events import parse_events
from pipeline.storage.path import StoragePath
from pipeline.stores.naming import LABEL_STEP, learned_labels
from tasks.teacher import Teacher

TOTAL = ""
"""The name of the loss that is minimized, among those that it is combined from: no head is called so."""

Losses = dict[str, list[tuple[int, float]]]
"""(step, loss) by the loss's name."""


class TrainingCurve(NamedTuple):
    """A curve of a training: `quantity` by optimizer step."""

    title: str
    points: list[tuple[int, float]]
    quantity: str = "loss"


@dataclasses.dataclass(frozen=True)
class FinishedStep:
    """A step of a run: made in it, or reused. `seconds` of wall clock is what making it took, then or before."""

    step: str
    reused: bool
    seconds: float
    why: str
    """Why it ran, as the plan says; empty if it was reused."""
    artifact: Artifact


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run's folder and its artifacts by step."""

    folder: StoragePath
    artifacts: Mapping[str, Artifact]
    _texts: dict[str, bytes | None] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def _text(self, name: str) -> bytes | None:
        """Return a file of the run's folder, which is read once; None if it does not exist."""
        if name not in self._texts:
            self._texts[name] = self.folder.child(name).read_if_exists()
        return self._texts[name]

    @property
    def recipe_text(self) -> str:
        return (self._text("recipe.yaml") or b"").decode()

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe with everything filled in, as JSON; {} if the folder has none."""
        recipe = yaml.safe_load(self.recipe_text)
        return recipe if isinstance(recipe, dict) else {}

    @property
    def name(self) -> str:
        """The recipe's name, or the folder's if it has no recipe."""
        return str(self.recipe.get("name", self.folder.name))

    def of_kind(self, kind: str) -> dict[str, Artifact]:
        """Return the artifacts that steps of a kind made, by the names of their sections, in order."""
        return of_kind(self.artifacts.values(), kind)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the records of the run's metrics; none if nothing was measured."""
        made = self.artifacts.get("evaluate")
        text = self._text("metrics.json")
        if text is not None:
            return list(parse_json(text, f"{self.folder}/metrics.json"))
        return list(made.load("metrics.json", read_json)) if made else []

    def events(self) -> list[dict[str, Any]]:
        """Return the lines of events.jsonl."""
        return parse_events(self._text("events.jsonl") or b"")

    def began(self) -> datetime.datetime | None:
        """Return when the run began, UTC; None if it has no events."""
        times = [event["time"] for event in self.events()]
        return datetime.datetime.fromtimestamp(min(times), datetime.UTC) if times else None

    def seconds(self) -> float:
        """Return the time from the first to the last event: the whole run except for this report."""
        times = [event["time"] for event in self.events()]
        return max(times) - min(times) if times else 0.0

    def steps(self) -> list[FinishedStep]:
        """Return every step, each after those that it depends on."""
        made = {event["step"] for event in self.events() if event["event"] == "made"}
        plan = parse_json(self._text("plan.json") or b"[]", f"{self.folder}/plan.json")
        reasons = {row["step"]: row["why"] for row in plan}
        return [
            FinishedStep(step, step not in made, artifact.manifest.get("seconds", 0.0), reasons.get(step, ""), artifact)
            for step, artifact in self.artifacts.items()
        ]

    def teachers(self) -> dict[str, Teacher]:
        """Return the teachers by name."""
        return {name: Teacher.load(made) for name, made in self.of_kind("teacher").items()}

    def home(self) -> dict[str, str | None]:
        """Return by teacher the set that it was trained on, None for one trained elsewhere."""
        return {name: teacher.data for name, teacher in self.teachers().items()}

    @property
    def student(self) -> Artifact | None:
        """The student, of several rounds the last one; None if there is none yet."""
        students = [made for made in self.artifacts.values() if made.kind == "student"]
        return students[-1] if students else None

    @property
    def label_step(self) -> str:
        """The step that says which labels the student learned, or would learn."""
        return learned_labels(self.student.manifest["inputs"]) if self.student else LABEL_STEP

    def kept(self) -> dict[str, dict[str, Any]]:
        """Return by head of the student how much of the pseudo labels the threshold keeps; {} if that is not known."""
        made = self.student
        return made.load("kept.json", read_json) if made and made.has("kept.json") else {}

    def choices(self) -> dict[str, dict[str, Any]]:
        """Return, by what a model did, the device, precision and memory layout that it ran with, and the timings."""
        choices = {}
        for step, artifact in self.artifacts.items():
            if "choice" in artifact.counts:
                choices[f"training {step}"] = artifact.counts["choice"]
            for name, choice in artifact.counts.get("choices", {}).items():
                choices[f"labelling by {name}"] = choice
        return choices


@dataclasses.dataclass(frozen=True)
class TrainingLog:
    """The training log of an artifact, a line per optimizer step."""

    lines: list[dict[str, Any]]

    @classmethod
    def of(cls, artifact: Artifact) -> TrainingLog:
        """Read the log of an artifact; it is empty if the artifact has none."""
        name = f"{LOG}/train.jsonl"
        return cls(list(parse_lines(artifact.load(name, Path.read_bytes))) if artifact.has(name) else [])

    def losses(self) -> Losses:
        """Return the losses, TOTAL first, and other logged values; a loss has no value at steps without a label for it.

        A loss that equals the total is given once, as the total.
        """
        total = [(line["step"], line["loss"]) for line in self.lines]
        curves: dict[str, list[tuple[int, float]]] = {}
        for line in self.lines:
            for name, loss in line["losses"].items():
                curves.setdefault(name, []).append((line["step"], loss))
        others = {name: points for name, points in curves.items() if points != total}
        return {TOTAL: total, **others} if total else {}

    def validation(self) -> Losses:
        """Return the metrics of validations on the way, by name."""
        curves: Losses = {}
        for line in self.lines:
            for name, value in line.get("validation", {}).items():
                curves.setdefault(name, []).append((line["step"], value))
        return curves

    def curves(self, total: str, prefix: str = "") -> Iterator[TrainingCurve]:
        """Yield the losses, other logged values, and the metric by which the training was judged on the way, if any.

        Args:
            total: the title of the loss that is minimized
            prefix: begins the titles of the others
        """
        for name, points in self.losses().items():
            is_loss = not name.startswith("feature ")  # other curves follow a batch's features, every so many steps
            if len(points) > 1 or is_loss:
                title = total if name == TOTAL else f"{prefix}{name}"
                yield TrainingCurve(title, points, "loss" if is_loss else f"{name} of a batch")
        for name, points in list(self.validation().items())[:1]:
            yield TrainingCurve(f"{prefix or 'on the way: '}validation", points, f"{name} on held-out images")

    def images_per_second(self) -> float:
        """Return the median over the steps; 0 if it is not known."""
        rates = sorted(line["images_per_s"] for line in self.lines if line.get("images_per_s"))
        return rates[len(rates) // 2] if rates else 0.0

    def waiting_share(self, batch: int) -> float | None:
        """Return the share of the steps' time that was spent waiting for images; None if it is not known."""
        lines = [line for line in self.lines if line.get("images_per_s")]
        spent = sum(batch / line["images_per_s"] for line in lines)
        waited, previous = 0.0, 0.0
        for line in lines:
            current = line.get("waited_s", 0.0)
            waited += current - previous if current >= previous else current  # a resumed run counts from zero again
            previous = current
        return min(1.0, waited / spent) if spent else None
