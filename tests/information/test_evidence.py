"""What docs/evidence.md shows is what was measured, and the checkpoints hold what it found."""

import json
import re
import sys
from pathlib import Path

import evidence
import pytest
from repository import ROOT

from vtfast import toy
from vtfast.information import Horizon
from vtfast.toy import evaluate

EVIDENCE = json.loads((ROOT / "bench" / "results" / "evidence.json").read_text())
CHECKPOINTS = Path(toy.__file__).parent / "checkpoints"


def test_the_page_shows_the_measured_numbers(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--check"])
    assert evidence.main() == 0


@pytest.mark.parametrize("name", EVIDENCE["horizons"])
def test_a_checkpoint_holds_the_horizon_of_the_hardest_task_that_has_one(name):
    found = {task: Horizon.of_record(record) for task, record in EVIDENCE["horizons"][name].items()}
    layers = {task: one.layer for task, one in found.items()}
    config = json.loads((CHECKPOINTS / name / "config.json").read_text())
    card = json.loads((CHECKPOINTS / name / "training.json").read_text())
    assert config["vtfast_horizon"] == evaluate.hardest_horizon(layers)
    assert card["horizon"] == layers
    assert min(one.samples for one in found.values()) >= 300


def test_every_figure_of_the_page_is_there():
    text = (ROOT / "docs" / "evidence.md").read_text()
    names = re.findall(r"\]\(([^)]+\.png)\)", text)
    assert len(names) >= 4
    assert [name for name in names if not (ROOT / "docs" / name).exists()] == []
