"""Steps and artifacts: made whole or not at all, found again, and verified."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import (
    ADOPTED,
    MANIFEST,
    Artifact,
    Inputs,
    Step,
    Workspace,
    fingerprint,
    hash_file,
    hash_json,
    verify,
)
from pipeline.errors import DataError
from pipeline.runtime import Runtime


def write_result(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    (out / "log").mkdir(exist_ok=True)
    (out / "log" / "times.txt").write_text(str(config.get("noise", "")))
    (out / "work").mkdir(exist_ok=True)
    (out / "work" / "scratch").write_text("gone when sealed")
    (out / "result.txt").write_text(config["text"])
    return {"letters": len(config["text"])}


def fill_the_disk(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    (out / "half.txt").write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def write_or_adopt(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write a file of its own, and a second one unless there is one to take over."""
    (out / "mine.txt").write_text(config["text"])
    before = inputs.before
    if before is None:
        (out / "first.txt").write_text("made once")
        return {}
    earlier = next(name for name in before.manifest["files"] if name.endswith("first.txt"))
    return {"grown": 1, ADOPTED: {"deep/first.txt": earlier}}


HERE = f"{__name__}:"


def step(text: str = "abc", run: str = "write_result", **config: Any) -> Step:
    return Step("writing", HERE + run, {"text": text, **config})


def make(root: Path, one: Step) -> Artifact:
    return Workspace(root).make(one, Inputs({}, Runtime(root)))


def test_a_made_artifact_is_found_and_holds_its_counts(tmp_path: Path) -> None:
    made = make(tmp_path, step())
    found = Workspace(tmp_path).find(step(), fingerprint(step(), {}))
    assert found is not None
    assert found.digest == made.digest
    assert found.counts == {"letters": 3}
    assert not (made.path / "work").exists()


def test_the_digest_is_that_of_the_results_alone(tmp_path: Path) -> None:
    quiet, noisy = make(tmp_path, step(noise="1")), make(tmp_path, step(noise="2"))
    assert quiet.path != noisy.path, "another configuration has another address"
    assert quiet.digest == noisy.digest, "but the same result"
    assert make(tmp_path, step("abd")).digest != quiet.digest


@pytest.mark.parametrize("change", [{"text": "abd"}, {"more": 1}])
def test_the_fingerprint_follows_the_configuration(change: dict[str, Any]) -> None:
    assert fingerprint(step(), {}) != fingerprint(step(**change), {})


def test_the_fingerprint_follows_version_and_inputs() -> None:
    one = Step("writing", "m:f", {}, ("before",))
    assert fingerprint(one, {"before": "1"}) != fingerprint(one, {"before": "2"})
    assert fingerprint(one, {"before": "1"}) != fingerprint(Step("writing", "m:f", {}, ("before",), 2), {"before": "1"})
    assert fingerprint(one, {"before": "1"}) == fingerprint(one, {"before": "1", "another": "3"})


def test_a_cut_file_is_not_found_and_a_changed_one_is_named(tmp_path: Path) -> None:
    made = make(tmp_path, step())
    (made.path / "result.txt").write_text("abX")
    assert [line.split(":")[0] for line in verify(made)] == [str(made.path / "result.txt")]
    assert Workspace(tmp_path).find(step(), made.path.name) is not None, "a look at sizes alone does not see it"
    (made.path / "result.txt").write_text("ab")
    assert Workspace(tmp_path).find(step(), made.path.name) is None


def test_what_an_unfinished_attempt_left_is_gone_but_for_its_own_scratch(tmp_path: Path) -> None:
    folder = Workspace(tmp_path).folder(step(), fingerprint(step(), {}))
    (folder / "stale").mkdir(parents=True)
    (folder / "stale" / "part.txt").write_text("x")
    (folder / "work").mkdir()
    made = make(tmp_path, step())
    assert sorted(made.manifest["files"]) == ["log/times.txt", "result.txt"]


def test_a_full_disk_is_said_so_and_seals_nothing(tmp_path: Path) -> None:
    full = step(run="fill_the_disk")
    with pytest.raises(DataError, match=r"writing: the disk that holds .* is full.*run the same command again"):
        make(tmp_path, full)
    folder = Workspace(tmp_path).folder(full, fingerprint(full, {}))
    assert not (folder / MANIFEST).exists()
    assert Workspace(tmp_path).find(full, folder.name) is None


def grow(root: Path, text: str, **config: Any) -> Artifact:
    return make(root, dataclasses.replace(step(text, "write_or_adopt", **config), grows=("text", "place.path")))


def test_a_step_goes_on_from_what_it_made_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "0", place={"path": "here"})
    first = grow(tmp_path, "1", place={"path": "here"})
    hashed: list[str] = []

    def watched(path: Path) -> str:
        hashed.append(path.name)
        return hash_file(path)

    monkeypatch.setattr("pipeline.artifacts.hash_file", watched)
    second = grow(tmp_path, "2", place={"path": "there"})
    assert hashed == ["mine.txt"], "the hash of what is taken over is known"
    assert second.counts == {"grown": 1}
    assert sorted(second.manifest["files"]) == ["deep/first.txt", "mine.txt"]
    assert (second.path / "deep" / "first.txt").samefile(first.path / "deep" / "first.txt")
    assert not list(verify(second))
    assert Workspace(tmp_path).find(step("2"), second.path.name) is not None


@pytest.mark.parametrize(
    "other",
    [
        {"more": 1},
        {"place": {"path": "here", "kind": "b"}},
        {"version": 2},
        {"name": "rewriting"},
        {"grows": ()},
    ],
)
def test_a_step_does_not_go_on_from_another(tmp_path: Path, other: dict[str, Any]) -> None:
    grow(tmp_path, "1", place={"path": "here", "kind": "a"})
    fields = {field.name for field in dataclasses.fields(Step)}
    config = {"place": {"path": "here", "kind": "a"}, **{key: other[key] for key in other.keys() - fields}}
    two = dataclasses.replace(step("2", "write_or_adopt", **config), grows=("text", "place.path"))
    made = make(tmp_path, dataclasses.replace(two, **{key: other[key] for key in other.keys() & fields}))
    assert "grown" not in made.counts


def test_a_step_does_not_go_on_from_what_is_not_whole(tmp_path: Path) -> None:
    first = grow(tmp_path, "1")
    (first.path / "first.txt").unlink()
    assert "grown" not in grow(tmp_path, "2").counts


def test_a_step_that_is_made_again_does_not_go_on_from_itself(tmp_path: Path) -> None:
    grow(tmp_path, "1")
    assert "grown" not in grow(tmp_path, "1").counts


def test_work_outlasts_an_end_while_the_files_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(path: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as ending:
        ending.setattr("pipeline.artifacts.hash_file", ends)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, step())
    folder = Workspace(tmp_path).folder(step(), fingerprint(step(), {}))
    assert (folder / "work" / "scratch").exists()
    assert sorted(make(tmp_path, step()).manifest["files"]) == ["log/times.txt", "result.txt"]


def test_a_value_without_a_canonical_form_has_no_hash() -> None:
    assert hash_json({"b": 1, "a": 2}) == hash_json({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        hash_json(float("nan"))
