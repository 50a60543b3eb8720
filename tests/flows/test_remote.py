"""Runs on a root in a bucket: the same artifacts as on a local root, and nothing lost with a machine."""

from __future__ import annotations

import collections
import json
import shutil
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import must
from cli.main import main
from flows.plan.selection import Selection
from pipeline.errors import Stopped
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from tests.flows.tiny import SAVES, STEPS, TRAIN_STEPS, Digests, digests
from tests.forked import run_must
from tests.s3 import ENVIRONMENT, listening
from tests.waiting import wait_until

Start = Callable[..., BaseProcess]
BEFORE_LABELS = ("data.world", "data.pool", "pool", "teacher.masks", "teacher.gabor")
LITTLE = "runtime.cache_gb=0.00002"
"""20 KB, a fraction of one shard's images."""


def remote_digests(root: str) -> Digests:
    """Return the digest of every step's artifact."""
    place = StoragePath.of(root)
    names = [name for name in place.files() if name.startswith("artifacts/") and name.endswith("/manifest.json")]
    manifests = [json.loads((place / name).read()) for name in names]
    found = {manifest["step"]: manifest["digest"] for manifest in manifests}
    assert len(found) == len(manifests), "a step was made twice over"
    return found


def upload(folder: Path, root: str) -> None:
    """Upload a local folder or file to a root."""
    for path in [folder] if folder.is_file() else folder.rglob("*"):
        if path.is_file():
            (StoragePath.of(root) / path.relative_to(folder.parent).as_posix()).write(path.read_bytes())


def another_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Switch to an empty cache and scratch folder."""
    monkeypatch.setenv("MUST_CACHE", str(folder))


def run_command(arguments: list[str]) -> None:
    """Run the command; it has to succeed."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0


@pytest.fixture
def start_elsewhere(
    recipe: Path, bucket: str, spawn: Callable[..., BaseProcess], s3: str, tmp_path: Path
) -> Callable[[str], BaseProcess]:
    """Return a function that starts `must run` on a root, in a process with a cache of its own, saving every step."""
    environ = {**ENVIRONMENT, "AWS_ENDPOINT_URL": s3, "MUST_CACHE": str(tmp_path / "lost machine")}
    return lambda root: spawn(run_must, environ, ["run", str(recipe), "--root", root, *SAVES])


@pytest.fixture
def root(bucket: str, finished_root: Path) -> str:
    """Return an empty root with the autotuned settings of the finished run."""
    upload(finished_root / "machine", f"{bucket}/a root")
    return f"{bucket}/a root"


@pytest.fixture
def up_to_label(root: str, finished_root: Path) -> str:
    """Return a root with everything that comes before the labels, copied from a disk."""
    for step in BEFORE_LABELS:
        upload(finished_root / "artifacts" / step, f"{root}/artifacts")
    return root


@pytest.fixture
def finished_remote_root(root: str, finished_root: Path) -> str:
    """Return a root with a finished run, copied to the bucket."""
    for folder in ("artifacts", "labels", "runs"):
        upload(finished_root / folder, root)
    return root


def test_remote_run_makes_the_artifacts_of_a_local_run(
    root: str, finished_root: Path, recipe: Path, tmp_path: Path
) -> None:
    outcome = must.run(recipe, root)
    assert remote_digests(root) == digests(finished_root)
    assert list(outcome.artifacts) == STEPS
    assert outcome.metrics == must.run(recipe, finished_root).metrics
    there = StoragePath.of(root).files()
    assert {name.split("/")[0] for name in there} == {"artifacts", "labels", "machine", "runs"}
    assert not [name for name in there if "/work/" in name or name.endswith(".part")]
    of_run = {name.split("/", 2)[2] for name in there if name.startswith("runs/")}
    assert {name for name in of_run if not name.startswith(("tensorboard/", "logs/"))} == {
        "recipe.yaml",
        "plan.json",
        "events.jsonl",
        "metrics.json",
        "report.html",
    }
    assert outcome.folder is not None
    assert b"could not be shown" not in (outcome.folder / "report.html").read()
    assert not [path for path in (tmp_path / "cache" / "scratch").rglob("*") if path.is_file()], "scratch is not empty"
    again = must.run(recipe, root)
    assert (again.ran, str(again.folder)) == (0, str(outcome.folder))


@pytest.mark.slow
def test_remote_run_works_with_a_cache_smaller_than_a_shard(
    root: str, finished_root: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    must.run(recipe, root, [LITTLE], Selection("label"))
    another_machine(monkeypatch, tmp_path / "another")
    must.run(recipe, root, [LITTLE])
    assert remote_digests(root) == digests(finished_root)
    files = (tmp_path / "another" / "files").rglob("*.*")
    assert 0 < sum(path.stat().st_size for path in files) <= 20_000


def test_remote_run_keeps_labels_of_a_lost_machine(
    up_to_label: str, finished_root: Path, recipe: Path, start_elsewhere: Callable[[str], BaseProcess]
) -> None:
    root, labels = up_to_label, StoragePath.of(f"{up_to_label}/labels")
    with listening() as requests:
        process = start_elsewhere(root)
        wait_until(lambda: len(labels.files()) >= 5, process)
        process.kill()
        process.join()
        before = labels.files()
        outcome = must.run(recipe, root, steps=Selection("label"))
    lines = [line for line in requests.lines if '"PUT' in line and "root/labels/" in line]
    uploads = [line.split()[6] for line in lines if '" 200 ' in line]  # one that was cut off by the kill is refused
    assert 5 <= len(before) < 24
    twice = {path for path, times in collections.Counter(uploads).items() if times > 1}
    assert not {path.partition("/labels/")[2] for path in twice} & set(before), "a label shard was written again"
    assert len(set(uploads)) == len(labels.files()) == 24
    assert remote_digests(root)["label"] == digests(finished_root)["label"]
    by_shard = collections.Counter(name.split("/")[1] for name in before)
    done = sum(count == 2 for count in by_shard.values())
    # less if what the killed run had sent off arrived after `before`
    assert outcome.artifacts["label"].counts["labelled_now"] in range(4, (12 - done) * 4 + 1, 4)


def test_remote_run_resumes_training_of_a_lost_machine(
    root: str, finished_root: Path, recipe: Path, start_elsewhere: Callable[[str], BaseProcess]
) -> None:
    process = start_elsewhere(root)
    teacher = StoragePath.of(f"{root}/artifacts/teacher.masks")

    def states() -> list[str]:
        return [name for name in teacher.files() if "/work/" in name]

    wait_until(lambda: bool(states()), process)
    first = teacher / states()[0]
    seen = first.stamp()
    wait_until(lambda: first.stamp() != seen, process)
    process.kill()
    process.join()
    steps: list[float] = []

    def progress(step: str, done: float, line: str) -> None:
        if step == "teacher.masks" and "loss" in line:
            steps.append(done)

    must.run(recipe, root, steps=Selection("teacher.masks"), progress=progress)
    assert steps[0] > 1.5 / TRAIN_STEPS, "it began again"
    assert steps[-1] == 1
    assert remote_digests(root)["teacher.masks"] == digests(finished_root)["teacher.masks"]


@pytest.mark.slow
def test_remote_run_stopped_resumes_on_another_machine(
    root: str, finished_root: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()

    def progress(at: str, done: float, line: str) -> None:
        if at == "teacher.masks" and 0.3 < done < 1:
            stop.set()

    with pytest.raises(Stopped):
        must.run(recipe, root, progress=progress, stop=stop)
    another_machine(monkeypatch, tmp_path / "another")
    reached: list[float] = []
    must.run(recipe, root, steps=Selection("teacher.masks"), progress=lambda *at: reached.append(at[1]))
    assert min(done for done in reached if done) > 0.3
    made = remote_digests(root)["teacher.masks"]
    assert made == digests(finished_root)["teacher.masks"]


def test_remote_plan_sends_few_requests(finished_remote_root: str, recipe: Path) -> None:
    with listening() as requests:
        planned = must.plan(recipe, finished_remote_root)
    assert [each.action for each in planned] == ["reuse"] * 8
    counts = requests.count()
    # a manifest and a listing for each step, a listing for each of the two teachers' labels, and what is rejected
    assert counts == {"GET": 2 * 8 + 2 + 1}


def test_remote_plan_of_another_recipe_sends_few_requests(finished_remote_root: str, recipe: Path) -> None:
    with listening() as requests:
        more = TRAIN_STEPS + 1
        planned = must.plan(recipe, finished_remote_root, [f"student.steps={more}", f"teachers.masks.steps={more}"])
    assert planned[STEPS.index("teacher.masks")].why == f"teacher.steps: {TRAIN_STEPS} -> {more}"
    assert sum(requests.count().values()) < 30


def test_remote_artifacts_are_found_by_every_command(
    finished_remote_root: str, finished_root: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to, here = tmp_path / "there.safetensors", tmp_path / "here.safetensors"
    run_command(["export", "student", str(recipe), str(to), "--root", finished_remote_root, "--to", "safetensors"])
    run_command(["export", "student", str(recipe), str(here), "--root", str(finished_root), "--to", "safetensors"])
    assert to.read_bytes() == here.read_bytes()
    capsys.readouterr()
    run_command(["run", str(recipe), "--root", finished_remote_root])
    output = capsys.readouterr().out
    report = next(name for name in StoragePath.of(finished_remote_root).files() if name.endswith("report.html"))
    assert output.startswith("Nothing to do")
    assert f"Report: {finished_remote_root}/{report}\n" in output
    run_command(["label", str(recipe), "--root", finished_remote_root])
    assert "labels/masks-" in capsys.readouterr().out


def test_remote_label_speed_leaves_no_label(
    finished_remote_root: str, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import label_speed  # noqa: PLC0415

    monkeypatch.setattr(label_speed, "WINDOWS", 1)
    monkeypatch.setattr(label_speed, "PLAIN_IMAGES", 2)
    before = StoragePath.of(finished_remote_root).files()
    label_speed.main(recipe, finished_remote_root, images=8)
    assert "the labeller" in capsys.readouterr().out
    there = StoragePath.of(finished_remote_root).files()
    assert {name for name in there.keys() - before.keys() if not name.startswith("machine/")} == set()
    assert not list(Root.of(finished_remote_root).local_path().iterdir())


def test_remote_run_makes_a_lost_label_shard_again(
    finished_remote_root: str, finished_root: Path, recipe: Path
) -> None:
    shards = [name for name in StoragePath.of(finished_remote_root).files() if name.startswith("labels/")]
    (StoragePath.of(finished_remote_root) / shards[3]).remove()
    outcome = must.run(recipe, finished_remote_root)
    assert outcome.artifacts["label"].counts["labelled_now"] == 4
    assert outcome.ran == 1
    assert remote_digests(finished_remote_root) == digests(finished_root)


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["threads", "process"])
def test_remote_run_keeps_prefects_database_on_this_machine(
    runner: str, up_to_label: str, finished_root: Path, recipe: Path, tmp_path: Path
) -> None:
    root = up_to_label
    must.run(recipe, root, [f"runtime.runner={runner}", "runtime.label_workers=2"], Selection("label"))
    expected = digests(finished_root)
    assert remote_digests(root) == {step: expected[step] for step in (*BEFORE_LABELS, "label")}
    assert not [name for name in StoragePath.of(root).files() if name.startswith("prefect")]
    assert Root.of(root).local_path("prefect/prefect.db").exists()
    assert not [name for name in StoragePath.of(root).files() if name.startswith("claims")]
    logs = [name for name in StoragePath.of(root).files() if name.endswith("logs/label.log")]
    assert len(logs) == 1
    shutil.rmtree(tmp_path / "cache")
    assert must.plan(recipe, root)[5].action == "reuse"
