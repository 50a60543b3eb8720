"""What a training leaves on disk while it goes on: the state to go on from, and a log of its steps.

<out>/work/state.safetensors   written every minute or so and at a stop; gone when the step is done
<out>/log/train.jsonl          a line for every step up to the state's, and for those since
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


def has_state(out: Path) -> bool:
    """Whether the training in the folder `out` has a state to go on from."""
    return (out / WORK / STATE).exists()


class TrainingState:
    """State and log of the training called `name`, in the folder `out`."""

    def __init__(self, name: str, out: Path) -> None:
        for folder in (WORK, LOG):
            (out / folder).mkdir(parents=True, exist_ok=True)
        self.name, self._state, self._log = name, out / WORK / STATE, out / LOG / "train.jsonl"
        self._file = self._open()

    @property
    def files(self) -> tuple[Path, Path]:
        """What a later attempt goes on from: the log first, which may be ahead of its state but never behind."""
        return self._log, self._state

    def _open(self) -> TextIO:
        return open(self._log, "a", encoding="utf-8", buffering=1)  # line by line: what is logged is on disk

    def load(self) -> dict[str, Any] | None:
        """The state on disk, None if there is none; the log is cut back to its step. DataError if it is damaged."""
        try:
            state = load_state(self._state) if self._state.exists() else None
        except DataError as error:
            raise DataError(f"{error} Delete it to start {self.name} over.") from error
        self._truncate(state["step"] if state else 0)
        return state

    def _truncate(self, step: int) -> None:
        kept = [line for line in parse_lines(self._log.read_bytes()) if line["step"] <= step]
        self._file.close()
        write_atomically(self._log, "".join(f"{json.dumps(line)}\n" for line in kept))
        self._file = self._open()

    def save(self, state: Mapping[str, Any]) -> None:
        """Leave a state to go on from, whole or not at all."""
        save_state(self._state, state)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append the line of a step, which it has under `step`, to the log."""
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()
