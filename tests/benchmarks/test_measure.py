"""The parts that all benchmarks share: turns, medians, environment and result files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.measure import describe_environment, footnote, medians, save_result, take_turns
from pipeline.errors import PROJECT


def test_take_turns_alternates_and_drops_the_warm_up() -> None:
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    values = take_turns({"a": lambda: measure("a"), "b": lambda: measure("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert values == {"a": [3, 5, 7], "b": [4, 6, 8]}
    assert medians(values) == {"a": 5, "b": 6}


def test_save_result_writes_json_and_a_page_with_the_environment(tmp_path: Path) -> None:
    environment = describe_environment("cpu")
    result = {"measured": environment, "rate": 2.5}
    save_result(tmp_path / "new" / "thing.json", "A thing", result, [("what", "rate"), ("it", "2.5")])
    assert json.loads((tmp_path / "new" / "thing.json").read_text("utf-8")) == result
    page = (tmp_path / "new" / "thing.md").read_text("utf-8")
    assert "| what | rate |\n| --- | --- |\n| it | 2.5 |" in page
    for fact in ("date", "command", "device", "processor"):
        assert environment[fact] in page


def test_describe_environment_gives_the_command_with_paths_relative_to_the_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [f"{PROJECT}/a=b", "--root", "r", f"--root={PROJECT}/r", "-o", f"data.x.path={PROJECT.parent}/x=y", "a=b"]
    monkeypatch.setattr("sys.argv", [f"{PROJECT}/benchmarks/it.py", *given])
    command = "python -m benchmarks.it a=b --root r --root=r -o data.x.path=../x=y a=b"
    assert describe_environment("cpu")["command"] == command


def test_footnote_tells_days_and_processors_of_parts_that_differ() -> None:
    last = describe_environment("cpu") | {"date": "2026-11-30 10:00 UTC", "processor": "new"}
    same = {"measured": last, "seeds": {"0": {"a": {"measured": last}, "b": {"measured": last}}}}
    assert "parts" not in footnote(same)
    other = last | {"date": "2026-11-29 23:00 UTC", "processor": "old"}
    mixed = {"measured": last, "seeds": {"0": {"a": {"measured": last}, "b": {"measured": other}}}}
    assert footnote(mixed).endswith("parts by day and processor: 1 of 2026-11-29 on old, 1 of 2026-11-30 on new.")
