"""`impl="triton"`: the kernels pick, gather and attend as the PyTorch references do.

Natively on a GPU, in Triton's interpreter elsewhere: there a launch costs some 30 ms, so these runs
are short. `make test-triton` runs them and the packed layout's tests through compiled kernels.
"""

import importlib
import re

import pytest
import torch
from devices import DEVICE, INTERPRETED
from model_runs import ATOL, FOUR_STAGES, continuation, logits_of, probing
from tiny_models import FAMILIES, build_llava
from tiny_parts import TEXT, text_of
from transformers import DeepseekV3Config, LlamaConfig

import vtfast
from vtfast import InputError, Prune, methods, toy
from vtfast.methods import kernel_limits
from vtfast.runtime.state import ForwardState

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
paths = pytest.mark.parametrize("path", ["padded", "packed"])


def toy_answers(model, inputs, path, impl):
    """What a bundled model says, and the picks of every stage."""
    last = model.config.text_config.num_hidden_layers - 1
    plan = [Prune(0, "diversity", 0.6), Prune(5, "topk", 0.3), Prune(last, "random", 4)]
    with vtfast.patch(model, plan, path=path, impl=impl, record=True) as handle:
        tokens = model.generate(**inputs, max_new_tokens=2 if INTERPRETED else 8, do_sample=False)
    return tokens, handle.report.kept


@paths
@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_a_toy_says_and_keeps_what_it_does_eagerly(name, path):
    """The pictures differ in size, which Qwen sees."""
    model, processor = toy.load(name)
    pictures, questions, _ = toy.scenes(2, seed=7, task="code", sizes=((96, 96), (144, 108)))
    texts = [toy.prompt(processor, question) for question in questions]
    inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    model, inputs = model.to(DEVICE), inputs.to(DEVICE)
    expected, kept = toy_answers(model, inputs, path, "eager")
    tokens, picks = toy_answers(model, inputs, path, "triton")
    assert torch.equal(tokens, expected)
    assert len(picks) == 3
    for layer, rows in kept.items():
        assert all(map(torch.equal, picks[layer], rows))


def on_device(inputs, dtype=torch.float32):
    """Inputs for a model of this dtype where the kernels run."""
    return {
        name: x.to(DEVICE, dtype if x.is_floating_point() else x.dtype)
        for name, x in inputs.items()
    }


def run(family, inputs, path, impl, dtype=torch.float32):
    """Prompt logits and two greedy tokens."""
    model, inputs = family.build(dtype).to(DEVICE), on_device(inputs, dtype)
    with vtfast.patch(model, FOUR_STAGES, path=path, impl=impl):
        return logits_of(family, model, inputs), continuation(model, inputs, steps=2)


@pytest.mark.parametrize(("family", "name"), [("qwen", "batch")])
def test_packed_samples_have_the_padded_logits_and_tokens(family, name):
    """`test_patch_parity.py` compares the padded ones with the oracle, and in `make test-triton`
    those of compiled kernels."""
    family = FAMILIES[family]
    inputs = family.inputs(name)
    expected, said = run(family, inputs, "padded", "eager")
    logits, tokens = run(family, inputs, "packed", "triton")
    torch.testing.assert_close(logits, expected, rtol=0, atol=ATOL)
    assert torch.equal(tokens, said)


@families
def test_bf16_is_off_by_at_most_twice_what_the_padded_layout_is(family):
    inputs = family.inputs("single")
    model, plan = family.build().to(DEVICE), [Prune(2, "random", 0.5)]  # the picks are exact

    def logits(path, impl, dtype):
        typed = model.to(dtype)
        with vtfast.patch(typed, plan, path=path, impl=impl):
            return logits_of(family, typed, on_device(inputs, dtype)).float()

    exact = logits("padded", "eager", torch.float32)
    padded = (logits("padded", "eager", torch.bfloat16) - exact).abs()
    packed = (logits("packed", "triton", torch.bfloat16) - exact).abs()
    assert packed.max() <= 2 * padded.max()
    assert packed.mean() <= 2 * padded.mean()


@pytest.mark.skipif(not INTERPRETED, reason="counts launches of interpreted kernels")
@pytest.mark.parametrize("path", ["padded", "packed"])
@pytest.mark.parametrize(
    ("method", "selection"),
    [
        ("random", ["random_select"]),
        ("diversity", ["norms", "distances", "greedy"]),
    ],
)
def test_a_stage_compacts_in_one_launch_and_gathers_in_one(method, selection, path, monkeypatch):
    """Beside those that select."""
    interpreted = importlib.import_module("triton.runtime.interpreter").InterpretedFunction
    run, launched = interpreted.run, []

    def noted(kernel, *args, **kwargs):
        launched.append(kernel.fn.__name__)
        return run(kernel, *args, **kwargs)

    monkeypatch.setattr(interpreted, "run", noted)
    family, counts = FAMILIES["llava"], []
    model, enter = family.build(), ForwardState.enter

    def watched(state, number, *args):
        launched.clear()
        entered = enter(state, number, *args)
        if launched:
            counts.append([name.strip("_").removesuffix("_kernel") for name in launched])
        return entered

    monkeypatch.setattr(ForwardState, "enter", watched)
    plan = [Prune(2, method, 0.5), Prune(4, method, 0.2)]
    with torch.no_grad(), vtfast.patch(model, plan, path=path, impl="triton"):
        model(**family.inputs("single"))
    hashed = ["image_hash"] * (method == "random")  # once, before the first stage that needs it
    stage = [*selection, "compact", "gather_rows"]
    assert counts == [[*hashed, *stage], stage]


# -- what the kernels cannot do is refused before a layer has run ----------------------------------


def unsupported_by(kernels):
    """A LLaVA that some kernels cannot run, and inputs for it."""
    dtype = torch.float64 if kernels == "fp64" else torch.float32
    size = {"fp32 attention": 144, "scores": 272}.get(kernels, 16)
    model = build_llava(dtype, text_config=LlamaConfig(**TEXT, head_dim=size))
    return model.to(DEVICE), on_device(FAMILIES["llava"].inputs("batch", dtype), dtype)


@pytest.mark.parametrize(
    ("kernels", "reason"),
    [
        ("fp64", "attention: the kernel does not take torch.float64"),
        ("fp32 attention", r"attention: the kernel takes head sizes 1 to 128 .*float32, got 144"),
    ],
)
def test_a_model_the_attention_kernels_do_not_support_runs_padded(kernels, reason):
    model, inputs = unsupported_by(kernels)
    plan = [Prune(0, "uniform", 0.6), Prune(3, "random", 0.2)]
    with vtfast.patch(model, plan, path="padded", impl="eager"):
        expected = continuation(model, inputs, steps=2)
    with vtfast.patch(model, plan, impl="triton") as handle:
        assert torch.equal(continuation(model, inputs, steps=2), expected)
    assert handle.report.path == "padded"
    assert re.match(reason, handle.report.path_reason)


def test_latent_attention_runs_padded():
    """Its heads have several sizes; `patch` once raised an AttributeError for that."""
    sizes = {"kv_lora_rank": 16, "q_lora_rank": None, "v_head_dim": 16}
    sizes |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "first_k_dense_replace": 99}
    text = {**TEXT, "num_key_value_heads": TEXT["num_attention_heads"], **sizes}
    model = build_llava(torch.float32, text_config=DeepseekV3Config(**text)).to(DEVICE)
    inputs = on_device(FAMILIES["llava"].inputs("batch"))
    plan = [Prune(1, "random", 0.5)]
    with vtfast.patch(model, plan, path="padded", impl="eager"):
        expected = continuation(model, inputs, steps=2)
    with vtfast.patch(model, plan, impl="triton") as handle:
        assert torch.equal(continuation(model, inputs, steps=2), expected)
    assert handle.report.path_reason == "the model's keys and values differ in size"
    with pytest.raises(InputError, match='differ in size; pass path="padded"'):
        vtfast.patch(model, plan, path="packed", impl="eager")


@pytest.mark.parametrize("impl", ["auto", "eager"])
def test_fp64_is_packed_in_plain_pytorch(impl, monkeypatch):
    """Also where kernels would run: on a GPU, which is what is pretended."""
    monkeypatch.setattr(kernel_limits, "use_triton", lambda op, impl, device: impl != "eager")
    model, inputs = unsupported_by("fp64")
    logits = {}
    for path in ("padded", "packed"):
        with vtfast.patch(model, FOUR_STAGES, path=path, impl=impl) as handle:
            logits[path] = logits_of(FAMILIES["llava"], model, inputs)
            continuation(model, inputs, steps=2)
        assert handle.report.path == path
    torch.testing.assert_close(logits["packed"], logits["padded"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kernels", "method", "path", "message"),
    [
        ("fp64", "random", "packed", "does not take torch.float64"),
        ("fp64", "diversity", "padded", "does not take torch.float64"),
        ("fp64", "topk", "padded", "does not take torch.float64"),
        ("fp64", "test-probe", "padded", "does not take torch.float64"),
        ("fp32 attention", "random", "packed", "takes head sizes 1 to 128 in .*, got 144"),
        ("scores", "topk", "padded", "takes head sizes 1 to 256, got 272"),
    ],
)
def test_a_model_a_required_kernel_does_not_support_is_refused_at_the_patch(
    kernels, method, path, message
):
    model, _ = unsupported_by(kernels)
    plan = [Prune(1, method, 0.5)]
    with pytest.raises(InputError, match=f'^impl="triton": the kernel {message}; patch with impl='):
        vtfast.patch(model, plan, path=path, impl="triton")
    assert not vtfast.is_patched(model)
    assert text_of(model).config._attn_implementation == "sdpa"


@paths
@families
def test_gradients_are_refused(family, path):
    model, inputs = family.build(), family.inputs("single")
    with (
        vtfast.patch(model, FOUR_STAGES, path=path, impl="triton"),
        pytest.raises(InputError, match=r'impl="triton".*no backward.*no_grad'),
    ):
        model(**inputs)


@families
def test_a_picture_too_large_for_a_kernel_is_refused_at_the_layer_it_reaches(monkeypatch, family):
    """The stage before may have shrunk it; registered methods have no such limit."""
    model, inputs = family.build(), family.inputs("single")
    tokens = family.tokens_of(family.named("single")[0].pictures[0])
    short = methods.Method("random", lambda context: 1 / 0, kernel_limit=tokens // 2)
    monkeypatch.setitem(methods.registry._METHODS, "random", short)

    def never(context):
        raise AssertionError("a layer has run")

    plan = [Prune(0, "test-probe", 0.9), Prune(2, "random", 0.1)]
    with (
        vtfast.patch(model, plan, impl="triton"),
        probing(never),
        pytest.raises(InputError, match=rf"brings \d+ .* layer 2,.*takes {tokens // 2}"),
    ):
        logits_of(family, model, inputs)
    plan = [Prune(0, "test-probe", 0.4), Prune(2, "random", 0.1)]
    with (
        vtfast.patch(model, plan, impl="triton"),
        probing(never),
        pytest.raises(AssertionError, match="a layer has run"),
    ):
        logits_of(family, model, inputs)
