"""Print what happens in a run as JSON, one object a line, for programs: `must run --json`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.errors import MustError

if TYPE_CHECKING:
    from flows.run.run import Outcome

FIELDS = {
    "started": "A step is being made: `step`, `artifact` (its fingerprint).",
    "progress": "How far a step is: `step`, `done` (from 0 to 1), `line` (a text).",
    "made": "A step is done: `step`, `artifact`, `seconds`, `counts` (as in its manifest).",
    "reused": "A step has its result already: `step`, `artifact`.",
    "killed": "The process of a step was ended, and is started again if it can be: `step`, `error`.",
    "failed": "A step failed: `step`, `kind` (of the error), `error`. Other steps are stopped.",
    "prefect": "Prefect failed, which ends no step: `error`.",
    "trackers": "A tracker of `runtime.trackers` wrote nothing, which fails no run: `tracker`, `error`.",
    "warning": "A warning of the report, once all steps are done: `text`.",
    "finished": "The last line of a run that succeeds: `run` and `report` (its folder and its page; null without one), "
    "`made` and `reused` (numbers of steps), `steps` (artifacts' folders by step), `metrics` (as in `metrics.json`).",
    "error": "The last line of a run that does not: `kind`, `error`, `exit_code`.",
}
"""The fields of each event besides `event` and `time`, for the reference."""
LAST_OF_RUN = ("finished", "ended")
"""Events of a run's folder that `finished` and `error` stand for here."""


class EventStream:
    """Writes events to a stream, from any thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    @classmethod
    @contextlib.contextmanager
    def on_standard_output(cls) -> Iterator[EventStream]:
        """Yield a stream to standard output; what else is written there goes to standard error meanwhile.

        An error is an event as well, and raised again.
        """
        with _standard_output_alone() as stream:
            events = cls(stream)
            try:
                yield events
            except Exception as error:
                code = error.exit_code if isinstance(error, MustError) else 1
                text = str(error) or type(error).__name__
                events.write("error", kind=type(error).__name__, error=text, exit_code=code)
                raise

    def write(self, event: str, **facts: Any) -> None:
        """Write an event that happens now."""
        self._print({"time": round(time.time(), 3), "event": event, **facts})

    def _print(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            self._stream.write(f"{json.dumps(event)}\n")
            self._stream.flush()

    def record(self, event: Mapping[str, Any]) -> None:
        """Write an event as a run records it (`Runtime.on_event`)."""
        if event["event"] not in LAST_OF_RUN:
            self._print(event)

    def progress(self, step: str, done: float, line: str) -> None:
        """Write the progress of a step (`Runtime.progress`)."""
        self.write("progress", step=step, done=round(done, 4), line=line)

    def finish(self, outcome: Outcome) -> None:
        """Write the warnings and the results of a run."""
        from evaluation.report.results import warnings  # noqa: PLC0415 - loads much
        from evaluation.report.run_record import RunRecord  # noqa: PLC0415

        if outcome.folder:
            for warning in warnings(RunRecord(outcome.folder, outcome.artifacts)):
                self.write("warning", text=str(warning))
        report = outcome.folder / "report.html" if outcome.folder and outcome.measures else None
        self.write(
            "finished",
            run=outcome.folder and str(outcome.folder),
            report=report and str(report),
            made=outcome.ran,
            reused=len(outcome.artifacts) - outcome.ran,
            steps={step: str(artifact) for step, artifact in outcome.artifacts.items()},
            metrics=outcome.metrics,
        )


@contextlib.contextmanager
def _standard_output_alone() -> Iterator[TextIO]:
    """Yield standard output, and let all else that prints, libraries and other processes too, print to standard error.

    In a process whose standard output is no file, as under a test, only what Python prints is redirected.
    """
    stream = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        try:
            alone = os.dup(stream.fileno())
        except (OSError, AttributeError):
            yield stream
            return
        with open(alone, "w", encoding="utf-8", errors="replace") as file:
            stream.flush()
            os.dup2(2, 1)
            try:
                yield file
            finally:
                file.flush()
                os.dup2(alone, 1)
