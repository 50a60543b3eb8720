"""Measure how fast the page of `must browse` answers over a large store, and how much memory its server takes.

    python -m benchmarks.browse_large

The store is generated: tiny images, each with labels of five teachers in the real schema. A few hundred labels are made
for each task; the shards repeat them with their own images' keys and new confidences.
"""

from __future__ import annotations

import functools
import http.client
import io
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from PIL import Image

import tasks
from benchmarks.datasets import random_boxes
from benchmarks.measure import RESULTS, describe_environment, save_result
from ingest.dataset import IngestedSet
from pipeline.steps.artifact import Artifact, Inputs, Step, StepKind, write_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root, local_file
from pipeline.stores.images import NewImage, ShardWriter
from pipeline.stores.label_writer import LabelWriter, store_metadata
from pipeline.stores.labels import ROW_GROUP, LabelShard, LabelSpace, Value

SHARD = 500
"""Images in a shard, as by default in recipes."""
SIDE, CELLS = 16, 16
SPACES = {
    "kinds": LabelSpace("classification", tuple(f"kind {number}" for number in range(1000))),
    "things": LabelSpace("detection", tuple(f"thing {number}" for number in range(80))),
    "street": LabelSpace("segmentation", tuple(f"stuff {number}" for number in range(20))),
    "depth": LabelSpace("depth"),
    "normals": LabelSpace("normals"),
}
REPEATS = 15
QUERIES: dict[str, tuple[str, dict[str, Any]]] = {
    "first page of the grid, the list": ("/api/images", {"limit": 60}),
    "two conditions": ("/api/images", {"limit": 60, "f": ["kinds.confidence<0.3", "things.class=thing 7"]}),
    "two conditions, ordered": (
        "/api/images",
        {"limit": 60, "f": ["things.count_50>=1", "street.class=stuff 3"], "order": "-depth.far"},
    ),
    "text in the name": ("/api/images", {"limit": 60, "f": ["source~00123"]}),
    "a histogram": ("/api/histogram", {"column": "kinds.confidence", "f": ["things.count_50>=1"]}),
    "classes of a store": ("/api/histogram", {"column": "things.class"}),
    "a threshold's balance": ("/api/balance", {"store": "things", "threshold": 0.5}),
}


def random_label(task: str, rng: np.random.Generator) -> Value:
    """Return a random label of a task."""
    match task:
        case "classification":
            probs = rng.dirichlet(np.full(1000, 0.01))
            return {"probs": probs.astype(np.float32)}
        case "detection":
            return random_boxes(rng, int(rng.integers(0, 20)), SIDE, 80, functools.partial(rng.beta, 0.5, 2))
        case "segmentation":
            classes = np.repeat(rng.integers(0, 20, (4, CELLS)), 4, axis=0).astype(np.uint16)
            return {"classes": classes, "confidence": rng.random((CELLS, CELLS)).astype(np.float32)}
        case "depth":
            return {"depth": rng.uniform(0.5, 20, (CELLS, CELLS)).astype(np.float32)}
    vectors = rng.normal(size=(CELLS, CELLS, 3)) + np.array([0, 0, 2])
    return {"normals": (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)}


def unique_pngs(count: int) -> Iterator[bytes]:
    """Yield `count` PNG files that differ in a number after the end of the image data."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(buffer, "PNG")
    return (buffer.getvalue() + b"%012d" % number for number in range(count))


def build_root(folder: Path, images: int) -> Root:
    """Make a root with a set of `images` images, five teachers' artifacts, and their labels."""
    root = Root.of(folder / "root")
    workspace, inputs = Workspace(root), Inputs({}, Runtime(root))
    config = {"name": "pool", "images": images}
    step = Step("data.pool", StepKind("data", "__main__:write_pool"), ("data", "pool"), config)
    ingested = workspace.make(step, inputs)
    for name, space in SPACES.items():
        kind = StepKind("teacher", "__main__:write_teacher")
        teacher = workspace.make(Step(f"teacher.{name}", kind, ("teacher", name), {"name": name}), inputs)
        label_all(root, ingested, f"{name}-{teacher.digest[:12]}", space)
    return root


def write_pool(config: Mapping[str, Any], inputs: Inputs, out: Path) -> dict[str, Any]:
    """Write the artifact of a set with `config["images"]` images."""
    images = config["images"]
    files, shards = unique_pngs(images), -(-images // SHARD)
    for shard in range(shards):
        writer = ShardWriter(out / "images/train", f"shard-{shard:06d}")
        for number in range(shard * SHARD, min(images, (shard + 1) * SHARD)):
            writer.add(NewImage(next(files), "png", SIDE, SIDE, f"pool/{shard:05d}/IMG_{number:08d}.png"))
        writer.close()
    write_json(out / "set.json", {"splits": {"train": shards}, "counts": {"images": images}, "spaces": {}})
    return {"images": images}


def write_teacher(config: Mapping[str, Any], inputs: Inputs, out: Path) -> dict[str, Any]:
    """Write the artifact of a teacher that is never loaded."""
    write_json(out / "teacher.json", dict(config))
    return {}


def label_all(root: Root, ingested: Artifact, store: str, space: LabelSpace) -> None:
    """Write a teacher's labels: those of a first shard, repeated with other keys and confidences."""
    rng, label = np.random.default_rng(0), tasks.label(space)
    folder = root.local_path(f"labels/{store}")
    with tempfile.TemporaryDirectory() as scratch:
        writer = LabelWriter(Path(scratch) / "first.parquet", label, store_metadata(label, "benchmark", "0"))
        for _ in range(SHARD):
            writer.add("0" * 16, label.encode(random_label(space.task, rng)))
        writer.close()
        first = LabelShard(local_file(writer.path), label).table
    folder.mkdir(parents=True)
    for images in IngestedSet(ingested).images("train").shards:
        keys = images.columns("key").column("key")
        confidence = pa.array(rng.random(len(keys), dtype=np.float32))
        table = first.slice(0, len(keys)).set_column(0, first.schema.field("key"), keys)
        table = table.set_column(3, first.schema.field("confidence"), confidence)
        pq.write_table(table, folder / f"{images.address}.parquet", compression="zstd", row_group_size=ROW_GROUP)


class BrowseServer:
    """`must browse` over a root, as a process of its own, and its clients."""

    def __init__(self, root: Root, port: int) -> None:
        self.port, self.connections = port, threading.local()
        self.began = time.perf_counter()
        command = [sys.executable, "-m", "cli", "browse", str(root), "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def get(self, path: str, parameters: Mapping[str, Any]) -> bytes:
        """Return the content at a path, over a connection per thread that is kept open, as in a browser."""
        if not hasattr(self.connections, "own"):
            self.connections.own = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        self.connections.own.request("GET", f"{path}?{urllib.parse.urlencode(parameters, doseq=True)}")
        response = self.connections.own.getresponse()
        content: bytes = response.read()
        assert response.status == HTTPStatus.OK, content
        return content

    def wait(self, whole: bool) -> float:
        """Return the seconds from the start until the first images are shown, or (`whole`) all files are read."""
        while True:
            try:
                about = json.loads(self.get("/api/about", {}))
                if about["images"] and (not whole or about["loaded"] == about["found"]):
                    return time.perf_counter() - self.began
            except OSError:
                self.connections = threading.local()
                assert self.process.poll() is None, "the server ended"
            time.sleep(0.1)

    def seconds(self, path: str, parameters: Mapping[str, Any]) -> float:
        """Return the median over REPEATS requests."""
        taken = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            self.get(path, parameters)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def memory(self) -> int:
        """Return the server's peak memory in MB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text("utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1000

    def five_tasks(self) -> float:
        """Return the median seconds for an image's record and six pictures, the image and its five labels."""
        listing = json.loads(self.get("/api/images", {"limit": REPEATS, "offset": 60, "order": "-kinds.confidence"}))
        taken = []
        for image in listing["images"]:
            began = time.perf_counter()
            self.get(f"/api/image/{image['key']}", {})
            for store in ("", *SPACES):
                self.get(f"/api/picture/{image['key']}", {"side": 256, **({"store": store} if store else {})})
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def grid(self) -> float:
        """Return the seconds for a page of the grid with its 60 pictures, eight at a time as in a browser."""
        began = time.perf_counter()
        listing = json.loads(self.get("/api/images", {"limit": 60}))
        with ThreadPoolExecutor(8) as pool:
            parameters = [{"side": 256, "store": "things", "threshold": 0.5}] * len(listing["images"])
            list(pool.map(self.get, [f"/api/picture/{image['key']}" for image in listing["images"]], parameters))
        return time.perf_counter() - began

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


def main(
    images: Annotated[int, typer.Option(help="Images in the store.")] = 1_000_000,
    port: Annotated[int, typer.Option(help="Port of the measured server.")] = 8890,
) -> None:
    """Measure, print, and write `browse_large-IMAGES-cpu` to the results."""
    environment = describe_environment("cpu")
    with tempfile.TemporaryDirectory() as name:
        server = BrowseServer(build_root(Path(name), images), port)
        try:
            times = {"until the first images are there": server.wait(whole=False)}
            times["until all files are read"] = server.wait(whole=True)
            times |= {query: server.seconds(path, parameters) for query, (path, parameters) in QUERIES.items()}
            times["one image with five tasks"] = server.five_tasks()
            times["first page of the grid, list and 60 pictures"] = server.grid()
            memory = server.memory()
        finally:
            server.end()
    table = [
        ("what", "measured"),
        ("images", f"{images:,}"),
        ("label shards", f"{-(-images // SHARD) * len(SPACES):,}"),
    ]
    table += [(what, f"{seconds * 1000:,.0f} ms") for what, seconds in times.items()]
    table.append(("memory of the server, at most", f"{memory} MB"))
    result = {"measured": environment, "images": images, "seconds": times, "memory_mb": memory}
    save_result(RESULTS / f"browse_large-{images}-cpu.json", "The page over a large store", result, table)


if __name__ == "__main__":
    typer.run(main)
