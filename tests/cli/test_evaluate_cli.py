"""`vtfast evaluate`: what it prints and writes, and what it refuses."""

import json

import pytest
from command import answered, call, refused

MODEL = ("--model", "toy-llava-small", "--device", "cpu")
ASKED = ("evaluate", *MODEL, "--task", "background", "--samples", "3")


def test_the_command_prints_draws_and_continues_a_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plans = ("--plan", "uniform", "--plan", "vtw", "--keep", "0.5,0.25")
    options = ("--log", "run.jsonl", "--out", "plans.png")
    shown = answered(*ASKED, *plans, *options, columns=80).stdout
    assert "toy-llava-small on background, 3 questions" in shown
    rows = [line for line in shown.splitlines() if line.strip().startswith(("unpr", "unif", "vtw"))]
    assert len(rows) == 5
    assert all(len(line) <= 80 for line in shown.splitlines())
    printed = json.loads(answered(*ASKED, *plans, *options, "--json").stdout)
    assert printed.pop("model") == "toy-llava-small"
    assert printed == json.loads((tmp_path / "plans.json").read_text())
    assert [row["name"] for row in printed["rows"][1:3]] == ["uniform 0.5", "uniform 0.25"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*ASKED, "--plan", "nonesuch"), "unknown preset 'nonesuch'"),
        ((*ASKED, "--keep", "1.5"), "--keep 1.5: expected shares above 0"),
        ((*ASKED, "--keep", "half"), "--keep half: expected shares"),
        ((*ASKED, "--match", "close"), "--match close: pass one of exact, begins"),
        ((*ASKED, "--positions", "odd"), "--positions odd"),
        ((*ASKED, "--plan", "paper:divprune"), "plan paper:divprune: expected one such as"),
        ((*ASKED, "--plan", "paper:vtw:7"), "no released setting"),
        ((*ASKED, "--plan", "paper:dart+vtw:64"), "the model has 8 decoder layers"),
        (("evaluate", *MODEL), "pass exactly one of --task and --data"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, says):
    assert says in refused(call(*arguments))
