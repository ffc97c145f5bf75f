"""Divide work among the processes of torchrun or `accelerate launch`, if there are several."""

from datetime import timedelta
from typing import Any

import torch.distributed as dist

from vtfast.distributed import this_process

_PATIENCE = timedelta(days=2)  # the first process to finish waits for the last


class Shards:
    """The number of this process among those launched together, and the gathering of their results.

    A context manager: on entry it initialises a process group, unless there is one, and destroys
    its own on exit. Without a launcher this is the only process.

    Attributes:
        rank: 0 ≤ rank < size, number of this process.
        size: how many there are.
    """

    def __init__(self) -> None:
        if dist.is_available() and dist.is_initialized():
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._mine = False
        else:
            here = this_process()
            self.rank, self.size = here.rank, here.size
            self._mine = self.size > 1

    def __enter__(self) -> "Shards":
        if self._mine:
            dist.init_process_group("gloo", rank=self.rank, world_size=self.size, timeout=_PATIENCE)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._mine:
            dist.destroy_process_group()

    def joined(self, found: dict[int, Any]) -> dict[int, Any]:
        """Merge the results of all processes; each returns the same dict."""
        if self.size == 1:
            return found
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, found)
        return {key: value for part in parts for key, value in part.items()}
