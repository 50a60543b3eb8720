"""Measure how much the loader slows the student's training: the same steps with it, and on batches in memory.

    python -m benchmarks.student_step RECIPE --root ROOT

`must run RECIPE` must have been run with ROOT before. Both are timed in turns, in the real training loop.
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
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import RESULTS, MemoryStream, describe_environment, medians, save_result, take_turns
from flows.plan.run_plan import find_inputs
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

WARM_STEPS = 4
"""Untimed steps at the start of each window: more than the loader prefetches."""
BATCHES_IN_MEMORY = 8


class CollatedSamples(LocalSamples):
    """Samples collated before they are asked for."""

    def __init__(self, samples: LocalSamples, pieces: int) -> None:
        super().__init__(samples.samples, samples.collate)
        self.batches = samples.split(pieces)

    def split(self, pieces: int) -> list[Batch]:
        assert pieces == len(self.batches), "memory ran out: what is measured here does not fit"
        return self.batches


class StudentTraining:
    """Training of the recipe's student, for a few steps at a time."""

    def __init__(self, inputs: Inputs, config: dict[str, Any], compute: ComputeConfig, steps: int) -> None:
        student = StudentConfig.model_validate(config["student"])
        heads = heads_of(student, inputs)
        network = build_network(student, {name: head.space for name, head in heads.items()}, config["seed"])
        self.objective = SupervisedObjective(network, build_loss_weighting(student, heads)[0], compute.memory_format)
        self.config = student
        self.compute, self.steps, self.inputs = compute, steps, inputs
        collate = {head: task.collate for head, task in network.tasks.items()}
        threads = inputs.runtime.threads
        loader_config = LoaderConfig(
            student.image_size, student.resize, student.batch, config["seed"], student.augment, threads
        )
        self.loader = BatchLoader(student_dataset(student, heads, inputs), collate, loader_config)

    def rate(self, stream: BatchStream) -> float:
        """Train on a stream, and return the images per second."""
        ends: list[float] = []
        runtime = dataclasses.replace(
            self.inputs.runtime, progress=lambda *_: ends.append(time.perf_counter()), checkpoint_s=1e9
        )
        with tempfile.TemporaryDirectory() as folder:
            job = TrainingJob(
                "bench", self.objective, stream, WARM_STEPS + self.steps, Path(folder), self.config, seed=0
            )
            fit(job, self.compute, ProcessGroup(self.compute.device), runtime)
        return self.steps * self.config.batch / (ends[-1] - ends[-1 - self.steps])


def main(
    recipe: Path,
    root: Annotated[str, typer.Option(help="Where `must run RECIPE` was run before.")] = DEFAULT_ROOT,
    steps: Annotated[int, typer.Option(help="Number of timed steps in a window.")] = 20,
    windows: int = 5,
) -> None:
    """Measure, print, and write `student_step-DEVICE` to the results."""
    parsed, opened = read_recipe(recipe), Root.of(root)
    step, inputs = find_inputs(parsed, opened, "student")
    student = find_inputs(parsed, opened, "evaluate")[1]["student"]
    compute = ComputeConfig(**student.counts["choice"])
    environment = describe_environment(compute.device)
    training = StudentTraining(inputs, dict(step.config), compute, steps)
    samples = itertools.islice(training.loader.batches(0), BATCHES_IN_MEMORY)
    collated = [CollatedSamples(batch, training.config.accumulate) for batch in samples]
    memory = MemoryStream(lambda step: collated[step % len(collated)])
    measures = {"memory": lambda: training.rate(memory), "loader": lambda: training.rate(training.loader)}
    taken = take_turns(measures, windows)
    rates = medians(taken)
    ratio = rates["loader"] / rates["memory"]
    result = {"measured": environment, "images_per_s": rates, "windows": taken, "ratio": ratio}
    table = [
        ("batches", "images/s"),
        ("in memory", f"{rates['memory']:.1f}"),
        ("by the loader", f"{rates['loader']:.1f}"),
        ("ratio", f"{ratio:.3f}"),
    ]
    save_result(RESULTS / f"student_step-{compute.device}.json", "The student's step with its loader", result, table)


if __name__ == "__main__":
    typer.run(main)
