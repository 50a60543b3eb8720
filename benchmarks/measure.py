"""Shared by all benchmarks: timing in turns, the environment of a measurement, and result files."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from cli.artifacts_view import print_table
from pipeline.errors import PROJECT, ConfigError
from pipeline.steps.artifact import read_json, write_atomically, write_json
from pipeline.steps.runtime import Runtime, usable_cores
from pipeline.training.device import device_name, processor_name

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results"


def take_turns(measures: Mapping[str, Callable[[], float]], windows: int) -> dict[str, list[float]]:
    """Call each measure once to warm up, then all of them in turn, `windows` times; return their values by name.

    Taking turns spreads other load on the machine, and changes of its clock, evenly over all measures.
    """
    values: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(windows + 1):
        for name, measure in measures.items():
            values[name].append(measure())
    return {name: timed for name, (_, *timed) in values.items()}


class MemoryStream(Generic[T]):
    """A stream of batches that are in memory already, for training without a loader."""

    def __init__(self, batch_of: Callable[[int], T]) -> None:
        """`batch_of`: returns the batch of a step."""
        self.batch_of = batch_of

    def batches(self, start: int) -> Generator[T]:
        """Yield the batches of all steps from `start` on, without end."""
        yield from map(self.batch_of, itertools.count(start))


def synchronize(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each list."""
    return {name: statistics.median(numbers) for name, numbers in values.items()}


def format_mean(fractions: Sequence[float]) -> str:
    """Format mean and standard deviation of fractions, in percent.

    >>> format_mean([0.5, 0.6])
    '55.0 ± 7.1'
    """
    deviation = statistics.stdev(fractions) if len(fractions) > 1 else 0
    return f"{100 * statistics.mean(fractions):.1f} ± {100 * deviation:.1f}"


def describe_environment(device: str) -> dict[str, Any]:
    """Return command, date, machine and versions for a result; `load` is the mean number of busy threads."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python -m", _program(), *map(_relative_to_project, sys.argv[1:])]),
        "device": device_name(device),
        "processor": processor_name(),
        "cores": usable_cores(),
        "load": round(os.getloadavg()[0], 2),
        "software": {"python": platform.python_version(), **Runtime.software(), "commit": _commit()},
    }


def _commit() -> str:
    """Return the commit of the project, with `+` if files were changed since; "unknown" without git."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _program() -> str:
    """Return the module name of the running benchmark."""
    file = Path(sys.argv[0])
    inside = file.relative_to(PROJECT) if file.is_relative_to(PROJECT / "benchmarks") else Path("benchmarks", file.name)
    return ".".join(inside.with_suffix("").parts)


def _relative_to_project(argument: str) -> str:
    """Make an absolute path, alone or after `=`, relative to the project: results don't depend on where that is."""
    key, equals, value = ("", "", argument) if os.path.isabs(argument) else argument.partition("=")
    return f"{key}{equals}{os.path.relpath(value, PROJECT)}" if os.path.isabs(value) else argument


def read_partial_result(file: Path, recipe: Path, overrides: Sequence[str], parts: str) -> dict[str, Any]:
    """Return what there is of a result that grows from run to run, by the key `parts`, with the recipe and overrides.

    Raises ConfigError if it was measured by another recipe or with other overrides.
    """
    subject = {"recipe": recipe.read_text(encoding="utf-8"), "overrides": list(overrides)}
    result: dict[str, Any] = read_json(file) if file.exists() else {**subject, parts: {}}
    if {key: result[key] for key in subject} != subject:
        raise ConfigError(f"{file} was measured by another recipe or with other overrides: delete it, or use those.")
    return result


def save_result(path: Path, title: str, result: Mapping[str, Any], table: Sequence[Sequence[str]]) -> None:
    """Print the table, and write the result as JSON to `path` and the table as Markdown beside it."""
    print_table(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    write_atomically(path.with_suffix(".md"), f"# {title}\n\n{_markdown(table)}\n\n{footnote(result)}\n")


def _markdown(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def footnote(result: Mapping[str, Any]) -> str:
    """Return the environment of a result in words, and on which days and processors its parts were measured, if there
    are several.
    """
    environment = result["measured"]
    software = ", ".join(f"{name} {version}" for name, version in environment["software"].items())
    machine = f"{environment['processor']}, {environment['cores']} cores, load {environment['load']} at the start"
    last = f"`{environment['command']}`, {environment['date']}, on {environment['device']} ({machine}). {software}."
    parts = Counter(
        f"{each['date'].split()[0]} on {each['processor']}" for each in _environments(list(result.values()))
    )
    others = ", ".join(f"{count} of {where}" for where, count in sorted(parts.items()))
    return f"{last} That is the last run; parts by day and processor: {others}." if len(parts) > 1 else last


def _environments(parts: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the environments of those parts that have one, and of parts in parts."""
    for part in parts:
        if isinstance(part, Mapping):
            yield from [part["measured"]] if "measured" in part else []
            yield from _environments(part.values())


def run_part(part: str, folder: Path, program: str = "") -> dict[str, Any]:
    """Run `--part` of a benchmark, by default the running one, as a new process in `folder`.

    Returns the JSON that it prints last.
    """
    command = [sys.executable, "-m", program or _program(), "--part", part]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=folder, env=environ, check=True, stdout=subprocess.PIPE, text=True)
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def measure_pools(sizes: str, part: str) -> list[dict[str, Any]]:
    """Run `prepare N` and then `part` in a new folder for each number N of images, and return what `part` prints."""
    pools = []
    for images in sizes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            run_part(f"prepare {images}", Path(folder))
            pools.append(run_part(part, Path(folder)))
    return pools


def peak_mb() -> float:
    """Return the peak memory of this process in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def run_must(*arguments: str, cores: Set[int] | None = None) -> tuple[float, str]:
    """Run the command on these cores (None: all usable ones), and return its seconds and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores or os.sched_getaffinity(0)),
    )
    if done.returncode:
        raise SystemExit(done.stdout)
    return time.perf_counter() - began, done.stdout
