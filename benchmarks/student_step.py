"""Measure how much the loader slows the student's training: the same steps with it, and on batches in memory.

    python -m benchmarks.student_step RECIPE --root ROOT

`must run RECIPE` must have been run with ROOT up to `student`. All are timed in turns, in the real training loop. With
a GPU, or `--alone`, so are the steps on batches in its memory, the loader alone, copies to it, and a plain loop:
torch's DataLoader with a process per core, and a step that reads its loss.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process
from pipeline.storage.root import Root

set_up_process()

import contextlib
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import (
    RESULTS,
    MemoryStream,
    describe_environment,
    medians,
    save_result,
    synchronize,
    take_turns,
)
from flows.plan.run_plan import find_inputs
from must import DEFAULT_ROOT
from pipeline.data.dataset import ImageSample
from pipeline.data.loader import Batch, BatchLoader, LoaderConfig, LocalSamples, collate_samples
from pipeline.data.stream import BatchStream
from pipeline.recipe.reader import read_recipe
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Inputs
from pipeline.training.autotune import ComputeConfig
from pipeline.training.device import map_tensors, move_to_device
from pipeline.training.fit import fit
from pipeline.training.objective import TrainingJob
from pipeline.training.optimizer import build_optimizer
from pipeline.training.process_group import ProcessGroup
from student.dataset import heads_of, student_dataset
from student.loss_weights import build_loss_weighting
from tasks.network import build_network
from tasks.training import SupervisedObjective

WARM_STEPS = 4
"""Untimed steps at the start of each window: more than the loader prefetches."""
BATCHES_IN_MEMORY = 8
ALONE = ("decode on all cores", "model alone", "copy to the device")
"""What goes on at once with a GPU: the slowest of them is the limit."""


class CollatedSamples(LocalSamples):
    """Samples collated before they are asked for."""

    def __init__(self, samples: LocalSamples, pieces: int) -> None:
        super().__init__(samples.samples, samples.collate)
        self.batches = samples.split(pieces)

    def split(self, pieces: int) -> list[Batch]:
        assert pieces == len(self.batches), "memory ran out: what is measured here does not fit"
        return self.batches

    def on_device(self, device: str) -> CollatedSamples:
        """Return them with their batches in the device's memory."""
        moved = CollatedSamples(LocalSamples(self.samples, self.collate), len(self.batches))
        moved.batches = move_to_device(self.batches, device)
        return moved


class SingleSamples(Dataset[ImageSample]):
    """A loader's samples one by one, as torch's DataLoader asks for them."""

    def __init__(self, loader: BatchLoader, count: int) -> None:
        self.loader, self.count = loader, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> ImageSample:
        step, slot = divmod(position, self.loader.config.batch)
        return self.loader._sample(step, slot)


class StudentTraining:
    """Training of the recipe's student, for a few steps at a time."""

    def __init__(self, inputs: Inputs, config: dict[str, Any], compute: ComputeConfig, steps: int) -> None:
        student = StudentConfig.model_validate(config["student"])
        heads = heads_of(student, inputs)
        network = build_network(student, {name: head.space for name, head in heads.items()}, config["seed"])
        self.objective = SupervisedObjective(network, build_loss_weighting(student, heads), compute.memory_format)
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

    def measures(self, alone: bool) -> dict[str, Callable[[], float]]:
        """Return by name how to measure images per second."""
        samples = itertools.islice(self.loader.batches(0), BATCHES_IN_MEMORY)
        collated = [CollatedSamples(batch, self.config.accumulate) for batch in samples]
        memory = MemoryStream(lambda step: collated[step % len(collated)])
        measures = {"memory": lambda: self.rate(memory), "loader": lambda: self.rate(self.loader)}
        if not alone:
            return measures
        moved = [batch.on_device(self.compute.device) for batch in collated]
        on_device = MemoryStream(lambda step: moved[step % len(moved)])
        return {
            **measures,
            "decode on all cores": self.loader_rate,
            "model alone": lambda: self.rate(on_device),
            "copy to the device": lambda: self.copy_rate([batch.batches for batch in collated]),
            "plain loop": self.plain_rate,
        }

    def loader_rate(self) -> float:
        """Return the images per second that the loader draws and collates."""
        with contextlib.closing(self.loader.batches(0)) as batches:
            return self._timed(batch.split(self.config.accumulate) for batch in batches)

    def copy_rate(self, batches: Sequence[Sequence[Batch]]) -> float:
        """Return the images per second that are copied to the device from memory that it reads by itself."""
        device = self.compute.device
        pin = (lambda tensor: tensor.pin_memory()) if device == "cuda" else (lambda tensor: tensor)
        pinned = [map_tensors(list(batch), pin) for batch in batches]
        return self._timed(move_to_device(batch, device) for batch in itertools.cycle(pinned))

    def plain_rate(self) -> float:
        """Return the images per second of a loop as torch's tutorials have it, in the formats of the real one."""
        count = (WARM_STEPS + self.steps) * self.config.batch
        loader = DataLoader(
            SingleSamples(self.loader, count),
            self.config.batch,
            num_workers=self.inputs.runtime.threads,
            collate_fn=lambda samples: collate_samples(samples, self.loader.collate),
        )
        model = self.compute.place(self.objective.train())
        optimizer = build_optimizer(model, self.config)

        def step(batch: Batch) -> float:
            with self.compute.autocast():
                total, _ = model(move_to_device(batch, self.compute.device), dict.fromkeys(model.amounts(batch), 1.0))
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
            return float(total.detach())

        return self._timed(map(step, loader))

    def _timed(self, steps: Iterator[Any]) -> float:
        """Return the images per second of these steps, after the first ones."""
        for _ in itertools.islice(steps, WARM_STEPS):
            pass
        synchronize(self.compute.device)
        began = time.perf_counter()
        taken = sum(1 for _ in itertools.islice(steps, self.steps))
        synchronize(self.compute.device)
        assert taken == self.steps
        return self.steps * self.config.batch / (time.perf_counter() - began)


def measure_student(recipe: Recipe, root: str, steps: int, windows: int, alone: bool = False) -> dict[str, Any]:
    """Measure the recipe's student; `alone`, always with a GPU: also what goes on beside each other, one by one."""
    opened = Root.of(root)
    step, inputs = find_inputs(recipe, opened, "student")
    student = find_inputs(recipe, opened, "evaluate")[1]["student"]
    compute = ComputeConfig(**student.counts["choice"])
    environment = describe_environment(compute.device)
    training = StudentTraining(inputs, dict(step.config), compute, steps)
    taken = take_turns(training.measures(alone or compute.device != "cpu"), windows)
    rates = medians(taken)
    apart = [rates[name] for name in ALONE if name in rates]
    return {
        "measured": environment,
        "images_per_s": rates,
        "windows": taken,
        "ratio": rates["loader"] / rates["memory"],
        **({"share": rates["loader"] / min(apart), "speedup": rates["loader"] / rates["plain loop"]} if apart else {}),
        "choice": compute.describe(),
    }


def table_of(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the result as rows of two cells, the heading first."""
    rates = dict(result["images_per_s"])
    return [
        ("batches", "images/s"),
        ("in memory", f"{rates.pop('memory'):.1f}"),
        ("by the loader", f"{rates.pop('loader'):.1f}"),
        ("ratio", f"{result['ratio']:.3f}"),
        *((name, f"{rate:.1f}") for name, rate in rates.items()),
        *([("by the loader, as a share of the slowest alone", f"{result['share']:.3f}")] if "share" in result else []),
    ]


def main(
    recipe: Path,
    root: Annotated[str, typer.Option(help="Where `must run RECIPE` was run before.")] = DEFAULT_ROOT,
    steps: Annotated[int, typer.Option(help="Number of timed steps in a window.")] = 20,
    windows: int = 5,
    alone: Annotated[bool, typer.Option("--alone", help="As with a GPU.")] = False,
) -> None:
    """Measure, print, and write `student_step-DEVICE` to the results."""
    result = measure_student(read_recipe(recipe), root, steps, windows, alone)
    file = RESULTS / f"student_step-{result['choice']['device']}.json"
    save_result(file, "The student's step with its loader", result, table_of(result))


if __name__ == "__main__":
    typer.run(main)
