"""Test artifacts: sealed completely or not at all, found again, and verified; on local disk and object storage."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.steps.artifact import (
    EXTERNAL_FILES,
    INHERITED_FILES,
    MANIFEST,
    Artifact,
    Inputs,
    Step,
    StepKind,
    fingerprint,
    parse_lines,
    verify,
)
from pipeline.steps.config_hash import hash_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root, hash_file
from tests.disk import folder_of
from tests.steps import make_step


def write_result(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    (out / "log").mkdir(exist_ok=True)
    (out / "log" / "times.txt").write_text(str(config.get("noise", "")))
    (out / "work").mkdir(exist_ok=True)
    (out / "work" / "scratch").write_text("gone when sealed")
    (out / "result.txt").write_text(config["text"])
    (out / "more").mkdir()
    (out / "more" / "odd ü#?%20+.txt").write_text("odd")
    return {"letters": len(config["text"])}


def count_to_three(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Count on from the last attempt, and fail until the count is three."""
    (out / "work").mkdir(exist_ok=True)
    state = out / "work" / "state.txt"
    reached = 1 + (int(state.read_text()) if state.exists() else 0)
    state.write_text(str(reached))
    (out / "half.txt").write_text("half")
    if config.get("keeps", True):
        inputs.runtime.root.upload(state)
    if reached < 3:
        raise DataError("not there yet")
    (out / "result.txt").write_text(str(reached))
    return {}


def write_elsewhere(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    root = inputs.runtime.root
    root.local_path("far").mkdir(parents=True, exist_ok=True)
    root.local_path("far/away.txt").write_text("far")
    facts = {"size": 3, "sha256": FAR}
    root.publish("far/away.txt", facts)
    return {EXTERNAL_FILES: {"far/away.txt": facts}}


def write_or_adopt(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write a file, and a second one unless the previous artifact has one to inherit."""
    (out / "mine.txt").write_text(config["text"])
    before = inputs.previous
    if before is None:
        (out / "first.txt").write_text("made once")
        return {}
    earlier = next(name for name in before.manifest["files"] if name.endswith("first.txt"))
    return {"grown": 1, INHERITED_FILES: {"deep/first.txt": earlier}}


HERE = f"{__name__}:"
FAR = "512eea46ceb3921dff4363c7069d89d4964d1d9fccaa0f411851a7aa60a5c868"


def step(text: str = "abc", run: str = "write_result", **config: Any) -> Step:
    return make_step("writing", HERE + run, {"text": text, **config})


def make(root: Root, one: Step) -> Artifact:
    return Workspace(root).make(one, Inputs({}, Runtime(root)))


def find(root: Root, one: Step) -> Artifact | None:
    return Workspace(root).find(one, fingerprint(one, {}))


def place_of(root: Root, one: Step) -> StoragePath:
    return root / Workspace(root).path(one, fingerprint(one, {}))


def test_workspace_finds_a_made_artifact_with_its_counts(any_root: Root) -> None:
    made = make(any_root, step())
    found = find(any_root, step())
    assert found is not None
    assert found.digest == made.digest
    assert found.counts == {"letters": 3}
    assert sorted(place_of(any_root, step()).files()) == [
        "log/times.txt",
        "manifest.json",
        "more/odd ü#?%20+.txt",
        "result.txt",
    ]


def test_artifact_is_the_same_on_every_root(any_root: Root, tmp_path: Path) -> None:
    made, here = make(any_root, step()), make(Root.of(tmp_path / "here"), step())
    assert made.digest == here.digest
    assert made.manifest["files"] == here.manifest["files"]


def test_artifact_load_reads_its_files(any_root: Root) -> None:
    made = make(any_root, step())
    assert made.load("result.txt", Path.read_text) == "abc"
    assert made.load("more/odd ü#?%20+.txt", Path.read_text) == "odd"
    assert made.file("result.txt").read(1, 1) == b"b"
    assert made.load_all(lambda folder: (folder / "more" / "odd ü#?%20+.txt").read_text()) == "odd"
    assert made.has("result.txt")
    with pytest.raises(DataError, match=r"its manifest lists no file 'none\.txt'"):
        made.file("none.txt")


def test_artifact_load_error_names_the_file_and_no_copy(any_root: Root) -> None:
    made = make(any_root, step())

    def refuse(path: Path) -> None:
        raise DataError(f"{path}: not to my taste")

    with pytest.raises(DataError) as refused:
        made.load("result.txt", refuse)
    assert str(refused.value) == f"{made}/result.txt: not to my taste"


def test_artifact_is_read_on_another_machine(any_root: Root) -> None:
    """Only the root is shared between machines."""
    make(any_root, step())
    if not any_root.local:
        shutil.rmtree(any_root.cache.folder)
    found = find(any_root, step())
    assert found is not None
    assert found.load("result.txt", Path.read_text) == "abc"
    assert list(verify(found)) == []


def test_artifact_digest_is_of_the_results_alone(any_root: Root) -> None:
    quiet, noisy = make(any_root, step(noise="1")), make(any_root, step(noise="2"))
    assert quiet.path != noisy.path, "another configuration has another address"
    assert quiet.digest == noisy.digest, "but the same result"
    assert make(any_root, step("abd")).digest != quiet.digest


def test_artifact_load_refuses_a_small_file_that_has_changed(tmp_path: Path) -> None:
    """Of the same size, so that the artifact counts as complete."""
    workspace = Workspace(Root.of(tmp_path / "root"))
    step = make_step("made", f"{__name__}:write_result", {"text": "abc"})
    made = workspace.make(step, Inputs({}, Runtime(workspace.root)))
    assert made.load("result.txt", Path.read_text) == "abc"
    Path(made.file("result.txt").path).write_text("abd")
    with pytest.raises(DataError, match=r"result\.txt: its bytes changed since it was made.*verify --repair"):
        made.load("result.txt", Path.read_text)


@pytest.mark.parametrize("change", [{"text": "abd"}, {"more": 1}])
def test_fingerprint_follows_the_configuration(change: dict[str, Any]) -> None:
    assert fingerprint(step(), {}) != fingerprint(step(**change), {})


def test_fingerprint_does_not_follow_the_functions_path() -> None:
    assert fingerprint(make_step("one", "m:f", {}), {}) == fingerprint(make_step("one", "elsewhere:g", {}), {})


def test_fingerprint_and_manifest_leave_passwords_out(any_root: Root) -> None:
    steps = [make_step("one", "m:f", {"path": [f"https://me:{password}@host/x"]}) for password in ("one", "two")]
    assert fingerprint(steps[0], {}) == fingerprint(steps[1], {})
    made = make(any_root, step(path="https://me:pw@host/x"))
    assert made.manifest["config"]["path"] == "https://me:***@host/x"


def test_fingerprint_follows_version_and_inputs() -> None:
    one = make_step("writing", "m:f", {}, ("before",))
    assert fingerprint(one, {"before": "1"}) != fingerprint(one, {"before": "2"})
    assert fingerprint(one, {"before": "1"}) != fingerprint(
        make_step("writing", "m:f", {}, ("before",), version=2), {"before": "1"}
    )
    assert fingerprint(one, {"before": "1"}) == fingerprint(one, {"before": "1", "another": "3"})


def test_workspace_does_not_find_a_cut_file_and_verify_names_a_changed_one(any_root: Root) -> None:
    made = make(any_root, step())
    file = place_of(any_root, step()).child("result.txt")
    file.write(b"abX")
    assert [f"{one}: {wrong}" for one, wrong in verify(made)] == [f"{file}: its bytes changed since it was made"]
    assert find(any_root, step()) is not None, "a look at sizes alone does not see it"
    file.write(b"ab")
    assert find(any_root, step()) is None
    file.remove()
    assert [f"{one}: {wrong}" for one, wrong in verify(made)] == [f"{file}: missing"]
    assert find(any_root, step()) is None


def test_artifact_has_external_files(any_root: Root) -> None:
    far = step(run="write_elsewhere")
    made = make(any_root, far)
    assert made.external_file("far/away.txt").load(Path.read_text) == "far"
    assert find(any_root, far) is not None
    (any_root / "far/another.txt").write(b"of no concern")
    assert find(any_root, far) is not None
    (any_root / "far/away.txt").remove()
    assert find(any_root, far) is None


def test_workspace_removes_unfinished_attempts_but_for_the_steps_scratch(any_root: Root) -> None:
    folder = place_of(any_root, step())
    for name in ("stale/part.txt", "stale.txt", "work/more", "log/more"):
        folder.child(name).write(b"x")
    made = make(any_root, step())
    assert sorted(made.manifest["files"]) == ["log/more", "log/times.txt", "more/odd ü#?%20+.txt", "result.txt"]
    assert sorted(folder.files()) == sorted([*made.manifest["files"], MANIFEST])


@pytest.mark.parametrize("another_machine", [False, True])
def test_workspace_resumes_from_kept_files(any_root: Root, another_machine: bool) -> None:
    counting = step(run="count_to_three")
    for _ in range(2):
        with pytest.raises(DataError, match="not there yet"):
            make(any_root, counting)
        assert find(any_root, counting) is None
        if another_machine and not any_root.local:
            shutil.rmtree(any_root.cache.folder)
    made = make(any_root, counting)
    assert made.load("result.txt", Path.read_text) == "3"
    assert sorted(place_of(any_root, counting).files()) == ["half.txt", "manifest.json", "result.txt"]


def test_workspace_resumes_on_this_machine_without_an_upload(any_root: Root) -> None:
    counting = step(run="count_to_three", keeps=False)
    for _ in range(2):
        with pytest.raises(DataError, match="not there yet"):
            make(any_root, counting)
    assert make(any_root, counting).load("result.txt", Path.read_text) == "3"


def test_workspace_removes_the_manifest_before_making_again(any_root: Root) -> None:
    counting = step(run="count_to_three")
    folder = place_of(any_root, counting)
    folder.child(MANIFEST).write(b"{}")
    with pytest.raises(DataError, match="not there yet"):
        make(any_root, counting)
    assert folder.child(MANIFEST).read_if_exists() is None


def test_workspace_writes_the_manifest_last(any_root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted attempt may leave files, but no manifest."""

    def lost(self: Root, path: str, files: object, inherited: object) -> None:
        publish_all(self, path, dict(list(made.manifest["files"].items())[:2]))
        raise DataError("the line is dead")

    made = make(any_root, step("other"))
    publish_all = Root.publish_all
    monkeypatch.setattr(Root, "publish_all", lost)
    with pytest.raises(DataError, match="the line is dead"):
        make(any_root, step())
    assert find(any_root, step()) is None
    monkeypatch.undo()


def test_parse_lines_leaves_out_cut_lines() -> None:
    whole = ['{"a": 1}', '{"b": "ü"}']
    assert list(parse_lines("\n".join(whole).encode())) == [{"a": 1}, {"b": "ü"}]
    assert list(parse_lines(b'{"a": 1}\n{"b": {"c": 2}{"d": 3}\n{"e": 4}\n{"f"')) == [{"a": 1}, {"e": 4}]
    assert list(parse_lines('{"a": 1}\n{"b": "ü'.encode()[:-1])) == [{"a": 1}]


def test_workspace_finds_the_newest_artifact_of_a_step(any_root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Workspace(any_root).newest("writing") is None
    texts = ["abc", "abd", "abe"]
    marks = [make(any_root, step(text)).manifest["fingerprint"] for text in texts]
    place_of(any_root, step(run="count_to_three")).child("work/unfinished").write(b"")
    # storage tells the time in seconds
    times = dict(zip(marks, (5.0, 7.0, 6.0), strict=True))
    monkeypatch.setattr(StoragePath, "modified", lambda place: times.get(place.parent.name))
    newest = Workspace(any_root).newest("writing")
    assert newest is not None
    assert newest.manifest["config"]["text"] == "abd"


def test_artifact_knows_when_a_file_was_written(any_root: Root) -> None:
    assert (any_root / "x").modified() is None
    (any_root / "x").write(b"")
    assert (any_root / "x").modified()


def test_workspace_leaves_nothing_in_scratch(bucket: str) -> None:
    root = Root.of(f"{bucket}/root")
    make(root, step())
    left = [path for path in root.local_path().rglob("*") if path.is_file()]
    assert left == []


def test_workspace_makes_a_local_artifact_in_its_folder(tmp_path: Path) -> None:
    root = Root.of(tmp_path)
    made = make(root, step())
    assert folder_of(made) == tmp_path / "artifacts" / "writing" / made.manifest["fingerprint"]
    assert made.load("result.txt", lambda path: path) == folder_of(made) / "result.txt"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts"]


def grow(root: Root, text: str, **config: Any) -> Artifact:
    return make(root, incremental(step(text, "write_or_adopt", **config)))


def incremental(one: Step, **changed: Any) -> Step:
    """Return an incremental step, which may reuse artifacts with other texts and paths."""
    return dataclasses.replace(
        one, kind=dataclasses.replace(one.kind, **{"incremental_keys": ("text", "place.path"), **changed})
    )


def test_incremental_step_gets_its_previous_artifact(any_root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(any_root, "0", place={"path": "here"})
    first = grow(any_root, "1", place={"path": "here"})
    hashed: list[str] = []

    def watched(path: Path) -> str:
        hashed.append(path.name)
        return hash_file(path)

    monkeypatch.setattr("pipeline.steps.artifact.hash_file", watched)
    second = grow(any_root, "2", place={"path": "there"})
    assert hashed == ["mine.txt"], "the hash of what is taken over is known"
    assert second.counts == {"grown": 1}
    assert sorted(second.manifest["files"]) == ["deep/first.txt", "mine.txt"]
    assert second.load("deep/first.txt", Path.read_text) == first.load("deep/first.txt", Path.read_text)
    if any_root.local:
        assert (folder_of(second) / "deep" / "first.txt").samefile(folder_of(first) / "deep" / "first.txt")
    assert not list(verify(second))
    assert second.is_whole()


@pytest.mark.parametrize(
    "other",
    [
        {"more": 1},
        {"place": {"path": "here", "kind": "b"}},
        {"version": 2},
        {"name": "rewriting"},
        {"incremental_keys": ()},
        {"incremental_keys": None},
    ],
)
def test_incremental_step_ignores_artifacts_of_other_settings(any_root: Root, other: dict[str, Any]) -> None:
    grow(any_root, "1", place={"path": "here", "kind": "a"})
    of_kind = {field.name for field in dataclasses.fields(StepKind)} - {"name"}
    config = {key: value for key, value in other.items() if key not in {"name", *of_kind}}
    two = step("2", "write_or_adopt", **{"place": {"path": "here", "kind": "a"}, **config})
    two = incremental(two, **{key: other[key] for key in other.keys() & of_kind})
    made = make(any_root, dataclasses.replace(two, name=other.get("name", two.name)))
    assert "grown" not in made.counts


def test_incremental_step_ignores_broken_artifacts(any_root: Root) -> None:
    first = grow(any_root, "1")
    first.file("first.txt").path.remove()
    assert "grown" not in grow(any_root, "2").counts


def test_incremental_step_made_again_ignores_itself(any_root: Root) -> None:
    grow(any_root, "1")
    assert "grown" not in grow(any_root, "1").counts


def test_workspace_keeps_scratch_if_interrupted_while_hashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(path: Path) -> str:
        raise KeyboardInterrupt

    root = Root.of(tmp_path)
    with monkeypatch.context() as ending:
        ending.setattr("pipeline.steps.artifact.hash_file", ends)
        with pytest.raises(KeyboardInterrupt):
            make(root, step())
    assert "work/scratch" in place_of(root, step()).files()
    assert "log/times.txt" in make(root, step()).manifest["files"]


def test_hash_json_refuses_values_without_a_canonical_form() -> None:
    assert hash_json({"b": 1, "a": 2}) == hash_json({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        hash_json(float("nan"))
