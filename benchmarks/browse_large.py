"""How fast the page answers over a large store, and what memory its server takes.

    python -m benchmarks.browse_large

The store is made for it: tiny images, each with labels of five teachers in the real schema. Of every task a few hundred
labels are made; shards repeat them under the keys of their images, with confidences drawn anew.
"""

from __future__ import annotations

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
from benchmarks.measure import circumstances, save_result
from benchmarks.pretended import pretend
from ingest.dataset import IngestedSet
from pipeline.steps.artifact import Artifact, Inputs, write_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root, local_file
from pipeline.stores.images import NewImage, ShardWriter
from pipeline.stores.labels import ROW_GROUP, LabelShard, LabelSpace, LabelWriter, Value, store_metadata

RESULTS = Path(__file__).parent / "results"
SHARD = 500
"""Images in a shard: what recipes have unless they say otherwise."""
SIDE, CELLS = 16, 16
SPACES = {
    "kinds": LabelSpace("classification", tuple(f"kind {number}" for number in range(1000))),
    "things": LabelSpace("detection", tuple(f"thing {number}" for number in range(80))),
    "street": LabelSpace("segmentation", tuple(f"stuff {number}" for number in range(20))),
    "depth": LabelSpace("depth"),
    "normals": LabelSpace("normals"),
}
REPEATS = 15
QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
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


def values(task: str, rng: np.random.Generator) -> Value:
    """A label of a task."""
    match task:
        case "classification":
            probs = rng.dirichlet(np.full(1000, 0.01))
            return {"probs": probs.astype(np.float32)}
        case "detection":
            count = int(rng.integers(0, 20))
            corners = np.sort(rng.uniform(0, SIDE, (count, 2, 2)), axis=1).reshape(count, 4)
            return {
                "boxes": corners.astype(np.float32),
                "scores": rng.beta(0.5, 2, count).astype(np.float32),
                "classes": rng.integers(0, 80, count).astype(np.int32),
                "size": np.array([SIDE, SIDE], np.int32),
            }
        case "segmentation":
            classes = np.repeat(rng.integers(0, 20, (4, CELLS)), 4, axis=0).astype(np.uint16)
            return {"classes": classes, "confidence": rng.random((CELLS, CELLS)).astype(np.float32)}
        case "depth":
            return {"depth": rng.uniform(0.5, 20, (CELLS, CELLS)).astype(np.float32)}
    vectors = rng.normal(size=(CELLS, CELLS, 3)) + np.array([0, 0, 2])
    return {"normals": (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)}


def pictures(count: int) -> Iterator[bytes]:
    """So many PNG files, no two alike: one, and its number behind the end of the picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(buffer, "PNG")
    return (buffer.getvalue() + b"%012d" % number for number in range(count))


def build(folder: Path, images: int) -> Root:
    """A root with a set of so many images, five teachers' artifacts, and their labels."""
    root = Root.of(folder / "root")
    workspace, runtime = Workspace(root), Runtime(root)
    files = pictures(images)

    def ingest(config: Any, inputs: Inputs, out: Path) -> dict[str, Any]:
        shards = -(-images // SHARD)
        for shard in range(shards):
            writer = ShardWriter(out / "images/train", f"shard-{shard:06d}")
            for number in range(shard * SHARD, min(images, (shard + 1) * SHARD)):
                writer.add(NewImage(next(files), "png", SIDE, SIDE, f"pool/{shard:05d}/IMG_{number:08d}.png"))
            writer.close()
        write_json(out / "set.json", {"splits": {"train": shards}, "counts": {"images": images}, "spaces": {}})
        return {"images": images}

    pool = pretend("data.pool", {"name": "pool"}, ingest)
    made = workspace.make(pool, Inputs({}, runtime))
    for name, space in SPACES.items():
        step = pretend(f"teacher.{name}", {"name": name}, leave_name)
        teacher = workspace.make(step, Inputs({}, runtime))
        label_all(root, made, f"{name}-{teacher.digest[:12]}", space)
    return root


def leave_name(config: Mapping[str, Any], inputs: Inputs, out: Path) -> dict[str, Any]:
    """What a teacher leaves that is never asked anything."""
    write_json(out / "teacher.json", dict(config))
    return {}


def label_all(root: Root, made: Artifact, store: str, space: LabelSpace) -> None:
    """The labels of a teacher: those of a first shard, repeated under other keys with other confidences."""
    rng, label = np.random.default_rng(0), tasks.label(space)
    folder = root.local_path(f"labels/{store}")
    with tempfile.TemporaryDirectory() as scratch:
        writer = LabelWriter(Path(scratch) / "first.parquet", label, store_metadata(label, "benchmark", "0"))
        for _ in range(SHARD):
            writer.add("0" * 16, label.encode(values(space.task, rng)))
        writer.close()
        first = LabelShard(local_file(writer.path), label).table
    folder.mkdir(parents=True)
    for images in IngestedSet(made).images("train").shards:
        keys = images.columns("key").column("key")
        confidence = pa.array(rng.random(len(keys), dtype=np.float32))
        table = first.slice(0, len(keys)).set_column(0, first.schema.field("key"), keys)
        table = table.set_column(3, first.schema.field("confidence"), confidence)
        pq.write_table(table, folder / f"{images.address}.parquet", compression="zstd", row_group_size=ROW_GROUP)


class Page:
    """A server over a root, started as a user starts it."""

    def __init__(self, root: Root, port: int) -> None:
        self.port, self.connections = port, threading.local()
        self.began = time.perf_counter()
        command = [sys.executable, "-m", "cli", "browse", str(root), "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def ask(self, path: str, parameters: Mapping[str, Any]) -> bytes:
        """The answer to a question, over a connection of the asking thread that stays open, as a browser's do."""
        if not hasattr(self.connections, "mine"):
            self.connections.mine = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        self.connections.mine.request("GET", f"{path}?{urllib.parse.urlencode(parameters, doseq=True)}")
        answer = self.connections.mine.getresponse()
        content: bytes = answer.read()
        assert answer.status == HTTPStatus.OK, content
        return content

    def wait(self, whole: bool) -> float:
        """Seconds from the start until the first images are there, or all files are read."""
        while True:
            try:
                about = json.loads(self.ask("/api/about", {}))
                if about["images"] and (not whole or about["loaded"] == about["found"]):
                    return time.perf_counter() - self.began
            except OSError:
                self.connections = threading.local()
                assert self.process.poll() is None, "the server ended"
            time.sleep(0.1)

    def seconds(self, path: str, parameters: Mapping[str, Any]) -> float:
        """The median over REPEATS answers."""
        taken = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            self.ask(path, parameters)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def memory(self) -> int:
        """The most that the server has had in memory, in MB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text("utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1000

    def five_tasks(self) -> float:
        """Seconds for an image with five labels, what is said of it and six pictures: the median over some images."""
        found = json.loads(self.ask("/api/images", {"limit": REPEATS, "offset": 60, "order": "-kinds.confidence"}))
        taken = []
        for image in found["images"]:
            began = time.perf_counter()
            self.ask(f"/api/image/{image['key']}", {})
            for store in ("", *SPACES):
                self.ask(f"/api/picture/{image['key']}", {"side": 256, **({"store": store} if store else {})})
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def grid(self) -> float:
        """Seconds for a page of the grid with its sixty pictures, eight at a time, as a browser asks for them."""
        began = time.perf_counter()
        found = json.loads(self.ask("/api/images", {"limit": 60}))
        with ThreadPoolExecutor(8) as pool:
            asked = [{"side": 256, "store": "things", "threshold": 0.5}] * len(found["images"])
            list(pool.map(self.ask, [f"/api/picture/{image['key']}" for image in found["images"]], asked))
        return time.perf_counter() - began

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


def main(
    images: Annotated[int, typer.Option(help="Images in the store.")] = 1_000_000,
    port: Annotated[int, typer.Option(help="Of the server that is measured.")] = 8890,
) -> None:
    measured = circumstances("cpu")
    with tempfile.TemporaryDirectory() as name:
        page = Page(build(Path(name), images), port)
        try:
            times = {"until the first images are there": page.wait(whole=False)}
            times["until all files are read"] = page.wait(whole=True)
            times |= {question: page.seconds(path, asked) for question, (path, asked) in QUESTIONS.items()}
            times["one image with five tasks"] = page.five_tasks()
            times["first page of the grid, list and 60 pictures"] = page.grid()
            memory = page.memory()
        finally:
            page.end()
    table = [
        ("what", "measured"),
        ("images", f"{images:,}"),
        ("label shards", f"{-(-images // SHARD) * len(SPACES):,}"),
    ]
    table += [(what, f"{seconds * 1000:,.0f} ms") for what, seconds in times.items()]
    table.append(("memory of the server, at most", f"{memory} MB"))
    for line in table:
        print(f"{line[0]:<40} {line[1]}")
    result = {"measured": measured, "images": images, "seconds": times, "memory_mb": memory}
    save_result(RESULTS / f"browse_large-{images}-cpu.json", "The page over a large store", result, table)


if __name__ == "__main__":
    typer.run(main)
