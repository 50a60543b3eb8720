"""Steps and artifacts: made whole or not at all, found again, and verified."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import MANIFEST, Artifact, Inputs, Step, Workspace, fingerprint, hash_json, verify
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


def test_a_value_without_a_canonical_form_has_no_hash() -> None:
    assert hash_json({"b": 1, "a": 2}) == hash_json({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        hash_json(float("nan"))
