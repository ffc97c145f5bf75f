"""What commands print, and where: progress on stderr; tables, text or JSON on stdout; pictures."""

import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

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


Row = Sequence[str | Text] | None  # cells, or None for a line between groups of rows


def print_table(
    stdout: Console,
    head: Sequence[str],
    rows: Sequence[Row],
    wraps: Collection[int] = (0,),
    keys: int = 1,
) -> None:
    """Print a table that fits the terminal, with no cell broken inside a word.

    On a narrow terminal the columns numbered in `wraps` break their lines at spaces. If that is not
    enough, the table is printed in parts, one below the other, each with the first `keys` columns.
    Only a word that is wider than the terminal is broken.
    """
    cells = [list(head), *(row for row in rows if row is not None)]
    columns = [[Text.assemble(cell) for cell in column] for column in zip(*cells, strict=True)]
    natural = [max(_widest_line(cell) for cell in column) for column in columns]
    least = [
        max(_widest_word(cell) for cell in column) if number in wraps else natural[number]
        for number, column in enumerate(columns)
    ]
    numbers = list(range(len(head)))
    for part in _parts(numbers[:keys], numbers[keys:], least, stdout.width):
        widths = _fitted([natural[n] for n in part], [least[n] for n in part], stdout.width)
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for n, width in zip(part, widths, strict=True):
            shown.add_column(head[n], width=width, overflow="fold")
        for row in rows:
            if row is None:
                shown.add_section()
            else:
                shown.add_row(*(row[n] for n in part))
        stdout.print(shown)


def in_ms(ms: float) -> str:
    """A time in milliseconds, for a table."""
    return f"{ms:.1f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"


def in_bytes(size: int) -> str:
    """A number of bytes, for a table."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / 1e3:.0f} kB"


def _parts(
    keys: list[int], others: list[int], least: Sequence[int], room: int
) -> Iterator[list[int]]:
    """The columns of every part of a table: the keys, and as many others as fit, at least one."""
    part = list(keys)
    for number in others:
        if len(part) > len(keys) and _total(least[n] for n in [*part, number]) > room:
            yield part
            part = list(keys)
        part.append(number)
    yield part


def _fitted(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths of columns: the widest are narrowed, down to the least if that is enough."""
    widths = list(natural)
    for floor in (least, [1] * len(widths)):
        while _total(widths) > room and widths != list(floor):
            widest = max(range(len(widths)), key=lambda n: (widths[n] > floor[n], widths[n]))
            widths[widest] -= 1
    return widths


def _total(widths: Iterable[int]) -> int:
    """The width of a table: every column has a space before it and two after, the last one one."""
    return sum(width + 3 for width in widths) - 1


def _widest_line(cell: Text) -> int:
    return max((cell_len(line) for line in cell.plain.split("\n")), default=0)


def _widest_word(cell: Text) -> int:
    return max((cell_len(word) for word in cell.plain.split()), default=0)


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
