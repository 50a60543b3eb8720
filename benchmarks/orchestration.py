"""What a run costs beside its steps, and what a second labelling process brings.

    python benchmarks/orchestration.py

Everything is taken from what a run records of itself: a step's own seconds are in its manifest, those of the run are on
the clock, so other work on the machine falls on both. The quick start is run with few epochs, once as the command runs
it and once as plain functions in one process (`runner: inline`): what lies around the steps does not depend on how long
they take.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Set
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.measure import circumstances, save_result
from pipeline.training.device import find_device

HERE = Path(__file__).parent
RESULTS = HERE / "results"
QUICK = HERE.parent / "recipes" / "quickstart.yaml"
SHORT = [f"teachers.{name}.epochs=0.2" for name in ("shapes", "things", "parts", "depth", "normals")]
SHORT += ["student.epochs=0.05", "teachers.parts.require={}"]
SHARD = 8
SHARDS_RECIPE = """
name: shards
data: {{noise: {{kind: folder, path: "{images}"}}}}
shard_images: {shard}
teachers: {{gabor: {{kind: analytic, image_size: {size}}}}}
pool: [noise]
student: {{backbone: test_resnet, image_size: 32, weighting: equal}}
"""


def must(*arguments: str, cores: Set[int] | None = None) -> float:
    """Give the command, on some cores or on those there are; seconds."""
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
    return time.perf_counter() - began


def overrides(values: list[str]) -> list[str]:
    return [part for value in values for part in ("-o", value)]


def steps(root: Path) -> dict[str, float]:
    """The seconds of every step that a root holds, as the step itself measured them."""
    manifests = (json.loads(path.read_text("utf-8")) for path in root.glob("artifacts/*/*/manifest.json"))
    return {manifest["step"]: manifest["seconds"] for manifest in manifests}


def events(root: Path) -> list[dict[str, Any]]:
    """What happened in the newest run."""
    newest = max((root / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    return [json.loads(line) for line in (newest / "events.jsonl").read_text("utf-8").splitlines()]


def measure_overhead(folder: Path) -> dict[str, float]:
    """Seconds around the steps of the quick start: as plain functions, and as the command runs them; and per cached
    step, from one to the next.
    """
    found = {}
    for runner in ("inline", "threads"):
        root = folder / runner
        took = must("run", str(QUICK), "--root", str(root), *overrides([*SHORT, f"runtime.runner={runner}"]))
        found[runner] = took - sum(steps(root).values())
    again = overrides([*SHORT, "evaluate.splits=val"])
    must("run", str(QUICK), "--root", str(folder / "threads"), *again)
    reused = [event["time"] for event in events(folder / "threads") if event["event"] == "reused"]
    found["cached"] = (reused[-1] - reused[0]) / (len(reused) - 1)
    return found


def picture(number: int, side: int) -> bytes:
    """A JPEG file that differs from that of any other number."""
    noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def make_pool(folder: Path, images: int, side: int) -> Path:
    """A recipe for a pool of noise, in small shards."""
    (folder / "images").mkdir(parents=True)
    for number in range(images):
        (folder / "images" / f"{number:06d}.jpg").write_bytes(picture(number, side))
    recipe = folder / "recipe.yaml"
    recipe.write_text(SHARDS_RECIPE.format(images=folder / "images", shard=SHARD, size=side), encoding="utf-8")
    return recipe


def measure_shards(folder: Path, shards: int) -> dict[str, float]:
    """Many shards on `threads`: seconds of the label step by the run's clock, and of the labelling itself."""
    recipe, root = make_pool(folder, shards * SHARD, 96), folder / "root"
    must("run", str(recipe), "--root", str(root), "--to", "label")
    (made,) = [event["seconds"] for event in events(root) if event["event"] == "made" and event["step"] == "label"]
    return {"step": made, "labelling": steps(root)["label"]}


def measure_processes(folder: Path, images: int) -> dict[str, float]:
    """Seconds from the first label shard to the last: by one process on one core, by one on two, and by two on two."""
    recipe, found = make_pool(folder, images, 256), {}
    two = set(sorted(os.sched_getaffinity(0))[:2])
    for name, count, cores in (("one", 1, {min(two)}), ("one on two", 1, two), ("two", 2, two)):
        root = folder / name.replace(" ", "-")
        must("run", str(recipe), "--root", str(root), "--to", "pool")
        chosen = overrides(["runtime.runner=process", f"runtime.label_workers={count}"])
        must("run", str(recipe), "--root", str(root), "--to", "label", *chosen, cores=cores)
        written = sorted(path.stat().st_mtime for path in root.glob("labels/*/*.parquet"))
        edge = len(written) // 10  # the first and last shards, when not all processes are at work
        found[name] = written[-edge - 1] - written[edge]
    return found


def main(
    shards: Annotated[int, typer.Option(help="Shards of the pool that `threads` labels.")] = 2000,
    images: Annotated[int, typer.Option(help="Images of the pool that processes label.")] = 3000,
    part: Annotated[str, typer.Option(help="overhead, shards or processes; all, if none.")] = "",
) -> None:
    device = find_device("auto")
    result: dict[str, Any] = {"measured": circumstances(device)}
    table = [("what", "measured")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if part in ("", "overhead"):
            result["overhead"] = found = measure_overhead(folder / "overhead")
            table += [
                ("around the steps, as plain functions", f"{found['inline']:.1f} s"),
                ("around the steps, by the command", f"{found['threads']:.1f} s"),
                ("more by the command", f"{found['threads'] - found['inline']:.1f} s"),
                ("a cached step", f"{found['cached']:.3f} s"),
            ]
        if part in ("", "shards"):
            result["shards"] = found = measure_shards(folder / "shards", shards)
            more = found["step"] - found["labelling"]
            what = f"{shards:,} shards on `threads`, over the {found['labelling']:.0f} s of the labelling itself"
            table.append((what, f"{more:.2f} s ({more / found['labelling']:.2%})"))
        if part in ("", "processes"):
            result["processes"] = found = measure_processes(folder / "processes", images)
            table += [
                ("two labelling processes, times the rate of one on a core", f"{found['one'] / found['two']:.2f}"),
                ("... of one that has both cores", f"{found['one on two'] / found['two']:.2f}"),
            ]
    for line in table:
        print(f"{line[0]:<72} {line[1]}")
    if not part:
        save_result(RESULTS / f"orchestration-{device}.json", "What a run costs beside its steps", result, table)


if __name__ == "__main__":
    typer.run(main)
