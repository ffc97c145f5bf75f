"""How the commands show things: progress on stderr, plain tables and text on stdout."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from vtfast.errors import InputError


def consoles() -> tuple[Console, Console]:
    """stdout, where nothing is taken for markup, and stderr."""
    return Console(highlight=False, markup=False, emoji=False), Console(stderr=True)


@contextmanager
def working(
    console: Console, what: str, total: int | None = None
) -> Iterator[Callable[[], object]]:
    """A progress bar on stderr while something takes its time; yields what to call per step.

    Nothing where stderr is no terminal. Drawn twice a second only, as drawing takes time from what
    is being timed.
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


@contextmanager
def loading_libraries(console: Console) -> Iterator[None]:
    """While torch and transformers are imported; an InputError where they cannot be."""
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
    """An empty table; only the columns numbered in `wraps` break lines where space is short."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        shown.add_column(name, no_wrap=number not in wraps, overflow="fold")
    return shown


def wrong_sign(console: Console) -> str:
    """✗, or x where the terminal knows no Unicode."""
    return "✗" if console.encoding.startswith("utf") else "x"
