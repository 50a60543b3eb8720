"""Read the newest run of a root: when it was, how it ended, and the thresholds of its recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.recipe.yaml_text import parse_yaml
from pipeline.steps.events import parse_events
from pipeline.steps.run_names import RUN_NAME, run_order
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from pipeline.stores.naming import teacher_of

RunState = Literal["finished", "failed", "unfinished"]
"""`unfinished` is a run under way, or one that was killed."""


@dataclasses.dataclass(frozen=True)
class NewestRun:
    """The run that began last, as its folder tells."""

    name: str
    recipe: str
    """The recipe's name."""
    teachers: frozenset[str]
    """The teachers of its recipe."""
    thresholds: Mapping[str, float]
    """`student.thresholds` of its recipe, by teacher or task."""
    began: float | None = None
    ended: float | None = None
    """Unix time of the last event."""
    state: RunState = "unfinished"
    step: str = ""
    """The step that failed; of a run under way the one that began last."""
    error: str = ""

    def threshold(self, maker: str, task: str) -> float | None:
        """Return the threshold that the recipe sets for a teacher, or the student's head for it; None if it sets none.

        A teacher that is not in the recipe has none.
        """
        teacher = teacher_of(maker)
        return self.thresholds.get(teacher, self.thresholds.get(task)) if teacher in self.teachers else None

    def to_json(self) -> dict[str, Any]:
        """Return what the page shows of it."""
        shown = ("name", "recipe", "began", "ended", "state", "step", "error")
        return {name: getattr(self, name) for name in shown}


def read_newest_run(root: Root, earlier: NewestRun | None = None) -> NewestRun | None:
    """Return the newest run of a root, None if there is none. A recipe that `earlier` has is not read again."""
    names = [folder.name for folder in (root / "runs").folders() if RUN_NAME.match(folder.name)]
    if not names:
        return None
    folder = root / f"runs/{max(names, key=run_order)}"
    run = earlier if earlier and earlier.name == folder.name else _read_recipe(folder)
    return dataclasses.replace(run, **_read_events(folder))


def _read_recipe(folder: StoragePath) -> NewestRun:
    """Return a run as its recipe tells; variables in it stay as they are written, so that they are no thresholds."""
    file = folder.child("recipe.yaml")
    try:
        recipe = parse_yaml((file.read_if_exists() or b"").decode(errors="replace"), str(file))
    except ConfigError:
        recipe = None
    known = RUN_NAME.sub(r"\g<recipe>", folder.name)
    match recipe:
        case {"name": str(name), "teachers": dict(teachers), "student": {"thresholds": dict(thresholds)}}:
            shares = {key: float(each) for key, each in thresholds.items() if _is_share(each)}
            return NewestRun(folder.name, name, frozenset(teachers), shares)
    return NewestRun(folder.name, known, frozenset(), {})


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _read_events(folder: StoragePath) -> dict[str, Any]:
    """Return the fields of a `NewestRun` that its events tell."""
    events = parse_events(folder.child("events.jsonl").read_if_exists() or b"")
    times = [event["time"] for event in events if isinstance(event.get("time"), int | float)]
    steps = [event for event in events if event["event"] in ("started", "failed")]
    failed = [event for event in events if event["event"] in ("failed", "ended")]
    state: RunState = "unfinished"
    if any(event["event"] == "finished" for event in events):
        state, failed, steps = "finished", [], []
    elif any(event["event"] == "ended" for event in events):
        state, steps = "failed", [event for event in events if event["event"] == "failed"]
    return {
        "state": state,
        "began": min(times, default=None),
        "ended": max(times, default=None),
        "step": str(steps[-1].get("step", "")) if steps else "",
        "error": str(failed[-1].get("error", "")) if failed else "",
    }
