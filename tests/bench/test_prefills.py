"""The variants of a whole model that benches compare agree, and what each costs is counted."""

import weakref
from dataclasses import replace

import model_parity
import prefills
import pytest
import random_models
import torch
from bench_dry import wrong_rows
from harness import host_reads
from prefills import Prompted
from report import FLASH, NATIVE, PACKED, PADDED, UNPATCHED
from stand_in_gpu import StandIn
from transformers.initialization import no_init_weights

from vtfast import Plan, Prune
from vtfast.runtime.state import ForwardState

PLAN = Plan([Prune(0, "diversity", 0.5), Prune(5, "random", 0.1)])
LLAVA, QWEN = random_models.TINY
TEXTS = (16, 112)  # tokens


@pytest.fixture(scope="module")
def built():
    return {s.name: s.build("cpu", torch.float32) for s in random_models.TINY}


@pytest.fixture
def prompted(built, request):
    """A batch of two prompts of unequal length, pictures encoded, without gradients."""
    subject = getattr(request, "param", LLAVA)
    model = built[subject.name]
    inputs = random_models.inputs_of(model, TEXTS, 16)
    with (
        torch.no_grad(),
        random_models.encoded_once(model, inputs, random_models.random_features(model, 2, 16)),
    ):
        yield Prompted(model, inputs, 2)


both = pytest.mark.parametrize("prompted", random_models.TINY, ids=lambda s: s.name, indirect=True)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(random_models.llava_1_5_7b, 7_063_427_072), (random_models.qwen2_5_vl_7b, 8_292_166_656)],
    ids=["llava", "qwen"],
)
def test_the_true_shapes_have_as_many_parameters_as_the_checkpoints(config, parameters):
    with no_init_weights():
        model = random_models.Subject("", config, 0).build("meta", torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_the_shapes_are_those_transformers_gives_llava():
    """Its defaults are LLaVA-1.5's, but for the vocabulary, 64 longer."""
    ours, theirs = random_models.llava_1_5_7b(), type(random_models.llava_1_5_7b())()
    for part in ("text_config", "vision_config"):
        a, b = getattr(ours, part).to_dict(), getattr(theirs, part).to_dict()
        sizes = [k for k in b if k.endswith(("_size", "_layers", "_heads")) and k != "vocab_size"]
        assert {k: a[k] for k in sizes} == {k: b[k] for k in sizes}
    assert ours.text_config.vocab_size == theirs.text_config.vocab_size + 64


@both
def test_all_variants_agree(prompted):
    assert model_parity.disagreements(prompted, PLAN) == {}


@both
def test_the_native_run_decodes_what_the_masked_model_does(prompted):
    """With two stage spans of different length; both keep the first tokens of each picture."""
    plan = Plan([Prune(s.layer, "bench-first", s.keep) for s in PLAN.stages])
    native, padded = prompted.native(plan), prompted.patched(plan, PADDED)
    expected, state = native.prefill()
    with padded.within():
        logits, cache = padded.prefill()
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        for t in range(2):
            here, there = padded.step(cache, t), native.step(state, t)
            torch.testing.assert_close(here, there, rtol=0, atol=1e-5)


def test_a_mask_of_ones_is_left_out_as_generate_does(built):
    inputs = random_models.inputs_of(built[LLAVA.name], (64,), 16)
    prompted = Prompted(built[LLAVA.name], inputs)
    assert "attention_mask" not in prompted.called
    assert "attention_mask" not in prompted.next[0]


def test_wrong_tokens_are_red_in_both_layouts(prompted, monkeypatch):
    monkeypatch.setattr(ForwardState, "_take", wrong_rows)
    wrong = model_parity.disagreements(prompted, PLAN)
    assert {f"{PADDED}, first tokens", f"{PACKED}, first tokens"} <= set(wrong)
    assert "that roundings explain" in wrong[f"{PACKED}, first tokens"]


def test_other_picks_in_one_layout_are_red(prompted, monkeypatch):
    select = ForwardState._select

    def other(run, stage, hidden):
        if run.layout.is_packed and stage.prune.method == "random":
            run.selector._config = replace(run.config, seed=run.config.picks_seed + 1)
        return select(run, stage, hidden)

    monkeypatch.setattr(ForwardState, "_select", other)
    assert model_parity.disagreements(prompted, PLAN) == {
        PACKED: "keeps other tokens than padded from layer 5 on"
    }


def test_logits_that_are_no_numbers_are_red():
    nothing, something = [torch.full((1, 4), torch.nan)], [torch.ones(1, 4)]
    assert "logits are nan off" in model_parity.apart(nothing, something, 1.0)


def test_a_batch_in_lower_precision_may_be_as_far_apart_as_roundings_leave_it(built):
    """In bf16 the gate is wide enough for another attention and too narrow for other tokens."""
    model = LLAVA.build("cpu", torch.bfloat16)
    inputs = random_models.inputs_of(model, TEXTS, 16)
    with (
        torch.no_grad(),
        random_models.encoded_once(model, inputs, random_models.random_features(model, 2, 16)),
    ):
        prompted = Prompted(model, inputs)
        assert model_parity.disagreements(prompted, PLAN) == {}
        stock = model_parity.two_logits(prompted.stock())
        with model_parity.rounded_once_more(model):
            allowed = model_parity.ROUNDINGS * model_parity.distance(
                model_parity.two_logits(prompted.stock()), stock
            )
        eager = prompted.stock(lambda: prefills.attention(model, "eager"))
        fewer = prompted.patched(Plan([Prune(0, "bench-first", 0.5)]), PADDED)
        assert not model_parity.apart(model_parity.two_logits(eager), stock, allowed)
        assert model_parity.apart(model_parity.two_logits(fewer), stock, allowed)


@both
def test_attention_and_weights_are_as_they_were_after_all_variants(prompted):
    before = prompted.prefill()[0]
    model_parity.disagreements(prompted, PLAN)
    assert torch.equal(prompted.prefill()[0], before)
    layers = prompted.model.model.language_model.layers
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_flash_attention_takes_part_where_it_is_installed(prompted, monkeypatch):
    others = [UNPATCHED, NATIVE, PADDED, PACKED]
    assert list(prompted.variants(PLAN)) == others
    monkeypatch.setattr(prefills, "is_flash_attn_2_available", lambda: True)
    assert list(prompted.variants(PLAN)) == [UNPATCHED, FLASH, *others[1:]]


def test_counts_are_of_one_prefill(prompted):
    """KV bytes are those of the tokens that each layer saw, and room in the packed layout."""
    stock, native = (
        prefills.counts(variant, "cpu") for variant in (prompted.stock(), prompted.native(PLAN))
    )
    config = prompted.model.config.text_config
    row = 2 * 4 * config.num_key_value_heads * config.head_dim
    columns = prompted.inputs["input_ids"].shape[1]
    assert stock["kv_bytes"] == config.num_hidden_layers * 2 * columns * row
    shorter = 5 * (columns - 8) + 3 * (columns - 14)  # left-padded: all have the longest text
    assert native["kv_bytes"] == 2 * shorter * row
    assert stock["launches"] is None
    assert stock["peak_bytes"] >= stock["kv_bytes"]
    assert stock["allocations"] > 2 * config.num_hidden_layers


def test_host_reads_of_the_stock_model_are_seen_and_a_patch_adds_at_most_one(prompted):
    """A padded batch makes transformers look at its mask."""
    stock = host_reads(prompted.prefill, "cpu")
    assert stock > 0
    for path in (PADDED, PACKED):
        variant = prompted.patched(PLAN, path)
        with variant.within():
            assert 1 <= host_reads(variant.prefill, "cpu") <= stock + 1


class _Event:
    """An event as torch.profiler gives it."""

    def __init__(self, name, device, annotation=False):
        self.name, self.device_type, self.is_user_annotation = name, device, annotation


def test_launches_are_kernels_alone():
    cuda, cpu = prefills.DeviceType.CUDA, prefills.DeviceType.CPU
    events = [
        _Event("ampere_gemm", cuda),
        _Event("_gather_rows_kernel", cuda),
        _Event("Memcpy HtoD (Pinned -> Device)", cuda),
        _Event("Memset (Device)", cuda),
        _Event("vtfast: ForwardState._take", cuda, annotation=True),
        _Event("aten::mm", cpu),
    ]
    assert sum(map(prefills.is_kernel, events)) == 2


def test_memory_of_a_gpu_is_what_a_call_adds(monkeypatch):
    """Counters before and after, as PyTorch's memory pool keeps them."""
    names = ("allocation.all.allocated", "allocated_bytes.all.current", "allocated_bytes.all.peak")
    pool = dict(zip(names, (100, 5000, 5000), strict=True))
    StandIn().install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: dict(pool))
    after = dict(zip(names, (130, 6000, 8000), strict=True))
    assert prefills.memory_on_gpu(lambda: pool.update(after)) == {
        "allocations": 30,
        "peak_bytes": 3000,
    }


def test_a_race_on_a_gpu_takes_ratios_within_rounds_and_holds_no_cache_of_another_variant(
    prompted, monkeypatch
):
    """What a prefill left is let go before the next one: two caches of a 7B might not fit."""
    StandIn().install(monkeypatch)
    held = []

    def watched(variant):
        def prefill():
            assert not any(keys() is not None for keys in held)
            logits, cache = variant.prefill()
            held.append(weakref.ref(cache.layers[-1].keys))
            return logits, cache

        return replace(variant, prefill=prefill)

    variants = {p: watched(prompted.patched(PLAN, p)) for p in (PADDED, PACKED)}
    taken = prefills.race(variants, 3, "cuda", steps=2, decoded=1)
    assert [len(taken[path]["ttft"]) for path in variants] == [3, 3]
    assert [len(taken[path]["decode"]) for path in variants] == [1, 1]
