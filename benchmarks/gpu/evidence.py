"""Measure what MuST and SuNCEt are worth on a GPU: rows of MuST's table, the most important first, and CIFAR-10.

    bash benchmarks/gpu/run.sh evidence

The table is that of `benchmarks.must_table` at size `large`, on the images that were packed, which are fewer: its rows
compare with each other, not with those of another machine. A short training of the student tells how many steps fit
the time; later runs take as many. SuNCEt learns from a part of CIFAR-10. `--tiny` tries it on a CPU.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

import dataclasses
import functools
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import typer

from benchmarks import must_table, suncet_cifar
from benchmarks.comparison_rows import run
from benchmarks.gpu.items import SECONDS, Item, ItemResults, SecondsOption, TinyOption
from benchmarks.measure import print_table
from evaluation.probes import detector, linear_dense
from evaluation.schedules import SCHEDULES
from pipeline.recipe.comparison import COMPARE
from pipeline.training.device import find_device

START = "scratch"
ROWS = (
    *(f"from {START}", must_table.STUDENT, "SimCLR", "student of parts", "student of things", "  pseudo labels alone"),
    *("student of shapes", "MoCo-v2", "student of normals", "  and an HPT stage", "student of depth"),
)
"""Of the table, in order of importance."""
TINY_ROWS = ("  heads twice as wide",)
"""One that is measured frozen only."""
AT_ONCE = 4
"""Trained rows that should fit a run beside the teachers."""
TRIAL_STEPS, STEP_CHOICES = 40, (3200, 2560, 1280, 640, 320)
MEASURING_S, ROW_S = 60, 100
"""Guesses: seconds in which a backbone is measured in all ways, and of the first row."""
PLAN = "plan"
WORLD = 4000
"""Unlabelled scenes: every run renders and labels them again."""
SUNCET = [
    *("runtime.runner=inline", "compare.cifar.image_size=64", "compare.cifar.batch=256", "compare.cifar.steps=[600]"),
    *("compare.cifar.labels=[400]", "compare.cifar.seeds=1"),
    *("compare.cifar.methods.suncet.labels.per_class=40", "compare.cifar.methods.suncet.labels.images=8"),
]
"""For a part of CIFAR-10: 40 labels of each class, and a sixth of each step's images labelled."""
TINY_SUNCET = [
    *(*SUNCET, "compare.cifar.backbones=[test_resnet]", "compare.cifar.image_size=32", "compare.cifar.batch=64"),
    *("compare.cifar.steps=[2]", "compare.cifar.methods.suncet.labels.images=4", "compare.cifar.probes=[knn]"),
]
SUNCET_SEEDS, SUNCET_S = 3, 110


class Table:
    """MuST's table on this machine: its recipe at one size, and how many steps each row trains."""

    def __init__(self, root: str, tiny: bool) -> None:
        self.root, self.tiny = root, tiny
        size = must_table.SIZES["tiny"] if tiny else (*must_table.SIZES["large"], f"data.world.count={WORLD}")
        self.overrides = [*must_table.STARTS[START], *size, "seed=0"]

    def plan(self, end: float) -> dict[str, Any]:
        """Make what all rows build on, and choose the steps of which `AT_ONCE` rows end by then, monotonic clock."""
        if self.tiny:
            return {"steps": 2, "seconds_per_step": None}
        trial = run(must_table.RECIPE, self.root, [*self.overrides, f"student.steps={TRIAL_STEPS}"], "student")
        per_step = trial["student"].counts["training_seconds"] / TRIAL_STEPS
        row_s = (end - time.monotonic()) / AT_ONCE - MEASURING_S
        steps = next((steps for steps in STEP_CHOICES if steps * per_step < row_s), STEP_CHOICES[-1])
        return {"steps": steps, "seconds_per_step": per_step}

    def measure(self, name: str, steps: int) -> dict[str, Any]:
        """Train and measure a row."""
        stages = [f"stages.{stage}.steps={steps // 2}" for stage in must_table.STAGES]
        overrides = [*self.overrides, f"student.steps={steps}", *stages]
        return must_table.measure_row(self.root, name, START, overrides)


def measure_rows(table: Table, results: ItemResults, end: float) -> None:
    """Measure rows for as long as one fits the time, by what the slowest so far took."""
    results.measure({PLAN: Item(functools.partial(table.plan, end), 0)}, end - time.monotonic())
    if PLAN not in results:
        return
    slowest = 0.0 if table.tiny else ROW_S
    for name in TINY_ROWS if table.tiny else ROWS:
        began = time.monotonic()
        work = functools.partial(table.measure, name, results[PLAN]["steps"])
        results.measure({name: Item(work, slowest)}, end - began)
        slowest = max(slowest, time.monotonic() - began)


def measure_suncet(root: str, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Train SimCLR with and without SuNCEt on CIFAR-10 with one seed; return both rows."""
    found = run(suncet_cifar.RECIPE, root, [*overrides, f"seed={seed}"], f"{COMPARE}.{suncet_cifar.NAME}")
    return suncet_cifar.comparison_records(found)


def make_brief() -> None:
    """Let everything that is measured train for two steps."""
    linear_dense.SETTINGS = linear_dense.SETTINGS.model_copy(update={"steps": 2})
    detector.SETTINGS = detector.SETTINGS.model_copy(update={"steps": 2})
    brief = dataclasses.replace(SCHEDULES[must_table.BRIEF], grid=lambda *_: [{"batch": 16, "steps": 2, "lr": 1e-3}])
    SCHEDULES[must_table.BRIEF] = brief


def main(seconds: SecondsOption = SECONDS, tiny: TinyOption = False) -> None:
    """Measure what is not in the results yet, and print."""
    end = time.monotonic() + seconds
    results = ItemResults("evidence", find_device("cpu" if tiny else "cuda"), tiny)
    if tiny:
        make_brief()
    suncet = [f"SuNCEt, seed {seed}" for seed in range(1 if tiny else SUNCET_SEEDS)]
    with tempfile.TemporaryDirectory() as root:
        measure_rows(Table(root, tiny), results, end)
        overrides = TINY_SUNCET if tiny else SUNCET
        items = {
            name: Item(functools.partial(measure_suncet, root, seed, overrides), 0 if tiny else SUNCET_S)
            for seed, name in enumerate(suncet)
        }
        results.measure(items, end - time.monotonic())
    rows = {name: results[name] for name in (TINY_ROWS if tiny else ROWS) if name in results}
    for name in suncet:
        if name in results:
            print_table([("CIFAR-10", "measure", "accuracy"), *suncet_lines(name, results[name])])
    if rows:
        print_table(must_table.summary(list(rows), {"0": rows}))
    results.close([PLAN, *(TINY_ROWS if tiny else ROWS), *suncet])


def suncet_lines(name: str, result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return a line for each method and way of measuring."""
    return [
        (f"{name}: {row['row']}", protocol.partition(" ")[0], ", ".join(f"{100 * value:.1f} %" for value in values))
        for row in result["rows"]
        for protocol, values in row["accuracy"].items()
    ]


if __name__ == "__main__":
    typer.run(main)
