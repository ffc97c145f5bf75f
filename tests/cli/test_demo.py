"""`vtfast demo`: it prints what the models answered, and their times.

The demo runs here without timing, or times a tiny model: those numbers mean nothing, but every step
is run.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import answered, call, refused
from PIL import Image
from table_words import breaks_no_word

from vtfast import toy
from vtfast.cli import demo as command
from vtfast.cli._interview import Interview
from vtfast.cli._kept_picture import DPI, HEADER_INCHES, PANEL_INCHES
from vtfast.toy.scene import Scene

COLUMNS = ["full", "keep 0.75", "keep 0.5"]


def demo(*arguments: object, **options: Any):
    """Run `vtfast demo` in this process; by default its stderr is no terminal."""
    return answered("demo", *arguments, columns=120, **options)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`vtfast demo --json` with stderr on a terminal, in a folder of its own."""
    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = demo("--json", "--tiny-timing", terminal=True)
    return SimpleNamespace(stdout=result.stdout, stderr=result.stderr, folder=folder)


@pytest.fixture(scope="module")
def record(user: SimpleNamespace) -> dict:
    return json.loads(user.stdout)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The tables of the default demo, at 120 columns."""
    picture = tmp_path_factory.mktemp("shown") / "a[red]b.png"
    result = demo("--tiny-timing", "--out", picture)
    return SimpleNamespace(text=result.stdout, stderr=result.stderr, picture=picture)


def cells(text: str, first: str) -> list[str]:
    """The cells of the table row that starts with `first`."""
    (line,) = (line for line in text.splitlines() if line.strip().startswith(first))
    return re.split(r"\s{2,}", line.strip())


# What is said: JSON


def test_json_is_one_object_and_nothing_else(user: SimpleNamespace) -> None:
    assert isinstance(json.loads(user.stdout), dict)


def test_progress_is_on_stderr(user: SimpleNamespace) -> None:
    for step in ("loading torch", "asking six questions", "timing 4 layers"):
        assert step in user.stderr
        assert step not in user.stdout


def test_no_progress_where_stderr_is_no_terminal(shown: SimpleNamespace) -> None:
    assert shown.stderr == ""


def test_json_has_a_column_for_the_full_model_and_every_keep(record: dict) -> None:
    assert [column["name"] for column in record["columns"]] == COLUMNS
    assert [column["keep"] for column in record["columns"]] == [None, 0.75, 0.5]
    full, *pruned = record["columns"]
    assert (full["average_tokens"], full["flops_ratio"], full["stages"]) == (64, 1, [])
    for column in pruned:
        assert [stage["method"] for stage in column["stages"]] == ["diversity", "random"]
        assert abs(column["average_tokens"] - 64 * column["keep"]) <= 0.5
        assert column["flops_ratio"] == pytest.approx(column["keep"], abs=0.1)


def test_json_has_all_six_questions_with_their_true_answers(record: dict) -> None:
    scene = Scene.from_seed(record["scene_seed"])
    assert [question["task"] for question in record["questions"]] == list(toy.TASKS)
    for question in record["questions"]:
        assert scene.question(question["task"]) == (question["question"], question["truth"])
        assert list(question["answers"]) == COLUMNS


def test_json_counts_the_right_answers(record: dict) -> None:
    for column in record["columns"]:
        right = [q["answers"][column["name"]] == q["truth"] for q in record["questions"]]
        assert column["right"] == sum(right)


def test_the_default_scene_does_not_hide_that_pruning_costs_something(record: dict) -> None:
    full, *_, half = (column["right"] for column in record["columns"])
    assert half < full == 6


def test_json_times_every_variant_against_the_full_model(record: dict) -> None:
    timing = record["timing"]
    assert (timing["device"], timing["dtype"]) == ("cpu", "float32")
    assert timing["rounds"] >= 5
    variants = [(v["name"], v["keep"]) for v in timing["variants"]]
    pairs = [(name, keep) for keep in (0.5, 0.25) for name in ("pruned", "natively shorter")]
    assert variants == [("full", None), *pairs]
    assert timing["variants"][0]["share_of_full"] == {"median": 1, "p20": 1, "p80": 1}
    for variant in timing["variants"]:
        share = variant["share_of_full"]
        assert 0 < share["p20"] <= share["median"] <= share["p80"]
        assert variant["seconds"] > 0


def test_the_picture_goes_to_the_current_folder(user: SimpleNamespace, record: dict) -> None:
    assert record["picture"] == "vtfast-demo.png"
    assert [path.name for path in user.folder.iterdir()] == ["vtfast-demo.png"]


# What is said: tables


def test_the_table_has_the_answers_and_marks_exactly_the_wrong_ones(
    shown: SimpleNamespace, record: dict
) -> None:
    assert cells(shown.text, "question") == ["question", "truth", *COLUMNS]
    for question in record["questions"]:
        truth = question["truth"]
        said = [a if a == truth else f"{a} ✗" for a in question["answers"].values()]
        assert cells(shown.text, question["question"]) == [question["question"], truth, *said]


def test_the_table_ends_with_tokens_and_flops(shown: SimpleNamespace, record: dict) -> None:
    columns = record["columns"]
    averages = [f"{column['average_tokens']:.1f}" for column in columns]
    flops = [f"{100 * column['flops_ratio']:.0f} %" for column in columns]
    right = [f"{column['right']} of 6" for column in columns]
    assert cells(shown.text, "visual tokens")[1:] == averages
    assert cells(shown.text, "prefill FLOPs")[1:] == flops
    assert cells(shown.text, "right answers")[1:] == right


def test_the_tables_say_what_they_do_not_show(shown: SimpleNamespace) -> None:
    assert "64 visual tokens shows meaning, not speed" in shown.text
    assert "One scene" in shown.text
    assert "natively shorter: the same model, unpatched" in shown.text


def test_the_timings_are_ratios_with_their_spread(shown: SimpleNamespace) -> None:
    for keep in ("0.5", "0.25"):
        for name in ("pruned", "natively shorter"):
            share, spread, faster = cells(shown.text, f"keep {keep}, {name}")[3:]
            low, high = map(float, spread.split("-"))
            assert low <= float(share) <= high
            assert float(faster[:-1]) == pytest.approx(1 / float(share), abs=0.06, rel=0.02)


def test_the_marks_survive_a_terminal_without_unicode(tmp_path: Path) -> None:
    picture = tmp_path / "kept.png"
    result = demo("--no-timing", "--out", str(picture), charset="ascii")
    assert "x marks a wrong answer" in result.stdout
    assert cells(result.stdout.replace("|", "  "), "how many cells")[-1].endswith(" x")


def test_another_plan_and_keep_replace_the_columns(tmp_path: Path) -> None:
    arguments = ("--plan", "fastv", "--keep", "0.6", "--no-timing", "--json")
    result = demo(*arguments, "--out", str(tmp_path / "kept.png"))
    record = json.loads(result.stdout)
    assert [column["name"] for column in record["columns"]] == ["full", "keep 0.6"]
    assert (record["plan"], record["timing"]) == ("fastv", None)


def test_a_file_name_is_not_taken_for_markup(shown: SimpleNamespace) -> None:
    assert f"left of it: {shown.picture}\n" in shown.text
    assert shown.picture.exists()


def test_the_picture_is_a_png_with_a_panel_per_stage(shown: SimpleNamespace) -> None:
    with Image.open(shown.picture) as picture:
        panels = 3  # the scene, diversity, random
        height = round((PANEL_INCHES + HEADER_INCHES) * DPI)
        assert (picture.format, picture.size) == (
            "PNG",
            (round(panels * PANEL_INCHES * DPI), height),
        )


# What is refused


def test_an_unreachable_keep_is_refused_before_any_work(
    tmp_path: Path,
) -> None:
    """A keep of 0.7 is reachable on the bundled model, but not on the one that is timed."""
    assert Interview.bundled("llava", 0).pruned("divprune+vtw", 0.7, 0).keep == 0.7
    picture = tmp_path / "kept.png"
    line = refused(call("demo", "--plan", "divprune+vtw", "--keep", "0.7", "--out", picture))
    assert line.startswith("error: keep=0.7: preset 'divprune+vtw'")
    assert "--no-timing" in line
    assert not picture.exists()


def test_no_word_is_broken_at_80_columns(record: dict) -> None:
    assert breaks_no_word(lambda console: command._show_answers(console, record, 12))
    assert breaks_no_word(lambda console: command._show_timing(console, record["timing"]))


@pytest.mark.parametrize("name", ["llava-small", "qwen3"])
def test_another_bundled_model_is_asked(name: str, tmp_path: Path) -> None:
    result = demo("--model", name, "--keep", "0.5", "--no-timing", "--out", tmp_path / "a.png")
    assert f"shown to the bundled {name}: 8 layers, 64 visual tokens" in result.stdout


def test_an_unknown_model_is_one_line_with_those_there_are() -> None:
    line = refused(call("demo", "--model", "gpt", "--no-timing"))
    assert line == "error: there is no toy model 'gpt'; available: llava, llava-small, qwen, qwen3"
