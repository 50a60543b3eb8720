"""What labelling costs stage by stage, what the machine allows by that, and how near the labeller comes to it."""

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

import rich
import typer
from rich.table import Table

from benchmarks.measure import circumstances, medians, save_result, take_turns
from cli.options import Overrides, RecipePath, Root
from flows.run.process_setup import set_up_process
from flows.run.run import find_inputs
from ingest.pool import pool_shards
from pipeline.recipe.reader import read_recipe
from pipeline.steps.artifact import Inputs
from pipeline.steps.runtime import Runtime
from pipeline.storage import root as roots
from pipeline.storage.root import DEFAULT_ROOT
from pipeline.stores.images import ImageShard
from pipeline.training.autotune import ComputeConfig
from pipeline.training.device import find_device, single_threaded
from tasks.prediction import Predictor
from teachers.labelling.label_folder import LabelFolder
from teachers.labelling.labeller import LabelMaker, ShardJob, label_makers, label_shards, write_labels

WINDOWS = 3
BATCHES_A_CORE = 8
"""In a window of the labeller, unless told: enough that the last batches, when some cores have none, weigh little."""
STAGE_BATCHES, PLAIN_IMAGES = 4, 24
"""In a window of the stages alone and of the plain loops."""
PLAIN = {"plain": "a plain loop", "plain, same formats": "a plain loop in the labeller's formats"}
"""One image after the other, one stage after the other: as one would write it first."""


def measure_labelling(inputs: Inputs, batch: int, images: int = 0) -> dict[str, Any]:
    """Measure the recipe's teachers on images spread over its pool; `images` in a window of the labeller, 0 = enough.

    `inputs` are those of the step `label`. Nothing of it stays on disk but the choices of device and precision.
    """
    runtime = inputs.runtime
    device = find_device(runtime.device)
    measured = circumstances(device)
    scratch = runtime.root.local_path()
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".bench-") as folder:
        room = roots.Root.of(folder)
        teachers = label_makers(inputs)
        for teacher in teachers:
            teacher.folders = {head: LabelFolder(room, head) for head in teacher.folders}
        shards = [shard for _, shard, _ in pool_shards(inputs["pool"], inputs.of_kind("data"))]
        bench = _Bench(teachers, shards, batch, runtime, device)
        taken = take_turns(bench.measures(images or BATCHES_A_CORE * batch * runtime.threads), WINDOWS)
        stages = medians({name: [window[name] for window in bench.costs[1:]] for name in bench.costs[0]})
        choices = {teacher.name: teacher.predictor.choice.describe() for teacher in teachers}
    rates = medians({name: taken[name] for name in ("labeller", *PLAIN)})
    limit = rate_limit(stages, runtime.threads, device)
    return {
        "measured": measured,
        "batch": batch,
        "threads": runtime.threads,
        "stage_ms_per_image": {name: round(cost, 4) for name, cost in stages.items()},
        "images_per_s": {"limit": limit, **rates},
        "windows": taken,
        "fraction": rates["labeller"] / limit,
        "speedup": {name: rates["labeller"] / rates[name] for name in PLAIN},
        "choices": choices,
    }


def rate_limit(stages: dict[str, float], cores: int, device: str) -> float:
    """Images/s, from milliseconds per image: all cores busy; or, with a GPU, the slower of it and of all cores."""
    models = sum(cost for name, cost in stages.items() if name.startswith("infer"))
    rest = sum(stages.values()) - models
    return 1000 / ((models + rest) / cores if device == "cpu" else max(models, rest / cores))


@dataclasses.dataclass
class _Bench:
    """The measures: the stages alone, the labeller, and the plain loops."""

    teachers: list[LabelMaker]
    shards: list[ImageShard]
    batch: int
    runtime: Runtime
    device: str
    costs: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """Milliseconds per image of each stage, window by window."""

    def measures(self, images: int) -> dict[str, Callable[[], float]]:
        jobs = self._sample(images, self.batch)
        few = self._sample(STAGE_BATCHES * self.batch, self.batch)
        single = self._sample(PLAIN_IMAGES, 1)
        return {
            "stages": lambda: self._alone(few),
            "labeller": lambda: _rate(jobs, lambda: label_shards(jobs, self.batch, self.runtime)),
            "plain": lambda: _rate(single, lambda: self._plain_loop(single)),
            "plain, same formats": lambda: _rate(single, lambda: _one_by_one(single)),
        }

    def _sample(self, images: int, piece: int) -> list[ShardJob]:
        """About `images` images, in multiples of `piece` where a shard has so many, from shards all over the pool."""
        pieces = -(-images // piece)
        count = min(pieces, len(self.shards))
        chosen = [self.shards[number * len(self.shards) // count] for number in range(count)]
        return [ShardJob(head(shard, piece * -(-pieces // count)), self.teachers) for shard in chosen]

    def _alone(self, jobs: Sequence[ShardJob]) -> float:
        """Seconds per image of all stages together; each one's goes to `costs`."""
        watch = _Watch()
        with single_threaded():
            for job in jobs:
                self._stages_of(job, watch)
        count = sum(len(job.shard) for job in jobs)
        in_order = sorted(watch.seconds, key=lambda stage: stage == "write")  # which began first, and ended last
        self.costs.append({stage: watch.seconds[stage] / count * 1000 for stage in in_order})
        return sum(watch.seconds.values()) / count

    def _plain_loop(self, jobs: Sequence[ShardJob]) -> None:
        """One by one, the models as torch has them by itself: float32, in its own memory layout."""
        predictors = [teacher.predictor for teacher in self.teachers]
        chosen = [predictor.choice for predictor in predictors]
        for predictor in predictors:
            _run_as(predictor, dataclasses.replace(predictor.choice, precision="32", channels_last=False))
        _one_by_one(jobs)
        for predictor, choice in zip(predictors, chosen, strict=True):
            _run_as(predictor, choice)

    def _stages_of(self, job: ShardJob, watch: _Watch) -> None:
        """One stage after the other on every batch of a shard. A GPU's work is on the wall's clock, not a core's."""
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
                    with watch(f"encode {teacher}"):
                        stages.encode(batch, teacher)
                with watch("write"):
                    write_labels(batch, writers)
            with watch("write"):
                opened.close()


class _Watch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: collections.defaultdict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, stage: str, clock: Callable[[], float] = time.thread_time) -> Iterator[None]:
        began = clock()
        yield
        self.seconds[stage] += clock() - began


def head(shard: ImageShard, count: int) -> ImageShard:
    """The first `count` images of a shard, as a shard."""
    short = copy.copy(shard)
    short.keys = shard.keys[:count]
    return short


def _rate(jobs: Sequence[ShardJob], work: Callable[[], None]) -> float:
    """Images per second of `work`, which labels the jobs' images."""
    began = time.perf_counter()
    work()
    return sum(len(job.shard) for job in jobs) / (time.perf_counter() - began)


def _run_as(predictor: Predictor, choice: ComputeConfig) -> None:
    predictor.choice = choice
    choice.place(predictor.network)


def _one_by_one(jobs: Sequence[ShardJob]) -> None:
    """One image at a time, one stage after the other, the models with as many threads as torch likes."""
    for job in jobs:
        stages = job.inference()
        with job.open_writers() as writers:
            for rows in stages.batches(1):
                write_labels(stages.label(rows), writers)


def table(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The result for people, as lines of two cells, the first line the head."""
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
        *(
            (name, f"{rates[key]:.1f} images/s, the labeller {result['speedup'][key]:.2f} x")
            for key, name in PLAIN.items()
        ),
    ]


def main(
    recipe: RecipePath,
    root: Root = DEFAULT_ROOT,
    override: Overrides = None,
    images: Annotated[
        int, typer.Option("--images", min=0, help="Images in a timed window; 0: enough for all cores.")
    ] = 0,
    to: Annotated[Path | None, typer.Option("--json", help="Write the numbers here, and a page (.md) beside.")] = None,
) -> None:
    """Measure labelling: what each stage costs, what the machine allows by that, and how near the labeller comes."""
    set_up_process()
    read = read_recipe(recipe, override or ())
    step, inputs = find_inputs(read, roots.Root.of(root, read.runtime.cache_gb), "label")
    result = measure_labelling(inputs, step.config["batch"], images)
    head, *lines = table(result)
    shown = Table(*head, box=None, pad_edge=False)
    for line in lines:
        shown.add_row(*line)
    rich.print(shown)
    if to:
        save_result(to, f"Labelling the pool of {read.name}", result, [head, *lines])


if __name__ == "__main__":
    typer.run(main)
