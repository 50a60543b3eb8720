"""How long `must plan` takes over a large root on this machine's disk.

    python benchmarks/plan_large.py

The root is built for it: manifests as they are, files of a few bytes in the places of shards and weights. A plan reads
manifests, lists folders and compares sizes; what is in the files makes no difference to it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import circumstances, save_result
from benchmarks.pretended import Pretended
from flows.plan.steps import build_steps
from pipeline.recipe.reader import parse_recipe
from pipeline.steps.artifact import EXTERNAL_FILES, Inputs, Step, write_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root, in_parallel
from pipeline.stores.naming import store_name

RESULTS = Path(__file__).parent / "results"
REPEATS = 5
WAYS = {
    "nothing has changed": [],
    "another student": ["-o", "student.lr=0.002"],
    "another teacher": ["-o", "teachers.t07.lr=0.002"],
}


def recipe(teachers: int) -> str:
    """Two sets, so many teachers of one of them, a student."""
    settings = "{kind: supervised, task: segmentation, data: truth, backbone: resnet18}"
    lines = [f"  t{number:02d}: {settings}" for number in range(teachers)]
    return "\n".join(
        [
            "name: large",
            "data:",
            "  pool: {kind: scenes, count: 2500000, seed: 1}",
            "  truth: {kind: scenes, count: 2000, seed: 2, val: 500, tasks: [segmentation]}",
            "teachers:",
            *lines,
            "pool: [pool]",
            "student: {backbone: resnet18}",
            "",
        ]
    )


def named(name: str) -> dict[str, Any]:
    """What a manifest says of a file that holds its own name."""
    return {"size": len(name), "sha256": hashlib.sha256(name.encode()).hexdigest()}


def fill(folder: Path, names: list[str]) -> None:
    """Files that hold their own names."""
    for parent in {(folder / name).parent for name in names}:
        parent.mkdir(parents=True, exist_ok=True)
    in_parallel(lambda name: (folder / name).write_text(name), names)


class Placeholders:
    """Makes steps' artifacts of files that hold nothing: as many as the real step leaves for `shards` image shards."""

    def __init__(self, root: Path, shards: int) -> None:
        self.root, self.shards = root, shards

    def leave(self, step: Step, inputs: Inputs, out: Path) -> dict[str, Any]:
        """The files of a step; what it returns is what the step would return."""
        if step.name == "label":
            return self._label(inputs, out)
        names = ["model.json", "model.safetensors", "teacher.json", "log/train.jsonl"]
        if step.name.startswith("data."):
            count = self.shards if step.name == "data.pool" else 4
            stems = [f"images/train/shard-{number:06d}" for number in range(count)]
            names = ["set.json", *(f"{stem}{end}" for stem in stems for end in (".tar", ".parquet"))]
        fill(out, names)
        (out / "config.json").write_text(str(dict(step.config)), encoding="utf-8")  # other settings, another digest
        return {}

    def _label(self, inputs: Inputs, out: Path) -> dict[str, Any]:
        folders = [f"labels/{store_name(name, made.digest)}" for name, made in inputs.of_kind("teacher").items()]
        stems = [named(f"shard {number}")["sha256"][:16] for number in range(self.shards)]
        names = [f"{folder}/{stem}.parquet" for folder in folders for stem in stems]
        fill(self.root, names)
        write_json(out / "labels.json", [{"path": name, "failed": 0, **named(name)} for name in names])
        return {EXTERNAL_FILES: {name: named(name) for name in names}}


def make_all(root: Path, steps: list[Step], shards: int) -> None:
    """All steps, in order."""
    placeholders, workspace = Placeholders(root, shards), Workspace(Root.of(root))
    artifacts: dict[str, Any] = {}
    for step in steps:
        inputs = Inputs({name: artifacts[name] for name in step.inputs}, Runtime(workspace.root))

        def function(config: Mapping[str, Any], given: Inputs, out: Path, step: Step = step) -> Mapping[str, Any]:
            return placeholders.leave(step, given, out)

        artifacts[step.name] = workspace.make(Pretended(**vars(step), instead=function), inputs)


def build(folder: Path, teachers: int, shards: int, artifacts: int) -> Path:
    """A root with all that a recipe makes, and older artifacts of the same steps, of four shards each; the recipe."""
    path = folder / "large.yaml"
    path.write_text(recipe(teachers), encoding="utf-8")
    steps = build_steps(parse_recipe(recipe(teachers), str(path)))
    for number in range(-(-artifacts // len(steps)) - 1):
        older = [dataclasses.replace(step, config={**step.config, "older": number}) for step in steps]
        make_all(folder / "root", older, 4)
    make_all(folder / "root", steps, shards)
    return path


def plan(path: Path, more: list[str]) -> tuple[float, str]:
    """Seconds that the command takes, the interpreter's start included, and what it says."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "cli", "plan", path.name, "--root", "root", *more]
    done = subprocess.run(command, cwd=path.parent, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - began, done.stdout


def measure(path: Path) -> dict[str, list[float]]:
    """The seconds of each way to plan, in turns."""
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(REPEATS):
        for way, more in WAYS.items():
            seconds, said = plan(path, more)
            taken[way].append(round(seconds, 3))
            assert ("run" in said.replace("runs", "")) == bool(more), said
    return taken


def main(
    teachers: Annotated[int, typer.Option(help="Teachers, each of which labels every shard.")] = 20,
    shards: Annotated[int, typer.Option(help="Image shards of the pool.")] = 5000,
    artifacts: Annotated[int, typer.Option(help="Artifacts in the root.")] = 1000,
) -> None:
    measured = circumstances("cpu")
    with tempfile.TemporaryDirectory() as name:
        path = build(Path(name), teachers, shards, artifacts)
        found = len(list((path.parent / "root").glob("artifacts/*/*/manifest.json")))
        seconds = measure(path)
    table = [("what", "measured"), ("artifacts", f"{found:,}"), ("image shards", f"{shards:,}")]
    table.append(("label shards", f"{teachers * shards:,}"))
    table += [(f"must plan, {way}", f"{statistics.median(each):.2f} s") for way, each in seconds.items()]
    for line in table:
        print(f"{line[0]:<34} {line[1]}")
    result = {"measured": measured, "artifacts": found, "teachers": teachers, "shards": shards, "seconds": seconds}
    save_result(RESULTS / "plan_large-cpu.json", "A plan over a large root", result, table)


if __name__ == "__main__":
    typer.run(main)
