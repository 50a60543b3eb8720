"""Measure how long `must plan` takes on a large root on this machine's disk.

    python -m benchmarks.plan_large

The root is generated: real manifests, with files of a few bytes in place of shards and weights. A plan reads manifests,
lists folders and compares sizes, so the content of the files does not matter.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import RESULTS, describe_environment, medians, run_must, save_result, take_turns
from flows.plan.steps import build_steps
from pipeline.recipe.reader import parse_recipe
from pipeline.steps.artifact import EXTERNAL_FILES, Inputs, Step, StepFunction, write_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root, in_parallel
from pipeline.stores.naming import store_name

REPEATS = 5
CHANGES = {
    "nothing has changed": [],
    "another student": ["-o", "student.lr=0.002"],
}


def recipe_text(teachers: int) -> str:
    """Return a recipe with two sets, `teachers` teachers trained on one of them, and a student."""
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


def file_facts(name: str) -> dict[str, Any]:
    """Return the manifest entry of a file whose content is its name."""
    return {"size": len(name), "sha256": hashlib.sha256(name.encode()).hexdigest()}


def write_files(folder: Path, names: list[str]) -> None:
    """Write files whose content is their name."""
    for parent in {(folder / name).parent for name in names}:
        parent.mkdir(parents=True, exist_ok=True)
    in_parallel(lambda name: (folder / name).write_text(name), names)


@dataclasses.dataclass(frozen=True)
class PlaceholderStep(Step):
    """A step that writes tiny files, as many as the real one writes for `shards` image shards."""

    shards: int = 0

    def function(self) -> StepFunction:
        return self.write

    def write(self, config: Mapping[str, Any], inputs: Inputs, out: Path) -> dict[str, Any]:
        """Write the step's files, and return what the step would return."""
        if self.name == "label":
            return self._label(inputs, out)
        names = ["model.json", "model.safetensors", "teacher.json", "log/train.jsonl"]
        if self.name.startswith("data."):
            count = self.shards if self.name == "data.pool" else 4
            stems = [f"images/train/shard-{number:06d}" for number in range(count)]
            names = ["set.json", *(f"{stem}{end}" for stem in stems for end in (".tar", ".parquet"))]
        write_files(out, names)
        (out / "config.json").write_text(str(dict(config)), encoding="utf-8")  # so that the digest depends on it
        return {}

    def _label(self, inputs: Inputs, out: Path) -> dict[str, Any]:
        folders = [f"labels/{store_name(name, teacher.digest)}" for name, teacher in inputs.of_kind("teacher").items()]
        stems = [file_facts(f"shard {number}")["sha256"][:16] for number in range(self.shards)]
        names = [f"{folder}/{stem}.parquet" for folder in folders for stem in stems]
        write_files(inputs.runtime.root.local_path(), names)
        write_json(out / "labels.json", [{"path": name, "failed": 0, **file_facts(name)} for name in names])
        return {EXTERNAL_FILES: {name: file_facts(name) for name in names}}


def make_all(root: Path, steps: list[Step], shards: int) -> None:
    """Make the artifacts of all steps, in order."""
    workspace = Workspace(Root.of(root))
    artifacts: dict[str, Any] = {}
    for step in steps:
        inputs = Inputs({name: artifacts[name] for name in step.inputs}, Runtime(workspace.root))
        artifacts[step.name] = workspace.make(PlaceholderStep(**vars(step), shards=shards), inputs)


def build_root(folder: Path, teachers: int, shards: int, artifacts: int) -> Path:
    """Make a root with a recipe's results, and older, smaller artifacts of its steps; return the recipe's path."""
    path = folder / "large.yaml"
    path.write_text(recipe_text(teachers), encoding="utf-8")
    steps = build_steps(parse_recipe(recipe_text(teachers), str(path)))
    for number in range(-(-artifacts // len(steps)) - 1):
        older = [dataclasses.replace(step, config={**step.config, "older": number}) for step in steps]
        make_all(folder / "root", older, 4)
    make_all(folder / "root", steps, shards)
    return path


def plan(path: Path, options: list[str]) -> float:
    """Run `must plan`, and return its seconds, interpreter start included."""
    seconds, printed = run_must("plan", str(path), "--root", str(path.parent / "root"), *options)
    assert ("run" in printed.replace("runs", "")) == bool(options), printed
    return round(seconds, 3)


def main(
    teachers: Annotated[int, typer.Option(help="Teachers, each of which labels every shard.")] = 20,
    shards: Annotated[int, typer.Option(help="Image shards of the pool.")] = 5000,
    artifacts: Annotated[int, typer.Option(help="Artifacts in the root.")] = 1000,
) -> None:
    """Measure, print, and write `plan_large-cpu` to the results."""
    environment = describe_environment("cpu")
    with tempfile.TemporaryDirectory() as name:
        path = build_root(Path(name), teachers, shards, artifacts)
        count = len(list((path.parent / "root").glob("artifacts/*/*/manifest.json")))
        plans = {change: functools.partial(plan, path, options) for change, options in CHANGES.items()}
        seconds = take_turns(plans, REPEATS)
    table = [("what", "measured"), ("artifacts", f"{count:,}"), ("image shards", f"{shards:,}")]
    table.append(("label shards", f"{teachers * shards:,}"))
    table += [(f"must plan, {change}", f"{middle:.2f} s") for change, middle in medians(seconds).items()]
    result = {"measured": environment, "artifacts": count, "teachers": teachers, "shards": shards, "seconds": seconds}
    save_result(RESULTS / "plan_large-cpu.json", "A plan over a large root", result, table)


if __name__ == "__main__":
    typer.run(main)
