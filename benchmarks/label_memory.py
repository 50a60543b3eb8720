"""Measure whether the memory of labelling grows with the pool: the peak of a process, for a small and a large pool.

    python -m benchmarks.label_memory

Both pools are generated: small JPEG files of noise. Another process does everything before the labelling.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import must
from benchmarks.datasets import noise_jpeg
from benchmarks.measure import RESULTS, describe_environment, measure_pools, peak_mb, save_result
from flows.plan.selection import Selection
from pipeline.training.device import find_device

SIDE = 32
CLASSES = [f"class{number}" for number in range(10)]
RECIPE = f"""
name: memory
runtime: {{runner: inline}}
data:
  noise: {{kind: folder, path: images}}
teachers:
  gabor: {{kind: analytic, image_size: {SIDE}}}
  small: {{kind: pretrained, model: test_resnet, weights: small.safetensors, image_size: {SIDE}, classes: {CLASSES}}}
pool: [noise]
student: {{backbone: test_resnet, image_size: {SIDE}, weighting: equal}}
"""


def prepare(images: int) -> dict[str, Any]:
    """Make a pool of `images` images and two cheap teachers in this folder, and run all steps before the labelling."""
    import timm  # noqa: PLC0415 - not needed in the measured process
    from safetensors.torch import save_file  # noqa: PLC0415

    Path("images").mkdir()
    for number in range(images):
        Path(f"images/{number:06d}.jpg").write_bytes(noise_jpeg(number, SIDE))
    save_file(timm.create_model("test_resnet", num_classes=len(CLASSES)).state_dict(), "small.safetensors")
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    for step in ("pool", "teacher.gabor", "teacher.small"):
        must.run("recipe.yaml", "root", steps=Selection(step))
    return {}


def label() -> dict[str, Any]:
    """Label the pool that `prepare` wrote to this folder."""
    outcome = must.run("recipe.yaml", "root", steps=Selection("label"))
    counts = outcome.artifacts["label"].counts
    return {"labelled": counts["labelled_now"], "failed": counts["failed"], "peak_mb": peak_mb()}


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of images in the pools, smallest first.")] = "2000,20000",
    part: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure, print, and write `label_memory-DEVICE` to the results."""
    if part:
        print(json.dumps(label() if part == "label" else prepare(int(part.split()[1]))))
        return
    device = find_device("auto")
    environment, pools = describe_environment(device), measure_pools(sizes, "label")
    ratio = pools[-1]["peak_mb"] / pools[0]["peak_mb"]
    table = [
        ("images", "peak of the process, MB"),
        *((f"{pool['labelled']:,}", f"{pool['peak_mb']:.0f}") for pool in pools),
        ("ratio", f"{ratio:.3f}"),
    ]
    result = {"measured": environment, "pools": pools, "ratio": ratio}
    save_result(RESULTS / f"label_memory-{device}.json", "The memory of labelling", result, table)


if __name__ == "__main__":
    typer.run(main)
