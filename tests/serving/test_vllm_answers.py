"""What vLLM answers equals what `vtfast.patch` answers with the same first stage."""

import pytest
from vllm_engines import (
    FAMILIES,
    ask,
    check_equal,
    checkpoint,
    engine,
    of_patch,
    preemptions,
    requests,
)

KEEPS = (0.5, 0.25, 1.0, 20)  # of a request; in an engine whose own is 0.5
ENGINES = [
    *((family, "diversity", {}) for family in FAMILIES),
    *((family, "random", {"seed": 3}) for family in FAMILIES),
    *((family, "uniform", {}) for family in FAMILIES),
    *((family, "diversity", {"centre": True, "distinct": "sigmoid"}) for family in FAMILIES),
    *(("llava", method, {"positions": "renumber"}) for method in ("diversity", "random")),
]


def expected(family, method, how, keep):
    options = tuple((name, how[name]) for name in ("centre", "distinct") if name in how)
    more = {name: how[name] for name in ("seed", "positions") if name in how}
    return of_patch(family, method, keep, options=options, **more)


@pytest.mark.parametrize(("family", "method", "how"), ENGINES)
def test_answers_equal_those_of_a_patched_model(family, method, how, tmp_path_factory):
    """Of requests that each have a keep of their own, in one batch; then again in another order,
    with prefixes and pictures in the caches: 256 answers."""
    folder = checkpoint(family, tmp_path_factory.getbasetemp())
    asked, keeps, answers = [], [], []
    for number, request in enumerate(requests(family)):
        for keep in (*KEEPS, None):
            asked.append(request)
            keeps.append(keep)
            answers.append(expected(family, method, how, 0.5 if keep is None else keep)[number])
    with engine(folder, {"method": method, "keep": 0.5, **how}) as made:
        first = ask(made, asked, keeps)
        again = ask(made, asked[::-1], keeps[::-1])
    assert check_equal(first, answers) == len(KEEPS) * 32 + 32
    check_equal(again[::-1], answers)
    half, whole = first[0].prompt, first[2].prompt
    assert half < whole


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_without_a_setting_is_vllm_itself(family, tmp_path_factory, stock_answers):
    """Bit for bit, and so is one that keeps everything, up to the order of sums."""
    folder = checkpoint(family, tmp_path_factory.getbasetemp())
    with engine(folder) as made:
        own = ask(made, requests(family))
    assert own == stock_answers(family)
    with engine(folder, {"keep": 1.0}) as made:
        check_equal(ask(made, requests(family)), own)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [24, 64])
def test_chunks_and_preemptions_change_nothing(family, budget, tmp_path_factory):
    """Chunks cut pictures apart, and requests lose their memory and start again."""
    folder = checkpoint(family, tmp_path_factory.getbasetemp())
    limits = {"max_num_batched_tokens": budget, "num_gpu_blocks_override": 24}
    stats = {"disable_log_stats": False}
    with engine(folder, {"method": "random", "keep": 0.5}, **limits, **stats) as made:
        for _ in range(2):
            got = ask(made, requests(family), max_tokens=40, ignore_eos=True)
            check_equal(got, of_patch(family, "random", 0.5))
        assert preemptions(made) > 0


def test_answers_agree_in_bfloat16(tmp_path_factory):
    """Places ride in the embeddings, and bfloat16 must not round them."""
    folder = checkpoint("qwen", tmp_path_factory.getbasetemp())
    with engine(folder, {"method": "uniform", "keep": 0.5}, dtype="bfloat16") as made:
        got = ask(made, requests("qwen"))
    same = [
        a.tokens == b.tokens for a, b in zip(got, of_patch("qwen", "uniform", 0.5), strict=True)
    ]
    assert sum(same) >= len(same) - 1


def test_a_compiled_llava_answers_the_same(tmp_path_factory):
    folder = checkpoint("llava", tmp_path_factory.getbasetemp())
    with engine(folder, {"keep": 0.25}, enforce_eager=False) as made:
        check_equal(ask(made, requests("llava")), of_patch("llava", "diversity", 0.25))
