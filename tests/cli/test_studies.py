"""`vtfast score`, `horizon` and `sweep`: what they print, draw, continue, and refuse."""

import json
import re

import pytest
from command import answered, call, refused
from PIL import Image

from vtfast.information import Horizon
from vtfast.toy.scene import Scene

MODEL = ("--model", "toy-llava-small", "--device", "cpu")
ASKED = ("--image", "a.png", "--prompt", "read the code .", "--answer", "K 1 M")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    Scene.from_seed(2).picture().save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def width(name):
    with Image.open(name) as picture:
        return picture.size[0]


def test_score_shows_layers_and_draws_with_json_beside(folder):
    options = ("--layers", "0,6-7", "--window", "4", "--out", "heat.png")
    shown = answered("score", *MODEL, *ASKED, *options).stdout
    rows = [line.split() for line in shown.splitlines()]
    assert [row[0] for row in rows if row and row[0].isdigit()] == ["0", "6", "7"]
    assert len(re.findall(r"\d of 4 *$", shown, re.MULTILINE)) == 3
    assert width("heat.png") > 500
    told = json.loads((folder / "heat.json").read_text())
    assert told["layers"] == [0, 6, 7]
    printed = json.loads(answered("score", *MODEL, *ASKED, *options, "--json").stdout)
    assert printed["pictures"] == told["pictures"]
    assert printed["answer"] == "K 1 M"


def test_horizon_prints_draws_and_continues_its_log(folder):
    asked = ("--task", "background", "--samples", "6", "--maps", "2")
    options = ("--layers", "0,3,7", "--window", "4", "--log", "run.jsonl", "--out", "h.png")
    shown = answered("horizon", *MODEL, *asked, *options).stdout
    shown = " ".join(shown.split())
    assert "on background: horizon at layer 3 of 8, not shown with 6 samples; about 300" in shown
    assert "6 samples with 6 right answers cannot rule out that up to" in shown
    log = (folder / "run.jsonl").read_text()
    assert len(log.splitlines()) == 7
    (folder / "run.jsonl").write_text(log[: len(log) // 2])
    again = json.loads(answered("horizon", *MODEL, *asked, *options, "--json").stdout)
    assert (folder / "run.jsonl").read_text() == log
    del again["model"]
    assert Horizon.of_record(again) == Horizon.load(folder / "h.json")
    assert Horizon.of_record(again).layer == 3


def test_sweep_has_a_column_for_every_method(folder):
    asked = ("--task", "shape_colour", "--samples", "2", "--keep", "0.25,0.5", "--layers", "0,7")
    options = ("--methods", "random,diversity", "--no-scores", "--out", "s.png")
    shown = answered("sweep", *MODEL, *asked, *options).stdout
    assert re.search(r"layer +none +random +diversity", shown)
    assert len([line for line in shown.splitlines() if re.match(r" ?[07] ", line)]) == 4
    assert re.search(r"\n ?7 +100\.0 +100\.0 ±0\.0 +100\.0 *\n +\(34 to 100\)", shown)
    rows = json.loads((folder / "s.json").read_text())["rows"]
    assert [row["accuracy"] for row in rows if row["layer"] == 7] == [1.0] * 4
    assert width("s.png") > 500


def test_data_is_read_from_a_file_and_bad_lines_are_reported(folder):
    good = {"image": "a.png", "question": "what is the main shape ?", "answer": "circle"}
    lines = [good, {**good, "image": "gone.png"}, {**good, "answer": ""}]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = ("--data", "mine.jsonl", "--maps", "0", "--layers", "7")
    line = refused(call("horizon", *MODEL, *asked))
    assert "--data mine.jsonl, line 2: picture gone.png: there is no such file" in line
    assert 'line 3: "answer" is not text; correct them or pass --skip-bad' in line
    result = answered("horizon", *MODEL, *asked, "--skip-bad")
    assert "on mine: " in result.stdout
    assert "Skipped 2 of the samples:\n  mine.jsonl line 2: picture gone.png: " in result.stderr
    assert "1 samples, 0 with scores" in result.stdout


def test_score_leaves_out_bad_lines_as_the_others_do(folder):
    good = {"image": "a.png", "question": "read the code .", "answer": "K 1 M"}
    (folder / "mine.jsonl").write_text(f"{{\n{json.dumps(good)}\n")
    asked = ("--data", "mine.jsonl", "--layers", "7", "--window", "8")
    assert "line 1: it is not JSON" in refused(call("score", *MODEL, *asked))
    result = answered("score", *MODEL, *asked, "--skip-bad")
    assert "answer 'K 1 M'" in result.stdout
    assert "  mine.jsonl line 1: it is not JSON" in result.stderr


def test_out_never_overwrites_an_input_file(folder):
    good = {"image": "a.png", "question": "read the code .", "answer": "K 1 M"}
    for name in ("mine.json", "mine.jsonl"):
        (folder / name).write_text(json.dumps(good) + "\n")
    picture = (folder / "a.png").read_bytes()
    for command, read, target in (
        ("horizon", ("--data", "mine.json", "--out", "mine.png"), "mine.json"),
        ("horizon", ("--data", "mine.jsonl", "--out", "a.png"), "a.png"),
        ("sweep", ("--task", "code", "--log", "run.json", "--out", "run.png"), "run.json"),
        ("score", (*ASKED, "--out", str(folder / "a.png")), str(folder / "a.png")),
    ):
        line = refused(call(command, *MODEL, *read, "--layers", "7"))
        assert f"would write over {target}; pass another name" in line
    assert (folder / "a.png").read_bytes() == picture
    assert json.loads((folder / "mine.json").read_text()) == good


def test_no_number_is_cut_off_at_80_columns(folder):
    def shown(command, *options):
        return answered(command, *MODEL, "--task", "code", *options, columns=80).stdout

    methods = "random,diversity,topk,dart,uniform,information"
    options = ("--samples", "2", "--layers", "7", "--window", "8", "--methods", methods)
    text = shown("sweep", *options)
    assert [name for name in methods.split(",") if name not in text.split()] == []
    assert text.count("(34 to 100)") == 6
    assert re.search(r"^ ?7 +100\.0 +100\.0 ±0\.0 +100\.0 ", text, re.MULTILINE)
    text = shown("horizon", "--samples", "3", "--maps", "1", "--layers", "0-3", "--window", "8")
    assert text.count("100.0]") == 4


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("horizon", [], "pass exactly one of --task and --data"),
        ("sweep", ["--task", "code", "--data", "a.jsonl"], "pass exactly one of --task and --data"),
        ("score", [*ASKED, "--task", "code"], "pass exactly one of --task, --data, and --image"),
        ("horizon", ["--task", "poetry"], "--task poetry: pass one of background, shape_colour"),
        ("horizon", ["--data", "none.jsonl"], "cannot read none.jsonl: No such file"),
        ("horizon", ["--data", "empty.jsonl"], "empty.jsonl is empty; a line is like"),
        ("horizon", ["--task", "code", "--layers", "0,x"], "--layers 0,x: expected numbers"),
        ("horizon", ["--task", "code", "--layers", "0,5-2"], "--layers 0,5-2: expected numbers"),
        ("horizon", ["--task", "code", "--layers", "5-"], "--layers 5-: expected numbers"),
        ("horizon", ["--task", "code", "--layers", "0-9999999999"], "expected numbers and ranges"),
        ("horizon", ["--task", "code", "--layers", "0,99"], "the model has 8 decoder layers"),
        ("horizon", ["--task", "code", "--tolerance", "2"], "tolerance=2.0: expected a number"),
        ("horizon", ["--task", "code", "--per", "joint"], "--per joint: pass one of mean_token"),
        ("horizon", ["--task", "code", "--out", "a.jpg"], "pass a name that ends in .png"),
        ("horizon", ["--task", "code", "--log", "a.png"], "is not a vtfast log"),
        ("score", ["--image", "a.png"], "--image, --prompt and --answer go together"),
        ("score", ["--task", "code", "--sample", "100"], "--sample 100: expected a number from 0"),
        ("sweep", ["--task", "code", "--keep", "half"], "--keep half: expected shares above 0"),
        ("sweep", ["--task", "code", "--keep", "0.2,2"], "--keep 0.2,2: expected shares above 0"),
        ("sweep", ["--task", "code", "--methods", "best"], "method 'best' is unknown"),
        ("sweep", ["--task", "code", "--no-scores"], "--no-scores excludes the method information"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_work_is_one_line_and_exit_code_2(folder, command, options, says):
    (folder / "empty.jsonl").write_text("\n")
    assert says in refused(call(command, *MODEL, *options))


def test_a_picture_that_cannot_be_read_is_one_line(folder):
    (folder / "text.png").write_text("hello")
    asked = ("--image", "text.png", "--prompt", "what ?", "--answer", "red")
    assert "--image text.png is not a picture" in refused(call("score", *MODEL, *asked))
