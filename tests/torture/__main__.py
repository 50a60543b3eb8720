"""Torture `must`, round by round, and write down what was found.

    python -m tests.torture --rounds 1000                  # goes on where the file of results ends
    python -m tests.torture --part kill --rounds 20

A round draws its faults by its number, and adds a line to the file of results: what was done, and what is wrong. Parts:

kill    a run gets SIGKILL when one of its processes is about to make its n-th file durable (fsync or rename), the
        process alone or with its whole group, or one of its processes gets it at any moment; it is run again, killed
        again or not, and must come to the artifacts of an undisturbed run, with nothing left behind after `gc`
runners the same with the runners `process` and `ray`
s3      the same with the root on an S3 server
short   from its n-th fsync or rename on, these fail in a process as if the disk were full, or memory or open files
        short: the run ends with exit code 4 and a sentence, and the next one comes to the same artifacts
damage  fifty sets of some format are read, each with one file damaged: an image is read or refused by an error of ours
page    the page gets a hundred requests and a query that nobody should make: no error of the server, nothing of a file
        outside the root, memory under 600 MB
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import RESULTS, describe_environment, save_result
from pipeline.errors import require_one_of
from pipeline.steps.artifact import parse_lines
from tests.pipeline.sources import damage
from tests.torture.page import Page
from tests.torture.runs import KILLS, SHORTAGES, Runs, root_on_s3, s3_server

FILE = RESULTS / "torture.jsonl"
DAMAGED_AT_ONCE = 50
"""Sets that a round of `damage` reads in one process."""

Round = tuple[str, list[str]]
"""What was done, and all problems."""


class Torture:
    """The parts, which share a folder; what a part needs is made when its first round begins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.at_end = contextlib.ExitStack()

    @functools.cached_property
    def runs(self) -> Runs:
        return Runs(self.folder)

    @functools.cached_property
    def server(self) -> Mapping[str, str]:
        return self.at_end.enter_context(s3_server())

    @functools.cached_property
    def browsed(self) -> Page:
        return self.at_end.enter_context(contextlib.closing(Page(self.folder, Path(self.runs.undisturbed.path))))

    def kill(self, rng: random.Random) -> Round:
        return self.runs.disturb(rng, ("inline", "inline", "threads"), KILLS)

    def runners(self, rng: random.Random) -> Round:
        return self.runs.disturb(rng, ("process", "process", "ray"), KILLS)

    def s3(self, rng: random.Random) -> Round:
        with root_on_s3(self.server) as root:
            return self.runs.disturb_on(root, rng, ("inline", "threads"), KILLS)

    def short(self, rng: random.Random) -> Round:
        return self.runs.disturb(rng, ("inline", "inline", "threads"), SHORTAGES)

    def damage(self, rng: random.Random) -> Round:
        kind, first = rng.choice(list(damage.FILES)), rng.randrange(10**9)
        command = [sys.executable, "-m", "tests.pipeline.sources.damage", kind, first, first + DAMAGED_AT_ONCE]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, timeout=DAMAGED_AT_ONCE * damage.MAX_S
        )
        crashed = [f"it ended with {done.returncode}: {done.stderr[-400:]}"] if done.returncode else []
        return f"{DAMAGED_AT_ONCE} sets of kind {kind} from seed {first}", [*done.stdout.splitlines(), *crashed]

    def page(self, rng: random.Random) -> Round:
        return self.browsed.send_bad_requests(rng)


PARTS: dict[str, Callable[[Torture, random.Random], Round]] = {
    part.__name__: part
    for part in (Torture.kill, Torture.runners, Torture.s3, Torture.short, Torture.damage, Torture.page)
}


def summary(rounds: list[dict[str, Any]]) -> list[list[str]]:
    """Return the table: rounds by part, faults that struck in them, and rounds with problems."""
    count = Counter(each["part"] for each in rounds)
    struck = sum((Counter({each["part"]: each["done"].count("struck")}) for each in rounds), Counter[str]())
    bad = Counter(each["part"] for each in rounds if each["problems"])
    lines = [[part, f"{count[part]:,}", f"{struck[part]:,}", f"{bad[part]:,}"] for part in PARTS if count[part]]
    return [["part", "rounds", "faults that struck", "rounds with problems"], *lines]


def play(torture: Torture, part: str, number: int) -> dict[str, Any]:
    """Return the line of a round; an error of the torture itself is a problem as well."""
    began = time.monotonic()
    try:
        done, problems = PARTS[part](torture, random.Random(f"{part} {number}"))
    except Exception:
        done, problems = "", [traceback.format_exc()[-1000:]]
    return {"part": part, "round": number, "done": done, "problems": problems, "s": round(time.monotonic() - began)}


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of each part, with those in the file.")] = 1000,
    parts: Annotated[list[str] | None, typer.Option("--part", help=f"One of {', '.join(PARTS)}.")] = None,
    file: Annotated[Path, typer.Option(help="Results, a line of JSON a round.")] = FILE,
) -> None:
    """Do the rounds that are not in the file yet, and write the summary beside it."""
    for part in parts or ():
        require_one_of(part, PARTS, "--part")
    known: list[dict[str, Any]] = list(parse_lines(file.read_bytes())) if file.exists() else []
    file.write_text("".join(f"{json.dumps(each)}\n" for each in known), encoding="utf-8")  # without a line cut off
    environment = {**describe_environment("cpu"), "command": "python -m tests.torture"}
    with tempfile.TemporaryDirectory(prefix="must-torture-") as folder, (torture := Torture(Path(folder))).at_end:
        for part in parts or PARTS:
            for number in range(sum(each["part"] == part for each in known), rounds):
                known.append(play(torture, part, number))
                with open(file, "a", encoding="utf-8") as log:
                    log.write(f"{json.dumps(known[-1])}\n")
                if known[-1]["problems"]:
                    print(json.dumps(known[-1]), flush=True)
    save_result(file.with_suffix(".json"), "Torture", {"measured": environment}, summary(known))


if __name__ == "__main__":
    typer.run(main)
