"""Whether tables break words: the words of a narrow print are those of a wide one."""

import re
from collections.abc import Callable
from io import StringIO

from rich.console import Console


def words(text: str) -> set[str]:
    """The words of a text, without lines, and without digits, which change."""
    return {re.sub(r"\d+", "0", word) for word in text.replace("─", " ").split()}


def printed(show: Callable[[Console], object], width: int) -> str:
    """What `show` prints on a console of this width."""
    console = Console(width=width, file=StringIO(), markup=False, emoji=False)
    show(console)
    return console.file.getvalue()


def breaks_no_word(show: Callable[[Console], object]) -> bool:
    """Whether `show` prints at 80 columns what it prints at 300."""
    return words(printed(show, 80)) == words(printed(show, 300))
