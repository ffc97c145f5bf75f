"""Comparing plans: what is counted, what is refused, continued runs, and several processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

import vtfast
from vtfast import InputError, Plan, PlanError, Prune, StateError
from vtfast.evaluation import Comparison
from vtfast.evaluation.compare import resolve
from vtfast.information import Dataset
from vtfast.inputs.distributed import Shards, this_process
from vtfast.methods.own import code_of
from vtfast.toy.evaluate import dataset

PLANS = {
    "half at random": [Prune(0, "random", 0.5)],
    "all": [Prune(0, "uniform", 1.0)],
    "none": [Prune(0, "drop", 0)],
}
HOW = {"batch": 3, "progress": False}
TIMES = ("time_ratio", "seconds")


@pytest.fixture(scope="module")
def asked():
    """The small bundled model and seven questions."""
    model, processor = vtfast.toy.load("llava-small")
    return model, dataset(processor, "background", 7, 0)


@pytest.fixture(scope="module")
def found(asked, tmp_path_factory):
    """One comparison and its log."""
    log = tmp_path_factory.mktemp("log") / "run.jsonl"
    return vtfast.evaluate(*asked, PLANS, log=log, **HOW), log


def without_times(comparison):
    record = comparison.record()
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in record["rows"]]
    return {**record, "rows": rows}


# -- what is counted -------------------------------------------------------------------------------


def test_every_plan_has_a_row_beside_the_unpruned_model(asked, found):
    comparison, _ = found
    assert [row.name for row in comparison.rows] == ["unpruned", *PLANS]
    assert (comparison.task, comparison.samples, comparison.num_layers) == ("background", 7, 8)
    assert {row.samples for row in comparison.rows} == {7}


def test_accuracy_is_that_of_greedy_answers_one_by_one(asked, found):
    comparison, _ = found
    model, questions = asked
    for name, plan in {"unpruned": None, **PLANS}.items():
        right = 0
        for i, example in enumerate(questions.examples):
            inputs = questions.batch([i]).inputs
            handle = None if plan is None else vtfast.patch(model, plan)
            rows = model.generate(**inputs, do_sample=False, max_new_tokens=2)
            if handle:
                handle.remove()
            said = questions.processor.decode(
                rows[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            right += said == example.answer
        assert comparison.of(name).correct == right
    assert comparison.of("unpruned").correct == 7
    assert comparison.of("none").correct < 7


def test_lost_and_gained_answers_are_counted(found):
    comparison, _ = found
    none = comparison.of("none")
    assert (none.lost, none.gained) == (7 - none.correct, 0)
    assert (comparison.of("all").lost, comparison.of("all").gained) == (0, 0)


def test_tokens_arithmetic_and_memory_are_those_of_the_plan(asked, found):
    comparison, _ = found
    model, questions = asked
    text = model.config.text_config
    n_text = questions.batch([0]).inputs["input_ids"].shape[1] - 64
    per_row = 2 * text.num_key_value_heads * text.head_dim * 4  # keys and values in fp32
    for name, plan in PLANS.items():
        row, plan = comparison.of(name), Plan(plan)
        assert row.average_tokens == plan.average_tokens(64, 8)
        assert row.flops_ratio == pytest.approx(plan.flops_ratio(model.config, 64, n_text))
        held = sum(plan.tokens_per_layer(64, 8)) + 8 * (n_text + 1)  # and one new token
        assert row.kv_bytes == held * per_row
    assert comparison.of("unpruned").average_tokens == 64
    assert comparison.of("unpruned").flops_ratio == 1


def test_times_are_shares_of_the_unpruned_models(found):
    comparison, _ = found
    assert comparison.of("unpruned").time_ratio == 1
    assert all(row.time_ratio > 0 and row.seconds > 0 for row in comparison.rows)


def test_a_function_as_match_and_the_length_of_answers_are_used(asked):
    heard = []

    def first_letter(said, answer):
        heard.append((said, answer))
        return said[:1] == answer[:1]

    plans, name = {"all": PLANS["all"]}, f"first_letter {code_of(first_letter)}"
    told = vtfast.evaluate(*asked, plans, match=first_letter, max_new_tokens=1, **HOW)
    assert told.of("all").correct == 7
    assert len(heard) == 14
    assert told.settings["match"] == name


def test_prompts_of_several_lengths_are_padded_on_the_left():
    """Qwen2.5-VL's tokenizer pads on the right by itself; half the answers were wrong then."""
    model, processor = vtfast.toy.load("qwen")
    processor.tokenizer.padding_side = "right"
    questions = dataset(processor, "digit", 4, 0, sizes=((96, 96), (144, 96)))
    assert questions.batch([0, 1]).inputs["attention_mask"][:, -1].tolist() == [1, 1]
    told = vtfast.evaluate(model, questions, {"all": PLANS["all"]}, batch=4, progress=False)
    assert [row.correct for row in told.rows] == [4, 4]


# -- names and refusals ----------------------------------------------------------------------------


def names(asked, plans, keep=None, horizon=None):
    how = {"seed": 0, "positions": "keep", "path": "auto", "impl": "auto"}
    return list(resolve(asked[0], plans, keep, horizon, how))


def test_rows_are_called_by_plan_and_budget(asked):
    assert names(asked, "uniform") == ["uniform 0.5"]
    assert names(asked, ["dart", "pyramiddrop"]) == ["dart 0.5", "pyramiddrop 0.469"]
    two = names(asked, ["random", Plan([Prune(0, "random", 9)], "nine")], keep=[0.5, 0.25])
    assert two == ["random 0.5", "random 0.25", "nine"]
    assert names(asked, {"mine": "random"}, keep=0.5) == ["mine"]
    assert names(asked, [Prune(0, "random", 9)]) == ["custom"]
    assert names(asked, ["vtw", "uniform"], keep=0.5) == ["vtw 0.5", "uniform 0.5"]


def test_a_horizon_goes_to_the_plans_that_have_one(asked):
    how = {"seed": 0}
    plans = resolve(asked[0], ["uniform", "divprune+random", "vtw"], 0.5, 5, how)
    assert [plan.horizon for plan in plans.values()] == [None, 5, None]
    plans = resolve(asked[0], ["uniform", "divprune+random", "vtw"], None, 5, how)
    assert [plan.horizon for plan in plans.values()] == [None, 5, 5]


REFUSALS = [
    ({"plans": []}, InputError, "nothing to compare"),
    ({"plans": {}}, InputError, "nothing to compare"),
    ({"plans": ["random", "random"]}, InputError, r"two rows would be called 'random 0.5'"),
    ({"plans": {"unpruned": "random"}}, InputError, "two rows would be called 'unpruned'"),
    ({"plans": "fastest"}, PlanError, "unknown preset"),
    ({"plans": "fastv", "keep": 0.1}, PlanError, "smallest reachable keep"),
    ({"plans": "random", "batch": 0}, InputError, "batch=0"),
    ({"plans": "random", "match": "close"}, InputError, "match='close'"),
    ({"plans": "random", "match": None}, InputError, "match=None: pass 'exact' or 'begins', or a"),
    ({"plans": "random", "max_new_tokens": 0}, InputError, "max_new_tokens=0: expected an int"),
    ({"plans": "random", "max_new_tokens": 2.0}, InputError, "max_new_tokens=2.0: expected an"),
    ({"plans": "random", "keep": "0.5"}, PlanError, "keep='0.5'"),
    ({"plans": None}, InputError, "plans=None: pass a preset, a Plan, a list of them"),
    ({"plans": (name for name in ["random", "uniform"])}, InputError, "plans=<generator"),
]


@pytest.mark.parametrize(("options", "error", "says"), REFUSALS)
def test_what_cannot_be_compared_is_refused(asked, options, error, says):
    with pytest.raises(error, match=says):
        vtfast.evaluate(*asked, **{"progress": False, **options})
    assert not vtfast.is_patched(asked[0])


def test_questions_without_a_dataset_are_refused(asked):
    with pytest.raises(InputError, match=r"a list; pass a vtfast\.information\.Dataset"):
        vtfast.evaluate(asked[0], [], "random")


def test_a_patched_or_training_model_is_refused(asked):
    model, _ = asked
    with vtfast.patch(model), pytest.raises(StateError, match="unpatch"):
        vtfast.evaluate(*asked, "random")
    model.train()
    try:
        with pytest.raises(StateError, match=r"model\.eval"):
            vtfast.evaluate(*asked, "random")
    finally:
        model.eval()


# -- continued runs --------------------------------------------------------------------------------


def test_a_stopped_run_continues_and_gives_the_same_table(asked, found, tmp_path, monkeypatch):
    comparison, log = found
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == 8
    (tmp_path / "cut.jsonl").write_text("".join(lines[:4]) + lines[4][:50])
    model, questions = asked
    calls = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **k: calls.append(1) or generate(**k))
    again = vtfast.evaluate(model, questions, PLANS, log=tmp_path / "cut.jsonl", **HOW)
    assert without_times(again) == without_times(comparison)
    assert len(calls) == 4 * (1 + 2)  # warm-up, and the two batches that were missing

    calls.clear()
    again = vtfast.evaluate(model, questions, PLANS, log=log, **HOW)
    assert again == comparison
    assert calls == []


def test_a_log_of_another_comparison_is_refused(asked, found):
    _, log = found
    with pytest.raises(InputError, match="run with seed=0, and this one has 1"):
        vtfast.evaluate(*asked, PLANS, log=log, seed=1, **HOW)


SAMPLES = Path(__file__).parent / "samples_0_1"  # written by that release, the log half-way


def test_a_log_of_0_1_can_be_continued(asked, tmp_path):
    model, questions = asked[0], dataset(asked[1].processor, "shape_colour", 4, 0)
    two_stages = [Prune(0, "diversity", 0.5), Prune(4, "random", 5)]
    plans, batches, batch = {"random": "random", "two stages": two_stages}, [], questions.batch
    questions.batch = lambda block, device: batches.append(list(block)) or batch(block, device)
    log = shutil.copy(SAMPLES / "evaluate.jsonl", tmp_path)
    how = {"keep": 0.5, "batch": 2, "log": log, "progress": False}
    told = vtfast.evaluate(model, questions, plans, **how)
    assert batches == [[2, 3]]
    saved = Comparison.load(SAMPLES / "comparison.json")
    assert without_times(told) == without_times(saved)


def test_a_comparison_is_saved_and_drawn(found, tmp_path):
    comparison, _ = found
    comparison.draw(tmp_path / "plans.png")
    comparison.save(tmp_path / "saved.json")
    record = json.loads((tmp_path / "plans.json").read_text())
    assert record == json.loads((tmp_path / "saved.json").read_text()) == comparison.record()
    assert (tmp_path / "plans.png").stat().st_size > 10_000


# -- several processes -----------------------------------------------------------------------------

CODE = """
import json, sys, torch
torch.set_num_threads(1)
import vtfast
from vtfast.toy.evaluate import dataset
from vtfast.inputs.distributed import this_process
from test_evaluate import PLANS, HOW, without_times
model, processor = vtfast.toy.load("llava-small")
questions = dataset(processor, "background", 7, 0)
found = vtfast.evaluate(model, questions, PLANS, log=sys.argv[1], **HOW)
with open(f"{sys.argv[1]}.table.{this_process().rank}", "w") as file:
    json.dump(without_times(found), file)
"""


def test_two_processes_share_the_questions_and_give_the_same_table(
    asked, found, tmp_path, monkeypatch
):
    """And one process goes on with what both have, in any order of the questions."""
    comparison, _ = found
    script = tmp_path / "compare.py"
    script.write_text(CODE)
    folders = (ROOT, *(ROOT / "tests" / name for name in ("evaluation", "helpers")))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, str(script), str(tmp_path / "log")]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = json.loads(json.dumps(without_times(comparison)))
    for rank in (0, 1):
        assert json.loads((tmp_path / f"log.table.{rank}").read_text()) == expected
    shares = [(tmp_path / f"log.{rank}").read_text().splitlines()[1:] for rank in (0, 1)]
    assert [len(share) for share in shares] == [4, 3]  # batches 0 and 2, and 1, of three

    model, questions = asked
    monkeypatch.setattr(model, "generate", None)  # nothing is asked again
    again = vtfast.evaluate(model, questions, PLANS, log=tmp_path / "log", **HOW)
    assert json.loads(json.dumps(without_times(again))) == expected
    turned = Dataset(questions.processor, questions.examples[::-1], "background", ends=True)
    again = vtfast.evaluate(model, turned, PLANS, log=tmp_path / "log", **HOW)
    assert [row.correct for row in again.rows] == [row.correct for row in comparison.rows]


PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
LAUNCHED = {
    "torchrun and accelerate": {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", **PLACE},
    "MPI": {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3", **PLACE},
}


@pytest.mark.parametrize("variables", LAUNCHED.values(), ids=LAUNCHED)
def test_a_process_knows_its_number_from_what_launchers_leave_in_the_environment(
    variables, monkeypatch
):
    """accelerate starts several processes under --cpu by MPI alone, else as torchrun does."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    here, shards = this_process(), Shards()
    assert (here.rank, here.size) == (shards.rank, shards.size) == (1, 3)
