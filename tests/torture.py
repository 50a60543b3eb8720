"""Torture `must` for hours: kill it, fill its disk and damage its files, and see that nothing is lost or half done.

    python -m tests.torture --rounds 1000                  # goes on where the file of results ends
    python -m tests.torture --part kill --rounds 20

A round draws one misfortune by its number, and adds a line to the file of results: what was done, and what was wrong,
which ought to be nothing. Parts:

kill    a run gets SIGKILL when one of its processes is about to make its n-th file durable (fsync or rename), the
        process alone or with its whole group; it is run again, killed again or not, and must come to the artifacts of
        a run that nothing disturbed
disk    instead of the n-th fsync or rename the disk is full: the run ends with exit code 4 and a sentence, and the
        next one comes to the same artifacts
damage  a set of some format is read with one file damaged: each image is read or refused by an error of ours
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import RESULTS, describe_environment, save_result
from tests.flows.tiny import RECIPE, digests
from tests.pipeline.sources import damage

FILE = RESULTS / "torture.jsonl"
MOST_CALLS = 160
"""About as many files as a run of the tiny recipe makes durable in its longest process."""
RUNNERS = ("inline", "inline", "inline", "threads")
LONGEST_RUN_S = 600
DAMAGED_AT_ONCE = 50
"""Sets that a round of `damage` reads in one process."""
MISFORTUNE = """
import errno, os, signal

_at, _what = int(os.environ["TORTURE_AT"]), os.environ["TORTURE_WHAT"]
_calls = 0

def _meet(function):
    def call(*arguments, **options):
        global _calls
        _calls += 1
        if _calls == _at:
            if _what == "group":
                os.killpg(0, signal.SIGKILL)
            if _what == "process":
                os.kill(os.getpid(), signal.SIGKILL)
        if _calls >= _at and _what == "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*arguments, **options)
    return call

for _name in ("fsync", "replace", "rename"):
    setattr(os, _name, _meet(getattr(os, _name)))
"""
"""A sitecustomize: the misfortune of each process of a run, at its n-th durable file."""


class Torture:
    """The tiny recipe, and the artifacts that it leads to if nothing disturbs it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe = folder, folder / "tiny.yaml"
        self.recipe.write_text(RECIPE, encoding="utf-8")
        (folder / "shim").mkdir()
        (folder / "shim" / "sitecustomize.py").write_text(MISFORTUNE, encoding="utf-8")
        done = self.run(folder / "whole", "inline")
        assert done.returncode == 0, done.stderr
        self.wanted = digests(folder / "whole")

    def run(self, root: Path, runner: str, what: str = "", at: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the recipe, with the misfortune `what` at the durable file `at`."""
        command = [sys.executable, "-m", "cli", "run", self.recipe, "--root", root, "-o", f"runtime.runner={runner}"]
        environ = {**os.environ, "MUST_HOME": str(self.folder / "home"), "CI": "1"}
        if what:
            environ |= {"PYTHONPATH": str(self.folder / "shim"), "TORTURE_WHAT": what, "TORTURE_AT": str(at)}
        return subprocess.run(
            list(map(str, [*command, "-o", "runtime.checkpoint_s=0"])),
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            timeout=LONGEST_RUN_S,
        )

    def disturb(self, rng: random.Random, whats: tuple[str, ...], times: int) -> tuple[str, list[str]]:
        """Run into misfortunes, then once without; return what was done, and all that is wrong."""
        runner, wrong, met = rng.choice(RUNNERS), [], []
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            root = Path(folder) / "root"
            shutil.copytree(self.folder / "whole" / "machine", root / "machine")
            for _ in range(times):
                what, at = rng.choice(whats), rng.randrange(1, MOST_CALLS)
                done = self.run(root, runner, what, at)
                met.append(f"{what} at {at} ({done.returncode})")
                wrong += _wrong_words(what, done)
                if done.returncode == 0:
                    break
            done = self.run(root, runner)
            if done.returncode:
                wrong.append(f"the last run ended with {done.returncode}: {done.stderr[-400:]}")
            elif digests(root) != self.wanted:
                wrong.append(f"other artifacts: {sorted(set(digests(root).items()) ^ set(self.wanted.items()))}")
            if parts := list(root.glob("artifacts/**/*.part")):
                wrong.append(f"left behind: {parts[0].relative_to(root)}")
        return f"{runner}: {', '.join(met)}", wrong


def _wrong_words(what: str, done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what is wrong with how a run told its misfortune."""
    if what == "disk" and done.returncode not in (0, 4):
        return [f"a full disk ended with {done.returncode}: {done.stderr[-400:]}"]
    return [f"a traceback: {done.stderr[-400:]}"] if "Traceback" in done.stderr else []


def kill(torture: Torture, rng: random.Random) -> tuple[str, list[str]]:
    return torture.disturb(rng, ("group", "process"), rng.choice((1, 1, 2, 3)))


def disk(torture: Torture, rng: random.Random) -> tuple[str, list[str]]:
    return torture.disturb(rng, ("disk",), 1)


def damage_files(torture: Torture, rng: random.Random) -> tuple[str, list[str]]:
    kind, first = rng.choice(list(damage.FILES)), rng.randrange(10**9)
    command = [sys.executable, "-m", "tests.pipeline.sources.damage", kind, str(first), str(first + DAMAGED_AT_ONCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{DAMAGED_AT_ONCE} sets of kind {kind} from seed {first}", (done.stdout + done.stderr).splitlines()


PARTS: dict[str, Callable[[Torture, random.Random], tuple[str, list[str]]]] = {
    "kill": kill,
    "disk": disk,
    "damage": damage_files,
}


def summary(rounds: list[dict[str, Any]]) -> list[list[str]]:
    """Return the table: rounds by part, and how many of them found something wrong."""
    count = Counter(each["part"] for each in rounds)
    bad = Counter(each["part"] for each in rounds if each["wrong"])
    lines = [[part, f"{count[part]:,}", f"{bad[part]:,}"] for part in PARTS if count[part]]
    return [["part", "rounds", "with something wrong"], *lines]


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of each part, with those in the file.")] = 1000,
    parts: Annotated[list[str] | None, typer.Option("--part", help=f"One of {', '.join(PARTS)}.")] = None,
    file: Annotated[Path, typer.Option(help="Results, a line of JSON a round.")] = FILE,
) -> None:
    """Do the rounds that are not in the file yet, and write the summary beside it."""
    known = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    environment = describe_environment("cpu")
    with tempfile.TemporaryDirectory(prefix="must-torture-") as folder:
        torture = Torture(Path(folder))
        for part in parts or PARTS:
            for number in range(sum(each["part"] == part for each in known), rounds):
                began = time.monotonic()
                done, wrong = PARTS[part](torture, random.Random(f"{part} {number}"))
                known.append(
                    {"part": part, "round": number, "done": done, "wrong": wrong, "s": round(time.monotonic() - began)}
                )
                with open(file, "a", encoding="utf-8") as log:
                    log.write(f"{json.dumps(known[-1])}\n")
                if wrong:
                    print(json.dumps(known[-1]), flush=True)
    save_result(file.with_suffix(".json"), "Torture", {"measured": environment}, summary(known))


if __name__ == "__main__":
    typer.run(main)
