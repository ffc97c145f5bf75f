"""A patched model computes the same bits whatever PyTorch's default dtype and device are.

Loaders leave such defaults behind; the unpatched models do not mind.
"""

from functools import cache

import pytest
import torch
from tiny_models import FAMILIES

import vtfast
from vtfast.presets import PRESETS, needs_horizon

DTYPES = (torch.bfloat16, torch.float16, torch.float64)
layouts = pytest.mark.parametrize("path", ["padded", "packed"])
presets = pytest.mark.parametrize("preset", PRESETS)


@pytest.fixture(autouse=True)
def same_default_dtype():
    yield
    torch.set_default_dtype(torch.float32)


@cache
def model_and_inputs(name: str):
    return FAMILIES[name].build(), FAMILIES[name].inputs("batch")


@torch.no_grad()
def results(name: str, preset: str, path: str) -> list[torch.Tensor]:
    """Logits of a prefill and of a decoding step, and the tokens that every stage kept."""
    model, inputs = model_and_inputs(name)
    horizon = 4 if needs_horizon(preset) else None
    with vtfast.patch(model, preset, keep=0.6, horizon=horizon, path=path, record=True) as handle:
        more = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 2}
        logits = model.generate(**inputs, **more, do_sample=False).logits
        return [*logits, *(kept for stage in handle.report.kept.values() for kept in stage)]


@presets
@layouts
@pytest.mark.parametrize("name", FAMILIES)
def test_a_default_dtype_changes_nothing(name, path, preset):
    expected = results(name, preset, path)
    for dtype in DTYPES:
        torch.set_default_dtype(dtype)
        got = results(name, preset, path)
        torch.set_default_dtype(torch.float32)
        assert all(map(torch.equal, got, expected)), dtype


@presets
@layouts
def test_a_default_device_changes_nothing(path, preset):
    """LLaVA's; the stock Qwen2.5-VL itself makes tensors on the default device."""
    expected = results("llava", preset, path)
    with torch.device("meta"):
        got = results("llava", preset, path)
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bundled_model_is_loaded_and_checked_under_a_default_dtype(dtype, monkeypatch):
    model, processor = vtfast.toy.load("llava-small")
    (picture,), (question,), _ = vtfast.toy.scenes(1, 5, "code")
    monkeypatch.setenv("VTFAST_SELF_CHECK", "always")

    def answer(model):
        text = vtfast.toy.prompt(processor, question)
        inputs = processor(text=text, images=picture, return_tensors="pt")
        with torch.no_grad(), vtfast.patch(model, "divprune+random"):
            return model(**inputs).logits

    expected = answer(model)
    torch.set_default_dtype(dtype)
    assert torch.equal(answer(vtfast.toy.load("llava-small")[0]), expected)


@torch.no_grad()
@pytest.mark.parametrize("each", [False, True], ids=["one", "one a sample"])
def test_a_default_device_does_not_hide_the_length_of_the_prompt(each):
    model, inputs = model_and_inputs("llava")
    columns = inputs["input_ids"].shape[1]
    given = [columns, columns - 1, columns - 2] if each else columns - 1
    with vtfast.patch(model, "fastv", keep=0.6):
        expected = model(**inputs, prompt_length=given).logits
        with torch.device("meta"):
            assert torch.equal(model(**inputs, prompt_length=given).logits, expected)
