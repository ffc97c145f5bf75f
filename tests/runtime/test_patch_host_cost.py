"""What a patch costs the host, counted: operators, calls of Python functions, launches, checks.

In Hugging Face's models a step at small batches waits for the host, on a GPU too. Counts do not
depend on the machine, so a regression shows here without a clock; `bench_host.py` measures.
"""

import gc
import importlib
import sys
from collections import Counter

import pytest
import torch
from devices import DEVICE, INTERPRETED
from model_runs import FOUR_STAGES
from tiny_models import FAMILIES, build_llava
from tiny_parts import TEXT
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers import LlamaConfig

import vtfast
from vtfast import Prune
from vtfast.kernels import ragged_decode
from vtfast.runtime import packed, packed_kv_cache
from vtfast.runtime.names import cache_argument, returned_cache
from vtfast.runtime.packed_kv_cache import row_numbers

FEW, MANY = 4, 10  # layers; the difference tells what a layer costs
FAMILY = FAMILIES["llava"]
ALIKE, UNLIKE = "single", "batch"


class Operators(TorchDispatchMode):
    """Counts dispatched operators, those that make views too."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class Step:
    """Decodes one more token; the prompt and two tokens have been run."""

    def __init__(self, layers, batch, plan=(), **how):
        text = LlamaConfig(**{**TEXT, "num_hidden_layers": layers})
        self.model, inputs = build_llava(text_config=text).to(DEVICE), FAMILY.inputs(batch)
        inputs = {name: t.to(DEVICE) for name, t in inputs.items()}
        if plan:
            vtfast.patch(self.model, plan, **how)
        out = self.model(**inputs, use_cache=True)
        self.given = {cache_argument(): returned_cache(out)}
        self.given["input_ids"] = torch.full_like(inputs["input_ids"][:, -1:], 5)
        mask = inputs["attention_mask"]
        self.mask = None if mask.all() else mask
        for _ in range(2):
            self()

    def __call__(self):
        if self.mask is not None:
            self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
            self.given["attention_mask"] = self.mask
        self.model(**self.given)


def operators(call):
    with Operators() as seen:
        call()
    return seen.count


def called(call):
    """The Python functions that are called: (file, name) → how often."""
    seen = Counter()

    def note(frame, event, _):
        if event == "call":
            seen[frame.f_code.co_filename, frame.f_code.co_name] += 1

    gc.disable()  # what it would collect, of tests before this one, may have finalizers
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        gc.enable()
    return seen


def added(count, batch, **how):
    """What a patch adds to a decoding step, for a layer and beside the layers."""
    plan = [Prune(0, "uniform", 0.5)]
    with torch.inference_mode():
        found = [
            count(Step(layers, batch, plan, **how)) - count(Step(layers, batch))
            for layers in (FEW, MANY)
        ]
    each = (found[1] - found[0]) / (MANY - FEW)
    return each, found[0] - FEW * each


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that are launched; the interpreter's own operators are not counted."""
    if not INTERPRETED:
        pytest.skip("counts launches of interpreted kernels")
    interpreted = importlib.import_module("triton.runtime.interpreter").InterpretedFunction
    run, names = interpreted.run, []

    def noted(kernel, *args, **kwargs):
        names.append(kernel.fn.__name__)
        with _disable_current_modes():
            return run(kernel, *args, **kwargs)

    monkeypatch.setattr(interpreted, "run", noted)
    return names


@pytest.fixture
def unlaunched(monkeypatch):
    """Launches do nothing while calls are counted: those of an interpreted kernel are no cost."""
    if INTERPRETED:
        interpreted = importlib.import_module("triton.runtime.interpreter").InterpretedFunction
        run = interpreted.run

        def counted(*args, **kwargs):
            return None if sys.getprofile() else run(*args, **kwargs)

        monkeypatch.setattr(interpreted, "run", counted)


# In the comments: what was counted when every layer had a hook.
@pytest.mark.parametrize(
    ("batch", "how", "a_layer", "beside"),
    [
        pytest.param(ALIKE, {"path": "auto"}, 0, 1, id="auto"),  # 0 and 1
        pytest.param(UNLIKE, {"path": "padded"}, 0, 0, id="padded, unlike"),  # 0 and 7
        pytest.param(ALIKE, {"path": "packed", "impl": "eager"}, 0, 1, id="packed"),  # 10 and 3
        pytest.param(UNLIKE, {"path": "packed", "impl": "triton"}, 1, 0, id="Triton, unlike"),  # 3
    ],
)
def test_operators_that_a_step_adds(launched, batch, how, a_layer, beside):
    found = added(operators, batch, **how)
    assert found[0] <= a_layer, found
    assert found[1] <= beside, found


@pytest.mark.parametrize(
    ("batch", "how", "a_layer", "beside"),
    [
        pytest.param(ALIKE, {"path": "auto"}, 2, 75, id="auto"),  # 10 and 115
        pytest.param(UNLIKE, {"path": "padded"}, 2, 55, id="padded, unlike"),  # 10 and 93
        pytest.param(ALIKE, {"path": "packed", "impl": "eager"}, 2, 85, id="packed"),  # 12 and 86
        pytest.param(UNLIKE, {"path": "packed", "impl": "eager"}, 3, 57, id="packed, unlike"),
        pytest.param(ALIKE, {"path": "packed", "impl": "triton"}, 17, 77, id="Triton"),
        pytest.param(UNLIKE, {"path": "packed", "impl": "triton"}, 15, 54, id="Triton, unlike"),
    ],
)
def test_calls_of_python_functions_that_a_step_adds(unlaunched, batch, how, a_layer, beside):
    found = added(lambda step: called(step).total(), batch, **how)
    assert found[0] <= a_layer, found
    assert found[1] <= beside, found


@pytest.mark.parametrize(
    ("batch", "path", "impl"),
    [
        (ALIKE, "padded", "eager"),
        (UNLIKE, "padded", "eager"),
        (ALIKE, "packed", "eager"),
        (UNLIKE, "packed", "eager"),
        (UNLIKE, "packed", "triton"),
    ],
)
@torch.inference_mode()
def test_a_step_checks_nothing(batch, path, impl):
    """Its arguments follow from what the prefill has checked."""
    step = Step(FEW, batch, FOUR_STAGES[:2], path=path, impl=impl)
    root = vtfast.__path__[0].removesuffix("vtfast")
    ours = {name for file, name in called(step) if file.startswith(root + "vtfast")}
    assert ours & {"_text_pre", "_layer_pre", "step"} == {"_text_pre", "_layer_pre", "step"}
    assert not {name for name in ours if name.startswith(("check", "_check", "why_un"))}


@pytest.mark.parametrize(
    ("batch", "how", "kernels"),
    [
        pytest.param(ALIKE, {"path": "auto", "impl": "triton"}, [], id="auto"),
        pytest.param(UNLIKE, {"path": "packed", "impl": "triton"}, ["split", "merge"], id="unlike"),
        pytest.param(ALIKE, {"path": "packed", "impl": "triton"}, ["split", "merge"], id="alike"),
    ],
)
@torch.inference_mode()
def test_kernels_that_a_layer_launches_in_a_step(launched, batch, how, kernels):
    """`impl="triton"` runs the kernels also where samples are alike."""
    step = Step(FEW, batch, [Prune(0, "uniform", 0.5)], **how)
    launched.clear()
    step()
    short = [name.strip("_").removesuffix("_kernel").removesuffix("_splits") for name in launched]
    assert short == kernels * FEW


@pytest.fixture
def long_splits(monkeypatch):
    """Splits of 512 keys, so that a short sequence is one."""
    monkeypatch.setattr(ragged_decode, "_SHARE", 512)
    caches = ragged_decode._settings, ragged_decode._launches
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@torch.inference_mode()
def test_samples_without_room_for_two_splits_need_no_merge(launched, long_splits):
    step = Step(FEW, UNLIKE, [Prune(0, "uniform", 0.5)], path="packed", impl="triton")
    launched.clear()
    step()
    assert launched == ["_split_kernel"] * FEW


@pytest.mark.parametrize(
    ("batch", "impl", "kernels"),
    [
        pytest.param(ALIKE, "triton", ["_attention_kernel"] * FEW, id="alike, triton"),
        pytest.param(UNLIKE, "triton", ["_attention_kernel"] * FEW, id="unlike, triton"),
        pytest.param(ALIKE, "auto", [], id="alike, auto"),
        pytest.param(UNLIKE, "auto", ["_attention_kernel"] * FEW, id="unlike, auto"),
    ],
)
@torch.inference_mode()
def test_kernels_that_attend_in_a_prefill(launched, monkeypatch, batch, impl, kernels):
    """Samples that are alike go to SDPA on views, on a GPU too, unless Triton is asked for."""
    limits = importlib.import_module("vtfast.methods.kernel_limits")
    monkeypatch.setattr(limits, "use_triton", lambda op, impl, device: impl != "eager")
    text = LlamaConfig(**{**TEXT, "num_hidden_layers": FEW})
    model, inputs = build_llava(text_config=text), FAMILY.inputs(batch)
    with vtfast.patch(model, [Prune(0, "uniform", 0.5)], path="packed", impl=impl):
        model(**inputs, use_cache=True)
        assert [name for name in launched if "attention" in name] == kernels


# -- a stage of a prefill --------------------------------------------------------------------------


class Launches(TorchDispatchMode):
    """Notes operators that a GPU would run as a kernel; those of vtfast are `launched`."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        on_host = name.startswith(("empty", "new_empty", "lift_fresh", "detach", "vtfast::"))
        if not (func.is_view or on_host):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def of_a_stage(count, method, path, impl, batch):
    """What a second stage adds to a prefill."""
    stages = [Prune(1, method, 0.5), Prune(3, method, 0.2)]
    text = LlamaConfig(**{**TEXT, "num_hidden_layers": FEW})
    model, inputs = build_llava(text_config=text).to(DEVICE), FAMILY.inputs(batch)
    inputs = {name: t.to(DEVICE) for name, t in inputs.items()}
    found = []
    for plan in (stages[:1], stages):
        with vtfast.patch(model, plan, path=path, impl=impl):
            model(**inputs)  # fills the caches of segments
            found.append(count(lambda: model(**inputs)))
    return found[1] - found[0]


@pytest.fixture
def launches(launched, monkeypatch):
    """Counts the kernels of a call, and the copies of row numbers that are made on the host."""

    def counted_once(*given):
        launched.append("a copy")
        with _disable_current_modes():
            return row_numbers(*given)

    for module in (packed, packed_kv_cache):
        monkeypatch.setattr(module, "row_numbers", counted_once)

    def count(call):
        launched.clear()
        with Launches() as seen:
            call()
        return len(seen.names) + len(launched)

    return count


@pytest.mark.parametrize(
    ("method", "path", "batch", "most"),
    [
        pytest.param("random", "packed", UNLIKE, 4, id="random, packed"),
        pytest.param("topk", "packed", UNLIKE, 29, id="top-k, packed"),
        pytest.param("diversity", "packed", UNLIKE, 7, id="diversity, packed"),
        pytest.param("random", "padded", ALIKE, 3, id="random, padded, alike"),
        pytest.param("diversity", "padded", ALIKE, 6, id="diversity, padded, alike"),
        pytest.param("topk", "padded", ALIKE, 28, id="top-k, padded, alike"),
        pytest.param("random", "padded", UNLIKE, 26, id="random, padded"),  # and a mask
    ],
)
@torch.inference_mode()
def test_what_a_stage_launches(launches, method, path, batch, most):
    """Three kernels (of diversity five), the rows it looks at, and where the cache gets tokens.

    Top-k scores by two kernels more, and by 22 operators of the layer's own modules.
    """
    found = of_a_stage(launches, method, path, "triton", batch)
    assert found <= most, found


@pytest.mark.parametrize("batch", [ALIKE, UNLIKE])
@pytest.mark.parametrize("path", ["padded", "packed"])
@pytest.mark.parametrize("method", ["random", "diversity"])
@torch.inference_mode()
def test_calls_of_python_functions_that_a_stage_adds(method, path, batch):
    found = of_a_stage(lambda call: called(call).total(), method, path, "eager", batch)
    assert found <= 380
