"""Which of several launched processes this is, and how they combine their results.

The launcher is torchrun or `accelerate launch`. torchrun tells each process by RANK, WORLD_SIZE and
LOCAL_RANK, and so does accelerate, except under `--cpu`: there it starts a single process, or
several by MPI (`--mpirun_hostfile`). MPI has names of its own; they are used only if accelerate has
also set the address at which the processes meet (MASTER_ADDR, MASTER_PORT).
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

_PATIENCE = timedelta(days=2)  # the first process to finish waits for the last
_MEETING = ("MASTER_ADDR", "MASTER_PORT")
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL = (
    "LOCAL_RANK",
    "MPI_LOCALRANKID",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
)


@dataclass(frozen=True)
class Process:
    """One of `size` processes that were launched together.

    Attributes:
        rank: its number, 0 ≤ rank < size.
        size: how many there are.
        local: its number among those on the same machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0


def this_process() -> Process:
    """This process, as its launcher describes it in the environment; without one, the only one."""
    rank, size = _first(_RANK), _first(_SIZE)
    if rank is None or size is None or size < 2 or not all(name in os.environ for name in _MEETING):
        return Process()
    return Process(rank, size, _first(_LOCAL) or 0)


class Shards:
    """A context in which processes that were launched together exchange results.

    Entering joins the process group, unless the caller has done so; leaving destroys a group that
    was joined here. Without a launcher there is one process, and nothing is joined.

    Attributes:
        rank: number of this process, 0 ≤ rank < size.
        size: how many processes there are.
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
        """The results of all processes in one dict, the same in each process."""
        if self.size == 1:
            return found
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, found)
        return {key: value for part in parts for key, value in part.items()}


def _first(names: tuple[str, ...]) -> int | None:
    return next((int(os.environ[name]) for name in names if name in os.environ), None)
