"""One round of each part of the torture: `make torture` does thousands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import measure
from tests import torture


@pytest.mark.slow
@pytest.mark.parametrize("part", torture.PARTS)
def test_torture_finds_nothing_wrong_and_goes_on(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    file = tmp_path / "torture.jsonl"
    for _ in range(2):  # the second time there is nothing left to do
        torture.main(rounds=1, parts=[part], file=file)
    (found,) = map(json.loads, file.read_text("utf-8").splitlines())
    assert (found["part"], found["round"], found["wrong"]) == (part, 0, [])


def test_torture_summary_counts_rounds_with_something_wrong() -> None:
    rounds = [{"part": "kill", "wrong": []}, {"part": "kill", "wrong": ["x"]}, {"part": "disk", "wrong": []}]
    assert torture.summary(rounds)[1:] == [["kill", "2", "1"], ["disk", "1", "0"]]
