"""What every measurement shares: windows taken in turn, medians, and the machine and moment they are from."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PROJECT
from pipeline.steps.artifact import write_atomically, write_json
from pipeline.steps.runtime import Runtime, usable_cores
from pipeline.training.device import device_name, processor_name


def take_turns(measures: Mapping[str, Callable[[], float]], windows: int) -> dict[str, list[float]]:
    """Call each measure once to warm up, then all of them in turn, `windows` times; the values by name.

    In turn, so that what else the machine does meanwhile, or its clock, falls on all of them alike.
    """
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(windows + 1):
        for name, measure in measures.items():
            taken[name].append(measure())
    return {name: values[1:] for name, values in taken.items()}


def medians(taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each list."""
    return {name: statistics.median(values) for name, values in taken.items()}


def circumstances(device: str) -> dict[str, Any]:
    """Where and when this is: JSON for the head of a result. `load` is the mean number of busy threads, last minute."""
    program, spec = Path(sys.argv[0]), getattr(sys.modules["__main__"], "__spec__", None)
    name = f"python benchmarks/{program.name}" if program.suffix == ".py" else program.name
    if spec is not None and spec.name.startswith("benchmarks."):
        name = f"python -m {spec.name}"
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join([name, *map(_from_project, sys.argv[1:])]),
        "device": device_name(device),
        "processor": processor_name(),
        "cores": usable_cores(),
        "load": round(os.getloadavg()[0], 2),
        "software": {"python": platform.python_version(), **Runtime.software()},
    }


def _from_project(argument: str) -> str:
    """An argument as it would be said in the project's folder, if it is a path from the root or has one behind `=`:
    where that folder is says nothing.
    """
    key, equals, value = ("", "", argument) if os.path.isabs(argument) else argument.partition("=")
    return f"{key}{equals}{os.path.relpath(value, PROJECT)}" if os.path.isabs(value) else argument


def save_result(path: Path, title: str, result: Mapping[str, Any], table: Sequence[Sequence[str]]) -> None:
    """Leave a result as JSON at `path`, and beside it as a page, `.md`: the first line of `table` is its head."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    write_atomically(path.with_suffix(".md"), f"# {title}\n\n{_markdown(table)}\n\n{_footnote(result['measured'])}\n")


def _markdown(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _footnote(measured: Mapping[str, Any]) -> str:
    software = ", ".join(f"{name} {version}" for name, version in measured["software"].items())
    return (
        f"`{measured['command']}`, {measured['date']}, on {measured['device']} "
        f"({measured['processor']}, {measured['cores']} cores, load {measured['load']} at the start). {software}."
    )


def in_process_of_its_own(program: str, part: str, folder: Path) -> dict[str, Any]:
    """What a program prints last, as JSON, when it is run for one of its parts alone (`--part`), in `folder`."""
    command = [sys.executable, program, "--part", part]
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
