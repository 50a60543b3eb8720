"""How fast a SimCLR stage trains: against the same steps on views in memory, and against the `lightly` package's loop.

    python benchmarks/stage_speed.py

The stage is `run_stage`, as a run calls it: photographs decoded from an image store, all changes of the views, the
training loop. "In memory" is the same function, but that the views are there already; colours are a part of the step.
Lightly's loop is that of its documentation's example for SimCLR: a folder of images, its transform, torch's DataLoader,
its head and loss, SGD. Backbone, size of views, batch, images and steps are the same for all; its loader has as many
workers, and torch's threads wait, as is fastest for it. "In the stage's format" is that loop under the number format
and memory layout that the stage has chosen for this machine. Every figure is of a process of its own, the kinds take
turns. MUST_DATA names the folder of data, whose `pool` is used.
"""

# ruff: noqa: E402 - a stage's process is set up before torch is loaded, a process of lightly's loop is not
from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Generator, Sequence

from flows.run.process_setup import set_up_process

WHOLE, MEMORY, THEIRS, THEIRS_ALIKE = "stage", "in memory", "lightly", "lightly in the stage's format"
PART = json.loads(sys.argv[sys.argv.index("--part") + 1]) if "--part" in sys.argv else {}
if PART.get("kind") in (WHOLE, MEMORY):
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

from benchmarks.measure import circumstances, in_process_of_its_own, medians, save_result
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
from selfsup.stages import step as stage_step
from selfsup.stages.stream import ViewBatch, ViewStream

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("MUST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
WARM, SEARCHED, FILLED = 6, 8, 10
"""Steps before a window, steps that the number of workers is chosen by, steps after which memory is at its peak."""
READY = 4
"""Steps in memory."""
DIM, LR = 128, 0.06
"""Lightly's example's: of the embedding, and of SGD."""
MB = 2**20
TOLD = {"once_mb": "", "each_mb": " with shared pages counted in each process", "device_mb": " on the device"}
HEAD = ("", "images/s", "the stage's rate to it", "ms of a core for an image", "peak of memory, MB")
RECIPE = """
name: speed
data: {{photos: {{kind: folder, path: "{path}"}}}}
teachers: {{gabor: {{kind: analytic}}}}
pool: [photos]
student: {{weighting: equal}}
"""


class Part(NamedTuple):
    """One measurement: of which kind, of what, and for how many steps after the first; `weigh`: memory, not time.

    Of lightly's loop, `workers` of its loader, and whether threads of torch that wait for each other sleep, as a
    stage's do, or spin, as is torch's default.
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


class Window:
    """The wall clock and the processors' time between the ends of two steps: the `WARM`th, and the last one."""

    def __init__(self, steps: int) -> None:
        self.steps, self.ended = steps, 0
        self.found: list[tuple[float, float]] = []

    def tick(self, *_: Any) -> None:
        """A step has ended."""
        self.ended += 1
        if self.ended in (WARM, WARM + self.steps):
            self.found.append((time.perf_counter(), _busy()))

    def rates(self, batch: int) -> dict[str, float]:
        """Images per second, and milliseconds that one core would need for an image."""
        wall, busy = (after - before for before, after in zip(*self.found, strict=True))
        return {"rate": self.steps * batch / wall, "core_ms": 1000 * busy / (self.steps * batch)}


def _busy() -> float:
    """Seconds that this process and those it started have computed."""
    own = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in (own, *own.children(recursive=True)))


class Ready(NamedTuple):
    """A share of a step that is collated already."""

    batch: ViewBatch

    @property
    def keys(self) -> list[str]:
        return self.batch.keys

    def split(self, pieces: int) -> list[ViewBatch]:
        assert pieces == 1, "memory ran out: what is measured here does not fit"
        return [self.batch]


class Memory:
    """Steps that are there already, over and over."""

    def __init__(self, ready: Sequence[ViewBatch]) -> None:
        self.ready, self.waited = ready, 0.0

    def batches(self, start: int) -> Generator[Ready]:
        for step in itertools.count(start):
            yield Ready(dataclasses.replace(self.ready[step % len(self.ready)], step=step))


class InMemory(ViewStream):
    """The views of a stage, decoded and on the device before it begins."""

    def prefetched(self, threads: int) -> Any:
        shares = itertools.islice(super().prefetched(threads).batches(0), READY)
        return Memory([move_to_device(share.split(1)[0], PART["device"]) for share in shares])


def train_stage(part: Part, window: Window) -> None:
    """A stage, as a run trains it."""
    root = Root.of("root")
    runtime = Runtime(root, cast(Device, part.device), progress=window.tick)
    inputs = Inputs(ingested(root, part.photos), runtime)
    settings = {
        "name": "speed",
        "method": "simclr",
        "data": ["photos"],
        "start": "scratch",
        "backbone": part.backbone,
        "image_size": part.size,
        "batch": part.batch,
        "steps": WARM + part.steps,
        "dim": DIM,
        "optimizer": "sgd",
        "lr": LR,
    }
    stream = InMemory if part.kind == MEMORY else ViewStream
    with tempfile.TemporaryDirectory() as out, patch.object(stage_step, "ViewStream", stream):
        left = stage_step.run_stage(
            {"name": "stage.speed", "stage": settings, "seed": 0, "start": None}, inputs, Path(out)
        )
    Path("choice.json").write_text(json.dumps(left["choice"]), encoding="utf-8")


def ingested(root: Root, photos: str) -> dict[str, Any]:
    """The image store, and which of its images a stage sees, made once."""
    [ingest, *_] = build_steps(parse_recipe(RECIPE.format(path=photos), "speed"))
    workspace, runtime = Workspace(root), Runtime(root)
    sets = {"data.photos": workspace.get_or_make(ingest, Inputs({}, runtime))[0]}
    pool = Step("pool.speed", STAGE_POOL, ("stages", "speed"), {"pool": ["photos"]}, tuple(sets))
    return {**sets, pool.name: workspace.get_or_make(pool, Inputs(sets, runtime))[0]}


class SimCLR(nn.Module):
    """The model of lightly's example, on a timm backbone."""

    def __init__(self, backbone: str) -> None:
        from lightly.models.modules import SimCLRProjectionHead  # noqa: PLC0415 - a stage's process has none of it

        super().__init__()
        self.backbone = timm.create_model(backbone, num_classes=0)
        width = self.backbone.num_features
        self.projection_head = SimCLRProjectionHead(width, width, DIM)

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.projection_head(self.backbone(images))
        return embeddings


def train_lightly(part: Part, window: Window) -> None:
    """The loop of lightly's example."""
    from lightly.data import LightlyDataset  # noqa: PLC0415 - as above
    from lightly.loss import NTXentLoss  # noqa: PLC0415
    from lightly.transforms import SimCLRTransform  # noqa: PLC0415

    choice = ComputeConfig(part.device, "32", False, {})
    if part.kind == THEIRS_ALIKE:
        choice = ComputeConfig(**json.loads(Path("choice.json").read_text("utf-8")))
    dataset = LightlyDataset(part.photos, transform=SimCLRTransform(input_size=part.size))
    steps = WARM + part.steps
    sampler = RandomSampler(dataset, num_samples=steps * part.batch)  # one long epoch: its workers start once
    loader = DataLoader(dataset, part.batch, sampler=sampler, drop_last=True, num_workers=part.workers)
    model, criterion = choice.place(SimCLR(part.backbone)), NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    total = 0.0
    for views, *_ in loader:
        with choice.autocast():
            first, second = (model(view.to(part.device, memory_format=choice.memory_format)) for view in views)
            loss = criterion(first, second)
        total += loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if part.device == "cuda":
            torch.cuda.synchronize()  # the stage's loop reads its loss in every step
        window.tick()


class Peak(threading.Thread):
    """The most memory that this process and those it started hold at once, MB, looked at ten times a second.

    `once`: what is resident in this one, and of the others what they have for themselves, so that pages shared with a
    child count once. `each`: what is resident in all of them, as often as it is.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.once, self.each, self.done = 0.0, 0.0, threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while not self.done.wait(0.1):
            mine, others = own.memory_info().rss / MB, [_held(child) for child in own.children(recursive=True)]
            self.once = max(self.once, mine + sum(private for private, _ in others))
            self.each = max(self.each, mine + sum(resident for _, resident in others))


def _held(process: psutil.Process) -> tuple[float, float]:
    """MB that no other process has, and all that is resident."""
    with contextlib.suppress(psutil.Error):  # it has ended meanwhile
        held = process.memory_full_info()
        return held.uss / MB, held.rss / MB
    return 0.0, 0.0


def measure(part: Part) -> dict[str, float]:
    """What a window came to, or the peaks of memory."""
    train = train_stage if part.kind in (WHOLE, MEMORY) else train_lightly
    window = Window(part.steps)
    if not part.weigh:
        train(part, window)
        return window.rates(part.batch)
    peak = Peak()
    peak.start()
    train(part, window)
    peak.done.set()
    peak.join()
    found: dict[str, float] = {"once_mb": round(peak.once), "each_mb": round(peak.each)}
    return found | ({"device_mb": round(torch.cuda.max_memory_reserved() / MB)} if part.device == "cuda" else {})


def in_turn(part: Part, rounds: int, folder: Path) -> dict[str, Any]:
    """Everything, of all kinds."""
    _call(part._replace(kind=WHOLE, steps=1), folder)  # makes the image store, and chooses a format
    tried = [(_call(way._replace(steps=SEARCHED), folder)["rate"], way) for way in _ways(part)]
    best = max(tried)[1]
    parts = [part._replace(kind=WHOLE), part._replace(kind=MEMORY), best, best._replace(kind=THEIRS_ALIKE)]
    taken: dict[str, dict[str, list[float]]] = {each.kind: {"rate": [], "core_ms": []} for each in parts}
    for number in range(rounds):
        for each in parts:
            for name, value in _call(each, folder).items():
                taken[each.kind][name].append(value)
        print(number, {kind: round(found["rate"][-1], 1) for kind, found in taken.items()}, flush=True)
    memory = {each.kind: _call(each._replace(steps=FILLED, weigh=True), folder) for each in (parts[0], best)}
    choice = json.loads((folder / "choice.json").read_text("utf-8"))
    search = [{"workers": way.workers, "asleep": way.asleep, "rate": rate} for rate, way in tried]
    return {"about": best._asdict(), "choice": choice, "search": search, "taken": taken, "memory": memory}


def _call(part: Part, folder: Path) -> dict[str, Any]:
    return in_process_of_its_own(__file__, json.dumps(part._asdict()), folder)


def _ways(part: Part) -> list[Part]:
    """Lightly's loop with no worker up to one for every core, threads that wait awake or asleep."""
    counts = [0, *(2**power for power in range(usable_cores().bit_length()))]
    ways = itertools.product(counts, (False, True))
    return [part._replace(kind=THEIRS, workers=workers, asleep=asleep) for workers, asleep in ways]


def table_of(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """What came out: medians, and of the ratios in each round the median and the range."""
    own, workers = found["taken"][WHOLE], found["about"]["workers"]
    table: list[tuple[str, ...]] = [HEAD]
    for kind, taken in found["taken"].items():
        middle, rounds = medians(taken), [a / b for a, b in zip(own["rate"], taken["rate"], strict=True)]
        ratio = f"{statistics.median(rounds):.2f} ({min(rounds):.2f} to {max(rounds):.2f})"
        held = ", ".join(f"{value:,}{TOLD[name]}" for name, value in found["memory"].get(kind, {}).items())
        name = f"{kind}, {workers} workers" if kind == THEIRS else kind
        table.append((name, f"{middle['rate']:.1f}", "" if kind == WHOLE else ratio, f"{middle['core_ms']:.1f}", held))
    return table


def main(
    backbone: str = "resnet18",
    size: Annotated[int, typer.Option(help="Side of a view, pixels.")] = 128,
    batch: int = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    steps: Annotated[int, typer.Option(help="Timed steps in a round.")] = 20,
    rounds: int = 3,
    part: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure, print, and leave `stage_speed-<device>` among the results."""
    if part:
        print(json.dumps(measure(Part(**json.loads(part)))))
        return
    device = find_device(device)
    measured = circumstances(device)
    with tempfile.TemporaryDirectory() as folder:
        whole = Part("", str((DATA / "pool").resolve()), backbone, size, batch, device, steps)
        found = in_turn(whole, rounds, Path(folder))
    table = table_of(found)
    for line in table:
        print("".join(f"{cell:<32}" for cell in line))
    title = f"How fast a SimCLR stage trains: {backbone}, views of {size} pixels, {batch} images in a step"
    save_result(RESULTS / f"stage_speed-{device}.json", title, {"measured": measured, **found}, table)


if __name__ == "__main__":
    typer.run(main)
