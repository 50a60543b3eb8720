"""What a run left behind, read for the report: the run's folder, its events, and its steps' manifests and logs."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.steps.artifact import LOG, Artifact, parse_json, parse_lines, read_json
from pipeline.storage.path import StoragePath
from tasks.teacher import Teacher

TOTAL = ""
"""The name of what is minimised, among the losses it is combined from: no head is called so."""


@dataclasses.dataclass(frozen=True)
class FinishedStep:
    """A step as the run had it: made in `seconds`, or reused and made before in `seconds`. Seconds of wall clock."""

    step: str
    reused: bool
    seconds: float
    why: str
    artifact: Artifact


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run: its folder and its artifacts by step."""

    folder: StoragePath
    artifacts: Mapping[str, Artifact]
    _texts: dict[str, bytes | None] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def _text(self, name: str) -> bytes | None:
        """A file of the run's folder, read once; None if there is none."""
        if name not in self._texts:
            self._texts[name] = self.folder.child(name).peek()
        return self._texts[name]

    @property
    def recipe_text(self) -> str:
        return (self._text("recipe.yaml") or b"").decode()

    @property
    def name(self) -> str:
        """The recipe's name, or the folder's if there is no recipe."""
        recipe = yaml.safe_load(self.recipe_text)
        return str(recipe["name"]) if isinstance(recipe, dict) and "name" in recipe else self.folder.name

    def of_kind(self, kind: str) -> dict[str, Artifact]:
        """The artifacts called `<kind>.<name>`, by name, in order."""
        prefix = f"{kind}."
        return {name[len(prefix) :]: made for name, made in self.artifacts.items() if name.startswith(prefix)}

    def metrics(self) -> list[dict[str, Any]]:
        """The records of the run's metrics; none if nothing was measured."""
        made = self.artifacts.get("evaluate")
        text = self._text("metrics.json")
        if text is not None:
            return list(parse_json(text, f"{self.folder}/metrics.json"))
        return list(made.load("metrics.json", read_json)) if made else []

    def events(self) -> list[dict[str, Any]]:
        """The lines of events.jsonl."""
        return list(parse_lines(self._text("events.jsonl") or b""))

    def began(self) -> datetime.datetime | None:
        """When the run began, UTC."""
        times = [event["time"] for event in self.events()]
        return datetime.datetime.fromtimestamp(min(times), datetime.UTC) if times else None

    def seconds(self) -> float:
        """From the first to the last event: the whole run but for this report."""
        times = [event["time"] for event in self.events()]
        return max(times) - min(times) if times else 0.0

    def steps(self) -> list[FinishedStep]:
        """Every step, in the order in which they depend on each other."""
        made = {event["step"] for event in self.events() if event["event"] == "made"}
        plan = parse_json(self._text("plan.json") or b"[]", f"{self.folder}/plan.json")
        why = {row["step"]: row["why"] for row in plan}
        return [
            FinishedStep(step, step not in made, artifact.manifest.get("seconds", 0.0), why.get(step, ""), artifact)
            for step, artifact in self.artifacts.items()
        ]

    def teachers(self) -> dict[str, Teacher]:
        """What every teacher says of itself, by name."""
        return {name: Teacher.load(made) for name, made in self.of_kind("teacher").items()}

    def home(self) -> dict[str, str | None]:
        """The set that each teacher was trained on, None for those trained elsewhere."""
        return {name: teacher.data for name, teacher in self.teachers().items()}

    def kept(self) -> dict[str, dict[str, Any]]:
        """Per head of the student, how much of the pseudo labels the threshold keeps; {} if that is not known."""
        made = self.artifacts.get("student")
        return made.load("kept.json", read_json) if made and made.has("kept.json") else {}

    def choices(self) -> dict[str, dict[str, Any]]:
        """By the work that was timed, the way it was run: device, precision, layout, milliseconds by way."""
        found = {}
        for step, made in self.artifacts.items():
            if "choice" in made.counts:
                found[f"training {step}"] = made.counts["choice"]
            for name, choice in made.counts.get("choices", {}).items():
                found[f"labelling by {name}"] = choice
        return found


@dataclasses.dataclass(frozen=True)
class Log:
    """The training log of an artifact, a line per optimiser step."""

    lines: list[dict[str, Any]]

    @classmethod
    def of(cls, artifact: Artifact) -> Log:
        """The log; empty if the artifact has none."""
        name = f"{LOG}/train.jsonl"
        return cls(list(parse_lines(artifact.load(name, Path.read_bytes))) if artifact.has(name) else [])

    def losses(self) -> dict[str, list[tuple[int, float]]]:
        """(step, loss) by the loss's name, TOTAL first; a loss is missing from steps without a label for it.

        A loss that is the total is given once, as the total. What is followed beside the losses comes with them.
        """
        total = [(line["step"], line["loss"]) for line in self.lines]
        curves: dict[str, list[tuple[int, float]]] = {}
        for line in self.lines:
            for name, loss in line["losses"].items():
                curves.setdefault(name, []).append((line["step"], loss))
        others = {name: points for name, points in curves.items() if points != total}
        return {TOTAL: total, **others} if total else {}

    def rate(self) -> float:
        """Images per second, the median over the steps; 0 if that is not known."""
        rates = sorted(line["images_per_s"] for line in self.lines if line.get("images_per_s"))
        return rates[len(rates) // 2] if rates else 0.0

    def waiting(self, batch: int) -> float | None:
        """The share of the steps' time that went by waiting for images; None if that is not known."""
        lines = [line for line in self.lines if line.get("images_per_s")]
        spent = sum(batch / line["images_per_s"] for line in lines)
        waited, before = 0.0, 0.0
        for line in lines:
            now = line.get("waited_s", 0.0)
            waited += now - before if now >= before else now  # a resumed run counts from zero again
            before = now
        return min(1.0, waited / spent) if spent else None
