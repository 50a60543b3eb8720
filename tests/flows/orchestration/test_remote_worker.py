"""A part of a step on a worker: what it raises."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.orchestration.remote_worker import WorkItem, execute_part
from pipeline.errors import DataError, MustError, Shortage
from pipeline.steps.artifact import Inputs
from tests.steps import make_step

ERRORS: dict[str, Exception] = {
    "bug": KeyError("a bug"),
    "data": DataError("shard-000003: damaged"),
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "storage": OSError(errno.EIO, "Input/output error"),
}


def do_part(config: Mapping[str, Any], inputs: Inputs, part: Mapping[str, Any]) -> dict[str, Any]:
    raise ERRORS[part["error"]]


def raised(error: str, root: Path) -> Exception:
    step = make_step("label", f"{__name__}:label", {}, parts=__name__)
    settings = {"device": "cpu", "precision": "32", "workers": 1}
    with pytest.raises((MustError, OSError)) as caught:
        execute_part(WorkItem(str(root), 1.0, step, {}, False, {"error": error}, str(root / "stop"), settings))
    return caught.value


def test_execute_part_raises_a_bug_as_an_error_of_ours_with_its_traceback(tmp_path: Path) -> None:
    """Task runners raise errors of their own for a worker that died, and only then is a part done again."""
    error = raised("bug", tmp_path)
    assert type(error) is MustError
    assert str(error).startswith("label: a part of it failed.\nTraceback")
    assert "KeyError: 'a bug'" in str(error)
    assert "in do_part" in str(error)


@pytest.mark.parametrize("error", ["data", "storage"])
def test_execute_part_raises_errors_of_ours_and_of_the_system_as_they_are(error: str, tmp_path: Path) -> None:
    assert raised(error, tmp_path) is ERRORS[error]


def test_execute_part_explains_a_full_disk(tmp_path: Path) -> None:
    error = raised("full", tmp_path)
    assert isinstance(error, Shortage)
    assert "is full. Finished files are kept" in str(error)
