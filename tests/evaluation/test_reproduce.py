"""Every command of docs/reproduce.md runs, with bundled models and few questions in place."""

import re
import shlex
import sys
from types import ModuleType

import pytest
from command import answered
from lmms_stand_in import stand_ins
from repository import ROOT
from tiny_parts import TEXT
from transformers import LlamaConfig, LlavaForConditionalGeneration

import vtfast
from vtfast import Plan

PAGE = (ROOT / "docs" / "reproduce.md").read_text()
LLAVA, QWEN = "llava-hf/llava-1.5-7b-hf", "Qwen/Qwen2.5-VL-7B-Instruct"


def commands():
    """The page's commands, each a list of words."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


COMMANDS = commands()
OURS = [words[words.index("vtfast") :] for words in COMMANDS if "vtfast" in words]
THEIRS = [words for words in COMMANDS if words[:3] == ["python", "-m", "lmms_eval"]]


class Rows(list):
    """The part of a dataset's interface that the page uses."""

    def shuffle(self, seed):
        return self


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's files are, made by its script of drawn scenes; and a LLaVA of 32 layers."""
    folder = tmp_path_factory.mktemp("reproduce")
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    pictures, questions, answers = vtfast.toy.scenes(2, 0, "background")

    def load_dataset(name, split):
        several = name.endswith("textvqa")
        return Rows(
            {"image": p, "question": q, **({"answers": [a, "x", a]} if several else {"answer": a})}
            for p, q, a in zip(pictures, questions, answers, strict=True)
        )

    datasets = ModuleType("datasets")
    datasets.load_dataset = load_dataset
    with pytest.MonkeyPatch.context() as patching:
        patching.chdir(folder)
        patching.setitem(sys.modules, "datasets", datasets)
        exec(script, {})
    model, processor = vtfast.toy.load("llava-small")
    model.config.text_config.num_hidden_layers = 32
    model.config.vtfast_horizon = None
    LlavaForConditionalGeneration(model.config).save_pretrained(folder / "deep")
    processor.save_pretrained(folder / "deep")
    return folder


def test_the_script_writes_questions_with_their_answers(folder):
    for name in ("pope", "mme", "textvqa"):
        examples, bad = vtfast.information.read_examples(folder / f"{name}.jsonl")
        assert (len(examples), bad) == (2, [])
        assert examples[0].question.endswith("single word or phrase.")


@pytest.mark.parametrize("words", OURS, ids=[f"{i}-{w[1]}" for i, w in enumerate(OURS)])
def test_every_command_runs(words, folder, monkeypatch):
    """Started by torchrun some are shared out: that has its own test in test_evaluate.py."""
    monkeypatch.chdir(folder)
    deep = words[1] == "evaluate"  # where plans prune at layers the bundled models lack
    models = {LLAVA: str(folder / "deep") if deep else "toy-llava-small", QWEN: "toy-qwen"}
    few = {"128": "3"} if words[1] == "run" else {}
    shown = answered(*(models.get(word, few.get(word, word)) for word in words[1:])).stdout
    assert shown
    for option in ("--log", "--out"):
        if option in words:
            assert (folder / words[words.index(option) + 1]).stat().st_size > 0


def test_the_commands_for_lmms_eval_make_pruned_models():
    made = []
    with stand_ins(LlamaConfig(**{**TEXT, "num_hidden_layers": 32})) as classes:
        for words in THEIRS:
            name = words[words.index("--model") + 1]
            cls = {"llava_hf_vtfast": classes.LlavaHfChat}
            cls |= {"qwen2_5_vl_vtfast": classes.Qwen2_5_VLChat}
            given = words[words.index("--model_args") + 1].split(",")
            built = cls[name](**dict(part.split("=", 1) for part in given))
            made.append((built.pretrained, built.vtfast.plan.name))
    assert made == [
        (LLAVA, "divprune+random, released setting 192"),
        (QWEN, "divprune+random"),
    ]


def test_the_table_of_released_settings_is_the_plans():
    rows = re.findall(r"^\| (\w+\+\w+) \| (.+; .+) \| (.+; .+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 4
    for name, *columns in rows:
        for tokens, column in zip((192, 64), columns, strict=True):
            plan = Plan.paper(name, tokens)
            stages, _, average = column.partition("; ")
            told = zip(plan.stages, plan.counts(576), strict=True)
            assert stages == ", ".join(f"{stage.layer} → {count}" for stage, count in told)
            assert float(average) == pytest.approx(plan.average_tokens(576, 32), abs=0.05)


def test_the_page_has_commands_for_both_models():
    assert len(OURS) >= 8
    assert len(THEIRS) == 2
    assert len(OURS) + len(THEIRS) == len(COMMANDS)
    assert {LLAVA, QWEN} <= {word for words in OURS for word in words}
