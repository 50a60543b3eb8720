"""Measure labelling: the cost of each stage, the rate that the machine allows by that, and the labeller's rate.

    python -m benchmarks.label_speed RECIPE --root ROOT

A run of the recipe must have made the labels' inputs in ROOT. The teachers label images spread over the pool. With a
GPU, decoding on all cores, the models on batches in its memory, and copies to it are each timed alone as well.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import describe_environment, medians, print_table, save_result, synchronize, take_turns
from cli.options import OverrideOptions, RecipeArgument, RootOption
from flows.plan.run_plan import find_inputs
from flows.run.process_setup import set_up_process
from ingest.pool import pool_shards
from pipeline.data.prefetch import prefetch
from pipeline.recipe.reader import read_recipe
from pipeline.steps.artifact import Inputs
from pipeline.steps.runtime import Runtime
from pipeline.storage import DEFAULT_ROOT
from pipeline.storage.root import Root
from pipeline.stores.images import ImageShard
from pipeline.training.autotune import ComputeConfig
from pipeline.training.device import find_device, single_threaded
from tasks.prediction import Predictor
from teachers.labelling.label_folder import LabelFolder
from teachers.labelling.labeller import LabelMaker, ShardJob, label_makers, label_shards, write_labels

WINDOWS = 3
BATCHES_PER_CORE = 8
"""In a window of the labeller by default: enough that idle cores during the last batches hardly count."""
STAGE_BATCHES, PLAIN_IMAGES = 4, 24
"""In a window of the stages alone, and of the plain loops."""
PLAIN = {"plain": "a plain loop", "plain, same formats": "a plain loop in the labeller's formats"}
"""The simplest code: one image after the other, one stage after the other."""


def measure_labelling(inputs: Inputs, batch: int, images: int = 0, alone: bool = False) -> dict[str, Any]:
    """Measure the recipe's teachers on images spread over its pool.

    `inputs` are those of the step `label`; `images` is the number in a window of the labeller, 0 for a default; `alone`
    times what a GPU and the cores do at once, one by one, as is always done with a GPU. Only the automatic choices of
    precision and memory layout stay on disk.
    """
    runtime = inputs.runtime
    device = find_device(runtime.device)
    environment = describe_environment(device)
    scratch = runtime.root.local_path()
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".bench-") as folder:
        scratch_root = Root.of(folder)
        teachers = label_makers(inputs)
        for teacher in teachers:
            teacher.folders = {head: LabelFolder(scratch_root, head) for head in teacher.folders}
        shards = [(name, shard) for name, shard, _ in pool_shards(inputs["pool"], inputs.of_kind("data"))]
        bench = _LabelBenchmark(teachers, shards, batch, runtime, device)
        images = images or BATCHES_PER_CORE * batch * runtime.threads
        apart = bench.measures_alone(images) if alone or device != "cpu" else {}
        windows = take_turns({**bench.measures(images), **apart}, WINDOWS)
        stages = medians({name: [costs[name] for costs in bench.stage_costs[1:]] for name in bench.stage_costs[0]})
        choices = {teacher.name: teacher.predictor.compute.describe() for teacher in teachers}
    rates = medians({name: windows[name] for name in ("labeller", *PLAIN)})
    limit = rate_limit(stages, runtime.threads, device)
    alone_rates = medians({name: windows[name] for name in apart})
    return {
        "measured": environment,
        "batch": batch,
        "threads": runtime.threads,
        "stage_ms_per_image": {name: round(cost, 4) for name, cost in stages.items()},
        "images_per_s": {"limit": limit, **rates},
        "windows": windows,
        "fraction": rates["labeller"] / limit,
        "speedup": {name: rates["labeller"] / rates[name] for name in PLAIN},
        "choices": choices,
        **({"alone": alone_rates, "share": rates["labeller"] / min(alone_rates.values())} if apart else {}),
    }


def rate_limit(stages: dict[str, float], cores: int, device: str) -> float:
    """Return the highest possible images/s, from ms/image: all cores busy, or the slower of GPU and cores."""
    models = sum(cost for name, cost in stages.items() if name.startswith("infer"))
    rest = sum(stages.values()) - models
    return 1000 / ((models + rest) / cores if device == "cpu" else max(models, rest / cores))


@dataclasses.dataclass
class _LabelBenchmark:
    """Times the stages alone, the labeller, and the plain loops."""

    teachers: list[LabelMaker]
    shards: list[tuple[str, ImageShard]]
    """Each with the name of its set."""
    batch: int
    runtime: Runtime
    device: str
    stage_costs: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """For each window, the milliseconds per image of each stage."""

    def measures(self, images: int) -> dict[str, Callable[[], float]]:
        jobs = self._sample(images, self.batch)
        few = self._sample(STAGE_BATCHES * self.batch, self.batch)
        single = self._sample(PLAIN_IMAGES, 1)
        return {
            "stages": lambda: self._time_stages(few),
            "labeller": lambda: _rate(jobs, lambda: label_shards(jobs, self.batch, self.runtime)),
            "plain": lambda: _rate(single, lambda: self._plain_loop(single)),
            "plain, same formats": lambda: _rate(single, lambda: _label_one_by_one(single)),
        }

    def measures_alone(self, images: int) -> dict[str, Callable[[], float]]:
        """Return by name how to measure the images/s of each thing that can go on while the others do."""
        jobs = self._sample(images, self.batch)
        inference = jobs[0].inference()
        loaded = inference.load(inference.batches(self.batch)[0])
        repeats = max(1, images // len(loaded.rows))
        sources = dict(loaded.inputs)  # on the host: inference leaves its inputs on the device

        def infer() -> None:
            for teacher in inference.predictors:
                inference.infer(loaded, teacher)

        def copy() -> None:
            for source in sources.values():
                source.to(self.device, non_blocking=True)

        return {
            "decode on all cores": lambda: _rate(jobs, lambda: self._decode(jobs)),
            "models alone": lambda: self._repeat(infer, repeats) * len(loaded.rows),
            "copy to the device": lambda: self._repeat(copy, repeats) * len(loaded.rows),
        }

    def _decode(self, jobs: Sequence[ShardJob]) -> None:
        work = [
            (inference, rows)
            for job in jobs
            for inference in [job.inference()]
            for rows in inference.batches(self.batch)
        ]
        threads = self.runtime.threads
        with contextlib.closing(prefetch(lambda item: item[0].load(item[1]), work, threads, threads + 1)) as decoded:
            collections.deque(decoded, maxlen=0)

    def _repeat(self, work: Callable[[], None], times: int) -> float:
        """Return how often a second the device does the work, which does not wait for it."""
        synchronize(self.device)
        began = time.perf_counter()
        for _ in range(times):
            work()
        synchronize(self.device)
        return times / (time.perf_counter() - began)

    def _sample(self, images: int, batch: int) -> list[ShardJob]:
        """Return jobs for about `images` images, in whole batches if possible, from shards all over the pool."""
        batches = -(-images // batch)
        count = min(batches, len(self.shards))
        chosen = [self.shards[number * len(self.shards) // count] for number in range(count)]
        most = batch * -(-batches // count)
        return [ShardJob(name, first_images(shard, most), self.teachers) for name, shard in chosen]

    def _time_stages(self, jobs: Sequence[ShardJob]) -> float:
        """Add each stage's cost to `stage_costs`, and return the seconds per image of all stages together."""
        watch = _Stopwatch()
        with single_threaded():
            for job in jobs:
                self._run_stages(job, watch)
        count = sum(len(job.shard) for job in jobs)
        in_order = sorted(watch.seconds, key=lambda stage: stage == "write")  # timed first and last
        self.stage_costs.append({stage: watch.seconds[stage] / count * 1000 for stage in in_order})
        return sum(watch.seconds.values()) / count

    def _plain_loop(self, jobs: Sequence[ShardJob]) -> None:
        """Label one image at a time, the models in torch's defaults: float32, contiguous memory."""
        predictors = [teacher.predictor for teacher in self.teachers]
        chosen = [predictor.compute for predictor in predictors]
        for predictor in predictors:
            _place(predictor, dataclasses.replace(predictor.compute, precision="32", channels_last=False))
        _label_one_by_one(jobs)
        for predictor, compute in zip(predictors, chosen, strict=True):
            _place(predictor, compute)

    def _run_stages(self, job: ShardJob, watch: _Stopwatch) -> None:
        """Run one stage after the other on every batch of a shard. GPU work is timed by wall clock, not core time."""
        stages = job.inference()
        clock = time.thread_time if self.device == "cpu" else time.perf_counter
        with contextlib.ExitStack() as opened:
            with watch("write"):
                writers = opened.enter_context(job.open_writers())
            for rows in stages.batches(self.batch):
                batch = stages.new_batch(rows)
                with watch("read"):
                    data = stages.read(rows)
                with watch("decode"):
                    stages.decode(batch, data)
                for teacher in stages.predictors:
                    with watch(f"infer {teacher}", clock):
                        stages.infer(batch, teacher)
                        synchronize(self.device)
                    with watch(f"encode {teacher}"):
                        stages.encode(batch, teacher)
                with watch("write"):
                    write_labels(batch, writers)
            with watch("write"):
                opened.close()


class _Stopwatch:
    """Adds up seconds by stage."""

    def __init__(self) -> None:
        self.seconds: collections.defaultdict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, stage: str, clock: Callable[[], float] = time.thread_time) -> Iterator[None]:
        began = clock()
        yield
        self.seconds[stage] += clock() - began


def first_images(shard: ImageShard, count: int) -> ImageShard:
    """Return the first `count` images of a shard, as a shard."""
    short = copy.copy(shard)
    short.keys = shard.keys[:count]
    return short


def _rate(jobs: Sequence[ShardJob], work: Callable[[], None]) -> float:
    """Return the images per second of `work`, which labels the jobs' images."""
    began = time.perf_counter()
    work()
    return sum(len(job.shard) for job in jobs) / (time.perf_counter() - began)


def _place(predictor: Predictor, compute: ComputeConfig) -> None:
    predictor.compute = compute
    compute.place(predictor.network)


def _label_one_by_one(jobs: Sequence[ShardJob]) -> None:
    """Label one image at a time, one stage after the other, with torch's default number of threads."""
    for job in jobs:
        stages = job.inference()
        with job.open_writers() as writers:
            for rows in stages.batches(1):
                write_labels(stages.label(rows), writers)


def table(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the result as rows of two cells, the heading first."""
    stages, rates = result["stage_ms_per_image"], result["images_per_s"]
    return [
        ("what", "measured"),
        *((f"{stage}, alone", f"{cost:.3f} ms/image") for stage, cost in stages.items()),
        (
            f"the limit of {result['threads']} cores and {result['measured']['device']}",
            f"{rates['limit']:.1f} images/s",
        ),
        ("the labeller", f"{rates['labeller']:.1f} images/s"),
        ("its share of the limit", f"{result['fraction']:.2f}"),
        *((name, f"{rate:.1f} images/s") for name, rate in result.get("alone", {}).items()),
        *([("the labeller's share of the slowest of these", f"{result['share']:.2f}")] if "share" in result else []),
        *(
            (name, f"{rates[key]:.1f} images/s, the labeller {result['speedup'][key]:.2f} x")
            for key, name in PLAIN.items()
        ),
    ]


def main(
    recipe: RecipeArgument,
    root: RootOption = DEFAULT_ROOT,
    override: OverrideOptions = None,
    images: Annotated[
        int, typer.Option("--images", min=0, help="Images in a timed window; 0: 8 batches per core.")
    ] = 0,
    to: Annotated[
        Path | None, typer.Option("--json", help="JSON file to write, with a Markdown page beside it.")
    ] = None,
) -> None:
    """Measure and print; with --json, write the result."""
    set_up_process()
    parsed = read_recipe(recipe, override or ())
    step, inputs = find_inputs(parsed, Root.of(root, parsed.runtime.cache_gb), "label")
    result = measure_labelling(inputs, step.config["batch"], images)
    if to:
        save_result(to, f"Labelling the pool of {parsed.name}", result, table(result))
    else:
        print_table(table(result))


if __name__ == "__main__":
    typer.run(main)
