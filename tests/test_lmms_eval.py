"""Pruned models for lmms-eval: found by its entry point group, built from `--model_args`.

lmms-eval is not among the development packages, as it needs torchvision; stand-ins have what its
classes ask of a subclass (version 0.7.3). Where it is installed, its own registry is asked too.
"""

import inspect
import sys
from importlib.metadata import entry_points
from itertools import chain
from types import ModuleType

import pytest
from lmms_stand_in import HOME, stand_ins

import vtfast
from vtfast import PlanError
from vtfast.evaluation import lmms

OURS = {"plan", "keep", "horizon", "seed", "positions"}


@pytest.fixture
def classes():
    """`vtfast.evaluation.lmms_models` above stand-ins."""
    with stand_ins() as module:
        yield module


@pytest.mark.parametrize("name", ["LlavaHf", "Qwen25VL", "Qwen25VLChat"])
def test_a_model_is_pruned_as_model_args_say(classes, name):
    args = {"pretrained": "mine", "plan": "divprune+random", "keep": 0.5, "horizon": 3, "seed": 7}
    built = getattr(classes, name)(**args)
    assert built.pretrained == "mine"
    assert vtfast.is_patched(built.model)
    plan = built.vtfast.plan
    assert (plan.name, plan.keep, plan.horizon) == ("divprune+random", 0.5, 3)


def test_the_default_is_vtfasts_own(classes):
    built = classes.LlavaHf()
    assert (built.vtfast.plan.name, built.vtfast.plan.keep) == ("divprune+random", 0.5)


def test_a_keep_of_one_is_all_tokens(classes):
    """lmms-eval reads keep=1 as an int, which in a plan would be one token."""
    assert classes.LlavaHf(plan="random", keep=1).vtfast.plan.stages[0].keep == 1.0


def test_bad_plans_and_arguments_are_refused(classes):
    with pytest.raises(PlanError, match="unknown preset"):
        classes.LlavaHf(plan="fastest")
    with pytest.raises(PlanError, match="6 decoder layers"):
        classes.LlavaHf(plan="paper:divprune+random:192")
    with pytest.raises(AssertionError, match="Unexpected"):
        classes.LlavaHf(plans="random")


def test_lmms_eval_is_told_where_the_classes_are(classes, monkeypatch):
    registry = ModuleType("lmms_eval.models.registry_v2")

    def manifest(model_id, simple_class_path=None, chat_class_path=None, aliases=()):
        return model_id, simple_class_path, chat_class_path

    registry.ModelManifest = manifest
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    (point,) = (p for p in entry_points(group="lmms_eval.models") if p.name == "vtfast")
    found = {name: paths for name, *paths in point.load()()}
    assert set(found) == {"llava_hf_vtfast", "qwen2_5_vl_vtfast"}
    for path in filter(None, chain(*found.values())):
        module, _, name = path.rpartition(".")
        assert module == HOME
        assert inspect.isclass(getattr(classes, name))
    assert getattr(classes.Qwen25VLChat, "is_simple", True) is False
    assert getattr(classes.Qwen25VL, "is_simple", True) is True


def test_the_real_lmms_eval_takes_them():
    models = pytest.importorskip("lmms_eval.models", reason="lmms-eval is not installed")
    for name in ("llava_hf_vtfast", "qwen2_5_vl_vtfast"):
        cls = models.get_model(name)
        theirs = inspect.signature(cls.__mro__[2].__init__).parameters
        assert not OURS & set(theirs)
        assert "pretrained" in theirs
    assert lmms.manifests()[0].model_id == "llava_hf_vtfast"
