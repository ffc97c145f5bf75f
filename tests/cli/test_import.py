"""`--import mine.py`: the commands know the methods that a file of the user's registers."""

import json
import sys

import pytest
from command import answered, call, python, refused

import vtfast

MINE = """import vtfast
from beside import first

@vtfast.register_method({name!r}, scores=False, replace=True)
def mine(ctx, *, shift=0):
    return first(ctx)
"""
BESIDE = """import torch

def first(ctx):
    pairs = zip(ctx.segments.offsets, ctx.keep)
    return torch.cat([torch.arange(at, at + k) for at, k in pairs])
"""
MODEL = ("--model", "toy-llava-small", "--device", "cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside.py").write_text(BESIDE)
    vtfast.toy.scenes(1, seed=0, task="digit")[0][0].save("scene.png")
    return tmp_path


def mine(folder, name, file="mine.py"):
    (folder / file).write_text(MINE.format(name=name))
    return "--import", file


def test_plans_and_methods_of_the_file_are_known(folder):
    own = mine(folder, "cli-mine")
    shown = ("--image", "scene.png", "--prompt", "read the code .", "--json")
    found = json.loads(answered("run", *MODEL, *own, *shown, "--plan", "cli-mine+random").stdout)
    assert [stage["method"] for stage in found["plan"]["stages"]] == ["cli-mine", "random"]
    asked = ("--task", "digit", "--samples", "2", "--json")
    plans = ("--plan", "cli-mine", "--keep", "0.5,0.25")
    rows = json.loads(answered("evaluate", *MODEL, *own, *asked, *plans).stdout)["rows"]
    assert [row["name"] for row in rows] == ["unpruned", "cli-mine 0.5", "cli-mine 0.25"]
    how = ("--methods", "cli-mine,random", "--no-scores", "--layers", "0")
    rows = json.loads(answered("sweep", *MODEL, *own, *asked, *how).stdout)["rows"]
    assert {row["method"] for row in rows} == {"cli-mine", "random"}


def test_files_that_are_called_like_libraries_do_not_hide_them(folder):
    """Neither the file nor its neighbour, in a process that has not loaded these libraries yet."""
    own = mine(folder, "cli-statistics", "statistics.py")
    (folder / "colorsys.py").write_text("raise ImportError\n")
    asked = ("evaluate", *MODEL, *own, "--task", "digit", "--samples", "2", "--plan", "uniform")
    code = f"import vtfast.cli\nvtfast.cli.app({list(asked)!r})\n"
    done = python("import os, sys\nsys.path.remove('')\n" + code, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "uniform" in done.stdout


def test_several_files_run_in_order_and_print_to_stderr(folder):
    (folder / "noise.py").write_text("print('a line of mine')\n")
    own = mine(folder, "cli-second")
    asked = ("--task", "digit", "--samples", "2", "--plan", "cli-second", "--json")
    result = answered("evaluate", *MODEL, "--import", "noise.py", *own, *asked)
    assert json.loads(result.stdout)["rows"][1]["name"] == "cli-second 0.5"
    assert "a line of mine" in result.stderr


def test_an_error_of_a_method_is_one_line_with_its_place(folder):
    (folder / "mine.py").write_text(MINE.format(name="cli-broken").replace("first(ctx)", "{}[3]"))
    own = ("--import", "mine.py", "--plan", "cli-broken")
    line = refused(call("evaluate", *MODEL, *own, "--task", "digit", "--samples", "2"))
    assert line.startswith("error: KeyError: 3 (")
    assert line.endswith(
        "mine.py, line 6); raised in the method 'cli-broken', which prunes at layer 0"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "expected a Python file, such as mine.py"),
        ("import vtfast\n\nvtfast.no_such\n", "line 3: AttributeError: module 'vtfast' has no"),
        ("def broken(:\n", "SyntaxError: "),
        ("import sys\nsys.exit(0)\n", "line 2: SystemExit: 0"),
        (MINE.format(name="diversity"), "line 4: PlanError: the method name 'diversity' is taken"),
    ],
)
def test_a_file_that_cannot_be_run_is_one_line(folder, content, said):
    if content is not None:
        (folder / "bad.py").write_text(content)
    line = refused(call("evaluate", *MODEL, "--task", "digit", "--import", "bad.py"))
    assert line.startswith("error: --import bad.py: ")
    assert said in line


def test_an_unknown_method_says_how_to_name_a_file():
    asked = ("--task", "digit", "--methods", "no-such", "--no-scores", "--samples", "2")
    assert "in a file that --import names" in refused(call("sweep", *MODEL, *asked))


# -- plan files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["evaluate", "run", "sweep", "tune"])
def test_a_picture_beside_the_plan_does_not_write_over_it(folder, command):
    vtfast.Plan([vtfast.Prune(0, "uniform", 0.5)]).save("mine.json")
    before = (folder / "mine.json").read_text()
    asked = {
        "evaluate": ("--task", "digit", "--samples", "2", "--plan", "mine.json"),
        "run": ("--image", "scene.png", "--prompt", "read the code .", "--plan", "mine.json"),
        "sweep": ("--task", "digit", "--samples", "2", "--methods", "mine.json"),
        "tune": ("--task", "digit", "--methods", "mine.json"),
    }[command]
    for option in ("--picture", "--out") if command == "tune" else ("--out",):
        out = "mine.json" if (command, option) == ("tune", "--out") else "mine.png"
        line = refused(call(command, *MODEL, *asked, option, out))
        assert f"{option} {out} would write over mine.json; pass another name" in line
    assert (folder / "mine.json").read_text() == before


def test_plan_files_are_called_by_their_names(folder):
    for name in ("one", "two"):
        vtfast.Plan([vtfast.Prune(0, "uniform", 0.5)]).save(f"{name}.json")
    asked = ("--task", "digit", "--samples", "2", "--json")
    plans = ("--plan", "one.json", "--plan", "two.json")
    rows = json.loads(answered("evaluate", *MODEL, *asked, *plans).stdout)["rows"]
    assert [row["name"] for row in rows] == ["unpruned", "one", "two"]
    line = refused(call("evaluate", *MODEL, *asked, "--plan", "one.json", "--plan", "one.json"))
    assert "two rows would be called 'one'; give one of the plans another name" in line
