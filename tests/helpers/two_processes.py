"""Two processes that work on one model together over gloo, and what each of them found."""

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from repository import ROOT

SECONDS = 400  # a launch takes about 20; one that hangs fails after this
# accelerate asks for these; the processes meet at a file.
MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "LOCAL_WORLD_SIZE": "2"}


def found_by_two(script: str, folder: Path) -> list[dict[str, Any]]:
    """What `work` in `tests/helpers/<script>.py` returns in each of two processes."""
    paths = [str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    program = str(ROOT / "tests" / "helpers" / f"{script}.py")
    jobs, outputs = [], [folder / f"{rank}.log" for rank in range(2)]
    try:
        for rank, output in enumerate(outputs):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", **MASTER}
            with output.open("w") as log:
                command = [sys.executable, program, str(folder)]
                jobs.append(
                    subprocess.Popen(command, env={**environment, **place}, stdout=log, stderr=log)
                )
        failed = [job.wait(timeout=SECONDS) != 0 for job in jobs]
        assert not any(failed), "\n".join(output.read_text()[-2000:] for output in outputs)
    finally:
        for job in jobs:
            job.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def main(work: Callable[[Path], dict[str, Any]]) -> None:
    """Run `work` in one of the two processes and leave what it returns for the test."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=100),
    )
    (folder / f"{rank}.json").write_text(json.dumps(work(folder)))
    dist.barrier()
    dist.destroy_process_group()
