"""Runs without Prefect: what is made, reused and recorded; stopped and killed runs end with the same artifacts."""

from __future__ import annotations

import itertools
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
from flows.plan.run_plan import plan_run
from flows.run.run import Run
from flows.run.signals import stop_on_signals
from flows.run.step_runner import InProcess
from pipeline.errors import ConfigError, DataError, Stopped
from pipeline.recipe.reader import read_recipe
from pipeline.steps.run_names import new_names
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from tests.flows.tiny import SAVES, STEPS, THREADS, TRAIN_STEPS, events, logged_steps, output_without_heavy_imports
from tests.run_fixtures import Resume
from tests.waiting import wait_until

Start = Callable[..., BaseProcess]


def step_events(root: Path) -> list[tuple[str, str | None]]:
    """Return (event, step) of the newest run's events."""
    return [(event["event"], event.get("step")) for event in events(root)]


def test_run_records_events_of_all_steps(finished_root: Path) -> None:
    expected = [(kind, step) for step in STEPS for kind in ("started", "made")]
    assert step_events(finished_root) == [*expected, ("finished", None)]
    made = [event for event in events(finished_root) if event["event"] == "made"]
    assert all(event["seconds"] >= 0 and event["counts"] for event in made)
    times = [event["time"] for event in events(finished_root)]
    assert times == sorted(times)


def test_run_folder_holds_recipe_plan_metrics_and_report(finished_root: Path, recipe: Path) -> None:
    folder = next((finished_root / "runs").iterdir())
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
        ("student.loss_weights={}", r"'gabor' has no training schedule.*student\.loss_weights\.gabor.*equal"),
        (
            "teachers.masks.optimizer=sgd",
            r"Teacher 'masks' is trained by sgd with momentum 0\.9 and the student by adamw, whose learning",
        ),
        ("student.weighting=uncertainty", r"loss_weights can't be given with weighting: uncertainty"),
        ("evaluate.sets=[pool]", r"evaluate\.sets names 'pool', which has labels for nothing: no teacher"),
    ],
)
def test_run_refuses_a_wrong_recipe_before_its_first_step(
    recipe: Path, tmp_path: Path, override: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        must.run(recipe, tmp_path, [override])
    assert not list(tmp_path.iterdir())


def test_run_refuses_a_teacher_named_like_a_module_attribute(recipe: Path, tmp_path: Path) -> None:
    overrides = ["teachers.train={kind: analytic}", "student.loss_weights.train=1"]
    with pytest.raises(ConfigError, match=r"teachers\.train: torch needs the name 'train' for itself"):
        must.run(recipe, tmp_path, overrides)


def test_run_with_nothing_to_do_says_so_and_starts_nothing(finished_root: Path, recipe: Path) -> None:
    before, began = list((finished_root / "runs").iterdir()), time.monotonic()
    output = output_without_heavy_imports("run", recipe, "--root", finished_root, *THREADS)
    print(f"nothing to do: {time.monotonic() - began:.1f} s")
    assert output.startswith("Nothing to do: every step has its result. The results:\n")
    assert "miou" in output
    assert list((finished_root / "runs").iterdir()) == before
    assert not (finished_root / "prefect").exists()


def test_run_writes_a_missing_report(finished_root: Path, recipe: Path, tmp_path: Path) -> None:
    root = shutil.copytree(finished_root, tmp_path / "root")
    (lost,) = (root / "runs").iterdir()
    (lost / "report.html").unlink()
    outcome = must.run(recipe, root, ["runtime.runner=threads"])
    assert outcome.ran == 0
    assert outcome.folder is not None
    assert outcome.folder.name != lost.name
    assert (outcome.folder / "report.html").read()
    assert must.run(recipe, root).folder == outcome.folder
    assert not (root / "prefect").exists()


def test_completed_outcome_has_the_artifacts_and_metrics(finished_root: Path, recipe: Path) -> None:
    outcome = must.run(recipe, finished_root)
    assert (outcome.ran, str(outcome.folder)) == (0, str(next((finished_root / "runs").iterdir())))
    assert list(outcome.artifacts) == STEPS
    assert outcome.metrics


def test_run_reuses_artifacts_and_counts_them(finished_root: Path, up_to_label: Path, resume: Resume) -> None:
    shutil.copytree(finished_root / "labels", up_to_label / "labels")
    outcome = resume(up_to_label)
    reused = [step for kind, step in step_events(up_to_label) if kind == "reused"]
    assert reused == STEPS[:5]
    assert outcome.ran == 3
    assert outcome.artifacts["label"].counts["labelled_now"] == 0


def test_run_records_a_failed_step_and_keeps_the_rest(recipe: Path, up_to_label: Path) -> None:
    with pytest.raises(DataError, match=r"may not label: miou is"):
        must.run(recipe, up_to_label, ["teachers.masks.require={miou: 0.99}"])
    *reused, started, failed, ended = events(up_to_label)
    assert [event["event"] for event in reused] == ["reused"] * 5
    assert started["event"] == "started"
    assert (failed["event"], failed["step"], failed["kind"]) == ("failed", "label", "DataError")
    assert (ended["event"], ended["kind"]) == ("ended", "DataError")
    assert "miou" in failed["error"]
    assert failed["error"] == ended["error"]


def test_run_records_an_error_of_the_code(recipe: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Workspace, "make", broken)
    with pytest.raises(KeyError):
        must.run(recipe, root)
    assert step_events(root) == [("started", "data.world"), ("failed", "data.world"), ("ended", None)]
    assert events(root)[-1]["kind"] == "KeyError"


def test_run_folders_of_the_same_second_are_numbered(recipe: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = names = list(itertools.islice(new_names("tiny"), 3))
    assert [second, third] == [f"{first}-2", f"{first}-3"]
    monkeypatch.setattr("flows.run.run.new_names", lambda _: iter(names))
    read = read_recipe(recipe)
    plan, runtime = plan_run(read, Root.of(root)), Runtime(Root.of(root))
    get_or_make = InProcess(read.runtime, plan.resolved.models(), set(), runtime).get_or_make
    assert [Run(read, plan, runtime, get_or_make).folder.name for _ in names] == names


def test_stop_on_signals_sets_stop_and_restores_handlers() -> None:
    stop, before = threading.Event(), signal.getsignal(signal.SIGTERM)
    with stop_on_signals(stop):
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        stop.wait()
    assert signal.getsignal(signal.SIGTERM) is before


def test_stop_on_signals_does_nothing_outside_the_main_thread() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def elsewhere() -> None:
        with stop_on_signals(threading.Event()):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


def test_run_stopped_in_every_long_step_resumes(recipe: Path, root: Path, resume: Resume) -> None:
    """Stopped in the middle of training, labelling, and training again."""
    for step in ("teacher.masks", "label", "student"):
        stop = threading.Event()

        def progress(at: str, done: float, line: str, step: str = step, stop: threading.Event = stop) -> None:
            if at == step and 0.3 < done < 1:
                stop.set()

        with pytest.raises(Stopped, match=f"Stopped in {step}; what is done is kept"):
            must.run(recipe, root, progress=progress, stop=stop)
        assert step_events(root)[-2:] == [("failed", step), ("ended", None)]
        assert {event["kind"] for event in events(root)[-2:]} == {"Stopped"}
    resume(root)


@pytest.mark.parametrize("step", ["teacher.masks", pytest.param("student", marks=pytest.mark.slow)])
def test_run_killed_in_training_resumes(
    step: str, root: Path, start: Start, resume: Resume, rng: random.Random
) -> None:
    process, moment = start(root, *SAVES, "--to", step), rng.randint(2, TRAIN_STEPS // 2)
    wait_until(lambda: logged_steps(root, step) >= moment, process)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert step_events(root)[-1] == ("started", step)
    done = logged_steps(root, step)
    outcome = resume(root, step)
    assert "earlier_seconds" in outcome.artifacts[step].counts, "it began again"
    assert logged_steps(root, step) == TRAIN_STEPS
    assert done < TRAIN_STEPS


def test_run_killed_in_labelling_resumes(up_to_label: Path, start: Start, resume: Resume, rng: random.Random) -> None:
    root, moment = up_to_label, rng.randint(1, 6)
    process = start(root)
    wait_until(lambda: len(shards(root)) >= moment, process)
    process.kill()
    process.join()
    assert step_events(root)[-1] == ("started", "label")
    kept = {path: path.stat().st_mtime_ns for path in shards(root)}
    assert 0 < len(kept) < 24
    assert all(pq.read_table(path).num_rows == 4 for path in kept), "there is part of a shard under its final name"
    resume(root, "label")
    assert kept == {path: path.stat().st_mtime_ns for path in kept}, "what was whole was labelled again"


def shards(root: Path) -> list[Path]:
    """Return the label shards under their final names."""
    return sorted(root.glob("labels/*/[!.]*"))


def test_run_on_sigterm_saves_its_state_and_exits_with_75(root: Path, start: Start, resume: Resume) -> None:
    process = start(root, "--to", "teacher.masks")
    wait_until(lambda: logged_steps(root, "teacher.masks") >= 3, process)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join()
    assert process.exitcode == 75
    assert next(root.glob("artifacts/teacher.masks/*/work/state.safetensors")).stat().st_size > 0
    assert 3 <= logged_steps(root, "teacher.masks") < TRAIN_STEPS
    outcome = resume(root, "teacher.masks")
    assert "earlier_seconds" in outcome.artifacts["teacher.masks"].counts, "it began again"


def test_stop_on_signals_second_signal_kills() -> None:
    program = (
        "import signal, threading\n"
        "from flows.run.signals import stop_on_signals\n"
        "with stop_on_signals(threading.Event()):\n"
        "    for count in range(1, 3):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "        print(f'outlived {count}', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "outlived 1\n"
    assert done.returncode == -signal.SIGTERM


def test_run_names_a_truncated_training_state(recipe: Path, root: Path) -> None:
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
def test_run_makes_a_damaged_label_shard_again(
    damage: str, finished_root: Path, recipe: Path, tmp_path: Path, resume: Resume
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished_root, root)
    shard = sorted(root.glob("labels/*/*.parquet"))[3]
    if damage == "gone":
        shard.unlink()
    else:
        os.truncate(shard, shard.stat().st_size - 9)
    planned = {each.step.name: each.why for each in must.plan(recipe, root) if each.action == "run"}
    assert planned["label"] == "its files are no longer complete"
    outcome = resume(root)
    assert outcome.artifacts["label"].counts["labelled_now"] == 4
    assert outcome.ran == 1
