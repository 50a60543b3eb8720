"""Items that a part measures one after the other in the time it has; each one's result is on disk as soon as it is.

Results are JSON lines: in the folder OUT if the environment names one, as on a lent machine, else in `results/`. What
`results/` has from an earlier run is not measured again: a run goes on where the one before it was cut.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from benchmarks.measure import RESULTS, describe_environment
from pipeline.steps.artifact import write_atomically

SECONDS = 500
"""Of a part, so that it ends in the ten minutes that a command has, installation included."""
SecondsOption = Annotated[float, typer.Option(help="Begin nothing that would not end in so many seconds.")]
TinyOption = Annotated[bool, typer.Option("--tiny", help="Small enough for a CPU: shows that the program works.")]


class Item(NamedTuple):
    """A measurement: how to make it, and how many seconds it takes at most, as far as that can be guessed."""

    measure: Callable[[], Mapping[str, Any]]
    seconds: float


class ItemResults:
    """The results of a part's items, by name, in a file of JSON lines.

    results = ItemResults("speed", "cuda", tiny=False)
    results.measure({"labelling": Item(measure_labels, seconds=90)}, seconds=500)
    results["labelling"]
    """

    def __init__(self, part: str, device: str, tiny: bool) -> None:
        name = f"gpu_{part}{'-tiny' if tiny else ''}-{device}.jsonl"
        kept, out = RESULTS / name, os.environ.get("OUT")
        self.file = Path(out) / name if out else kept
        self.device = device
        self._found: dict[str, Any] = {}
        known = self.file if self.file.exists() else kept
        if known.exists():
            lines = [line for line in known.read_text("utf-8").splitlines() if line.endswith("}")]  # a run may be cut
            write_atomically(self.file, "".join(f"{line}\n" for line in lines))
            found = map(json.loads, lines)
            self._found = {line["item"]: line["result"] for line in found if "result" in line}
        self.errors: dict[str, str] = {}
        self.left: list[str] = []
        """Items that there was no time for."""

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    def measure(self, items: Mapping[str, Item], seconds: float) -> None:
        """Measure the items that have no result yet and that end in time. One that fails does not end the others."""
        end = time.monotonic() + seconds
        for name, item in items.items():
            if name in self:
                continue
            if time.monotonic() + item.seconds > end:
                self.left.append(name)
                continue
            typer.echo(f"{name} ...")
            began = time.monotonic()
            try:
                self.add(name, item.measure(), began)
            except Exception as error:
                traceback.print_exc()
                self.errors[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                self._append({"item": name, "error": self.errors[name]})

    def add(self, name: str, result: Any, began: float) -> None:
        """Keep the result of an item that began at this time of the monotonic clock."""
        self._found[name] = result
        took = round(time.monotonic() - began, 1)
        self._append({"item": name, "seconds": took, "measured": describe_environment(self.device), "result": result})

    def _append(self, line: Mapping[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def close(self, items: Iterable[str]) -> None:
        """Say what there was no time for and what failed; exit with 1 if anything failed."""
        done = sum(name in self for name in items)
        typer.echo(f"{done} measured, {len(self.errors)} failed, {len(self.left)} left, in {self.file}")
        if self.left:
            typer.echo(f"no time for: {', '.join(self.left)}. Keep the file in {RESULTS.name}/, and run again.")
        for name, error in self.errors.items():
            typer.echo(f"{name}: {error}")
        if self.errors:
            raise typer.Exit(1)
