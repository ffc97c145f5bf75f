"""The README, and its page on commands, show measured numbers, real output, examples that run."""

import html
import re
import shlex
import sys
import tomllib

import toy_accuracy
from command import answered
from demo_svg import COLUMNS
from repository import ROOT
from tiny_models import FAMILIES
from tiny_parts import TEXT
from toy_scores import bundled
from transformers import LlamaConfig

import vtfast
from vtfast.runtime.names import TESTED
from vtfast.toy.evaluate import dataset as easy

README = (ROOT / "README.md").read_text()
COMMANDS = (ROOT / "docs" / "commands.md").read_text()


def test_it_is_short():
    assert README.count("\n") <= 200


def test_its_badges_are_true():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    minor = [release.rpartition(".")[0] for release in TESTED]
    status = re.search(r"\*\*Status:\*\*.*", README)[0]
    assert re.findall(r"!\[(.*?)\]\(https://img", README) == [
        f"Python {project['requires-python'].removeprefix('>=')}+",
        f"transformers {minor[0]} to {minor[-1]}",
        "GPU: not yet timed" if "not yet timed" in status else "GPU: timed",
        project["license"],
    ]


def test_the_accuracy_table_is_the_measured_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toy_accuracy.py", "--check"])
    assert not toy_accuracy.main(), capsys.readouterr().out


def test_the_output_of_vtfast_run_is_what_it_prints(tmp_path, monkeypatch):
    """Line by line, except for times."""
    (block,) = (
        b for b in re.findall(r"```bash\n(.*?)```", COMMANDS, re.DOTALL) if "$ vtfast run" in b
    )
    first, second, *expected = block.strip().splitlines()
    monkeypatch.chdir(tmp_path)
    exec(shlex.split(first)[3], {})
    command = (*shlex.split(second)[2:], "--device", "cpu")
    shown = answered(*command, columns=80).stdout.splitlines()

    def without_times(lines):
        lines = (" ".join(line.replace("─", "").split()) for line in lines)
        return [re.sub(r" [\d.]+ m?s\b.*", "", line) for line in lines if line]

    assert without_times(shown) == without_times(expected)


def test_the_terminal_it_shows_is_that_of_the_demo(tmp_path):
    """Line by line, up to the times; an SVG has the words of a line in several elements."""
    drawn = re.sub(
        r"<style.*?</style>|<[^>]+>", "", (ROOT / "docs" / "demo.svg").read_text(), flags=re.S
    )
    shown = "".join(html.unescape(drawn).split())
    out = answered("demo", "--no-timing", "--out", tmp_path / "kept.png", columns=COLUMNS).stdout
    lines = [line for line in out.partition("✗ marks")[0].splitlines() if line.strip("─ ")]
    assert len(lines) > 12
    assert [line for line in lines if "".join(line.split()) not in shown] == []


def test_the_example_of_tuning_ends_in_a_plan_that_runs(tmp_path, monkeypatch):
    """With a larger tolerance, so that fewer questions do."""
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "tune" in b)
    model, processor = bundled("llava-small")
    dataset, fewer = easy(processor, "background", 128, 5), block.replace("0.01", "0.05")
    monkeypatch.chdir(tmp_path)
    exec(fewer, {"vtfast": vtfast, "model": model, "dataset": dataset})
    assert fewer != block
    assert vtfast.is_patched(model)
    vtfast.unpatch(model)


def test_the_examples_run_as_they_stand():
    family = FAMILIES["llava"]
    first, *blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    blocks = [block for block in blocks if "vtfast.tune" not in block]
    assert len(blocks) == 2
    blocks.append(re.sub(r"model = .*from_pretrained.*", "", first))  # nothing can be downloaded
    assert blocks[-1] != first
    deep = LlamaConfig(**{**TEXT, "num_hidden_layers": 24})  # layer 20 is in an example
    model, inputs = family.build(text_config=deep), family.inputs("single")
    for block in blocks:
        exec(block, {"vtfast": vtfast, "model": model, "inputs": {**inputs, "max_new_tokens": 2}})
        vtfast.unpatch(model)
