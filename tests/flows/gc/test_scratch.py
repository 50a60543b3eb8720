"""Scratch that work on a remote root leaves on this machine, and which of it gc deletes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cli.main import main
from flows.gc.deletion import delete_files, run_names
from flows.gc.scratch import plan_scratch_gc
from pipeline.storage.cache import STALE_S
from pipeline.storage.lock import hold_lock
from pipeline.storage.root import Root

KEPT = {
    "prefect/prefect.db",
    "artifacts/data.a/open/work/images/shard-000000.tar",
    "artifacts/data.a/open/log/sources.parquet",
    ".read-young/x",
}
DELETED = {
    "runs/r-20300101-000000/logs/data.a.log",
    "labels/a-0123/.shard-000000.parquet.01.part",
    "artifacts/data.a/open/half.txt",
    "artifacts/data.a/sealed/work/state",
    "artifacts/data.a/sealed/result.txt",
    ".read-old/a/x",
}


@pytest.fixture
def root(bucket: str) -> Root:
    """Return a root with a sealed artifact, and a scratch folder with leftovers of all kinds."""
    root = Root.of(f"{bucket}/root")
    (root / "artifacts/data.a/sealed/manifest.json").write(b"{}")
    for name in KEPT | DELETED:
        root.local_path(name).parent.mkdir(parents=True, exist_ok=True)
        root.local_path(name).write_bytes(b"12")
    os.utime(root.local_path(".read-old"), (time.time() - STALE_S - 60,) * 2)
    return root


def files_left(root: Root) -> set[str]:
    return {path.relative_to(root.local_path()).as_posix() for path in root.local_path().rglob("*") if path.is_file()}


def test_plan_scratch_gc_keeps_only_what_can_be_resumed(root: Root) -> None:
    verdicts = plan_scratch_gc(root)
    assert {name for verdict in verdicts if verdict.kept for name in verdict.files} == KEPT
    assert {name for verdict in verdicts if not verdict.kept for name in verdict.files} == DELETED
    assert all(Path(verdict.what).exists() for verdict in verdicts), "named by their paths on this machine"
    delete_files(Root.of(root.local_path()), verdicts, run_names(Root.of(root.local_path())))
    assert files_left(root) == KEPT
    assert not root.local_path(".read-old").exists()
    assert [verdict for verdict in plan_scratch_gc(root) if not verdict.kept] == []


def test_plan_scratch_gc_keeps_all_while_this_machine_holds_a_lock(root: Root) -> None:
    with hold_lock(root / "claims" / "runs" / "r", lambda _: None, lambda: None):
        verdicts = plan_scratch_gc(root)
    assert {name for verdict in verdicts for name in verdict.files} == KEPT | DELETED
    assert {verdict.why for verdict in verdicts} == {f"process {os.getpid()} is at work on the root"}
    assert all(verdict.kept for verdict in verdicts)


def test_plan_scratch_gc_of_a_local_root_is_empty(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").write_bytes(b"")
    assert plan_scratch_gc(Root.of(tmp_path)) == []


def test_artifacts_gc_deletes_scratch_too(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "artifacts/data.a/sealed/manifest.json").remove()
    for options, expected in ((["--delete"], KEPT | {"artifacts/data.a/sealed/work/state"}), ([], None)):
        before = files_left(root)
        with pytest.raises(SystemExit) as end:
            main(["artifacts", "gc", "--root", str(root), *options])
        assert end.value.code == 0
        assert files_left(root) == (expected or before)
    assert str(root.local_path("prefect")) in capsys.readouterr().out
