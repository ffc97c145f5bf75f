"""One of two processes that tune a plan together: see `two_processes`."""

from pathlib import Path
from typing import Any

from two_processes import main

import vtfast
from vtfast.toy.evaluate import dataset


def work(folder: Path) -> dict[str, Any]:
    model, processor = vtfast.toy.load("llava-small")
    asked = dataset(processor, "background", 128, 5)
    how = {"max_loss": 0.05, "methods": ["topk"], "batch": 8, "progress": False}
    found = vtfast.tune(model, asked, log=folder / "run.jsonl", **how)
    again = vtfast.tune(model, asked, log=folder / "run.jsonl", **how)
    return {"found": found.record(), "again": again.answers}


if __name__ == "__main__":
    main(work)
