"""Inject faults into runs of the tiny recipe, and compare the artifacts with those of an undisturbed run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import runpy
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from flows.run.processes import PRELOADED
from pipeline.steps.artifact import Artifact, parse_manifest, verify
from pipeline.storage.lock import LOCKS
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from tests import s3
from tests.flows.tiny import RECIPE, Digests, processes_of
from tests.forked import run_must, unblock_signals

FAULT_INJECTION = Path(__file__).parent / "fault_injection"
SHORTAGES = ("space", "memory", "open files")
"""What a process may be told to be short of."""
KILLS = ("kill group", "kill process", "kill at a moment")
"""A run's whole group or one process of it is killed at a file that it makes durable, or any process at any moment."""
MOST_FILES = 160
"""About as many files as a run of the tiny recipe makes durable in its longest process."""
LONGEST_RUN_S = 600
SHORTAGE_CODE = 4
CONTEXT = multiprocessing.get_context("forkserver")
"""Runs are forked from a process that has torch loaded, which takes longer than they do."""
FORKED = {"runtime.runner=inline", "runtime.runner=threads", "gc"}
"""Arguments of the commands that can be forked; Prefect's processes and Ray need a Python of their own."""


class RunRoot(NamedTuple):
    """The root of a run, and the environment that it needs to reach it."""

    path: str
    environ: Mapping[str, str] = {}

    def digests(self) -> Digests:
        """Return the digest of every step's artifact."""
        found = {made.manifest["step"]: made.digest for made in self._artifacts()}
        assert len(found) == len(list(self._artifacts())), "a step was made twice over"
        return found

    def problems(self) -> list[str]:
        """Return what ought not to be there once nothing runs and garbage is collected."""
        changed = [f"{file.path}: {problem}" for made in self._artifacts() for file, problem in verify(made)]
        names = StoragePath.of(self.path).files()
        return changed + [f"left behind: {name}" for name in names if name.endswith(".part") or f"{LOCKS}/" in name]

    def _artifacts(self) -> Iterator[Artifact]:
        root = Root.of(self.path)
        for name in (root / "artifacts").files():
            if name.endswith("/manifest.json"):
                folder = f"artifacts/{name.removesuffix('/manifest.json')}"
                yield Artifact(root, folder, parse_manifest((root / folder / "manifest.json").read(), name))


class RunResult(NamedTuple):
    """How a run ended, and whether its fault struck."""

    exit_code: int
    errors: str
    struck: bool

    def problems(self, fault: str) -> list[str]:
        """Return what is wrong with how it ended."""
        wanted = SHORTAGE_CODE if fault in SHORTAGES and self.struck else None if self.struck else 0
        found = []
        if wanted is not None and self.exit_code != wanted:
            found.append(f"{fault or 'no fault'}: it ended with {self.exit_code}, not {wanted}: {self.errors[-400:]}")
        if wanted == SHORTAGE_CODE and f"short of {fault}" not in self.errors:
            found.append(f"it does not say that it was short of {fault}: {self.errors[-400:]}")
        return [*found, *([f"a traceback: {self.errors[-400:]}"] if "Traceback" in self.errors else [])]


class Runs:
    """Runs of the tiny recipe in a folder, with faults and without."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.recipe = folder, folder / "home", folder / "tiny.yaml"
        self.recipe.write_text(RECIPE, encoding="utf-8")
        CONTEXT.set_forkserver_preload(["tests.forked", *PRELOADED])
        self.undisturbed = RunRoot(str(folder / "undisturbed"))
        began = time.monotonic()
        done = self.run(self.undisturbed, "inline")
        assert done.exit_code == 0, done.errors
        assert not processes_of(self.home)
        self.seconds, self.wanted = time.monotonic() - began, self.undisturbed.digests()

    def disturb(self, rng: random.Random, runners: tuple[str, ...], faults: tuple[str, ...]) -> tuple[str, list[str]]:
        """Run with faults on a new root on disk, then without; return what was done, and all problems."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            return self.disturb_on(RunRoot(f"{folder}/root"), rng, runners, faults)

    def disturb_on(
        self, root: RunRoot, rng: random.Random, runners: tuple[str, ...], faults: tuple[str, ...]
    ) -> tuple[str, list[str]]:
        """Do the same on an empty root."""
        runner, problems, injected = rng.choice(runners), [], []
        try:
            for _ in range(rng.choice((1, 1, 2, 3))):
                fault, at = rng.choice(faults), round(MOST_FILES ** rng.random())
                after = rng.uniform(0, 1.5 * self.seconds)
                done = self.run(root, runner, fault, at, after)
                when = f"after {after:.1f} s" if fault == "kill at a moment" else f"file {at}"
                injected.append(
                    f"{fault}, {when}: {'struck' if done.struck else 'missed'}, ended with {done.exit_code}"
                )
                problems += done.problems(fault)
                if done.exit_code == 0:
                    break
            problems += self.run(root, runner).problems("")
            if root.digests() != self.wanted:
                problems.append(f"other artifacts: {sorted(set(root.digests().items()) ^ set(self.wanted.items()))}")
        finally:
            self._end_orphans()
        collected = self._collect_garbage(root)
        return f"{runner}; {'; '.join(injected)}", problems + collected.problems("") + root.problems()

    def run(self, root: RunRoot, runner: str, fault: str = "", at: int = 0, after: float = 0) -> RunResult:
        """Run the recipe; a fault strikes at the durable file `at`, or a kill at a moment `after` seconds."""
        command = ["run", str(self.recipe), "--root", root.path]
        for setting in (f"runner={runner}", "checkpoint_s=0", "deterministic=true"):
            command += ["-o", f"runtime.{setting}"]
        return self._call(root, command, fault, at, after)

    def _collect_garbage(self, root: RunRoot) -> RunResult:
        return self._call(root, ["artifacts", "gc", "--root", root.path, "--delete"])

    def _call(self, root: RunRoot, command: list[str], fault: str = "", at: int = 0, after: float = 0) -> RunResult:
        environ = {**os.environ, **root.environ, "MUST_HOME": str(self.home), "CI": "1"}
        mark = self.folder / f"mark-{uuid.uuid4().hex[:8]}"
        if fault and fault != "kill at a moment":
            shim = {"PYTHONPATH": str(FAULT_INJECTION), "FAULT": fault, "FAULT_AT": str(at), "FAULT_MARK": str(mark)}
            environ |= shim
        with tempfile.NamedTemporaryFile("r", dir=self.folder) as errors:
            run = _run_anew if FORKED.isdisjoint(command) else _run
            running = CONTEXT.Process(target=run, args=(environ, command, errors.name))
            running.start()
            assert running.pid is not None, "it was started"
            killer = threading.Timer(after, _kill_one, [running.pid, random.Random(after), mark])
            if fault == "kill at a moment":
                killer.start()
            running.join(LONGEST_RUN_S)
            killer.cancel()
            if running.is_alive():
                os.killpg(running.pid, signal.SIGKILL)
                running.join()
            assert running.exitcode is not None, "it has ended"
            return RunResult(running.exitcode, errors.read(), mark.exists())

    def _end_orphans(self) -> None:
        """Kill what outlived its run in a session of its own, such as Ray's processes."""
        for pid in processes_of(self.home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def s3_server() -> Iterator[Mapping[str, str]]:
    """Serve S3 from this process; yields the environment to reach it, which this process has meanwhile."""
    with tempfile.TemporaryDirectory() as cache, s3.serve() as address:
        environ = {**s3.ENVIRONMENT, "AWS_ENDPOINT_URL": address, "MUST_CACHE": cache}
        before = dict(os.environ)
        os.environ.update(environ)
        type(s3.system()).clear_instance_cache()  # they remember the server before
        try:
            yield environ
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextlib.contextmanager
def root_on_s3(environ: Mapping[str, str]) -> Iterator[RunRoot]:
    """Yield an empty root in a bucket, which is deleted afterwards."""
    bucket = f"torture-{uuid.uuid4().hex[:12]}"
    s3.system().mkdir(bucket)
    try:
        yield RunRoot(f"s3://{bucket}/root", environ)
    finally:
        s3.system().rm(bucket, recursive=True)


def _run(environ: Mapping[str, str], command: Sequence[str], errors: str) -> None:
    """Run `must` in this process."""
    _lead_group(errors)
    os.environ.update(environ)
    if "FAULT" in environ:
        runpy.run_path(str(FAULT_INJECTION / "sitecustomize.py"))
    run_must({}, command)


def _run_anew(environ: Mapping[str, str], command: Sequence[str], errors: str) -> None:
    """Make this process a new Python that runs `must`."""
    _lead_group(errors)
    unblock_signals()
    os.execve(sys.executable, [sys.executable, "-m", "cli", *command], dict(environ))


def _lead_group(errors: str) -> None:
    """Let this process lead a group of its own, and write its errors to a file."""
    os.setsid()
    with open(os.devnull, "wb") as nowhere, open(errors, "ab") as file:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _kill_one(pid: int, rng: random.Random, mark: Path) -> None:
    """Kill a process of a run, or all of its group."""
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        main = psutil.Process(pid)
        chosen = rng.choice([main, *main.children(recursive=True)])
        mark.touch()
        if chosen == main and rng.random() < 0.5:
            os.killpg(pid, signal.SIGKILL)
        else:
            chosen.kill()
