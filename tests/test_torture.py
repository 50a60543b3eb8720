"""A round of each part of the torture: `make torture` does thousands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import measure
from tests.torture import __main__ as torture

LONG = ("kill", "runners", "s3", "short")


@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=pytest.mark.slow if part in LONG else ()) for part in torture.PARTS]
)
def test_torture_finds_nothing_wrong_and_goes_on(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    file = tmp_path / "torture.jsonl"
    for _ in range(2):  # the second time there is nothing left to do
        torture.main(rounds=1, parts=[part], file=file)
    (found,) = map(json.loads, file.read_text("utf-8").splitlines())
    assert (found["part"], found["round"], found["problems"]) == (part, 0, [])


def test_torture_goes_on_after_a_line_that_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setitem(torture.PARTS, "kill", lambda *_: 1 / 0)
    file = tmp_path / "torture.jsonl"
    line = json.dumps({"part": "kill", "round": 0, "done": "", "problems": [], "s": 1})
    file.write_text(f"{line}\n{line[:20]}")
    torture.main(rounds=2, parts=["kill"], file=file)
    first, second = map(json.loads, file.read_text("utf-8").splitlines())
    assert (first["round"], second["round"]) == (0, 1)
    assert "ZeroDivisionError" in second["problems"][0]


def test_torture_summary_counts_faults_and_rounds_with_problems() -> None:
    rounds = [
        {"part": "kill", "done": "kill group, file 3: struck; kill group, file 9: missed", "problems": []},
        {"part": "kill", "done": "kill process, file 1: struck", "problems": ["x"]},
        {"part": "damage", "done": "", "problems": []},
    ]
    assert torture.summary(rounds)[1:] == [["kill", "2", "2", "1"], ["damage", "1", "0", "0"]]
