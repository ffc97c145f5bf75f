"""`vtfast tune`: what it prints and writes, and what it refuses."""

import json

import pytest
from command import answered, call, refused

from vtfast.plan import Plan, Prune

MODEL = ("--model", "toy-llava-small", "--device", "cpu")
ASKED = ("tune", *MODEL, "--task", "background", "--samples", "128", "--max-loss", "0.05")
QUICK = ("--methods", "topk", "--batch", "32")


def test_the_command_prints_draws_and_saves_a_plan_that_others_take(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--log", "run.jsonl", "--out", "plan.json", "--picture", "tuned.png")
    shown = answered(*ASKED, *QUICK, *options, columns=80).stdout
    assert "toy-llava-small on background, 64 questions of the search, 64 held out" in shown
    assert "→ " in shown
    assert "Saved as plan.json." in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if not line.startswith("topk"))
    plan = Plan.load("plan.json")
    assert plan.measured.high <= 0.05
    printed = json.loads(answered(*ASKED, *QUICK, *options, "--json").stdout)
    assert printed.pop("model") == "toy-llava-small"
    assert printed == json.loads((tmp_path / "tuned.json").read_text())
    assert printed["answers"] == 0  # all are in the log
    stages = printed["finalists"][printed["chosen"]]["stages"]
    assert stages == json.loads((tmp_path / "plan.json").read_text())["stages"]
    asked = ("evaluate", *MODEL, "--task", "background", "--samples", "4", "--plan", "plan.json")
    assert plan.name in answered(*asked).stdout


def test_none_is_said_and_no_file_is_written(tmp_path, monkeypatch):
    blind = Plan((Prune(0, "drop", 0),), "blind")
    monkeypatch.setattr("vtfast.tuning.find_plan.space", lambda *_, **__: [blind])
    out = tmp_path / "plan.json"
    shown = answered(*ASKED, *QUICK, "--horizon", "2", "--out", str(out)).stdout
    assert "No plan is shown to lose at most 5 %" in shown
    assert "There is no plan to save as" in shown
    assert not out.exists()
    blind.save(out)
    assert "from before" in answered(*ASKED, *QUICK, "--horizon", "2", "--out", str(out)).stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*ASKED[:-1], "0.01"), "of 128 questions 64 are held out"),
        ((*ASKED[:-1], "1.5"), "--max-loss 1.5: expected a number in (0, 1)"),
        ((*ASKED, "--confidence", "0.3"), "--confidence 0.3: expected a number in (0.5, 1)"),
        ((*ASKED, "--objective", "speed"), "--objective speed: pass one of flops, time, cache"),
        ((*ASKED, "--methods", "best"), "method 'best' is unknown"),
        ((*ASKED, "--horizon", "9"), "horizon=9"),
        ((*ASKED, "--out", "plan.txt"), "pass a name that ends in .json"),
        ((*ASKED, "--out", "no/such/plan.json"), "there is no folder no/such"),
        ((*ASKED, "--picture", "plan.json"), "--picture plan.json: the picture is a PNG"),
        (("tune", *MODEL), "pass exactly one of --task and --data"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, says):
    assert says in refused(call(*arguments))
