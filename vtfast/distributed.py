"""Which of several processes this is, as torchrun and `accelerate launch` tell each of them.

torchrun does so in RANK, WORLD_SIZE and LOCAL_RANK, and so does accelerate, except under `--cpu`:
there it starts a single process, or several by MPI (`--mpirun_hostfile`). MPI has names of its own,
which count where accelerate has said where the processes meet.
"""

import os
from dataclasses import dataclass

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
    """One of `size` processes that were launched together; 0 ≤ rank < size.

    `local` is its number among those on its machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0


def this_process() -> Process:
    """This one, by what its launcher left in the environment; alone without a launcher."""
    rank, size = _first(_RANK), _first(_SIZE)
    if rank is None or size is None or size < 2 or not all(name in os.environ for name in _MEETING):
        return Process()
    return Process(rank, size, _first(_LOCAL) or 0)


def _first(names: tuple[str, ...]) -> int | None:
    return next((int(os.environ[name]) for name in names if name in os.environ), None)
