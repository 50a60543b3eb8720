"""`must artifacts`: what a root holds, what is damaged, and what gc keeps."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

import pytest

import must
from cli.main import main
from flows.gc.deletion import delete_files, run_names
from flows.gc.inventory import (
    find_artifact,
    list_artifacts,
    list_files,
    list_runs,
    plan_gc,
)
from flows.plan.selection import Selection
from pipeline.errors import ConfigError, DataError
from pipeline.steps.workspace import Workspace
from pipeline.storage import root as root_module
from pipeline.storage.lock import hold_lock
from pipeline.storage.path import StoragePath
from pipeline.storage.process_id import ProcessId
from pipeline.storage.root import Root
from pipeline.stores.rejections import PATH, read_rejections, reject
from tests.flows.tiny import STEPS, output_without_heavy_imports
from tests.run_fixtures import Resume
from tests.waiting import wait_until

Start = Callable[..., BaseProcess]
OTHER = ["student.steps=2"]
OTHER_TEACHER = ["teachers.gabor.wavelengths=[8.0]", *OTHER]


def run_command(*arguments: object, code: int | None = None) -> None:
    """Run the command; it has to exit with this code."""
    if code is None:
        main([str(argument) for argument in arguments])
        return
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == code


def test_artifacts_ls_lists_every_artifact(finished_root: Path) -> None:
    text = output_without_heavy_imports("artifacts", "ls", "--root", finished_root)
    lines = [line.split() for line in text.splitlines()]
    assert [line[0] for line in lines[1:]] == sorted(STEPS)
    (run,) = (finished_root / "runs").iterdir()
    assert all(line[-1] == run.name for line in lines[1:])
    rows = json.loads(output_without_heavy_imports("artifacts", "ls", "--root", finished_root, "--json"))
    assert [row["step"] for row in rows] == sorted(STEPS)
    assert all(list(row) == sorted(row) for row in rows)
    assert all(row["sealed"] and row["bytes"] > 0 and row["runs"] == [run.name] for row in rows)


def test_artifacts_show_prints_config_and_inputs(finished_root: Path) -> None:
    text = output_without_heavy_imports("artifacts", "show", "teacher.masks", "--root", finished_root)
    for word in (": teacher, ", "backbone: test_resnet", "data.world", "model.safetensors", "torch"):
        assert word in text
    manifest = json.loads(output_without_heavy_imports("artifacts", "show", "label", "--root", finished_root, "--json"))
    assert manifest["step"] == "label"
    assert list(manifest) == sorted(manifest)


def test_find_artifact_lists_known_names(finished_root: Path) -> None:
    root = Root.of(finished_root)
    held = list_artifacts(root, list_runs(root), list_files(root, "artifacts"))
    fingerprint = find_artifact(root, "student", held).key[1]
    assert find_artifact(root, f"student/{fingerprint[:5]}", held).key == ("student", fingerprint)
    with pytest.raises(ConfigError, match=r"'studnet' is unknown\. Did you mean 'student'"):
        find_artifact(root, "studnet", held)
    with pytest.raises(ConfigError, match=f"Fingerprint of student: 'zz' is unknown.*{fingerprint}"):
        find_artifact(root, "student/zz", held)


def test_artifacts_verify_finds_no_damage(finished_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command("artifacts", "verify", "--root", finished_root, code=0)
    assert capsys.readouterr().out == f"{len(STEPS)} artifacts, no damaged or missing files.\n"


@pytest.mark.parametrize("file", ["labels/gabor-*/*.parquet", "artifacts/teacher.gabor/*/model.json"])
@pytest.mark.parametrize("damage", ["a bit", "the end", "all"])
def test_artifacts_verify_finds_damage_and_repairs_it(
    file: str, damage: str, copy: Path, capsys: pytest.CaptureFixture[str], resume: Resume
) -> None:
    target = sorted(copy.glob(file))[0]
    if damage == "a bit":
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
    elif damage == "the end":
        os.truncate(target, target.stat().st_size - 1)
    else:
        target.unlink()
    run_command("artifacts", "verify", "--root", copy, code=3)
    wrong = "missing" if damage == "all" else "its bytes changed since it was made"
    assert f"{target}: {wrong}\n" in capsys.readouterr().out
    run_command("artifacts", "verify", "--root", copy, "--repair", code=3)
    assert not target.exists()
    outcome = resume(copy)
    assert outcome.ran == 1
    run_command("artifacts", "verify", "--root", copy, code=0)


@pytest.mark.parametrize("content", ["", "{", "5", '{"schema": 1}'])
def test_artifacts_commands_name_a_damaged_manifest_and_verify_repairs_it(
    content: str, copy: Path, capsys: pytest.CaptureFixture[str], resume: Resume
) -> None:
    [manifest] = copy.glob("artifacts/teacher.gabor/*/manifest.json")
    manifest.write_text(content)
    run_command("artifacts", "ls", "--root", copy, code=0)
    shown = capsys.readouterr().out
    assert str(manifest) in shown
    assert shown.count("damaged ") == 1
    run_command("artifacts", "gc", "--root", copy, "--delete", code=3)
    assert str(manifest) in capsys.readouterr().err
    run_command("artifacts", "verify", "--root", copy, code=3)
    assert f"{manifest}: " in capsys.readouterr().out
    run_command("artifacts", "verify", "--root", copy, "--repair", code=3)
    assert not manifest.exists()
    assert resume(copy).ran == 1
    run_command("artifacts", "verify", "--root", copy, code=0)


def names_to_delete(root: Path, keep: int = 1) -> set[str]:
    """Return the names of what would be deleted."""
    return {verdict.what for verdict in plan_gc(Workspace(Root.of(root)), keep) if not verdict.kept}


def test_plan_gc_deletes_what_only_older_runs_refer_to(
    copy: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names_to_delete(copy) == set()
    must.run(recipe, copy, OTHER)
    old = {
        f"{path.parent.name}/{path.name}"
        for name in ("student", "evaluate")
        for path in (copy / "artifacts" / name).iterdir()
    }
    assert len(old) == 4
    assert names_to_delete(copy, keep=2) == set()
    gone = names_to_delete(copy)
    assert gone < old
    assert len(gone) == 2
    before = sorted(copy.rglob("*"))
    run_command("artifacts", "gc", "--root", copy, code=0)
    assert sorted(copy.rglob("*")) == before, "a dry run deleted something"
    shown = capsys.readouterr().out
    assert "Nothing was deleted" in shown
    assert all(f"{name} " in shown for name in old)
    run_command("artifacts", "gc", "--root", copy, "--delete", code=0)
    assert names_to_delete(copy) == set()
    assert {f"{path.parent.name}/{path.name}" for path in copy.glob("artifacts/*/*")} & old == old - gone
    assert not [each for each in must.plan(recipe, copy, OTHER) if each.artifact is None]


def test_plan_gc_counts_only_whole_runs(copy: Path, recipe: Path) -> None:
    must.run(recipe, copy, OTHER_TEACHER, Selection("teacher.gabor"))
    assert names_to_delete(copy) == set()
    with pytest.raises(DataError, match="miou"):
        must.run(recipe, copy, ["teachers.masks.require={miou: 1.0}"])
    assert names_to_delete(copy) == set()
    must.run(recipe, copy, OTHER_TEACHER)
    assert {name.split("/")[0] for name in names_to_delete(copy)} >= {"teacher.gabor", "label", "student", "evaluate"}


def pretend_run(root: Path, time: str, step: str, fingerprint: str) -> None:
    """Write a finished run that made one artifact."""
    made = shutil.copytree(next((root / "artifacts" / "evaluate").iterdir()), root / "artifacts" / step / fingerprint)
    run = root / "runs" / f"tiny-{time}"
    run.mkdir()
    (run / "plan.json").write_text(
        json.dumps([{"step": step, "section": step.split("."), "artifact": made.name}]), "utf-8"
    )
    (run / "events.jsonl").write_text(json.dumps({"time": 0, "event": "finished"}), "utf-8")


def test_plan_gc_replaces_a_comparison_only_by_one_of_its_name(copy: Path) -> None:
    for number, name in enumerate(("compare.first.x", "compare.second.x", "compare.first.x")):
        pretend_run(copy, f"20300101-00000{number}", name, f"{number}" * 16)
    assert names_to_delete(copy) == {f"compare.first.x/{'0' * 16}"}


def test_plan_gc_replaces_a_stage_only_by_a_run_that_made_or_measured_it(copy: Path) -> None:
    """Neither a student nor another stage replaces a stage; the evaluation of all stages does."""
    shutil.rmtree(copy / "runs")
    (copy / "runs").mkdir()
    kept, numbers = [], {f"{number}" * 16: number for number in range(5)}
    for number, step in enumerate(("stages.a", "student", "stages.b", "stages.a", "evaluate")):
        pretend_run(copy, f"20300101-00000{number}", step, f"{number}" * 16)
        found = {verdict.what.split("/")[-1] for verdict in plan_gc(Workspace(Root.of(copy))) if verdict.kept}
        kept.append({numbers[name] for name in found & numbers.keys()})
    assert kept == [{0}, {0, 1}, {0, 2}, {2, 3}, {4}]


def test_plan_gc_keeps_what_an_active_run_may_resume(copy: Path) -> None:
    run = Root.of(copy) / "runs" / "tiny-20300101-000000"
    run.child("plan.json").write(b'[{"step": "data.pool", "section": ["data", "pool"], "artifact": null}]')
    with hold_lock(Root.of(copy) / "claims" / "runs" / run.name, lambda _: None, lambda: None):
        gone = {name.split("/")[0] for name in names_to_delete(copy, keep=0)}
    assert gone == set(STEPS) - {"data.pool"} | {"labels"}


def test_plan_gc_deletes_labels_with_their_teacher(copy: Path, recipe: Path) -> None:
    must.run(recipe, copy, OTHER_TEACHER)
    folders = {path.name for path in (copy / "labels").glob("gabor-*")}
    assert len(folders) == 2
    workspace = Workspace(Root.of(copy))
    delete_files(workspace.root, plan_gc(workspace), run_names(workspace.root))
    assert {path.name for path in (copy / "labels").glob("gabor-*")} < folders
    assert {path.name for path in (copy / "labels").glob("masks-*")}
    assert not [each for each in must.plan(recipe, copy, OTHER_TEACHER) if each.artifact is None]


def test_plan_gc_keeps_rejections(copy: Path) -> None:
    root = Root.of(copy)
    reject(root, ["0123456789abcdef"], "gone-0123456789ab", "wrong")
    shutil.rmtree(copy / "runs")
    verdicts = plan_gc(Workspace(root))
    assert [(list(v.files), v.why) for v in verdicts if v.kept] == [([PATH], "what was rejected by hand")]
    delete_files(root, verdicts, run_names(root))
    assert len(read_rejections(root)) == 1
    assert [path.name for path in (copy / "labels").iterdir()] == ["rejected.parquet"]


@pytest.mark.parametrize("content", ["{", "5", '[{"step": "x"}]', '[{"step": 1, "section": [], "artifact": null}]'])
def test_list_runs_names_a_damaged_plan(content: str, copy: Path) -> None:
    plan = next((copy / "runs").iterdir()) / "plan.json"
    plan.write_text(content)
    with pytest.raises(DataError, match=rf"{re.escape(str(plan))}: damaged .*Delete the run's folder"):
        list_runs(Root.of(copy))


def test_list_runs_leaves_out_lines_that_are_no_events(copy: Path) -> None:
    before = list_runs(Root.of(copy))
    with open(next((copy / "runs").iterdir()) / "events.jsonl", "a", encoding="utf-8") as file:
        file.write('{}\n[]\n5\n{"event": 1}\n{"event": "made", "artifact": "x"}\n{"event": "made", "artif')
    assert list_runs(Root.of(copy)) == before


def test_plan_gc_deletes_what_killed_runs_left(copy: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run = copy / "runs" / "killed" / ".recipe.yaml.0123.part"
    lease = copy / "claims" / "runs" / "killed" / "0.json"
    for file, content in (
        (run, "name: "),
        (lease, json.dumps({"holder": ProcessId.from_pid(holder.pid).__dict__, "token": "theirs"})),
    ):
        file.parent.mkdir(parents=True)
        file.write_text(content)
    assert names_to_delete(copy) == set(), "it is at work"
    holder.communicate(b"end\n")
    assert names_to_delete(copy) == {"*.part", "locks"}
    workspace = Workspace(Root.of(copy))
    delete_files(workspace.root, plan_gc(workspace), run_names(workspace.root))
    assert not run.parent.exists()
    assert not lease.parent.exists()
    assert (copy / "runs").exists()


def test_plan_gc_deletes_half_written_files(copy: Path) -> None:
    part = next((copy / "labels").iterdir()) / ".0123.parquet.77.part"
    part.write_bytes(b"half")
    assert names_to_delete(copy) == {"*.part"}
    workspace = Workspace(Root.of(copy))
    delete_files(workspace.root, plan_gc(workspace), run_names(workspace.root))
    assert not part.exists()


def test_plan_gc_deletes_stray_files_of_sealed_artifacts_once(copy: Path) -> None:
    """A process was killed while it deleted its work, another one while it wrote."""
    (teacher,) = (copy / "artifacts" / "teacher.masks").iterdir()
    (teacher / "work" / "deep").mkdir(parents=True)
    (teacher / "work" / "deep" / "state").write_bytes(b"123")
    (teacher / ".x.0123.part").write_bytes(b"12")
    (copy / "artifacts" / ".DS_Store").write_bytes(b"odd")
    (copy / "artifacts" / "student" / ".DS_Store").write_bytes(b"odd")
    root = Root.of(copy)
    what = f"teacher.masks/{teacher.name}"
    with hold_lock(root / "claims" / what, lambda _: None, lambda: None):
        assert names_to_delete(copy) == set(), "the holder of the lock may be writing there"
    verdicts = plan_gc(Workspace(root))
    (left,) = (verdict for verdict in verdicts if not verdict.kept)
    assert (left.what, left.size, len(left.files)) == (what, 5, 2)
    files = [name for verdict in verdicts for name in verdict.files]
    assert len(files) == len(set(files)), "counted twice"
    delete_files(root, verdicts, run_names(root))
    assert sorted(path.name for path in teacher.iterdir() if path.name.startswith(".") or path.name == "work") == []
    assert names_to_delete(copy) == set()
    run_command("artifacts", "verify", "--root", copy, code=0)


def test_plan_gc_lists_the_artifacts_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    files = StoragePath.files

    def watched(place: StoragePath) -> dict[str, int]:
        listed.append(place.relative_to(StoragePath.of(str(copy))))
        return files(place)

    monkeypatch.setattr(StoragePath, "files", watched)
    plan_gc(Workspace(Root.of(copy)))
    assert [name for name in listed if name.startswith("artifacts")] == ["artifacts"]


def test_artifacts_verify_does_not_look_at_what_a_run_makes(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (student,) = (copy / "artifacts" / "student").iterdir()
    (student / "model.safetensors").write_bytes(b"being written")
    with hold_lock(Root.of(copy) / f"claims/student/{student.name}", lambda _: None, lambda: None):
        run_command("artifacts", "verify", "student", "--root", copy, "--repair", code=0)
    assert f"student/{student.name}: not looked at. Another run, process" in capsys.readouterr().out
    assert (student / "model.safetensors").exists()


def test_artifacts_verify_names_a_file_that_cannot_be_read(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector of a disk is one of the things it is there to find."""
    (student,) = (copy / "artifacts" / "student").iterdir()
    open_file = root_module.open_file

    def open_unless_bad(path: StoragePath) -> IO[bytes]:
        if path.name == "model.safetensors":
            raise OSError(errno.EIO, "Input/output error")
        return open_file(path)

    monkeypatch.setattr(root_module, "open_file", open_unless_bad)
    run_command("artifacts", "verify", "--root", copy, code=3)
    shown = capsys.readouterr().out
    assert f"{student / 'model.safetensors'}: can't be read (Input/output error)" in shown
    assert "artifacts, 2 damaged or missing files" in shown


def test_plan_gc_keeps_what_an_active_run_uses(copy: Path, recipe: Path, start: Start, finished_root: Path) -> None:
    """A run of another recipe is training: what both runs refer to is kept, labels included."""
    process = start(copy, *(part for each in ["seed=1", *OTHER] for part in ("-o", each)))
    wait_until(
        lambda: sum(log.stat().st_size > 0 for log in copy.glob("artifacts/teacher.masks/*/log/train.jsonl")) == 2,
        process,
    )
    verdicts = plan_gc(Workspace(Root.of(copy)))
    in_use = [verdict for verdict in verdicts if "uses it now" in verdict.why or "at work on it" in verdict.why]
    assert {"data.world", "data.pool", "teacher.masks"} <= {verdict.what.split("/")[0] for verdict in in_use}
    delete_files(Workspace(Root.of(copy)).root, verdicts, run_names(Workspace(Root.of(copy)).root))
    process.join()
    assert process.exitcode == 0
    assert not [each for each in must.plan(recipe, copy, ["seed=1", *OTHER]) if each.artifact is None]


def test_plan_gc_keeps_unfinished_steps(up_to_label: Path, start: Start, resume: Resume) -> None:
    root, process = up_to_label, start(up_to_label, "--to", "label")
    wait_until(lambda: len(list(root.glob("labels/*/[!.]*"))) >= 4, process)
    process.kill()
    process.join()
    labels = set(root.glob("labels/*/[!.]*"))
    workspace = Workspace(Root.of(root))
    verdicts = plan_gc(workspace)
    assert any(verdict.kept and "unfinished" in verdict.why for verdict in verdicts)
    delete_files(workspace.root, verdicts, run_names(workspace.root))
    assert set(root.glob("labels/*/[!.]*")) == labels
    outcome = resume(root, "label")
    assert 0 < outcome.artifacts["label"].counts["labelled_now"] < 48
