"""Bringing together what several processes have scored."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed

State = TypeVar("State")


def from_all_processes(state: State) -> list[State]:
    """The `state` of every process, in rank order; of this one alone when there is no group.

    `state` must be picklable. All processes of the group must call this.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [state]
    states: list[State | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return [part for part in states if part is not None]
