"""The files that a training writes while it runs: the state to go on from, and a log of its steps.

<out>/work/state.safetensors   written every minute or so and at a stop; gone when the step is done
<out>/log/train.jsonl          a line per step; may be ahead of the state
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import DataError
from pipeline.models.checkpoint import load_state, save_state
from pipeline.steps.artifact import LOG, WORK, parse_lines, write_atomically

STATE = "state.safetensors"


def state_path(out: Path) -> Path:
    """Return the file with the state of the training in the folder `out`."""
    return out / WORK / STATE


def has_state(out: Path) -> bool:
    """Return True if the training in the folder `out` has a state to go on from."""
    return state_path(out).exists()


class TrainingFiles:
    """The state and the log of the training called `name`, in the folder `out`."""

    def __init__(self, name: str, out: Path) -> None:
        for folder in (WORK, LOG):
            (out / folder).mkdir(parents=True, exist_ok=True)
        self.name, self._state_path, self._log_path = name, state_path(out), out / LOG / "train.jsonl"
        self._log = self._open_log()

    @property
    def paths(self) -> tuple[Path, Path]:
        """The files to go on from, in the order to copy them: the log may be ahead of the state but never behind."""
        return self._log_path, self._state_path

    def _open_log(self) -> TextIO:
        return open(self._log_path, "a", encoding="utf-8", buffering=1)  # by line: what is logged survives a crash

    def load(self) -> dict[str, Any] | None:
        """Return the state on disk or None, and cut the log back to its step. DataError if it is damaged."""
        try:
            state = load_state(self._state_path) if self._state_path.exists() else None
        except DataError as error:
            raise DataError(f"{error} Delete it to start {self.name} over.") from error
        step = state.get("step") if state else 0
        if isinstance(step, int):  # else the training refuses the state
            self._truncate_log(step)
        return state

    def _truncate_log(self, step: int) -> None:
        lines = parse_lines(self._log_path.read_bytes())
        kept = [line for line in lines if isinstance(line.get("step"), int) and line["step"] <= step]
        self._log.close()
        write_atomically(self._log_path, "".join(f"{json.dumps(line)}\n" for line in kept))
        self._log = self._open_log()

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state on disk, atomically."""
        save_state(self._state_path, state)

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a step's line, which has its number under `step`."""
        self._log.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._log.close()
