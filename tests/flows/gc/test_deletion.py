"""Deleting what gc does not keep, while other processes begin to use it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.gc import inventory
from flows.gc.deletion import delete_files, run_names
from flows.gc.inventory import Verdict, plan_gc
from pipeline.steps.workspace import Workspace
from pipeline.storage.lock import hold_lock, lock_holders
from pipeline.storage.path import StoragePath
from pipeline.storage.process_id import ProcessId
from pipeline.storage.root import Root


def test_delete_files_of_no_files_does_nothing(copy: Path) -> None:
    before = sorted(copy.rglob("*"))
    delete_files(Root.of(copy), [Verdict("nothing", {}, False, "")], run_names(Root.of(copy)))
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize("what", ["student", "teacher.gabor"])
def test_delete_files_keeps_what_a_run_may_use_that_began_meanwhile(copy: Path, what: str) -> None:
    root = Root.of(copy)
    known = run_names(root)
    shutil.rmtree(copy / "runs")
    verdicts = [verdict for verdict in plan_gc(Workspace(root)) if verdict.what.startswith(what)]
    assert not any(verdict.kept for verdict in verdicts)
    before = sorted(copy.rglob("*.*"))
    (copy / "runs" / "tiny-20300101-000000").mkdir(parents=True)
    done = delete_files(root, verdicts, known)
    assert {(verdict.kept, verdict.why) for verdict in done} == {
        (True, "a run has begun meanwhile: collect garbage once more")
    }
    assert sorted(copy.rglob("*.*")) == before


def test_delete_files_keeps_what_another_process_makes(copy: Path) -> None:
    root = Root.of(copy)
    shutil.rmtree(copy / "runs")
    verdicts = plan_gc(Workspace(root))
    (student,) = (verdict for verdict in verdicts if verdict.what.startswith("student/"))
    with hold_lock(root / "claims" / student.what, lambda _: None, lambda: None):
        done = delete_files(root, verdicts, run_names(root))
    (kept,) = (verdict for verdict in done if verdict.kept)
    assert kept.what == student.what
    assert "Another run, process" in kept.why
    assert (copy / "artifacts" / kept.what / "manifest.json").exists()
    assert not list(copy.glob("labels/*"))


def test_plan_gc_leaves_what_a_user_keeps_beside_labels(copy: Path) -> None:
    backup, own = copy / "labels" / "rejected.parquet.bak", copy / "labels" / "mine" / "0.parquet"
    own.parent.mkdir()
    for file in (backup, own):
        file.write_bytes(b"x")
    shutil.rmtree(copy / "runs")
    delete_files(Root.of(copy), plan_gc(Workspace(Root.of(copy))), run_names(Root.of(copy)))
    assert sorted((copy / "labels").rglob("*")) == sorted([backup, own, own.parent])


def test_plan_gc_leaves_what_a_run_makes_meanwhile(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = ["artifacts/teacher.new/0123456789abcdef/work/state.safetensors", "labels/new-0123456789ab/1.parquet"]

    def begin(path: StoragePath) -> dict[str, ProcessId]:
        """Find no holder of a lock, and begin a run at that moment."""
        found = lock_holders(path)
        for name in new:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(b"new")
        return found

    monkeypatch.setattr(inventory, "lock_holders", begin)
    verdicts = plan_gc(Workspace(Root.of(copy)), keep=0)
    assert not set(new) & {file for verdict in verdicts for file in verdict.files}
    delete_files(Root.of(copy), verdicts, run_names(Root.of(copy)))
    assert all((copy / name).exists() for name in new)
