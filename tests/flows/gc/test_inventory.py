"""What a root holds, what is damaged, what is kept and what is not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import must
from cli.main import main
from flows.gc.inventory import Verdict, delete_files, find_artifact, list_artifacts, list_runs, plan_gc
from flows.plan.selection import Selection
from flows.run.run import Outcome
from pipeline.errors import ConfigError, DataError
from pipeline.steps.workspace import Workspace
from pipeline.storage.lock import hold_lock
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from pipeline.stores.rejections import PATH, read_rejections, reject
from tests.flows.tiny import STEPS, digests, loads_nothing_heavy, within

Start = Callable[..., BaseProcess]
GoesOn = Callable[[Path], Outcome]
OTHER = ["student.lr=0.01"]


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def said(*arguments: object, code: int | None = None) -> None:
    """Give the command; it has to end with this code."""
    if code is None:
        main([str(argument) for argument in arguments])
        return
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == code


def test_the_list_has_a_line_for_every_artifact(whole: Path) -> None:
    text = loads_nothing_heavy("artifacts", "ls", "--root", whole)
    lines = [line.split() for line in text.splitlines()]
    assert [line[0] for line in lines[1:]] == sorted(STEPS)
    (run,) = (whole / "runs").iterdir()
    assert all(line[-1] == run.name for line in lines[1:])
    rows = json.loads(loads_nothing_heavy("artifacts", "ls", "--root", whole, "--json"))
    assert [row["step"] for row in rows] == sorted(STEPS)
    assert all(row["sealed"] and row["bytes"] > 0 and row["runs"] == [run.name] for row in rows)


def test_one_artifact_is_shown_with_what_it_came_from(whole: Path) -> None:
    text = loads_nothing_heavy("artifacts", "show", "teacher.masks", "--root", whole)
    for word in ("teachers.supervised:make", "backbone: test_resnet", "data.world", "model.safetensors", "torch"):
        assert word in text
    manifest = json.loads(loads_nothing_heavy("artifacts", "show", "label", "--root", whole, "--json"))
    assert manifest["step"] == "label"


def test_what_is_not_there_is_told_with_what_is(whole: Path) -> None:
    root = Root.of(whole)
    held = list_artifacts(root, list_runs(root))
    fingerprint = find_artifact(root, "student", held).key[1]
    assert find_artifact(root, f"student/{fingerprint[:5]}", held).key == ("student", fingerprint)
    with pytest.raises(ConfigError, match=r"'studnet' is unknown\. Did you mean 'student'"):
        find_artifact(root, "studnet", held)
    with pytest.raises(ConfigError, match=f"Fingerprint of student: 'zz' is unknown.*{fingerprint}"):
        find_artifact(root, "student/zz", held)


def test_whole_artifacts_are_found_whole(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said("artifacts", "verify", "--root", whole, code=0)
    assert capsys.readouterr().out == f"{len(STEPS)} artifacts, no damaged or missing files.\n"


@pytest.mark.parametrize("file", ["labels/gabor-*/*.parquet", "artifacts/student/*/backbone.safetensors"])
@pytest.mark.parametrize("damage", ["a bit", "the end", "all"])
def test_damage_is_found_named_and_made_again(
    file: str, damage: str, copy: Path, capsys: pytest.CaptureFixture[str], goes_on: GoesOn
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
    said("artifacts", "verify", "--root", copy, code=3)
    wrong = "missing" if damage == "all" else "its bytes changed since it was made"
    assert f"{target}: {wrong}\n" in capsys.readouterr().out
    said("artifacts", "verify", "--root", copy, "--repair", code=3)
    assert not target.exists()
    outcome = goes_on(copy)
    assert outcome.ran == 1
    said("artifacts", "verify", "--root", copy, code=0)


def deleted(root: Path, keep: int = 1) -> set[str]:
    """What would go."""
    return {verdict.what for verdict in plan_gc(Workspace(Root.of(root)), keep) if not verdict.kept}


def test_what_older_runs_alone_refer_to_is_not_kept(
    copy: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deleted(copy) == set()
    must.run(recipe, copy, OTHER)
    old = {
        f"{path.parent.name}/{path.name}"
        for name in ("student", "evaluate")
        for path in (copy / "artifacts" / name).iterdir()
    }
    assert len(old) == 4
    assert deleted(copy, keep=2) == set()
    gone = deleted(copy)
    assert gone < old
    assert len(gone) == 2
    before = sorted(copy.rglob("*"))
    said("artifacts", "gc", "--root", copy, code=0)
    assert sorted(copy.rglob("*")) == before, "a dry run deleted something"
    shown = capsys.readouterr().out
    assert "Nothing was deleted" in shown
    assert all(f"{name} " in shown for name in old)
    said("artifacts", "gc", "--root", copy, "--delete", code=0)
    assert deleted(copy) == set()
    assert {f"{path.parent.name}/{path.name}" for path in copy.glob("artifacts/*/*")} & old == old - gone
    assert not [each for each in must.plan(recipe, copy, OTHER) if each.artifact is None]


def test_neither_a_part_of_a_run_nor_one_that_failed_takes_the_place_of_a_whole_one(copy: Path, recipe: Path) -> None:
    must.run(recipe, copy, ["teachers.gabor.wavelengths=[8.0]"], Selection("teacher.gabor"))
    assert deleted(copy) == set()
    with pytest.raises(DataError, match="miou"):
        must.run(recipe, copy, ["teachers.masks.require={miou: 1.0}"])
    assert deleted(copy) == set()
    must.run(recipe, copy, ["teachers.gabor.wavelengths=[8.0]"])
    assert {name.split("/")[0] for name in deleted(copy)} >= {"teacher.gabor", "label", "student", "evaluate"}


def pretended(root: Path, time: str, step: str, fingerprint: str) -> None:
    """A finished run that made one artifact."""
    made = shutil.copytree(next((root / "artifacts" / "evaluate").iterdir()), root / "artifacts" / step / fingerprint)
    run = root / "runs" / f"tiny-{time}"
    run.mkdir()
    (run / "plan.json").write_text(
        json.dumps([{"step": step, "section": step.split("."), "artifact": made.name}]), "utf-8"
    )
    (run / "events.jsonl").write_text(json.dumps({"time": 0, "event": "finished"}), "utf-8")


def test_a_comparison_takes_the_place_of_none_but_the_one_of_its_name(copy: Path) -> None:
    for number, name in enumerate(("compare.first.x", "compare.second.x", "compare.first.x")):
        pretended(copy, f"20300101-00000{number}", name, f"{number}" * 16)
    assert deleted(copy) == {f"compare.first.x/{'0' * 16}"}


def test_what_a_run_at_work_may_grow_from_is_kept(copy: Path) -> None:
    run = Root.of(copy) / "runs" / "tiny-20300101-000000"
    run.child("plan.json").write(b'[{"step": "data.pool", "section": ["data", "pool"], "artifact": null}]')
    with hold_lock(Root.of(copy) / "claims" / "runs" / run.name, lambda _: None, lambda: None):
        gone = {name.split("/")[0] for name in deleted(copy, keep=0)}
    assert gone == set(STEPS) - {"data.pool"} | {"labels"}


def test_labels_of_a_teacher_that_is_not_kept_go_with_it(copy: Path, recipe: Path) -> None:
    must.run(recipe, copy, ["teachers.gabor.wavelengths=[8.0]"])
    folders = {path.name for path in (copy / "labels").glob("gabor-*")}
    assert len(folders) == 2
    workspace = Workspace(Root.of(copy))
    delete_files(workspace.root, plan_gc(workspace))
    assert {path.name for path in (copy / "labels").glob("gabor-*")} < folders
    assert {path.name for path in (copy / "labels").glob("masks-*")}
    assert not [each for each in must.plan(recipe, copy, ["teachers.gabor.wavelengths=[8.0]"]) if each.artifact is None]


def test_what_was_rejected_by_hand_stays_whatever_it_is_about(copy: Path) -> None:
    root = Root.of(copy)
    reject(root, ["0123456789abcdef"], "gone-0123456789ab", "wrong")
    shutil.rmtree(copy / "runs")
    verdicts = plan_gc(Workspace(root))
    assert [(v.files, v.why) for v in verdicts if v.kept] == [((PATH,), "what was rejected by hand")]
    delete_files(root, verdicts)
    assert len(read_rejections(root)) == 1
    assert [path.name for path in (copy / "labels").iterdir()] == ["rejected.parquet"]


def test_leftovers_of_killed_writers_go(copy: Path) -> None:
    part = next((copy / "labels").iterdir()) / ".0123.parquet.77.part"
    part.write_bytes(b"half")
    assert deleted(copy) == {"*.part"}
    workspace = Workspace(Root.of(copy))
    delete_files(workspace.root, plan_gc(workspace))
    assert not part.exists()


def test_what_is_left_in_a_sealed_folder_goes_once(copy: Path) -> None:
    """A process was killed while it cleared its work away, another one while it wrote."""
    (teacher,) = (copy / "artifacts" / "teacher.masks").iterdir()
    (teacher / "work" / "deep").mkdir(parents=True)
    (teacher / "work" / "deep" / "state").write_bytes(b"123")
    (teacher / ".x.0123.part").write_bytes(b"12")
    (copy / "artifacts" / ".DS_Store").write_bytes(b"odd")
    (copy / "artifacts" / "student" / ".DS_Store").write_bytes(b"odd")
    root = Root.of(copy)
    what = f"teacher.masks/{teacher.name}"
    with hold_lock(root / "claims" / what, lambda _: None, lambda: None):
        assert deleted(copy) == set(), "it may be at work in there"
    verdicts = plan_gc(Workspace(root))
    (left,) = (verdict for verdict in verdicts if not verdict.kept)
    assert (left.what, left.size, len(left.files)) == (what, 5, 2)
    files = [name for verdict in verdicts for name in verdict.files]
    assert len(files) == len(set(files)), "counted twice"
    delete_files(root, verdicts)
    assert sorted(path.name for path in teacher.iterdir() if path.name.startswith(".") or path.name == "work") == []
    assert deleted(copy) == set()
    said("artifacts", "verify", "--root", copy, code=0)


def test_what_there_is_is_listed_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    files = StoragePath.files

    def watched(place: StoragePath) -> dict[str, int]:
        listed.append(place.relative_to(StoragePath.of(str(copy))))
        return files(place)

    monkeypatch.setattr(StoragePath, "files", watched)
    plan_gc(Workspace(Root.of(copy)))
    assert [name for name in listed if name.startswith("artifacts")] == ["artifacts"]


def test_to_remove_nothing_is_nothing(copy: Path) -> None:
    before = sorted(copy.rglob("*"))
    delete_files(Root.of(copy), [Verdict("nothing", (), 0, False, "")])
    assert sorted(copy.rglob("*")) == before


def test_nothing_goes_that_a_run_at_work_uses(copy: Path, recipe: Path, start: Start, whole: Path) -> None:
    """A second run of another recipe begins while gc looks: what both refer to stays, to the last label."""
    process = start(copy, *(part for each in ["seed=1"] for part in ("-o", each)))
    within(lambda: sum(log.stat().st_size > 0 for log in copy.glob("artifacts/teacher.masks/*/log/*")) == 2, process)
    verdicts = plan_gc(Workspace(Root.of(copy)))
    at_work = [verdict for verdict in verdicts if "uses it now" in verdict.why or "at work on it" in verdict.why]
    assert {"data.world", "data.pool", "teacher.masks"} <= {verdict.what.split("/")[0] for verdict in at_work}
    delete_files(Workspace(Root.of(copy)).root, verdicts)
    process.join()
    assert process.exitcode == 0
    assert not [each for each in must.plan(recipe, copy, ["seed=1"]) if each.artifact is None]


def test_what_an_unfinished_step_left_is_kept_for_the_next_run(root: Path, start: Start, goes_on: GoesOn) -> None:
    process = start(root)
    within(lambda: len(list(root.glob("labels/*/[!.]*"))) >= 4, process)
    process.kill()
    process.join()
    labels = set(root.glob("labels/*/[!.]*"))
    workspace = Workspace(Root.of(root))
    verdicts = plan_gc(workspace)
    assert any(verdict.kept and "unfinished" in verdict.why for verdict in verdicts)
    delete_files(workspace.root, verdicts)
    assert set(root.glob("labels/*/[!.]*")) == labels
    goes_on(root)
    assert len(digests(root)) == len(STEPS)
