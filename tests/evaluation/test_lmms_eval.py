"""Pruned models for lmms-eval: found by its entry point group, built from `--model_args`.

lmms-eval is not among the development packages, as it needs torchvision; stand-ins have what its
classes ask of a subclass (version 0.7.3). Where it is installed, it runs a task of bundled scenes.
"""

import inspect
import sys
from importlib.metadata import entry_points
from itertools import chain
from types import ModuleType

import pytest
from lmms_stand_in import FAMILY_OF, HOME, stand_ins
from lmms_task import lmms_eval, write_task
from tiny_checkpoints import BUILT

import vtfast
from vtfast import PlanError
from vtfast.evaluation import lmms

CLASSES = [
    one.ours(kind)
    for name, one in lmms.MODELS.items()
    for kind in one.kinds
    if FAMILY_OF[name] in BUILT
]
OURS = {"plan", "keep", "horizon", "seed", "positions"}


@pytest.fixture
def classes():
    """`vtfast.evaluation.lmms_models`, its base classes replaced by stand-ins."""
    with stand_ins() as module:
        yield module


@pytest.mark.parametrize("name", CLASSES)
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


@pytest.mark.parametrize("plan", ["fastest", "paper:divprune+random:7", "paper:divprune"])
@pytest.mark.parametrize("name", CLASSES)
def test_an_unknown_plan_is_refused_before_weights_are_read(classes, name, plan, monkeypatch):
    monkeypatch.setattr("lmms_stand_in.StandIn.__init__", None)
    with pytest.raises(ValueError, match=r"unknown preset|no released setting|expected one such"):
        getattr(classes, name)(plan=plan)


@pytest.mark.parametrize("name", ["LlavaHf", "LlavaHfChat"])
def test_llava_goes_to_its_device(classes, name, monkeypatch):
    """lmms-eval's LLaVA classes ask for `device_map=""`, which transformers 5 refuses.

    Where several processes have a GPU each, that is how their classes know.
    """
    build = getattr(classes, name)
    assert build().device_map == "cuda"
    assert build(device="cpu").device_map == "cpu"
    assert build(device="cpu", device_map="auto").device_map == "auto"
    place = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "MASTER_ADDR": "here", "MASTER_PORT": 1}
    for variable, value in place.items():
        monkeypatch.setenv(variable, str(value))
    assert build().device_map == ""


def test_lmms_eval_is_told_where_the_classes_are(classes, monkeypatch):
    registry = ModuleType("lmms_eval.models.registry_v2")

    def manifest(model_id, simple_class_path=None, chat_class_path=None, aliases=()):
        return model_id, simple_class_path, chat_class_path

    registry.ModelManifest = manifest
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    (point,) = (p for p in entry_points(group="lmms_eval.models") if p.name == "vtfast")
    found = {name: paths for name, *paths in point.load()()}
    assert set(found) == {f"{name}_vtfast" for name in lmms.MODELS}
    for path in filter(None, chain(*found.values())):
        module, _, name = path.rpartition(".")
        assert module == HOME
        assert inspect.isclass(getattr(classes, name))
    for simple, chat in found.values():
        for path, is_simple in ((simple, True), (chat, False)):
            if path is not None:
                cls = getattr(classes, path.rpartition(".")[2])
                assert getattr(cls, "is_simple", True) is is_simple


# -- with lmms-eval --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, one in lmms.MODELS.items() for kind in one.kinds]
)
def test_the_real_lmms_eval_takes_them(name, kind):
    models = pytest.importorskip("lmms_eval.models", reason="lmms-eval is not installed")
    if name not in models.list_available_models():
        pytest.skip(f"this lmms-eval has no {name}")
    simple = kind == "simple"
    ours = models.get_model(f"{name}_vtfast", force_simple=simple)
    theirs = models.get_model(name, force_simple=simple)
    assert issubclass(ours, theirs)
    arguments = inspect.signature(theirs.__init__).parameters
    assert not OURS & set(arguments)
    assert {"pretrained", "device", "device_map"} <= set(arguments)


@pytest.mark.parametrize(
    ("toy", "model", "given"),
    [
        ("llava", "llava_hf_vtfast", {}),
        (
            "qwen",
            "qwen2_5_vl_vtfast",
            {"device_map": "cpu", "min_pixels": 9216, "max_pixels": 9216},
        ),
    ],
)
def test_the_real_lmms_eval_asks_a_pruned_model(toy, model, given, tmp_path):
    """Digits are read with three quarters of the tokens, and not with a twentieth of them."""
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    write_task(tmp_path, "digit", 12)
    for part in vtfast.toy.load(toy):
        part.save_pretrained(tmp_path / "model")
    args = {"pretrained": tmp_path / "model", "device": "cpu", **given}
    assert lmms_eval(tmp_path, model, **args, plan="divprune+random", keep=0.75) == 1
    assert lmms_eval(tmp_path, model, **args, plan="random", keep=0.05) < 0.7
