"""What commands print, and where: progress on stderr; tables, text or JSON on stdout; pictures."""

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from vtfast.errors import InputError


def consoles() -> tuple[Console, Console]:
    """stdout, on which nothing is read as markup, and stderr."""
    if hasattr(sys.stdout, "reconfigure"):  # an answer may not fit the terminal's encoding
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False, markup=False, emoji=False), Console(stderr=True)


@contextmanager
def working(
    console: Console, what: str, total: int | None = None
) -> Iterator[Callable[[], object]]:
    """A progress bar while something runs; yields the function to call after each of `total` steps.

    Nothing is shown if `console` is not a terminal. Bars with steps are drawn only twice a second,
    because drawing takes time from what is being timed.
    """
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(30),  # a line that fills the terminal is not erased after ^C
        *([] if total is None else [MofNCompleteColumn()]),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        refresh_per_second=10 if total is None else 2,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def remark(console: Console, text: str) -> None:
    """A line of plain text, whatever the width of the terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def loading_libraries(console: Console) -> Iterator[None]:
    """A progress bar while torch and transformers are imported; InputError if they cannot be."""
    try:
        with working(console, "loading torch and transformers"):
            yield
    except ImportError as error:  # a package that does not match torch breaks transformers
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        raise InputError(
            f"transformers cannot be loaded ({root}); vtfast doctor says what to fix"
        ) from error


def table(*columns: str, wraps: Collection[int] = (0,)) -> Table:
    """An empty table; only the columns numbered in `wraps` break lines on a narrow terminal."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        shown.add_column(name, no_wrap=number not in wraps, overflow="fold")
    return shown


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's reason why `path` cannot be written into one line."""
    try:
        yield
    except OSError as error:
        reason = f"cannot write {path}: {error.strerror}; pass another --out"
        raise InputError(reason) from None


def deliver(
    record: Mapping[str, Any],
    draw: Callable[[Path], object],
    show: Callable[[], object],
    out: Path | None,
    as_json: bool,
) -> None:
    """Give a result as --out and --json say: drawn to a picture; printed as JSON or as tables."""
    if out:
        with writing(out):
            draw(out)
    if as_json:
        print(json.dumps(record))
        return
    show()
    if out:
        consoles()[0].print(f"Drawn to {out}, with its JSON beside it.", soft_wrap=True)
