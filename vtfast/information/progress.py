"""A progress bar for what takes longer than two seconds, or a caller's own function instead."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def steps(
    progress: bool | Callable[[], object], what: str, total: int | None, unit: str
) -> Iterator[Callable[[], object]]:
    """Yield what to call after each step, of `total` ones if their number is known: a bar's update,
    or `progress` itself."""
    if callable(progress):
        yield progress
        return
    options = {"desc": what, "unit": unit, "delay": 2, "leave": False}
    with tqdm(total=total, disable=not progress, **options) as bar:
        yield bar.update
