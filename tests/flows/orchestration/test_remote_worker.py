"""A part of a step on a worker: what it raises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.orchestration.remote_worker import WorkItem, execute_part
from pipeline.errors import DataError, MustError
from pipeline.steps.artifact import Inputs
from tests.steps import make_step

ERRORS: dict[str, Exception] = {"bug": KeyError("a bug"), "data": DataError("shard-000003: damaged")}


def do_part(config: Mapping[str, Any], inputs: Inputs, part: Mapping[str, Any]) -> dict[str, Any]:
    raise ERRORS[part["error"]]


def raised(error: str, root: Path) -> MustError:
    step = make_step("label", f"{__name__}:label", {}, parts=__name__)
    settings = {"device": "cpu", "precision": "32", "workers": 1}
    with pytest.raises(MustError) as caught:
        execute_part(WorkItem(str(root), 1.0, step, {}, False, {"error": error}, str(root / "stop"), settings))
    return caught.value


def test_execute_part_raises_a_bug_as_an_error_of_ours_with_its_traceback(tmp_path: Path) -> None:
    """Task runners raise errors of their own for a worker that died, and only then is a part done again."""
    error = raised("bug", tmp_path)
    assert type(error) is MustError
    assert str(error).startswith("label: a part failed with KeyError: 'a bug'")
    assert "in do_part" in str(error)


def test_execute_part_raises_our_errors_as_they_are(tmp_path: Path) -> None:
    assert raised("data", tmp_path) is ERRORS["data"]
