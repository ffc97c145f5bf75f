"""A method of a user's own: options, presets, errors, and logs that notice when it is edited."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from repository import ROOT
from toy_scores import bundled

import vtfast
from vtfast import InputError, Plan, PlanError, Prune
from vtfast.information import Dataset
from vtfast.information import sweep as sweep_layers
from vtfast.methods.own import code_of
from vtfast.toy.evaluate import dataset

HOW = {"progress": False}


def first_rows(ctx):
    offsets = ctx.segments.offsets[:-1]
    return torch.cat([torch.arange(at, at + k) for at, k in zip(offsets, ctx.keep, strict=True)])


def last_rows(ctx):
    ends = ctx.segments.offsets[1:]
    return torch.cat([torch.arange(at - k, at) for at, k in zip(ends, ctx.keep, strict=True)])


def register(name, select, **reads):
    vtfast.register_method(name, replace=True, **{"scores": False, **reads})(select)


@pytest.fixture(scope="module")
def model():
    return bundled("llava-small")[0]


@pytest.fixture(scope="module")
def asked():
    return dataset(bundled("llava-small")[1], "background", 4, 0)


def kept(model, asked, stage):
    with torch.no_grad(), vtfast.patch(model, [stage], record=True) as handle:
        model(**asked.batch([0], "cpu").inputs)
    return handle.report.kept[stage.layer][0].tolist()


# -- options ---------------------------------------------------------------------------------------


def test_options_that_a_function_declares_are_passed_by_name(model, asked):
    def ends(ctx, *, last=False):
        return last_rows(ctx) if last else first_rows(ctx)

    register("test-ends", ends)
    assert kept(model, asked, Prune(0, "test-ends", 3)) == [2, 3, 4]
    assert kept(model, asked, Prune(0, "test-ends", 3, last=True)) == [63, 64, 65]


def test_every_way_to_declare_options_gets_them(model, asked):
    seen = []

    def positional(ctx, shift=0, _hidden=7):
        seen.append((shift, _hidden))
        return first_rows(ctx)

    def all_others(ctx, *, shift=0, **more):
        seen.append((shift, more))
        return first_rows(ctx)

    def unwrapped(*given, **options):
        seen.append(options)
        return first_rows(*given)

    for number, select in enumerate((positional, all_others, unwrapped)):
        register(f"test-way-{number}", select)
    kept(model, asked, Prune(0, "test-way-0", 3, shift=2))
    kept(model, asked, Prune(0, "test-way-1", 3, shift=2, extra=True))
    kept(model, asked, Prune(2, "test-way-2", 3, shift=2, score_layer="this"))
    assert seen == [(2, 7), (2, {"extra": True}), {"shift": 2}]
    with pytest.raises(PlanError, match="no option 'hidden'"):
        vtfast.patch(model, [Prune(0, "test-way-0", 3, hidden=2)])


@pytest.mark.parametrize("option", ["keep", "layer", "per", "score_layer"])
def test_an_option_that_prune_has_already_is_refused(option):
    names = {}
    exec(f"def mine(ctx, *, {option}=1): pass", names)
    with pytest.raises(PlanError, match=f"'test-taken' has an option '{option}', which Prune has"):
        register("test-taken", names["mine"])


def test_an_option_that_is_misspelt_or_missing_is_refused_before_anything_changed(model):
    def needs(ctx, *, window, sharp=False):
        return first_rows(ctx)

    register("test-needs", needs)
    for options, said in (
        ({"window": 3, "shrap": True}, "no option 'shrap'; its options are .*window, sharp"),
        ({"sharp": True}, "pass window=, which method 'test-needs' needs"),
        ({"window": 3, "score_layer": "next"}, "score_layer='next'.*'previous' or 'this'"),
    ):
        with pytest.raises(PlanError, match=said):
            vtfast.patch(model, [Prune(0, "test-needs", 0.5, **options)])
        assert not vtfast.is_patched(model)


def test_a_function_that_declares_nothing_finds_all_in_its_context(model, asked):
    seen = {}

    def reads(ctx):
        seen.update(ctx.options)
        return first_rows(ctx)

    register("test-reads-options", reads)
    kept(model, asked, Prune(0, "test-reads-options", 3, anything=(1, 2)))
    assert seen["anything"] == (1, 2)


# -- presets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scores", "layer"), [(False, 0), (True, 2)])
def test_its_name_is_a_preset_at_an_average_budget(model, scores, layer):
    register("test-first", first_rows, scores=scores)
    for preset in ("test-first", "test-first+random", "test-first+vtw"):
        with vtfast.patch(model, preset, keep=0.5) as handle:
            plan = handle.plan
        assert (plan.stages[0].layer, plan.stages[0].method) == (layer, "test-first")
        assert plan.average_tokens(64, 8) == pytest.approx(32, abs=0.5)
    with pytest.raises(PlanError, match=r"unknown preset 'test-frist'.*yours: .*test-first"):
        vtfast.patch(model, "test-frist")


@pytest.mark.parametrize("name", ["divprune", "a+random", "mine.json", "a,b", "two words"])
def test_a_name_that_would_be_read_as_something_else_is_refused(name):
    with pytest.raises(PlanError, match=r"taken|letters, digits"):
        vtfast.register_method(name)(first_rows)


def test_what_is_no_function_is_refused():
    with pytest.raises(PlanError, match="'test-three' is a int; register a function"):
        vtfast.register_method("test-three")(3)


def test_the_name_of_a_preset_in_a_stage_is_answered_with_its_method(model):
    with pytest.raises(PlanError, match=r"'divprune' is unknown \(did you mean 'diversity'"):
        vtfast.patch(model, [Prune(0, "divprune", 0.5)])


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("mine broke"), InputError("mine broke")])
def test_an_error_of_a_method_is_no_fault_of_a_sample(model, asked, error):
    def breaks(ctx):
        raise error

    register("test-breaks", breaks)
    careless = Dataset(asked.processor, asked.examples, "careless", skip_bad=True)
    with pytest.raises(type(error), match="mine broke") as caught:
        vtfast.evaluate(model, careless, {"mine": [Prune(2, "test-breaks", 0.5)]}, **HOW)
    assert caught.value is error
    assert "raised in the method 'test-breaks', which prunes at layer 2" in error.__notes__
    assert not vtfast.is_patched(model)


def test_rows_that_a_method_repeats_are_no_fault_of_a_sample_either(model, asked):
    register("test-repeats", lambda ctx: torch.zeros(sum(ctx.keep), dtype=torch.int64))
    careless = Dataset(asked.processor, asked.examples, "careless", skip_bad=True)
    with pytest.raises(InputError, match="returned repeated rows"):
        vtfast.evaluate(model, careless, {"mine": [Prune(0, "test-repeats", 3)]}, **HOW)


# -- logs ------------------------------------------------------------------------------------------


def test_a_log_notices_that_a_method_was_edited(model, asked, tmp_path):
    plans = {"mine": [Prune(0, "test-edited", 0.25)]}
    register("test-edited", first_rows)
    one = vtfast.evaluate(model, asked, plans, log=tmp_path / "run.jsonl", **HOW)
    again = vtfast.evaluate(model, asked, plans, log=tmp_path / "run.jsonl", **HOW)
    assert again.rows == one.rows
    table = {"layers": [0], "keep": 0.25, "retained": False, "log": tmp_path / "s.jsonl", **HOW}
    sweep_layers(model, asked, ["test-edited"], **table)

    register("test-edited", last_rows)
    with pytest.raises(InputError, match="the log of a run with plans="):
        vtfast.evaluate(model, asked, plans, log=tmp_path / "run.jsonl", **HOW)
    with pytest.raises(InputError, match="the log of a run with methods="):
        sweep_layers(model, asked, ["test-edited"], **table)


def test_a_log_notices_that_a_way_to_compare_answers_was_edited(model, asked, tmp_path):
    def of(code):
        names = {}
        exec(code, names)
        return names["right"]

    how = {"plans": "uniform", "log": tmp_path / "run.jsonl", **HOW}
    vtfast.evaluate(model, asked, match=of("def right(said, answer): return True"), **how)
    with pytest.raises(InputError, match="the log of a run with match='right "):
        vtfast.evaluate(model, asked, match=of("def right(said, answer): return False"), **how)


def test_code_is_told_by_what_a_function_is_made_of():
    class Chosen:
        def __init__(self, weight):
            self.weight, self.model = weight, object()

        def __call__(self, ctx):
            return first_rows(ctx)

        def twice(self, ctx):
            return last_rows(ctx)

    def decorated(function):
        return lambda *given: function(*given)

    def closes_over(value):
        return lambda ctx: value

    def made():
        """Functions that all differ."""
        return [
            *(first_rows, last_rows, len, print),
            *(partial(first_rows, 1), partial(first_rows, 2), partial(first_rows, f=last_rows)),
            *(Chosen(1), Chosen(2), Chosen(1).twice),
            *(decorated(first_rows), decorated(last_rows)),
            *(closes_over(value) for value in (1, 2, "1", (1, 2), [1], {"a": 1}, {"a", "b"})),
            *(eval(f"lambda ctx, n={n}: ctx + {m}") for n in (1, 2) for m in (3, 4)),
            eval("lambda s, a: s in {'x', 'y'}"),
        ]

    codes = list(map(code_of, made()))
    assert len(set(codes)) == len(codes)
    assert codes == list(map(code_of, made()))


def test_code_is_the_same_in_every_process():
    """Sets have another order in each, and objects another address."""
    code = (
        "from functools import partial\n"
        "from vtfast.methods.own import code_of\n"
        "same = lambda said, answer: said in {'a', 'b', 'c'}\n"
        "print(code_of(partial(same, f=same, g=object(), h={'x', 'y', 'z'})))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]


def test_a_plan_file_keeps_the_options(model, asked, tmp_path):
    def ends(ctx, *, last=False):
        return last_rows(ctx) if last else first_rows(ctx)

    register("test-ends", ends)
    Plan([Prune(0, "test-ends", 0.25, last=True)]).save(tmp_path / "mine.json")
    found = vtfast.evaluate(model, asked, str(tmp_path / "mine.json"), **HOW)
    assert [row.name for row in found.rows] == ["unpruned", "custom"]
    alone = vtfast.evaluate(model, asked, {"last": [Prune(0, "test-ends", 0.25, last=True)]}, **HOW)
    assert found.rows[1].correct == alone.rows[1].correct
