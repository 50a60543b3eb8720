"""How much of the student's training speed the loader costs: the same steps with it, and on batches ready in memory.

    python benchmarks/student_step.py RECIPE --root ROOT

ROOT is where `must run RECIPE` was run before. The two are timed in turn, by the training loop itself.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process
from pipeline.storage.root import Root

set_up_process()

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import circumstances, medians, save_result, take_turns
from flows.run.run import find_inputs
from must import DEFAULT_ROOT
from pipeline.data.loader import Batch, BatchLoader, LoaderConfig, LocalSamples
from pipeline.data.stream import BatchStream
from pipeline.recipe.reader import read_recipe
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Inputs
from pipeline.training.autotune import ComputeConfig
from pipeline.training.fit import fit
from pipeline.training.objective import TrainingJob
from pipeline.training.process_group import ProcessGroup
from student.dataset import heads_of, student_dataset
from student.loss_weights import build_loss_weighting
from tasks.network import build_network
from tasks.training import SupervisedObjective

RESULTS = Path(__file__).parent / "results"
WARM = 4
"""Steps of each window that are not timed: more than the loader works ahead."""
READY = 8
"""Batches in memory."""


class Ready(LocalSamples):
    """Samples that were collated before anyone asked."""

    def __init__(self, samples: LocalSamples, pieces: int) -> None:
        super().__init__(samples.samples, samples.collate)
        self.batches = samples.split(pieces)

    def split(self, pieces: int) -> list[Batch]:
        assert pieces == len(self.batches), "memory ran out: what is measured here does not fit"
        return self.batches


class Memory:
    """Batches that are there already, over and over."""

    def __init__(self, ready: Sequence[Ready]) -> None:
        self.ready, self.waited = ready, 0.0

    def batches(self, start: int) -> Generator[Ready]:
        yield from itertools.islice(itertools.cycle(self.ready), start, None)


class Steps:
    """The recipe's student, trained for a few steps at a time."""

    def __init__(self, inputs: Inputs, config: dict[str, Any], choice: ComputeConfig, steps: int) -> None:
        student = StudentConfig.model_validate(config["student"])
        heads = heads_of(student, inputs)
        network = build_network(student, {name: head.space for name, head in heads.items()}, config["seed"])
        self.objective = SupervisedObjective(network, build_loss_weighting(student, heads)[0], choice.memory_format)
        self.config = student
        self.choice, self.steps, self.inputs = choice, steps, inputs
        collate = {head: task.collate for head, task in network.tasks.items()}
        threads = inputs.runtime.threads
        about = LoaderConfig(student.image_size, student.batch, config["seed"], student.augment, threads)
        self.loader = BatchLoader(student_dataset(student, heads, inputs), collate, about)

    def rate(self, stream: BatchStream) -> float:
        """Images per second of training on a stream."""
        ends: list[float] = []
        runtime = dataclasses.replace(
            self.inputs.runtime, progress=lambda *_: ends.append(time.perf_counter()), checkpoint_s=1e9
        )
        with tempfile.TemporaryDirectory() as folder:
            job = TrainingJob("bench", self.objective, stream, WARM + self.steps, Path(folder), self.config, seed=0)
            fit(job, self.choice, ProcessGroup(self.choice.device), runtime)
        return self.steps * self.config.batch / (ends[-1] - ends[-1 - self.steps])


def main(
    recipe: Path,
    root: Annotated[str, typer.Option(help="Where `must run RECIPE` was run before.")] = DEFAULT_ROOT,
    steps: Annotated[int, typer.Option(help="Timed steps in a window.")] = 20,
    windows: int = 5,
) -> None:
    """Measure, print, and leave `student_step-<device>` among the results."""
    read, where = read_recipe(recipe), Root.of(root)
    step, inputs = find_inputs(read, where, "student")
    student = find_inputs(read, where, "evaluate")[1]["student"]
    choice = ComputeConfig(**student.counts["choice"])
    measured = circumstances(choice.device)
    bench = Steps(inputs, dict(step.config), choice, steps)
    samples = itertools.islice(bench.loader.batches(0), READY)
    memory = Memory([Ready(each, bench.config.accumulate) for each in samples])
    taken = take_turns({"memory": lambda: bench.rate(memory), "loader": lambda: bench.rate(bench.loader)}, windows)
    rates = medians(taken)
    ratio = rates["loader"] / rates["memory"]
    result = {"measured": measured, "images_per_s": rates, "windows": taken, "ratio": ratio}
    table = [
        ("batches", "images/s"),
        ("ready in memory", f"{rates['memory']:.1f}"),
        ("by the loader", f"{rates['loader']:.1f}"),
        ("ratio", f"{ratio:.3f}"),
    ]
    for left, right in table:
        print(f"{left:<16} {right}")
    save_result(RESULTS / f"student_step-{choice.device}.json", "The student's step with its loader", result, table)


if __name__ == "__main__":
    typer.run(main)
