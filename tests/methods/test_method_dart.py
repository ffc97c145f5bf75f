"""DART: exact counts, pivots by key norm, and the tokens least similar to them, per picture."""

import pytest
import torch
from method_context import context, picks
from model_readings import unlike_pivots
from peak_memory import extra_bytes

import vtfast
from vtfast import Prune
from vtfast.kernels import reference
from vtfast.methods.dart import dart

# Samples by their parts: text tokens, and pictures as (tokens,).
CASES = {
    "one-picture": ([[5, (30,), 9]], [13]),
    "four-pivots-and-equal-shares": ([[5, (60,), 9]], [4 + 8 * 3]),
    "fewer-than-the-pivots": ([[5, (30,), 9]], [3]),
    "one-token": ([[5, (30,), 9]], [1]),
    "all-but-one": ([[5, (30,), 9]], [29]),
    "all-of-one-of-two": ([[2, (12,), 1, (20,), 7]], [12, 7]),
    "nothing-of-one-of-two": ([[2, (12,), 1, (20,), 7]], [0, 7]),
    "an-empty-picture-last": ([[2, (12,), 7, (0,), 3]], [6, 0]),
    "pictures-that-touch": ([[3, (11,), (17,), 6]], [9, 10]),
    "a-batch": ([[4, (16,), 5], [8], [1, (25,), 2, (9,), 11]], [7, 12, 5]),
    "little-text-after": ([[6, (20,), 2]], [11]),
    "text-before-alone": ([[6, (20,)]], [11]),
    "little-text": ([[1, (20,), 1]], [11]),
    "no-text": ([[(20,)]], [11]),
}


def expected(ctx):
    """Ranks kept of every picture, one sample after another, by the plain loops."""
    norms = ctx.attention.keys.float().abs().sum((1, 2))
    states = ctx.sequences.norm(ctx.sequences.hidden).float()
    visual = ctx.sequences.visual.tolist()
    ends = torch.tensor(ctx.sequences.lengths).cumsum(0).tolist()
    out = []
    for start, length, keep, sample in zip(
        ctx.segments.offsets, ctx.segments.lengths, ctx.keep, ctx.sequences.samples, strict=False
    ):
        rows = range(ends[sample] - ctx.sequences.lengths[sample], ends[sample])
        text = [row for row in rows if row not in visual]
        columns = visual[start : start + length]
        out.append(unlike_pivots(columns, text, keep, norms, states) if columns else [])
    return out


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("samples", "keep"), CASES.values(), ids=CASES)
def test_dart_agrees_with_plain_loops_and_is_exact(samples, keep, seed):
    ctx = context(samples, keep, seed=seed)
    index = dart(ctx)
    assert picks(index, ctx) == expected(ctx)
    assert [len(ranks) for ranks in picks(index, ctx)] == keep
    assert (index.diff() > 0).all()


@pytest.mark.parametrize("name", CASES)
def test_dart_keeps_the_same_tokens_under_autocast(name):
    """Cosines were once rounded to 8 bits there, and many were equal."""
    expected = [dart(context(*CASES[name], seed=seed)) for seed in range(9)]
    with torch.autocast("cpu", torch.bfloat16):
        got = [dart(context(*CASES[name], seed=seed)) for seed in range(9)]
    assert all(map(torch.equal, got, expected))


def test_small_pictures_are_not_padded_to_a_large_one(monkeypatch):
    """In fp32 all tokens, padded, took 30 times as much here as the sequences themselves."""
    monkeypatch.setattr(reference, "_MAX_BYTES", 2**18)  # the selections have a limit of their own
    ctx = context([[5, (4000,), *[(8,)] * 30, 9]], [400, *[2] * 30])
    assert extra_bytes(lambda: dart(ctx)) < 2**18 + 8 * ctx.sequences.hidden.nbytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dart_compares_in_fp32(dtype):
    ctx = context(*CASES["a-batch"], dtype=dtype)
    assert picks(dart(ctx), ctx) == expected(ctx)


def test_a_picture_keeps_the_same_alone_and_in_a_batch():
    together = context(*CASES["a-batch"])
    alone = context([[4, (16,), 5]], [7])
    rows = together.sequences.hidden[:25], together.attention.keys[:25]
    alone.sequences.hidden.copy_(rows[0])
    alone.attention.keys.copy_(rows[1])
    assert picks(dart(alone), alone)[0] == picks(dart(together), together)[0]


def test_equal_tokens_are_kept_by_position():
    ctx = context([[5, (30,), 9]], [13])
    ctx.sequences.hidden.fill_(1.0)
    ctx.attention.keys.fill_(1.0)
    assert picks(dart(ctx), ctx) == [list(range(13))]


@pytest.mark.parametrize("keep", [9, 29])
def test_broken_and_empty_tokens_are_counted_too(keep):
    ctx = context([[5, (30,), 9]], [keep])
    ctx.sequences.hidden[28:32] = torch.nan
    ctx.sequences.hidden[9] = 0
    ctx.sequences.hidden[20] = torch.inf
    ctx.attention.keys[33] = torch.nan
    [ranks] = picks(dart(ctx), ctx)
    assert len(set(ranks)) == keep


def test_equal_budgets_for_all_pivots_need_no_rounding():
    """4 + 8q tokens are what the official code keeps of a budget of 8q … 8q + 7."""
    official = Prune(2, "dart", 128, official_budget=True)
    assert [official.count(576, 576), official.count(130, 130)] == [132, 130]
    for budget in (252, 60, 260):  # the released settings
        assert Prune(2, "dart", budget, official_budget=True).count(576, 576) == budget
    assert Prune(2, "dart", 5, official_budget=True).count(576, 576) == 4
    assert Prune(2, "dart", 0.25, official_budget=True).count(576, 576) == 4 + 8 * 18
    assert Prune(2, "dart", 0, official_budget=True).count(576, 576) == 0
    assert Prune(2, "dart", 128).count(576, 576) == 128


def test_a_rounded_budget_says_so():
    assert "4 + 8·floor(k/8)" in str(Prune(2, "dart", 128, official_budget=True))
    assert repr(Prune(2, "dart", 8, official_budget=True)) == (
        'Prune(2, "dart", 8, official_budget=True)'
    )
    assert Prune(2, "dart", 8, official_budget=False) == Prune(2, "dart", 8)


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_official_budget_is_true_or_false(value):
    with pytest.raises(vtfast.PlanError, match=r"official_budget=.*pass False or True"):
        Prune(2, "dart", 8, official_budget=value)
