"""What work on a root elsewhere leaves on this machine, and what of it goes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cli.main import main
from flows.gc.inventory import delete_files
from flows.gc.scratch import plan_scratch_gc
from pipeline.storage.cache import STALE_S
from pipeline.storage.lock import hold_lock
from pipeline.storage.root import Root

STAYS = {
    "prefect/prefect.db",
    "artifacts/data.a/open/work/images/shard-000000.tar",
    "artifacts/data.a/open/log/sources.parquet",
    ".read-young/x",
}
GOES = {
    "runs/r-20300101-000000/logs/data.a.log",
    "labels/a-0123/.shard-000000.parquet.01.part",
    "artifacts/data.a/open/half.txt",
    "artifacts/data.a/sealed/work/state",
    "artifacts/data.a/sealed/result.txt",
    ".read-old/a/x",
}


@pytest.fixture
def root(bucket: str) -> Root:
    """A root with a sealed artifact, and a scratch folder that has seen much."""
    root = Root.of(f"{bucket}/root")
    (root / "artifacts/data.a/sealed/manifest.json").write(b"{}")
    for name in STAYS | GOES:
        root.local_path(name).parent.mkdir(parents=True, exist_ok=True)
        root.local_path(name).write_bytes(b"12")
    os.utime(root.local_path(".read-old"), (time.time() - STALE_S - 60,) * 2)
    return root


def left(root: Root) -> set[str]:
    return {path.relative_to(root.local_path()).as_posix() for path in root.local_path().rglob("*") if path.is_file()}


def test_what_nobody_needs_goes_and_the_rest_is_kept(root: Root) -> None:
    verdicts = plan_scratch_gc(root)
    assert {name for verdict in verdicts if verdict.kept for name in verdict.files} == STAYS
    assert {name for verdict in verdicts if not verdict.kept for name in verdict.files} == GOES
    assert all(Path(verdict.what).exists() for verdict in verdicts), "named as what they are on this machine"
    delete_files(Root.of(root.local_path()), verdicts)
    assert left(root) == STAYS
    assert not root.local_path(".read-old").exists()
    assert [verdict for verdict in plan_scratch_gc(root) if not verdict.kept] == []


def test_all_is_kept_while_this_machine_is_at_work_on_the_root(root: Root) -> None:
    with hold_lock(root / "claims" / "runs" / "r", lambda _: None, lambda: None):
        verdicts = plan_scratch_gc(root)
    assert {name for verdict in verdicts for name in verdict.files} == STAYS | GOES
    assert {verdict.why for verdict in verdicts} == {f"process {os.getpid()} is at work on the root"}
    assert all(verdict.kept for verdict in verdicts)


def test_a_root_here_has_no_scratch(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").write_bytes(b"")
    assert plan_scratch_gc(Root.of(tmp_path)) == []


def test_the_command_clears_this_machine_too(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "artifacts/data.a/sealed/manifest.json").remove()
    for options, expected in ((["--delete"], STAYS | {"artifacts/data.a/sealed/work/state"}), ([], None)):
        before = left(root)
        with pytest.raises(SystemExit) as end:
            main(["artifacts", "gc", "--root", str(root), *options])
        assert end.value.code == 0
        assert left(root) == (expected or before)
    assert str(root.local_path("prefect")) in capsys.readouterr().out
