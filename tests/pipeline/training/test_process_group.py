"""Messages between the processes of a training: of any length, and most of them in one piece."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

from torch import distributed

from pipeline.errors import DataError
from pipeline.steps import ranks
from pipeline.training.process_group import SHORT, ProcessGroup
from tests.processes import Launcher

OVERHEAD = len(json.dumps(""))
LENGTHS = [(0, 0, 0), (3, 1, 2), (SHORT - OVERHEAD,) * 3, (0, SHORT - OVERHEAD + 1, 0), (9 * SHORT, 0, 5 * SHORT)]
"""Characters of each process's message."""


def exchange() -> list[tuple[Any, int]]:
    """Return what a process gets for each message, and the collectives that it took."""
    found: list[tuple[Any, int]] = []
    with (
        ProcessGroup("cpu") as group,
        mock.patch.object(distributed, "all_gather", wraps=distributed.all_gather) as one,
    ):
        for lengths in LENGTHS:
            before = one.call_count
            texts = group.all_gather("abc"[group.rank] * lengths[group.rank])
            found.append((texts, one.call_count - before))
    return found


def test_process_group_all_gather_sends_short_messages_in_one_piece(launcher: Launcher) -> None:
    expected = [["abc"[rank] * length for rank, length in enumerate(lengths)] for lengths in LENGTHS]
    for found in launcher.call(3, exchange):
        assert found == list(zip(expected, [1, 1, 1, 2, 2], strict=True))


def share_numbers() -> list[Any]:
    with ProcessGroup("cpu") as group:
        return group.all_gather_result(
            lambda: {"loss": 0.1 + group.rank / 3, "none": None, "large": [float("inf"), True]}
        )


def test_process_group_all_gather_keeps_every_digit(launcher: Launcher) -> None:
    expected = [{"loss": 0.1 + rank / 3, "none": None, "large": [float("inf"), True]} for rank in range(2)]
    assert launcher.call(2, share_numbers) == [expected] * 2


def fail_in_second() -> list[str]:
    with ProcessGroup("cpu") as group:
        return group.all_gather_result(_fail if ranks.rank() == 1 else lambda: "fine")


def _fail() -> str:
    raise DataError("x" * 3 * SHORT)


def test_process_group_all_gather_result_raises_a_long_error_in_all(launcher: Launcher) -> None:
    for error in launcher.call(2, fail_in_second):
        assert (type(error), str(error)) == (DataError, "x" * 3 * SHORT)
