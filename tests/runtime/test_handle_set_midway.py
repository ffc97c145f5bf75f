"""`Handle.set` in the middle of a call, by another thread: the call goes on by the plan it had."""

import threading
from contextlib import contextmanager

import pytest
import torch
from model_runs import both_layouts
from plans_to_set import PLAIN, PLANS, RUNS, said_by
from tiny_models import FAMILIES

import vtfast

PLACES = {
    "model": lambda model: model.model,
    "tower": lambda model: getattr(model.model, "vision_tower", None) or model.model.visual,
    "layer": lambda model: model.model.language_model.layers[2],
}


@contextmanager
def once_before(module, use):
    """Another thread does something just before this module runs for the first time."""

    def hook(*_):
        handle.remove()
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()

    handle = module.register_forward_pre_hook(hook)
    yield
    handle.remove()


@pytest.mark.parametrize("change", ["plain-tower", "tower-plain", "plain-random", "four-scored"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("name", "path"), [("llava", "packed"), ("qwen", "padded")])
def test_a_call_that_has_begun_goes_on_by_its_plan(name, path, run, place, change):
    family, (before, after) = FAMILIES[name], (PLANS[x] for x in change.split("-"))
    given = family, family.build(), family.inputs("single")
    with vtfast.patch(given[1], before, path=path):
        expected = said_by(run, *given)
    with vtfast.patch(given[1], before, path=path) as handle:
        with once_before(PLACES[place](given[1]), lambda: handle.set(after)):
            assert torch.equal(said_by(run, *given), expected)
        assert handle.report.plan == vtfast.Plan(before)
        said_by(run, *given)
        assert handle.report.plan == vtfast.Plan(after) == handle.plan


@both_layouts
def test_threads_say_what_one_of_the_plans_says_while_another_sets_them(family, path):
    given, failed = (family, family.build(), family.inputs("single")), []
    known = {"forward": [], "generate": []}
    for plan in PLANS.values():
        with vtfast.patch(given[1], plan, path=path):
            for run, said in known.items():
                said.append(said_by(run, *given))

    def talk(run):
        try:
            while not done.is_set():
                found = said_by(run, *given)
                seen.add(next(i for i, said in enumerate(known[run]) if torch.equal(said, found)))
        except BaseException as error:
            failed.append(error)

    done, seen = threading.Event(), set()
    with vtfast.patch(given[1], PLAIN, path=path) as handle:
        threads = [threading.Thread(target=talk, args=(run,)) for run in known]
        for thread in threads:
            thread.start()
        for plan in [*PLANS.values()] * 8:
            handle.set(plan)
            done.wait(0.02)
        done.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert len(seen) > 1
