"""Test ranks: read from the environment, and the share of a batch that each one gets."""

from __future__ import annotations

import pytest

from pipeline.steps import ranks
from pipeline.steps.runtime import Runtime, usable_cores


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Clear the environment variables of launchers."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_rank_of_a_single_process(environment: pytest.MonkeyPatch) -> None:
    assert (ranks.rank(), ranks.count(), ranks.local_count(), ranks.is_first()) == (0, 1, 1, True)
    assert ranks.share(5) == range(5)


def test_rank_ignores_machines_that_a_cluster_numbers(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RANK", "3")
    environment.setenv("WORLD_SIZE", "4")
    assert (ranks.rank(), ranks.count(), ranks.is_first()) == (0, 1, True)


@pytest.mark.parametrize(("slots", "count"), [(8, 2), (5, 2), (7, 3), (4, 4)])
def test_rank_shares_add_up_to_the_batch_and_differ_by_one_at_most(
    environment: pytest.MonkeyPatch, slots: int, count: int
) -> None:
    environment.setenv("LOCAL_RANK", "0")
    environment.setenv("WORLD_SIZE", str(count))
    shares = []
    for rank in range(count):
        environment.setenv("RANK", str(rank))
        assert ranks.is_first() == (rank == 0)
        shares.append(list(ranks.share(slots)))
    assert [slot for share in shares for slot in share] == list(range(slots))
    assert {len(share) for share in shares} <= {slots // count, -(-slots // count)}


def test_ranks_of_one_machine_share_its_cores(environment: pytest.MonkeyPatch, runtime: Runtime) -> None:
    for name, value in {"LOCAL_RANK": 0, "RANK": 2, "WORLD_SIZE": 4}.items():
        environment.setenv(name, str(value))
    assert ranks.local_count() == 4
    environment.setenv("LOCAL_WORLD_SIZE", "2")
    assert ranks.local_count() == 2
    assert Runtime(runtime.root).threads == max(1, usable_cores() // 2)
    assert Runtime(runtime.root, workers=3).threads == 3
