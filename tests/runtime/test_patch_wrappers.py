"""A wrapper with one supported model inside is patched inside: DDP, torch.compile, the user's own.

PEFT's wrappers have a file of their own.
"""

from functools import partial

import accelerate
import pytest
import torch
import torch.distributed
from model_runs import ATOL, logits_of
from module_state import changes, module_state
from tiny_data import TinyData
from tiny_models import FAMILIES
from tiny_parts import text_of
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.nn.parallel import DataParallel, DistributedDataParallel

import vtfast
from vtfast import AlreadyPatchedError, Prune, information
from vtfast.toy.evaluate import dataset

CPU = torch.device("cpu")
PLAN = [Prune(0, "diversity", 0.7), Prune(2, "random", 0.5), Prune(4, "topk", 0.2)]
compiled = partial(torch.compile, backend="eager")
fsdp = partial(FullyShardedDataParallel, device_id=CPU)
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
pytestmark = [
    pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*FullyShardedDataParallel.*:FutureWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    """A process group of this process alone."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class RewardModel(torch.nn.Module):
    """Holds a model, and the same one again, as trainers do."""

    def __init__(self, model):
        super().__init__()
        self.backbone, self.heads = model, torch.nn.ModuleDict({"value": torch.nn.Linear(64, 1)})
        self.trained = torch.nn.ModuleList([model])

    def forward(self, **inputs):
        return self.backbone(**inputs)


def fsdp_with_layers(model):
    kinds = {type(text_of(model).layers[0])}
    policy = partial(transformer_auto_wrap_policy, transformer_layer_cls=kinds)
    return fsdp(model, auto_wrap_policy=policy, use_orig_params=True)


RUN = {
    "ddp": DistributedDataParallel,
    "data-parallel": DataParallel,
    "fsdp-with-layers": fsdp_with_layers,
    "accelerate": lambda model: accelerate.Accelerator(cpu=True).prepare(model),
    "own": RewardModel,
}
COMPILED = {
    "compile": compiled,
    "ddp-of-compile": lambda model: DistributedDataParallel(compiled(model)),
    "compile-of-ddp": lambda model: compiled(DistributedDataParallel(model)),
    "compile-of-own": lambda model: compiled(RewardModel(model)),
}


@pytest.mark.parametrize("wrap", (RUN | COMPILED).values(), ids=RUN | COMPILED)
@families
def test_the_model_inside_is_patched_once_and_undone_through_its_wrapper(family, wrap):
    model = family.build()
    wrapped = wrap(model)
    before = module_state(model)
    handle = vtfast.patch(wrapped, PLAN)
    assert vtfast.is_patched(wrapped)
    assert vtfast.is_patched(model)
    for again in (wrapped, model):
        with pytest.raises(AlreadyPatchedError, match="patched already"):
            vtfast.patch(again)
    vtfast.unpatch(wrapped)
    assert not vtfast.is_patched(wrapped)
    assert changes(before, module_state(model)) == []
    assert "removed" in repr(handle)


@pytest.mark.parametrize("path", ["padded", "packed"])
@pytest.mark.parametrize("wrap", (RUN | COMPILED).values(), ids=RUN | COMPILED)
@families
def test_a_wrapper_says_what_the_model_inside_says(family, wrap, path):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, PLAN, path=path):
        expected = logits_of(family, model, inputs)
    wrapped = wrap(family.build()).eval()
    with vtfast.patch(wrapped, PLAN, path=path) as handle, torch.compiler.set_stance("force_eager"):
        assert torch.equal(logits_of(family, wrapped, inputs), expected)
    assert handle.report.path == path
    assert not vtfast.is_patched(wrapped)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call:UserWarning")
def test_a_patched_model_can_be_compiled():
    """Its encoding method called itself without end."""
    family = FAMILIES["qwen"]
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, [Prune(2, "diversity", 5)], path="padded"), torch.no_grad():
        expected = model(**inputs).logits
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=0, atol=ATOL)


def test_a_model_patched_before_it_was_wrapped_is_undone_through_the_wrapper():
    model = FAMILIES["llava"].build()
    vtfast.patch(model, PLAN)
    wrapped = DistributedDataParallel(model)
    with pytest.raises(AlreadyPatchedError):
        vtfast.patch(wrapped)
    vtfast.unpatch(wrapped)
    assert not vtfast.is_patched(model)


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_fsdp_that_leaves_no_parameters_inside_is_patched(path):
    """Its weights are then views of one flat parameter outside, and ours was a StopIteration."""
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, PLAN, path=path):
        expected = logits_of(family, model, inputs)
    wrapped = fsdp(family.build()).eval()
    assert not list(wrapped.module.model.language_model.parameters())
    with vtfast.patch(wrapped, PLAN, path=path):
        assert torch.equal(logits_of(family, wrapped, inputs), expected)


def test_scores_of_a_wrapper_are_those_of_the_model_inside():
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("single")
    expected = information.score(model, inputs, [7], layers=[2], progress=False)
    found = information.score(
        DistributedDataParallel(model), inputs, [7], layers=[2], progress=False
    )
    assert (found.pictures[0].scores == expected.pictures[0].scores).all()


def test_a_horizon_is_measured_on_the_model_inside_a_wrapper():
    model, how = FAMILIES["llava"].build(), {"layers": [2], "progress": False}
    expected = information.horizon(model, TinyData(size=2), **how)
    found = information.horizon(DistributedDataParallel(model), TinyData(size=2), **how)
    assert found.record() == expected.record()


def test_a_sweep_runs_on_the_model_inside_a_wrapper():
    wrapped = DistributedDataParallel(FAMILIES["qwen"].build())
    found = information.sweep(
        wrapped, TinyData("qwen", 2), ["random"], [2], [0.5], seeds=1, progress=False
    )
    assert found.num_layers == 6


def test_plans_are_compared_on_the_model_inside_a_wrapper_that_cannot_generate():
    model, processor = vtfast.toy.load("llava-small")
    asked = dataset(processor, "digit", 2, 0)
    found = vtfast.evaluate(DistributedDataParallel(model), asked, "random", progress=False)
    assert [row.name for row in found.rows] == ["unpruned", "random 0.5"]
