"""No cell of a table is broken inside a word at 80 columns, whatever it holds, in any command."""

import pytest
from command import answered
from rich.text import Text
from table_words import breaks_no_word, printed, words

from vtfast.cli._terminal import print_table
from vtfast.cli.evaluate import _show
from vtfast.evaluation import Comparison, Row
from vtfast.toy.scene import Scene

TOY = ("--model", "toy-llava-small", "--device", "cpu")
SCENES = ("--task", "code", "--samples", "2")
PLANS = [w for name in ("divprune+random", "fastv+random", "pyramiddrop") for w in ("--plan", name)]
METHODS = "random,diversity,topk,dart,uniform,information"
COMMANDS = {
    "evaluate": ("evaluate", *TOY, *SCENES, *PLANS, "--keep", "0.5,0.333"),
    "horizon": ("horizon", *TOY, *SCENES, "--maps", "1", "--window", "8"),
    "sweep": ("sweep", *TOY, *SCENES, "--methods", METHODS, "--layers", "6,7", "--window", "8"),
    "score": ("score", *TOY, "--task", "code", "--window", "4"),
    "run": ("run", *TOY, "--image", "a.png", "--prompt", "read the code .", "--compare"),
}


def table_of(*arguments, width=80, **options):
    return printed(lambda console: print_table(console, *arguments, **options), width)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_word_is_broken_at_80_columns(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Scene.from_seed(2).picture().save("a.png")
    narrow = answered(*COMMANDS[command], columns=80).stdout
    wide = answered(*COMMANDS[command], columns=300).stdout
    assert words(narrow) <= words(wide)
    assert max(map(len, narrow.splitlines())) <= 80


def test_no_plan_of_a_7b_comparison_is_broken_at_80_columns():
    """Its numbers are wider: "divprune+random 0.05" was broken after "divprune+rand"."""
    rows = tuple(
        Row(name, None, 5000, 5000, 1234, 1234, 1024.0, 0.05, 10.05, 1.0, 3021.5e6)
        for name in ("unpruned", "divprune+random 0.05", "divprune+random, released setting 192")
    )
    found = Comparison(rows, "pope", "llava", 32, 5000, {})
    assert breaks_no_word(lambda console: _show(console, "a-checkpoint", found))


HEAD = ("plan", *(f"column{i}" for i in range(8)))
ROWS = [
    ("divprune+random, released setting 192", *["100.0 (57 to 100)"] * 8),
    None,
    ("a-name-without-a-single-space", Text("bold", "bold"), *["1"] * 7),
]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_wide_table_is_printed_in_parts_with_the_keys_in_each(width):
    told = table_of(HEAD, ROWS, width=width)
    assert words(told) == words(table_of(HEAD, ROWS, width=1000))
    assert max(len(line) for line in told.splitlines()) <= width
    assert sum("column" in line for line in told.splitlines()) == told.count("plan ")
    for name in HEAD[1:]:
        assert told.count(name) == 1


def test_a_column_is_narrowed_only_down_to_its_longest_word():
    told = table_of(("plan", "said"), [("x" * 25, "ab " * 8)], wraps=(0, 1), width=40)
    assert "x" * 25 in told


def test_columns_that_may_not_wrap_keep_their_lines():
    row = ("0", "100.0 ±0.0\n(34 to 100)", "x" * 9)
    told = table_of(("layer", "a", "b"), [row], wraps=(), width=26)
    assert "100.0 ±0.0" in told
    assert "(34 to 100)" in told


def test_only_a_word_wider_than_the_terminal_is_broken():
    told = table_of(("answer",), [("x" * 100,)], keys=0)
    assert max(len(line) for line in told.splitlines()) <= 80
    assert told.count("x") == 100
