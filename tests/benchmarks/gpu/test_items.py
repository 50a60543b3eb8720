"""Items of a part: each result is on disk at once, none is measured again, none begins too late."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.gpu import items
from benchmarks.gpu.items import Item, ItemResults


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the folder of results that are kept, and return the file of this part's."""
    monkeypatch.setattr(items, "RESULTS", tmp_path / "results")
    monkeypatch.delenv("OUT", raising=False)
    return tmp_path / "results" / "gpu_part-cpu.jsonl"


def counted(calls: list[str], name: str) -> Item:
    def measure() -> dict[str, Any]:
        calls.append(name)
        return {"rate": len(calls)}

    return Item(measure, 1)


def failing() -> dict[str, Any]:
    raise ValueError("no such thing\nmore")


def test_item_results_go_on_where_a_run_was_cut(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    ItemResults("part", "cpu", tiny=False).measure({"one": counted(calls, "one")}, 10)
    with open(kept, "a", encoding="utf-8") as file:
        file.write('{"item": "two", "resu')  # cut
    monkeypatch.setenv("OUT", str(tmp_path))
    again = ItemResults("part", "cpu", tiny=False)
    again.measure({name: counted(calls, name) for name in ("one", "two")}, 10)
    assert calls == ["one", "two"]
    assert (again["one"], again["two"]) == ({"rate": 1}, {"rate": 2})
    copied = (tmp_path / kept.name).read_text("utf-8").splitlines()
    assert [json.loads(line)["item"] for line in copied] == ["one", "two"], "all that is known, and no broken line"


def test_item_results_begin_nothing_that_would_not_end_in_time(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, calls = ItemResults("part", "cpu", tiny=False), list[str]()
    results.measure({"long": counted(calls, "long")._replace(seconds=20), "short": counted(calls, "short")}, 10)
    results.close(["long", "short"])
    assert calls == ["short"]
    assert "1 measured, 0 failed, 1 left" in capsys.readouterr().out


def test_item_results_keep_the_others_of_one_that_fails(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, calls = ItemResults("part", "cpu", tiny=False), list[str]()
    results.measure({"bad": Item(failing, 1), "good": counted(calls, "good")}, 10)
    assert calls == ["good"]
    with pytest.raises(typer.Exit):
        results.close(["bad", "good"])
    assert "bad: ValueError: no such thing" in capsys.readouterr().out
    assert "bad" not in ItemResults("part", "cpu", tiny=False), "it is tried again"
