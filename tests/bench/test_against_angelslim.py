"""docs/peers.md says what the committed comparison with AngelSlim found; the script can refuse."""

import json
import subprocess
import sys

import pytest
from command import refused
from repository import ROOT

PAGE = (ROOT / "docs/peers.md").read_text()
FOUND = json.loads((ROOT / "bench/results/peers_angelslim_cpu.json").read_text())
NAMES = {"divprune": "DivPrune", "fastv": "FastV", "llava": "LLaVA", "qwen": "Qwen2.5-VL",
         "angelslim": "AngelSlim", "vtfast": "vtfast"}  # fmt: skip
SIDES = ("vtfast", "angelslim")


def rows() -> list[str]:
    """The rows of the page's two tables, from the JSON."""
    lines = []
    for row in FOUND["prefill"]:
        shares = [row[side]["share"] for side in SIDES]
        cells = [NAMES[row["method"]], f"{row['keep']:g}"]
        cells += [f"{s['median']:.2f} ({s['p20']:.2f} to {s['p80']:.2f})" for s in shares]
        cells += [f"{row[side]['select_ms']['median']:.0f}" for side in SIDES]
        lines.append(f"| {' | '.join(cells)} |")
    for row in FOUND["answers"]:
        for side in SIDES:
            of, n = row[side], row["prompts"]
            cells = [NAMES[row["model"]], NAMES[row["method"]], NAMES[side]]
            cells += [f"{of[which]:.0e}" if of[which] < 0.1 else f"{of[which]:.1f}"
                      for which in ("first", "later")]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} | {of['as_masked']} of {n} | {of['right']} |")
    return lines


@pytest.mark.parametrize("row", rows())
def test_the_page_has_the_row(row: str) -> None:
    assert row in PAGE


def test_the_page_names_versions_commits_and_the_command() -> None:
    peer = FOUND["peer"]
    for said in (
        f"transformers {FOUND['transformers']}", f"transformers {peer['transformers']}",
        peer["commit"][:12], FOUND["commit"][:12], FOUND["device"], FOUND["torch"],
    ):  # fmt: skip
        assert said in PAGE
    assert FOUND["command"].startswith("python bench/peers/against_angelslim.py --angelslim")


def test_the_page_says_what_became_of_unequal_batches() -> None:
    off = max(max(one["vtfast"].values()) for one in FOUND["unequal"])
    assert f"differ by at most {off:.0e}" in PAGE
    for one in FOUND["unequal"]:
        assert one["angelslim"].partition(": ")[2] in PAGE


def test_the_page_says_how_often_both_picked_the_same_tokens() -> None:
    same = {(one["model"], one["method"]): one["same_picks"] for one in FOUND["answers"]}
    assert same["llava", "divprune"] == same["qwen", "divprune"] == FOUND["answers"][0]["prompts"]
    text = f"the same in {same['llava', 'fastv']} and {same['qwen', 'fastv']} of 40 prompts"
    assert text in PAGE


def test_without_angelslim_one_line_says_what_to_install(tmp_path) -> None:
    script = ROOT / "bench/peers/against_angelslim.py"
    options = ["--angelslim", tmp_path, "--python", sys.executable, "--json", tmp_path / "out"]
    command = [sys.executable, str(script), *map(str, options)]
    line = refused(subprocess.run(command, capture_output=True, text=True, cwd=tmp_path))
    assert "a clone of github.com/Tencent/AngelSlim" in line
    assert not (tmp_path / "out").exists()
