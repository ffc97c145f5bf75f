"""Comparing plans: what is counted, what is refused, going on, and several processes."""

import json
import os
import socket
import subprocess
import sys

import pytest
from command import answered, call, refused
from repository import ROOT

import vtfast
from vtfast import InputError, Plan, PlanError, Prune, StateError
from vtfast.evaluation import Comparison, wilson
from vtfast.evaluation.compare import begins, exact, resolve
from vtfast.evaluation.figure import pareto
from vtfast.evaluation.results import Row, tabulate
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


def test_what_is_lost_is_told(found):
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


def run(right, seconds, tokens=1.0):
    return {"right": right, "tokens": tokens, "flops": 2, "seconds": seconds, "kv_bytes": 3}


def test_the_table_is_its_arithmetic():
    """Times by batch: two questions that ran together count once."""
    records = [
        {"block": 0, "runs": {"unpruned": run(True, 2.0), "a": run(False, 1.0)}},
        {"block": 0, "runs": {"unpruned": run(True, 2.0), "a": run(True, 1.0)}},
        {"block": 2, "runs": {"unpruned": run(False, 1.0), "a": run(True, 0.1)}},
        {"block": 3, "runs": {"unpruned": run(True, 4.0), "a": run(True, 1.2)}},
    ]
    full, row = tabulate(records, {"unpruned": None, "a": "plan a"})
    assert (row.correct, row.lost, row.gained, row.accuracy) == (3, 1, 1, 0.75)
    assert row.time_ratio == pytest.approx(0.3)
    assert row.seconds == pytest.approx(2.3 / 4)
    assert (full.correct, full.time_ratio) == (3, 1)


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [(0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.5, 100, 0.4038, 0.5962)],
)
def test_wilson_intervals(share, n, low, high):
    assert wilson(share, n) == pytest.approx((low, high), abs=5e-4)


def test_wilson_intervals_stay_within_what_a_share_can_be():
    """Rounding made the low end of 0 of 10 a little negative, and the table said "-0 to 28"."""
    for n in range(1, 200):
        assert 0 <= wilson(0.0, n)[0] < 1e-9
        assert 1 - 1e-9 < wilson(1.0, n)[1] <= 1
    assert "(0 to 28)" in str(
        Comparison((Row("a", None, 10, 0, 0, 0, *[1.0] * 5),), "", "", 1, 10, {})
    )


def test_pareto_rows_are_those_no_other_beats():
    points = {"a": (9, 64), "b": (9, 32), "c": (8, 16), "d": (7, 16), "e": (8, 40), "f": (9, 32)}
    rows = tuple(
        Row(name, None, 10, correct, 0, 0, tokens, 1, 1, 1, 1)
        for name, (correct, tokens) in points.items()
    )
    assert Comparison(rows, "task", "llava", 8, 10, {}).pareto == ("b", "c", "f")


@pytest.mark.parametrize(
    ("said", "answer", "is_exact", "does_begin"),
    [
        ("Yes.", "yes", True, True),
        (" K  1 M ", "K 1 M", True, True),
        ("yes, it is", "yes", False, True),
        ("yesterday", "yes", False, False),
        ("no", "yes", False, False),
        ("", "yes", False, False),
    ],
)
def test_answers_are_compared_as_documented(said, answer, is_exact, does_begin):
    assert (exact(said, answer), begins(said, answer)) == (is_exact, does_begin)


def test_a_match_of_ones_own_and_longer_answers_are_taken(asked):
    heard = []

    def first_letter(said, answer):
        heard.append((said, answer))
        return said[:1] == answer[:1]

    plans = {"all": PLANS["all"]}
    told = vtfast.evaluate(*asked, plans, match=first_letter, max_new_tokens=1, **HOW)
    assert told.of("all").correct == 7
    assert len(heard) == 14
    assert told.settings["match"] == "first_letter"


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


def test_questions_that_are_no_dataset_are_refused(asked):
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


# -- going on --------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_and_ends_in_the_same_table(asked, found, tmp_path, monkeypatch):
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


def test_a_comparison_is_saved_and_drawn(found, tmp_path):
    comparison, _ = found
    comparison.draw(tmp_path / "plans.png")
    comparison.save(tmp_path / "saved.json")
    record = json.loads((tmp_path / "plans.json").read_text())
    assert record == json.loads((tmp_path / "saved.json").read_text()) == comparison.record()
    assert (tmp_path / "plans.png").stat().st_size > 10_000


def test_points_that_lie_on_one_another_are_told_apart():
    """Filled circles hid all plans but one wherever several had the same tokens and accuracy."""
    rows = tuple(Row(f"plan {i}", None, 10, 9, 0, 0, 32.0, *[1.0] * 4) for i in range(20))
    axes, *_ = pareto(Comparison(rows, "task", "llava", 8, 10, {})).axes
    points = [line for line in axes.lines if str(line.get_marker()) in "osD^vPX*"]
    assert len(points) == 20
    assert len({(point.get_marker(), point.get_color()) for point in points}) == 20
    assert {point.get_markerfacecolor() for point in points} == {"none"}


# -- several processes -----------------------------------------------------------------------------

# Launchers of two processes: torchrun, accelerate, and MPI, by which accelerate starts several
# under --cpu. Of MPI, which is not here, there is what it leaves in the environment.
LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    "accelerate": (
        "accelerate.commands.launch",
        *("--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0"),
        *("--mixed_precision=no", "--dynamo_backend=no"),
    ),
}
CODE = """
import json, sys, torch
torch.set_num_threads(1)
import vtfast
from vtfast.toy.evaluate import dataset
from vtfast.distributed import this_process
from test_evaluate import PLANS, HOW, without_times
model, processor = vtfast.toy.load("llava-small")
questions = dataset(processor, "background", 7, 0)
found = vtfast.evaluate(model, questions, PLANS, log=sys.argv[1], **HOW)
with open(f"{sys.argv[1]}.table.{this_process().rank}", "w") as file:
    json.dump(without_times(found), file)
"""


def environments(launcher):
    """Of the processes to start: one, which starts two, or by hand the two that MPI would."""
    folders = (ROOT / "tests" / name for name in ("evaluation", "helpers"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}
    if launcher != "mpi":
        return [env]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    mpi = {"OMPI_COMM_WORLD_SIZE": "2"}
    return [{**env, **mpi, "OMPI_COMM_WORLD_RANK": str(rank)} for rank in (0, 1)]


@pytest.mark.parametrize("launcher", [*LAUNCHERS, "mpi"])
def test_two_processes_share_the_questions_and_give_the_same_table(launcher, found, tmp_path):
    comparison, _ = found
    script = tmp_path / "compare.py"
    script.write_text(CODE)
    started = ["-m", *LAUNCHERS[launcher]] if launcher in LAUNCHERS else []
    command = [sys.executable, *started, str(script), str(tmp_path / "log")]
    how = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, env=env, **how) for env in environments(launcher)]
    for one in runs:
        _, said = one.communicate(timeout=120)
        assert one.returncode == 0, said[-2000:]
    expected = json.loads(json.dumps(without_times(comparison)))
    for rank in (0, 1):
        assert json.loads((tmp_path / f"log.table.{rank}").read_text()) == expected
    shares = [(tmp_path / f"log.{rank}").read_text().splitlines()[1:] for rank in (0, 1)]
    assert [len(share) for share in shares] == [4, 3]  # batches 0 and 2, and 1, of three


# -- the command -----------------------------------------------------------------------------------

MODEL = ("--model", "toy-llava-small", "--device", "cpu")
ASKED = ("evaluate", *MODEL, "--task", "background", "--samples", "3")


def test_the_command_prints_draws_and_goes_on(tmp_path, monkeypatch):
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
