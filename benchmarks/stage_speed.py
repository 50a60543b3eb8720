"""Measure how fast a stage trains, against the same steps on views in memory, and of SimCLR against `lightly`'s loop.

    python -m benchmarks.stage_speed
    python -m benchmarks.stage_speed --method dino

The stage is `run_stage`, as a run calls it: photographs decoded from an image store, all augmentations, the training
loop. "In memory" is the same function with the views made before; color jitter is a part of the step. Lightly's loop is
the SimCLR example in its documentation: a folder of images, its transform, torch's DataLoader, its head and loss, SGD.
Backbone, view size, batch, images and steps are the same for all. Lightly's loop has the number of loader workers and
the wait policy of torch's threads that are fastest for it. "In the stage's format" is that loop in the number format
and memory layout that the stage chose for this machine. With a GPU, or `--alone`, decoding on all cores and copies to
the device are timed alone too, and a plain loop of torch's DataLoader with the stage's own objective. Each figure comes
from a process of its own, the kinds take turns. MUST_DATA names the folder of data, whose `pool` is used.
"""

# ruff: noqa: E402 - a stage's process is set up before torch is loaded, that of lightly's loop is not
from __future__ import annotations

import contextlib
import json
import os
import sys

from flows.run.process_setup import set_up_process

STAGE, MEMORY, LIGHTLY, LIGHTLY_FORMAT = "stage", "in memory", "lightly", "lightly in the stage's format"
DECODE, COPY, PLAIN = "decode on all cores", "copy to the device", "plain loop"
OF_STAGE = (STAGE, MEMORY, DECODE, COPY, PLAIN)
"""Kinds that call `run_stage`."""
PART = json.loads(sys.argv[sys.argv.index("--part") + 1]) if "--part" in sys.argv else {}
if PART.get("kind") in OF_STAGE:
    set_up_process()
elif PART.get("asleep"):
    os.environ["OMP_WAIT_POLICY"] = "passive"

import dataclasses
import itertools
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast
from unittest.mock import patch

import psutil
import timm
import torch
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from benchmarks import stage_loops
from benchmarks.measure import RESULTS, MemoryStream, describe_environment, medians, run_part, save_result, synchronize
from flows.plan.stage_steps import STAGE_POOL
from flows.plan.steps import build_steps
from pipeline.recipe.reader import parse_recipe
from pipeline.recipe.runtime import Device
from pipeline.steps.artifact import Inputs, Step
from pipeline.steps.runtime import Runtime, usable_cores
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from pipeline.training.autotune import ComputeConfig
from pipeline.training.device import find_device, move_to_device
from selfsup.components.method import Views
from selfsup.stages import step as stage_step
from selfsup.stages import training as stage_training
from selfsup.stages.stream import ViewStream

DATA = Path(os.environ.get("MUST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
WARM_STEPS, SEARCH_STEPS, MEMORY_STEPS = 6, 8, 10
"""Steps before a timed window, to choose the number of workers, and until memory is at its peak."""
STEPS_IN_MEMORY = 4
DIM, LR = 128, 0.06
"""Embedding dimension and learning rate of SGD, as in lightly's example."""
MB = 2**20
MEMORY_NOTES = {"once_mb": "", "each_mb": " with shared pages counted in each process", "device_mb": " on the device"}
HEAD = ("", "images/s", "the stage's rate to it", "ms of a core for an image", "peak of memory, MB")
RECIPE = """
name: speed
data: {{photos: {{kind: folder, path: "{path}"}}}}
teachers: {{gabor: {{kind: analytic}}}}
pool: [photos]
student: {{weighting: equal}}
"""


class Part(NamedTuple):
    """One measurement, of time or, with `weigh`, of memory.

    For lightly's loop, also the loader's workers and whether waiting threads of torch sleep (`asleep`, as in a
    stage) or spin (torch's default).
    """

    kind: str
    photos: str
    backbone: str
    size: int
    batch: int
    device: str
    steps: int
    workers: int = 0
    asleep: bool = False
    weigh: bool = False
    method: str = "simclr"


class Window:
    """Wall time and processor time from the end of the last warm-up step to the end of the last step."""

    def __init__(self, steps: int, device: str) -> None:
        self.steps, self.device, self.done = steps, device, 0
        self.times: list[tuple[float, float]] = []

    def tick(self, *_: Any) -> None:
        """Count the end of a step."""
        self.done += 1
        if self.done in (WARM_STEPS, WARM_STEPS + self.steps):
            synchronize(self.device)
            self.times.append((time.perf_counter(), _processor_seconds()))

    def rates(self, batch: int) -> dict[str, float]:
        """Return images per second, and core milliseconds per image."""
        wall, busy = (after - before for before, after in zip(*self.times, strict=True))
        return {"rate": self.steps * batch / wall, "core_ms": 1000 * busy / (self.steps * batch)}


def _processor_seconds() -> float:
    """Return the processor time of this process and its children."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))


class CollatedViews(NamedTuple):
    """A process's share of a step, collated before it is asked for."""

    batch: Views

    @property
    def keys(self) -> list[str]:
        return self.batch.keys

    def split(self, pieces: int) -> list[Views]:
        assert pieces == 1, "memory ran out: what is measured here does not fit"
        return [self.batch]


class InMemoryViewStream(ViewStream):
    """A stage's views, decoded and moved to the device before it begins."""

    def prefetched(self, threads: int) -> Any:
        shares = itertools.islice(super().prefetched(threads).batches(0), STEPS_IN_MEMORY)
        views = [move_to_device(share.split(1)[0], PART["device"]) for share in shares]
        return MemoryStream(lambda step: CollatedViews(dataclasses.replace(views[step % len(views)], step=step)))


STREAMS = {MEMORY: InMemoryViewStream, PLAIN: stage_loops.WorkerViewStream}
"""By kind, what gives a stage its views, if not its own stream."""
LOOPS: dict[str, stage_loops.Steps] = {
    DECODE: stage_loops.decode,
    COPY: stage_loops.copy,
    PLAIN: stage_loops.train_plainly,
}
"""By kind, the steps of a stage, if not those of the training loop."""


def train_stage(part: Part, window: Window) -> None:
    """Train a stage as a run does, or in a part of it."""
    root = Root.of("root")
    runtime = Runtime(root, cast(Device, part.device), progress=window.tick)
    inputs = Inputs(stage_inputs(root, part.photos), runtime)
    settings = {
        "name": "speed",
        "method": part.method,
        "data": ["photos"],
        "start": "scratch",
        "backbone": part.backbone,
        "image_size": part.size,
        "batch": part.batch,
        "steps": WARM_STEPS + part.steps,
        **({"dim": DIM} if part.method == "simclr" else {}),
        "optimizer": "sgd",
        "lr": LR,
    }
    stream = STREAMS.get(part.kind, ViewStream)
    fit = stage_loops.fit_by(LOOPS[part.kind]) if part.kind in LOOPS else stage_training.fit
    replaced = patch.object(stage_step, "ViewStream", stream), patch.object(stage_training, "fit", fit)
    with tempfile.TemporaryDirectory() as out, replaced[0], replaced[1]:
        config = {"name": "stage.speed", "stage": settings, "seed": 0, "start": None}
        counts = stage_step.run_stage(config, inputs, Path(out))
    Path("choice.json").write_text(json.dumps(counts["choice"]), encoding="utf-8")


def stage_inputs(root: Root, photos: str) -> dict[str, Any]:
    """Return the stage's input artifacts, its image set and pool, made on the first call."""
    [ingest, *_] = build_steps(parse_recipe(RECIPE.format(path=photos), "speed"))
    workspace, runtime = Workspace(root), Runtime(root)
    sets = {"data.photos": workspace.get_or_make(ingest, Inputs({}, runtime))[0]}
    pool = Step("pool.speed", STAGE_POOL, ("stages", "speed"), {"pool": ["photos"]}, tuple(sets))
    return {**sets, pool.name: workspace.get_or_make(pool, Inputs(sets, runtime))[0]}


class LightlySimCLR(nn.Module):
    """The model of lightly's example, with a timm backbone."""

    def __init__(self, backbone: str) -> None:
        from lightly.models.modules import SimCLRProjectionHead  # noqa: PLC0415 - not loaded in a stage's process

        super().__init__()
        self.backbone = timm.create_model(backbone, num_classes=0)
        width = self.backbone.num_features
        self.projection_head = SimCLRProjectionHead(width, width, DIM)

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.projection_head(self.backbone(images))
        return embeddings


def train_lightly(part: Part, window: Window) -> None:
    """Train by the loop of lightly's example."""
    from lightly.data import LightlyDataset  # noqa: PLC0415 - as above
    from lightly.loss import NTXentLoss  # noqa: PLC0415
    from lightly.transforms import SimCLRTransform  # noqa: PLC0415

    compute = ComputeConfig(part.device, "32", False, {})
    if part.kind == LIGHTLY_FORMAT:
        compute = ComputeConfig(**json.loads(Path("choice.json").read_text("utf-8")))
    dataset = LightlyDataset(part.photos, transform=SimCLRTransform(input_size=part.size))
    steps = WARM_STEPS + part.steps
    sampler = RandomSampler(dataset, num_samples=steps * part.batch)  # one long epoch, so that workers start once
    loader = DataLoader(dataset, part.batch, sampler=sampler, drop_last=True, num_workers=part.workers)
    model, criterion = compute.place(LightlySimCLR(part.backbone)), NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    total = 0.0
    for views, *_ in loader:
        with compute.autocast():
            first, second = (model(view.to(part.device, memory_format=compute.memory_format)) for view in views)
            loss = criterion(first, second)
        total += loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        window.tick()


class PeakMemory(threading.Thread):
    """The peak memory of this process and its children in MB, sampled ten times a second.

    `once` counts pages that a child shares with this process once, `each` counts them in every process.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.once, self.each, self.done = 0.0, 0.0, threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while not self.done.wait(0.1):
            parent = own.memory_info().rss / MB
            children = [_memory_of(child) for child in own.children(recursive=True)]
            self.once = max(self.once, parent + sum(private for private, _ in children))
            self.each = max(self.each, parent + sum(resident for _, resident in children))


def _memory_of(process: psutil.Process) -> tuple[float, float]:
    """Return a process's private and resident memory in MB."""
    with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
        memory = process.memory_full_info()
        return memory.uss / MB, memory.rss / MB
    return 0.0, 0.0


def measure(part: Part) -> dict[str, float]:
    """Return the rates in a timed window, or the peaks of memory."""
    train = train_stage if part.kind in OF_STAGE else train_lightly
    window = Window(part.steps, part.device)
    if not part.weigh:
        train(part, window)
        return window.rates(part.batch)
    peak = PeakMemory()
    peak.start()
    train(part, window)
    peak.done.set()
    peak.join()
    peaks: dict[str, float] = {"once_mb": round(peak.once), "each_mb": round(peak.each)}
    return peaks | ({"device_mb": round(torch.cuda.max_memory_reserved() / MB)} if part.device == "cuda" else {})


def measure_kinds(part: Part, rounds: int, folder: Path, alone: bool = False, weigh: bool = True) -> dict[str, Any]:
    """Measure all kinds in turns: their rates in each round, and with `weigh` the memory of the stage and of lightly's.

    `part.workers` of lightly's loop are searched if 0. `alone`, always with a GPU: the parts of the stage, too.
    """
    _run(part._replace(kind=STAGE, steps=1), folder)  # makes the image store, and chooses a format
    kinds = [STAGE, MEMORY, *([DECODE, COPY, PLAIN] if alone or part.device != "cpu" else [])]
    parts, search = [part._replace(kind=kind) for kind in kinds], list[dict[str, Any]]()
    if part.method == "simclr":
        best, search = best_lightly(part, folder)
        parts += [best, best._replace(kind=LIGHTLY_FORMAT)]
    taken: dict[str, dict[str, list[float]]] = {each.kind: {"rate": [], "core_ms": []} for each in parts}
    for number in range(rounds):
        for each in parts:
            for name, value in _run(each, folder).items():
                taken[each.kind][name].append(value)
        print(number, {kind: round(values["rate"][-1], 1) for kind, values in taken.items()}, flush=True)
    weighed = [each for each in parts if weigh and each.kind in (STAGE, LIGHTLY)]
    memory = {each.kind: _run(each._replace(steps=MEMORY_STEPS, weigh=True), folder) for each in weighed}
    choice = json.loads((folder / "choice.json").read_text("utf-8"))
    return {"about": parts[-1]._asdict(), "choice": choice, "search": search, "taken": taken, "memory": memory}


def best_lightly(part: Part, folder: Path) -> tuple[Part, list[dict[str, Any]]]:
    """Return lightly's loop with the workers and wait policy that are fastest for it, and the rates of all."""
    if part.workers:
        return part._replace(kind=LIGHTLY), []
    tried = [(_run(option._replace(steps=SEARCH_STEPS), folder)["rate"], option) for option in _lightly_options(part)]
    search = [{"workers": each.workers, "asleep": each.asleep, "rate": rate} for rate, each in tried]
    return max(tried)[1], search


def _run(part: Part, folder: Path) -> dict[str, Any]:
    return run_part(json.dumps(part._asdict()), folder, "benchmarks.stage_speed")


def _lightly_options(part: Part) -> list[Part]:
    """Return lightly's loop with 0, 1, 2, 4, ... workers, up to one per core, and both wait policies."""
    counts = [0, *(2**power for power in range(usable_cores().bit_length()))]
    options = itertools.product(counts, (False, True))
    return [part._replace(kind=LIGHTLY, workers=workers, asleep=passive) for workers, passive in options]


def table_of(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a table of medians, and of median and range of each round's ratio to the stage."""
    stage, workers = result["taken"][STAGE], result["about"]["workers"]
    table: list[tuple[str, ...]] = [HEAD]
    for kind, taken in result["taken"].items():
        middle, ratios = medians(taken), [a / b for a, b in zip(stage["rate"], taken["rate"], strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if kind != STAGE else ""
        peaks = result["memory"].get(kind, {}).items()
        memory = ", ".join(f"{value:,}{MEMORY_NOTES[name]}" for name, value in peaks)
        name = f"{kind}, {workers} workers" if kind == LIGHTLY else kind
        table.append((name, f"{middle['rate']:.1f}", ratio, f"{middle['core_ms']:.1f}", memory))
    return table


def main(
    backbone: str = "resnet18",
    size: Annotated[int, typer.Option(help="Side of a view, pixels.")] = 128,
    batch: int = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    method: str = "simclr",
    steps: Annotated[int, typer.Option(help="Number of timed steps in a round.")] = 20,
    rounds: int = 3,
    workers: Annotated[int, typer.Option(help="Of lightly's loop; 0: the best number of them is searched.")] = 0,
    alone: Annotated[bool, typer.Option("--alone", help="As with a GPU.")] = False,
    part: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure, print, and write `stage_speed-DEVICE` to the results."""
    if part:
        print(json.dumps(measure(Part(**json.loads(part)))))
        return
    device = find_device(device)
    environment = describe_environment(device)
    with tempfile.TemporaryDirectory() as folder:
        photos = str((DATA / "pool").resolve())
        common = Part("", photos, backbone, size, batch, device, steps, workers, method=method)
        result = measure_kinds(common, rounds, Path(folder), alone)
    title = f"How fast a stage of {method} trains: {backbone}, views of {size} pixels, {batch} images in a step"
    name = f"stage_speed{'' if method == 'simclr' else f'-{method}'}-{device}.json"
    save_result(RESULTS / name, title, {"measured": environment, **result}, table_of(result))


if __name__ == "__main__":
    typer.run(main)
