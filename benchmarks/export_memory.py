"""Measure whether the memory of an export grows with the pool: the peak of a process, for a small and a large pool.

    python -m benchmarks.export_memory

Both pools are generated: tiny JPEG files of noise, with boxes as a detection teacher would write them. Another process
makes the stores first, by the steps that ingest a set and gather a pool.
"""

from __future__ import annotations

import functools
import io
import json
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import tasks
from benchmarks.datasets import noise_jpeg, random_boxes
from benchmarks.measure import RESULTS, describe_environment, measure_pools, peak_mb, save_result
from flows.plan.data_steps import DATA
from flows.plan.label_steps import POOL
from ingest.dataset import IngestedSet
from pipeline.export import write_export
from pipeline.recipe.student import StudentConfig
from pipeline.sources.webdataset import Config
from pipeline.steps.artifact import EXTERNAL_FILES, Artifact, Inputs, Step, StepKind, write_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root, hash_file
from pipeline.stores.label_writer import LabelWriter, store_metadata
from pipeline.stores.labels import LabelSpace
from student.dataset import heads_of
from student.export_samples import labelled_samples
from tasks.teacher import Teacher

SIDE, BOXES = 16, 3
SHARD = 500
SPACE = LabelSpace("detection", tuple(f"class{number}" for number in range(10)))
SOURCE = Config(path="noise.tar", hold_out=0).model_dump(mode="json")
STEPS = (
    Step("data.noise", DATA, ("data", "noise"), {"name": "noise", "source": SOURCE, "shard_images": SHARD}),
    Step("pool", POOL, ("pool",), {"pool": ["noise"]}, ("data.noise",)),
    Step("teacher.boxes", StepKind("teacher", "__main__:make_teacher"), ("teachers", "boxes"), {}),
    Step("label", StepKind("label", "__main__:make_labels"), ("labelling",), {}, ("data.noise",)),
)


def make_teacher(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write the artifact of a teacher."""
    Teacher("supervised", SPACE).write(out)
    return {}


def make_labels(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Boxes of scores from 0 to 1 for every image, in label shards as the labeller leaves them."""
    label, entries, files = tasks.label(SPACE), [], {}
    for shard in IngestedSet(inputs["data.noise"]).images("train").shards:
        path = f"labels/boxes/{shard.sha256[:16]}.parquet"
        writer = LabelWriter(inputs.runtime.root.local_path(path), label, store_metadata(label, "boxes", shard.sha256))
        for key in shard.keys:
            rng = np.random.default_rng(int(key, 16))
            scores = functools.partial(rng.uniform, 0, 1)
            writer.add(key, label.encode(random_boxes(rng, BOXES, SIDE, len(SPACE.classes), scores)))
        writer.close()
        written = inputs.runtime.root.local_path(path)
        files[path] = {"size": written.stat().st_size, "sha256": hash_file(written)}
        entries.append({"set": "noise", "shard": shard.name, "teacher": "boxes", "path": path})
    write_json(out / "labels.json", entries)
    return {EXTERNAL_FILES: files}


def prepare(images: int) -> dict[str, Any]:
    """Write a tar of images, and all artifacts that an export reads, to this folder."""
    with tarfile.open("noise.tar", "w") as tar:
        for number in range(images):
            data = noise_jpeg(number, SIDE)
            info = tarfile.TarInfo(f"{number:07d}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    make_inputs()
    return {}


def make_inputs() -> Inputs:
    """Return the artifacts of all steps, and make those that are missing."""
    workspace = Workspace(Root.of("root"))
    runtime = Runtime(workspace.root)
    artifacts: dict[str, Artifact] = {}
    for step in STEPS:
        inputs = Inputs({name: artifacts[name] for name in step.inputs}, runtime)
        artifacts[step.name], _ = workspace.get_or_make(step, inputs)
    return Inputs(artifacts, runtime)


def export() -> dict[str, Any]:
    """Export what `prepare` wrote to this folder."""
    config, inputs = StudentConfig(weighting="equal"), make_inputs()
    heads = heads_of(config, inputs)
    labels = {name: tasks.label(head.space) for name, head in heads.items()}
    began = time.perf_counter()
    summary = write_export("coco", Path("out"), labels, labelled_samples(config, heads, inputs), {})
    seconds = time.perf_counter() - began
    return {
        "images": summary["images"],
        "boxes": summary["heads"]["boxes"]["written"]["annotations"],
        "peak_mb": peak_mb(),
        "images_per_s": round(summary["images"] / seconds, 1),
    }


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of images in the pools, smallest first.")] = "10000,100000",
    part: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure, print, and write `export_memory` to the results."""
    if part:
        print(json.dumps(export() if part == "export" else prepare(int(part.split()[1]))))
        return
    environment, pools = describe_environment("cpu"), measure_pools(sizes, "export")
    ratio = pools[-1]["peak_mb"] / pools[0]["peak_mb"]
    table = [
        ("images", "peak of the process, MB", "images/s"),
        *((f"{pool['images']:,}", f"{pool['peak_mb']:.0f}", f"{pool['images_per_s']:.0f}") for pool in pools),
        ("ratio", f"{ratio:.3f}", ""),
    ]
    result = {"measured": environment, "pools": pools, "ratio": ratio}
    save_result(RESULTS / "export_memory.json", "The memory of exporting to COCO", result, table)


if __name__ == "__main__":
    typer.run(main)
