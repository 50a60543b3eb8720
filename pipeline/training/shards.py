"""Shards of an optimiser: each process steps some of the parameters, keeps the state of these alone, and sends them.

ZeRO's first stage (Rajbhandari et al., SC 2020, section 5.1). AdamW's moments take twice the memory of the weights: of
N processes each has an N-th of them. Weights and gradients stay whole, so that passes exchange no more than otherwise,
and a training comes to the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn, optim

from pipeline.training.device import move_to_device
from pipeline.training.process_group import ProcessGroup

State = dict[str, Any]


class OptimizerShards:
    """The division of an optimiser's parameters among the processes of a group, or with one shard, none.

        shards.drop_gradients()  # an optimiser leaves out parameters without a gradient, and makes no state for them
        optimizer.step()
        shards.broadcast()       # all processes have all parameters again

    All processes call `broadcast` and `gather`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: ProcessGroup, count: int) -> None:
        """Divide all parameters of an optimiser, in its order, into `count` shards: one, or one for each process."""
        self.group, self.count = group, count
        self.owners = divide([parameter.numel() for parameter in parameters], count)
        """The rank that steps each parameter."""
        self.shards = [
            [each for each, owner in zip(parameters, self.owners, strict=True) if owner == rank]
            for rank in range(count)
        ]

    def drop_gradients(self) -> None:
        """Drop the gradients of what other processes step."""
        for rank, shard in enumerate(self.shards):
            if self.count > 1 and rank != self.group.rank:
                for parameter in shard:
                    parameter.grad = None

    def broadcast(self) -> None:
        """Replace parameters by what the processes that step them have."""
        if self.count > 1:
            for rank, shard in enumerate(self.shards):
                self.group.broadcast([parameter.data for parameter in shard], rank)

    def gather(self, optimizer: optim.Optimizer) -> State:
        """Return the whole state of the optimiser, in the first process: on the host, if there are several shards."""
        state = optimizer.state_dict()
        if self.count == 1:
            return state
        parts = self.group.gather(move_to_device(state["state"], "cpu")) or []
        return {**state, "state": dict(sorted(entry for part in parts for entry in part.items()))}

    def select(self, state: Mapping[str, Any]) -> State:
        """Return, of a whole state, what this process keeps."""
        if self.count == 1:
            return dict(state)
        own = {number: entry for number, entry in state["state"].items() if self.owners[number] == self.group.rank}
        return {**state, "state": own}


def divide(sizes: Sequence[int], count: int) -> list[int]:
    """Return for each size the number of one of `count` shards, so that their sums are about equal."""
    sums, shards = [0] * count, [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        shards[number] = sums.index(min(sums))
        sums[shards[number]] += sizes[number]
    return shards
