"""Whether labelling's memory grows with the pool: the peak of a process that labels few images and of one for many.

    python benchmarks/label_memory.py

Both pools are generated: small JPEG pictures of noise. Everything but the labelling is done by another process before.
"""

from __future__ import annotations

import io
import json
import resource
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

import must
from benchmarks.measure import circumstances, in_process_of_its_own, save_result
from flows.plan.selection import Selection
from pipeline.training.device import find_device

RESULTS = Path(__file__).parent / "results"
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
student: {{backbone: test_resnet, image_size: {SIDE}}}
"""


def prepare(folder: Path, images: int) -> None:
    """A pool of `images` pictures, two cheap teachers, and all that comes before the labelling."""
    import timm  # noqa: PLC0415 - the process that is measured does not come here
    from safetensors.torch import save_file  # noqa: PLC0415

    (folder / "images").mkdir()
    for number in range(images):
        (folder / "images" / f"{number:06d}.jpg").write_bytes(picture(number))
    save_file(timm.create_model("test_resnet", num_classes=len(CLASSES)).state_dict(), folder / "small.safetensors")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    for step in ("pool", "teacher.gabor", "teacher.small"):
        must.run("recipe.yaml", "root", steps=Selection(step))


def picture(number: int) -> bytes:
    """A JPEG file that differs from that of any other number."""
    noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def label() -> dict[str, Any]:
    """Label the pool that `prepare` left in this folder."""
    outcome = must.run("recipe.yaml", "root", steps=Selection("label"))
    counts = outcome.artifacts["label"].counts
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"labelled": counts["labelled_now"], "failed": counts["failed"], "peak_mb": round(peak, 1)}


def measure(sizes: list[int]) -> None:
    """Both pools, one after the other; print the peaks and keep them."""
    device = find_device("auto")
    measured, found = circumstances(device), []
    for images in sizes:
        with tempfile.TemporaryDirectory() as name:
            in_process_of_its_own(__file__, f"prepare {images}", Path(name))
            found.append(in_process_of_its_own(__file__, "label", Path(name)))
    ratio = found[-1]["peak_mb"] / found[0]["peak_mb"]
    table = [
        ("images", "peak of the process, MB"),
        *((f"{each['labelled']:,}", f"{each['peak_mb']:.0f}") for each in found),
        ("ratio", f"{ratio:.3f}"),
    ]
    for line in table:
        print(f"{line[0]:<8} {line[1]}")
    result = {"measured": measured, "pools": found, "ratio": ratio}
    save_result(RESULTS / f"label_memory-{device}.json", "The memory of labelling", result, table)


def main(
    sizes: Annotated[str, typer.Option(help="Images in the pools, smaller first.")] = "2000,20000",
    part: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    if part == "label":
        print(json.dumps(label()))
    elif part:
        prepare(Path.cwd(), int(part.split()[1]))
        print("{}")
    else:
        measure([int(size) for size in sizes.split(",")])


if __name__ == "__main__":
    typer.run(main)
