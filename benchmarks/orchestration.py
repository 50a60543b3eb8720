"""Measure the time that a run needs besides its steps, and the gain of a second labelling process.

    python -m benchmarks.orchestration

The figures come from what a run records: a step's own seconds are in its manifest, those of the run are wall time, so
other load on the machine affects both. The quickstart is run with few epochs, once by the command and once as plain
functions in one process (`runner: inline`): the overhead does not depend on how long the steps take.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Set
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.datasets import noise_jpeg
from benchmarks.measure import RESULTS, describe_environment, print_table, run_must, save_result
from pipeline.errors import PROJECT
from pipeline.training.device import find_device

QUICKSTART = PROJECT / "recipes" / "quickstart.yaml"
TRAINED = ("shapes", "things", "parts", "depth", "normals")
SHORT = [change for name in TRAINED for change in (f"teachers.{name}.epochs=0.2", f"teachers.{name}.require=none")]
SHORT += ["student.epochs=0.05", "runtime.side_by_side=1"]
SHARD = 8
SHARDS_RECIPE = """
name: shards
data: {{noise: {{kind: folder, path: "{images}"}}}}
shard_images: {shard}
teachers: {{gabor: {{kind: analytic, image_size: {size}}}}}
pool: [noise]
student: {{backbone: test_resnet, image_size: 32, weighting: equal}}
"""


def run(recipe: Path, root: Path, overrides: list[str], *options: str, cores: Set[int] | None = None) -> float:
    """Run a recipe on the given cores (None: all usable ones), and return the seconds."""
    changes = (f"--override={override}" for override in overrides)
    return run_must("run", str(recipe), "--root", str(root), *changes, *options, cores=cores)[0]


def step_seconds(root: Path) -> dict[str, float]:
    """Return the seconds of every step in a root, as measured by the step itself."""
    manifests = (json.loads(path.read_text("utf-8")) for path in root.glob("artifacts/*/*/manifest.json"))
    return {manifest["step"]: manifest["seconds"] for manifest in manifests}


def events(root: Path) -> list[dict[str, Any]]:
    """Return the events of the newest run."""
    newest = max((root / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    return [json.loads(line) for line in (newest / "events.jsonl").read_text("utf-8").splitlines()]


def measure_overhead(folder: Path) -> dict[str, float]:
    """Return the seconds of a quickstart run besides its steps, by runner, and the seconds per cached step."""
    seconds = {}
    for runner in ("inline", "threads"):
        root = folder / runner
        seconds[runner] = run(QUICKSTART, root, [*SHORT, f"runtime.runner={runner}"]) - sum(step_seconds(root).values())
    run(QUICKSTART, folder / "threads", [*SHORT, "evaluate.splits=val"])
    reused = [event["time"] for event in events(folder / "threads") if event["event"] == "reused"]
    seconds["cached"] = (reused[-1] - reused[0]) / (len(reused) - 1)
    return seconds


def make_pool(folder: Path, images: int, side: int) -> Path:
    """Write a pool of noise images and a recipe with small shards for it, and return the recipe's path."""
    (folder / "images").mkdir(parents=True)
    for number in range(images):
        (folder / "images" / f"{number:06d}.jpg").write_bytes(noise_jpeg(number, side))
    recipe = folder / "recipe.yaml"
    recipe.write_text(SHARDS_RECIPE.format(images=folder / "images", shard=SHARD, size=side), encoding="utf-8")
    return recipe


def measure_shards(folder: Path, shards: int) -> dict[str, float]:
    """Label many shards on `threads`: the seconds of the step by the run's clock, and of the labelling itself."""
    recipe, root = make_pool(folder, shards * SHARD, 96), folder / "root"
    run(recipe, root, [], "--to", "label")
    [seconds] = [event["seconds"] for event in events(root) if event["event"] == "made" and event["step"] == "label"]
    return {"step": seconds, "labelling": step_seconds(root)["label"]}


def measure_processes(folder: Path, images: int) -> dict[str, float]:
    """Return the seconds between the first and last label shards: one process on one or two cores, and two on two."""
    recipe, seconds = make_pool(folder, images, 256), {}
    two = set(sorted(os.sched_getaffinity(0))[:2])
    for name, count, cores in (("one", 1, {min(two)}), ("one on two", 1, two), ("two", 2, two)):
        root = folder / name.replace(" ", "-")
        run(recipe, root, [], "--to", "pool")
        by_processes = ["runtime.runner=process", f"runtime.label_workers={count}"]
        run(recipe, root, by_processes, "--to", "label", cores=cores)
        written = sorted(path.stat().st_mtime for path in root.glob("labels/*/*.parquet"))
        edge = len(written) // 10  # leaves out the first and last shards, during which a process may be idle
        seconds[name] = written[-edge - 1] - written[edge]
    return seconds


def main(
    shards: Annotated[int, typer.Option(help="Shards to label on `threads`.")] = 2000,
    images: Annotated[int, typer.Option(help="Images to label by processes.")] = 3000,
    part: Annotated[str, typer.Option(help="Only overhead, shards or processes; nothing is saved then.")] = "",
) -> None:
    """Measure, print, and write `orchestration-DEVICE` to the results."""
    device = find_device("auto")
    result: dict[str, Any] = {"measured": describe_environment(device)}
    table = [("what", "measured")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if part in ("", "overhead"):
            result["overhead"] = seconds = measure_overhead(folder / "overhead")
            table += [
                ("besides the steps, as plain functions", f"{seconds['inline']:.1f} s"),
                ("besides the steps, by the command", f"{seconds['threads']:.1f} s"),
                ("difference", f"{seconds['threads'] - seconds['inline']:.1f} s"),
                ("a cached step", f"{seconds['cached']:.3f} s"),
            ]
        if part in ("", "shards"):
            result["shards"] = seconds = measure_shards(folder / "shards", shards)
            more = seconds["step"] - seconds["labelling"]
            what = f"{shards:,} shards on `threads`, besides the {seconds['labelling']:.0f} s of the labelling itself"
            table.append((what, f"{more:.2f} s ({more / seconds['labelling']:.2%})"))
        if part in ("", "processes"):
            result["processes"] = seconds = measure_processes(folder / "processes", images)
            table += [
                (
                    "rate of two labelling processes to that of one on one core",
                    f"{seconds['one'] / seconds['two']:.2f}",
                ),
                ("... to that of one on both cores", f"{seconds['one on two'] / seconds['two']:.2f}"),
            ]
    if part:
        print_table(table)
    else:
        save_result(
            RESULTS / f"orchestration-{device}.json", "The time that a run needs besides its steps", result, table
        )


if __name__ == "__main__":
    typer.run(main)
