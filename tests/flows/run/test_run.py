"""Runs without Prefect: what is made, reused and recorded; and that a disturbed run comes to the same end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import must
from flows.run.run import Outcome, Run, plan_run
from flows.run.signals import stop_on_signals
from flows.run.step_runner import InProcess
from pipeline.errors import ConfigError, DataError, Stopped
from pipeline.recipe.reader import read_recipe
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from tests.flows.tiny import STEPS, THREADS, events, loads_nothing_heavy, logged, within

Start = Callable[..., BaseProcess]
GoesOn = Callable[[Path], Outcome]


def told(root: Path) -> list[tuple[str, str | None]]:
    """The events of the newest run, in short."""
    return [(event["event"], event.get("step")) for event in events(root)]


def test_an_undisturbed_run_tells_everything(whole: Path) -> None:
    expected = [(kind, step) for step in STEPS for kind in ("started", "made")]
    assert told(whole) == [*expected, ("finished", None)]
    made = [event for event in events(whole) if event["event"] == "made"]
    assert all(event["seconds"] >= 0 and event["counts"] for event in made)
    times = [event["time"] for event in events(whole)]
    assert times == sorted(times)


def test_a_run_leaves_recipe_plan_metrics_and_report(whole: Path, recipe: Path) -> None:
    folder = next((whole / "runs").iterdir())
    again = read_recipe(folder / "recipe.yaml")
    assert again == read_recipe(recipe)
    plan = json.loads((folder / "plan.json").read_text("utf-8"))
    assert [row["step"] for row in plan] == STEPS
    assert {row["action"] for row in plan} == {"run"}
    assert json.loads((folder / "metrics.json").read_text("utf-8"))
    assert (folder / "report.html").stat().st_size > 0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "student.backbone=test_resnett",
            r"student: timm model 'test_resnett' is unknown\. Did you mean 'test_resnet'",
        ),
        ("teachers.masks.backbone=test_rsnet", r"teachers\.masks: timm model 'test_rsnet' is unknown"),
        ("runtime.device=mps", r"runtime\.device is 'mps'"),
        ("teachers.masks.require={iou: 0.5}", r"teachers\.masks: require: metric 'iou' is unknown\. .*miou"),
        ("teachers.masks.task=depth", r"teachers\.masks: the set 'world' has no labels for 'depth'; .*segmentation"),
        ("teachers.masks.task=segmentatoin", r"teachers\.masks\.task 'segmentatoin' is unknown\. Did you mean"),
        ("teachers.gabor.require={r2: 0.5}", r"teachers\.gabor\.require .*only teachers that are trained here"),
        ("student.loss_weights={}", r"'gabor' states no schedule.*student\.loss_weights\.gabor.*equal"),
        ("student.weighting=uncertainty", r"loss_weights can't be given with weighting: uncertainty"),
        ("evaluate.sets=[pool]", r"evaluate\.sets names 'pool', which has labels for nothing: no teacher"),
    ],
)
def test_what_cannot_be_stops_a_run_before_its_first_step(
    recipe: Path, tmp_path: Path, override: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        must.run(recipe, tmp_path, [override])
    assert not list(tmp_path.iterdir())


def test_a_teacher_is_not_called_what_torch_calls_its_own(recipe: Path, tmp_path: Path) -> None:
    overrides = ["teachers.train={kind: analytic}", "student.loss_weights.train=1"]
    with pytest.raises(ConfigError, match=r"teachers\.train: torch needs the name 'train' for itself"):
        must.run(recipe, tmp_path, overrides)


def test_a_run_with_nothing_to_do_says_so_and_starts_nothing(whole: Path, recipe: Path) -> None:
    before, began = list((whole / "runs").iterdir()), time.monotonic()
    told = loads_nothing_heavy("run", recipe, "--root", whole, *THREADS)
    print(f"nothing to do: {time.monotonic() - began:.1f} s")
    assert told.startswith("Nothing to do: every step's result is there. The results:\n")
    assert "miou" in told
    assert list((whole / "runs").iterdir()) == before
    assert not (whole / "prefect").exists()


def test_a_report_that_a_run_did_not_come_to_is_written_by_the_next(whole: Path, recipe: Path, tmp_path: Path) -> None:
    root = shutil.copytree(whole, tmp_path / "root")
    (lost,) = (root / "runs").iterdir()
    (lost / "report.html").unlink()
    outcome = must.run(recipe, root, ["runtime.runner=threads"])
    assert outcome.ran == 0
    assert outcome.folder is not None
    assert outcome.folder.name != lost.name
    assert (outcome.folder / "report.html").read()
    assert must.run(recipe, root).folder == outcome.folder
    assert not (root / "prefect").exists()


def test_the_outcome_of_a_run_with_nothing_to_do(whole: Path, recipe: Path) -> None:
    outcome = must.run(recipe, whole)
    assert (outcome.ran, str(outcome.folder)) == (0, str(next((whole / "runs").iterdir())))
    assert list(outcome.artifacts) == STEPS
    assert outcome.metrics


def test_what_a_run_reuses_is_told_and_counted(whole: Path, up_to_label: Path, goes_on: GoesOn) -> None:
    shutil.copytree(whole / "labels", up_to_label / "labels")
    outcome = goes_on(up_to_label)
    reused = [step for kind, step in told(up_to_label) if kind == "reused"]
    assert reused == STEPS[:5]
    assert outcome.ran == 3
    assert outcome.artifacts["label"].counts["labelled_now"] == 0


def test_a_failed_step_is_told_and_the_rest_is_kept(recipe: Path, up_to_label: Path) -> None:
    with pytest.raises(DataError, match=r"may not label: miou is"):
        must.run(recipe, up_to_label, ["teachers.masks.require={miou: 0.99}"])
    *reused, started, failed, ended = events(up_to_label)
    assert [event["event"] for event in reused] == ["reused"] * 5
    assert started["event"] == "started"
    assert (failed["event"], failed["step"], failed["kind"]) == ("failed", "label", "DataError")
    assert (ended["event"], ended["kind"]) == ("ended", "DataError")
    assert "miou" in failed["error"]
    assert failed["error"] == ended["error"]


def test_an_error_of_the_code_is_told_too(recipe: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Workspace, "make", broken)
    with pytest.raises(KeyError):
        must.run(recipe, root)
    assert told(root) == [("started", "data.world"), ("failed", "data.world"), ("ended", None)]
    assert events(root)[-1]["kind"] == "KeyError"


def test_runs_of_the_same_second_have_folders_of_their_own(recipe: Path, root: Path) -> None:
    read = read_recipe(recipe)
    plan, runtime = plan_run(read, Root.of(root)), Runtime(Root.of(root))
    folders = {
        str(Run(read, plan, runtime, InProcess(read.runtime, plan.resolved.models(), runtime).step).folder)
        for _ in range(3)
    }
    assert len(folders) == 3


def test_the_first_signal_asks_and_what_was_before_comes_back() -> None:
    stop, before = threading.Event(), signal.getsignal(signal.SIGTERM)
    with stop_on_signals(stop):
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_outside_the_main_thread_leaves_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def elsewhere() -> None:
        with stop_on_signals(threading.Event()):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_run_stopped_in_every_long_step_comes_to_the_same_end(recipe: Path, root: Path, goes_on: GoesOn) -> None:
    """Asked to stop in the middle of training, labelling, and training again."""
    for step in ("teacher.masks", "label", "student"):
        stop = threading.Event()

        def progress(at: str, done: float, line: str, step: str = step, stop: threading.Event = stop) -> None:
            if at == step and 0.3 < done < 1:
                stop.set()

        with pytest.raises(Stopped, match=f"Stopped in {step}; what is done is kept"):
            must.run(recipe, root, progress=progress, stop=stop)
        assert told(root)[-2:] == [("failed", step), ("ended", None)]
        assert {event["kind"] for event in events(root)[-2:]} == {"Stopped"}
    goes_on(root)


@pytest.mark.parametrize("step", ["teacher.masks", pytest.param("student", marks=pytest.mark.slow)])
def test_a_run_killed_in_training_comes_to_the_same_end(
    step: str, root: Path, start: Start, goes_on: GoesOn, dice: random.Random
) -> None:
    process, moment = start(root), dice.randint(1, 50)
    within(lambda: logged(root, step) >= moment, process)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert told(root)[-1] == ("started", step)
    done = logged(root, step)
    goes_on(root)
    assert logged(root, step) == 60
    assert done < 60


def test_a_run_killed_in_labelling_comes_to_the_same_end(
    up_to_label: Path, start: Start, goes_on: GoesOn, dice: random.Random
) -> None:
    root, moment = up_to_label, dice.randint(1, 12)
    process = start(root)
    within(lambda: len(shards(root)) >= moment, process)
    process.kill()
    process.join()
    assert told(root)[-1] == ("started", "label")
    kept = {path: path.stat().st_mtime_ns for path in shards(root)}
    assert 0 < len(kept) < 24
    assert all(pq.read_table(path).num_rows == 4 for path in kept), "there is part of a shard under its final name"
    goes_on(root)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}, "what was whole was labelled again"


def shards(root: Path) -> list[Path]:
    """The label shards that are there under their final names."""
    return sorted(root.glob("labels/*/[!.]*"))


def test_an_asked_process_saves_its_state_and_ends_with_75(root: Path, start: Start, goes_on: GoesOn) -> None:
    process = start(root, "-o", "runtime.checkpoint_s=1000")
    within(lambda: logged(root, "teacher.masks") >= 3, process)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join()
    assert process.exitcode == 75
    assert next(root.glob("artifacts/teacher.masks/*/work/state.safetensors")).stat().st_size > 0
    assert 3 <= logged(root, "teacher.masks") < 60
    goes_on(root)


def test_a_second_signal_ends_at_once() -> None:
    program = (
        "import signal, threading\n"
        "from flows.run.execution import stopping\n"
        "with stopping(threading.Event()):\n"
        "    for count in range(1, 3):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "        print(f'outlived {count}', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "outlived 1\n"
    assert done.returncode == -signal.SIGTERM


def test_a_training_state_cut_short_is_named(recipe: Path, root: Path) -> None:
    stop = threading.Event()

    def progress(at: str, done: float, line: str) -> None:
        if at == "teacher.masks" and done > 0.2:
            stop.set()

    with pytest.raises(Stopped):
        must.run(recipe, root, progress=progress, stop=stop)
    state = next(root.glob("artifacts/teacher.masks/*/work/state.safetensors"))
    os.truncate(state, state.stat().st_size // 2)
    with pytest.raises(DataError, match=r"state\.safetensors"):
        must.run(recipe, root)


@pytest.mark.parametrize("damage", ["cut short", "gone"])
def test_a_damaged_label_shard_is_made_again(
    damage: str, whole: Path, recipe: Path, tmp_path: Path, goes_on: GoesOn
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(whole, root)
    shard = sorted(root.glob("labels/*/*.parquet"))[3]
    if damage == "gone":
        shard.unlink()
    else:
        os.truncate(shard, shard.stat().st_size - 9)
    planned = {each.step.name: each.why for each in must.plan(recipe, root) if each.action == "run"}
    assert planned["label"] == "its files are no longer complete"
    outcome = goes_on(root)
    assert outcome.artifacts["label"].counts["labelled_now"] == 4
    assert outcome.ran == 1
