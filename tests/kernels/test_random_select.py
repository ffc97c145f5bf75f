"""`random_select`: exact k, uniform, and the same on every device because it is integers only."""

import re
import sys
from itertools import pairwise

import numpy as np
import oracles
import pytest
import torch
from devices import DEVICE
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import (
    BATCHES,
    BLOCK_BATCHES,
    KERNEL,
    THOROUGH,
    batches,
    check_selection,
    fenced_rows,
    ragged,
    refusal,
)

from vtfast.kernels import _select_numpy, reference
from vtfast.kernels._philox import philox_4x32, philox_4x32_numpy
from vtfast.kernels.random_select import random_select

random_module = sys.modules[random_select.__module__]

pytestmark = pytest.mark.usefixtures("poisoned_memory", "fenced_memory")


@pytest.fixture
def impl(select_impl):
    return select_impl


INT64 = st.integers(-(2**63), 2**63 - 1)
STREAM = st.integers(0, 2**31 - 1)


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [
        pytest.param([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], id="all zeros"),
        pytest.param(
            [2**32 - 1] * 4, -1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD], id="all ones"
        ),
        pytest.param(
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
            id="digits of pi",
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, seed, words):
    """The known-answer vectors published with Random123."""
    got = philox_4x32(torch.tensor(counter)[:, None], torch.tensor([seed]))
    assert got.flatten().tolist() == words
    got = philox_4x32_numpy(np.array(counter, np.uint32)[:, None], seed)
    assert got.tolist() == [words]
    assert (
        list(oracles.philox_4x32(tuple(counter), (seed & 2**32 - 1, seed >> 32 & 2**32 - 1)))
        == words
    )


@THOROUGH
@given(batches(), INT64, st.lists(INT64, min_size=4, max_size=4), STREAM)
def test_agrees_with_python_integers(case, seed, hashes, stream):
    lengths, keep = case
    hashes = hashes[: len(lengths)]
    names = {"seed": seed, "image_hash": torch.tensor(hashes).long(), "stream": stream}
    index = random_select(ragged(lengths), keep, **names)
    assert index.tolist() == oracles.random_select(lengths, keep, seed, hashes, stream)
    assert torch.equal(index, reference.random_select(ragged(lengths), keep, **names))


@KERNEL
@given(batches(max_length=70), INT64, st.lists(INT64, min_size=4, max_size=4), STREAM)
def test_the_kernel_agrees_with_python_integers_and_with_the_reference(case, seed, hashes, stream):
    lengths, keep = case
    segments = ragged(lengths, DEVICE)
    hashes = fenced_rows(torch.tensor(hashes[: len(lengths)]).long(), -1, DEVICE)
    names = {"seed": seed, "image_hash": hashes, "stream": stream}
    index = random_select(segments, keep, **names, impl="triton")
    assert index.tolist() == oracles.random_select(lengths, keep, seed, hashes.tolist(), stream)
    assert torch.equal(index, reference.random_select(segments, keep, **names))


@KERNEL
@given(batches(max_length=40), INT64, STREAM, st.integers(1, 4))
def test_the_kernel_orders_equal_words_by_the_second_word_then_by_position(
    case, seed, stream, word_bits
):
    """Real words tie once in billions, so both sides keep a few bits of them only."""
    lengths, keep = case
    mask = 2**32 - 2 ** (32 - word_bits)
    words = oracles.philox_4x32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracles, "philox_4x32", lambda *x: tuple(w & mask for w in words(*x)))
        expected = oracles.random_select(lengths, keep, seed, range(len(lengths)), stream)
    segments = ragged(lengths, DEVICE)
    index = random_module._launch(
        segments.cu_seqlens,
        torch.tensor([seed], device=DEVICE),
        None,
        torch.tensor([stream], dtype=torch.int32, device=DEVICE),
        keep,
        segments.max_seqlen,
        word_bits,
    )
    assert index.tolist() == expected


@pytest.mark.parametrize(("lengths", "keep"), [*BATCHES, *BLOCK_BATCHES])
def test_the_kernel_picks_what_the_reference_picks(device, lengths, keep):
    segments = ragged(lengths, device)
    index = random_select(segments, keep, seed=6, stream=7, impl="triton")
    assert torch.equal(index, reference.random_select(segments, keep, seed=6, stream=7))


@pytest.mark.parametrize(("first_words", "second_words"), [(1, 3), (1, 1), (3, 2)])
def test_equal_words_are_ordered_by_the_second_word_then_by_position(
    monkeypatch, first_words, second_words
):
    """Real words tie once in billions, so all sides draw from a few values only."""

    def modulus(c3):
        return second_words if c3 >= 2**31 else first_words

    def few_words(counter, seed):
        first, second = philox_4x32(counter, seed).unbind(1)
        return torch.stack((first % first_words, second % second_words), 1)

    def few_words_numpy(counter, seed):
        return philox_4x32_numpy(counter, seed) % modulus(counter[3])

    def few_words_oracle(counter, key, words=oracles.philox_4x32):
        return tuple(word % modulus(counter[3]) for word in words(counter, key))

    monkeypatch.setattr(reference, "philox_4x32", few_words)
    monkeypatch.setattr(_select_numpy, "philox_4x32_numpy", few_words_numpy)
    monkeypatch.setattr(oracles, "philox_4x32", few_words_oracle)
    lengths, keep, names = [40, 0, 33], [17, 0, 8], {"seed": 5, "stream": 2}
    expected = oracles.random_select(lengths, keep, 5, [0, 1, 2], 2)
    assert random_select(ragged(lengths), keep, **names).tolist() == expected
    assert reference.random_select(ragged(lengths), keep, **names).tolist() == expected


@pytest.mark.parametrize(("lengths", "keep"), BATCHES)
def test_picks_are_exact_distinct_ascending_rows(lengths, keep):
    check_selection(random_select(ragged(lengths), keep, seed=1, stream=0), lengths, keep)


def test_image_hashes_default_to_the_position_in_the_call(impl):
    segments, names = ragged([20, 20, 13]), {"seed": 3, "stream": 1, "impl": impl}
    by_position = random_select(segments, [5, 5, 5], **names)
    by_hash = random_select(segments, [5, 5, 5], image_hash=torch.arange(3), **names)
    assert torch.equal(by_position, by_hash)


def test_picks_for_k_are_among_those_for_k_plus_one():
    picks = [set(random_select(ragged([25]), [k], seed=2, stream=4).tolist()) for k in range(26)]
    assert all(fewer < more for fewer, more in pairwise(picks))


@pytest.mark.parametrize("changed", ["seed", "stream", "image_hash"])
def test_another_seed_stream_or_image_hash_gives_other_picks(changed):
    def draw(number):
        names = {"seed": 1, "stream": 1, "image_hash": 1, changed: number}
        names["image_hash"] = torch.tensor([names["image_hash"]])
        picks = random_select(ragged([64]), [32], **names)
        return tuple(picks.tolist())

    assert len({draw(number) for number in range(20)}) == 20


@pytest.mark.parametrize("integer", [np.int64, np.int8, np.uint64])
def test_every_count_and_number_may_be_a_numpy_integer(impl, integer):
    segments, expected = ragged([9, 5]), ragged([9, 5])
    picks = random_select(expected, [4, 2], seed=3, stream=1, impl=impl)
    keep, seed, stream = np.array([4, 2], dtype=integer), integer(3), integer(1)
    assert torch.equal(random_select(segments, keep, seed=seed, stream=stream, impl=impl), picks)


def test_seed_and_stream_may_be_tensors(impl):
    segments = ragged([50, 7])
    ints = random_select(segments, [9, 3], seed=-4, stream=21, impl=impl)
    names = {"seed": torch.tensor([-4]), "stream": torch.tensor([21], dtype=torch.int32)}
    assert torch.equal(random_select(segments, [9, 3], **names, impl=impl), ints)


def test_an_int_is_written_to_the_device_once(device):
    """A patched model passes the same seed and stream at every prefill."""
    where = torch.device(device, 0) if device == "cuda" else torch.device(device)
    seed, stream = torch.int64, torch.int32
    kept = random_module._as_tensor(5, seed, where)
    assert random_module._as_tensor(5, seed, where) is kept
    assert (kept.tolist(), kept.dtype) == ([5], seed)
    assert random_module._as_tensor(5, stream, where).dtype == stream
    with torch.inference_mode():
        assert not random_module._as_tensor(6, seed, where).is_inference()


def test_reads_strided_image_hashes(impl):
    segments, hashes = ragged([20, 20]), torch.tensor([[5, 0], [6, 0]])[:, 0]
    names = {"seed": 1, "stream": 2, "impl": impl}
    index = random_select(segments, [4, 4], image_hash=hashes, **names)
    assert torch.equal(index, random_select(segments, [4, 4], image_hash=hashes.clone(), **names))


def test_every_row_is_picked_equally_often():
    draws, n, k = 4_000, 12, 5
    index = random_select(ragged([n] * draws), [k] * draws, seed=11, stream=0)
    counts = np.bincount(index.numpy() % n, minlength=n)
    rate = k / n
    statistic = ((counts - draws * rate) ** 2).sum() / (draws * rate * (1 - rate)) * (n - 1) / n
    assert statistic < 37.4  # chi-square with 11 degrees of freedom stays below in 99.99 %


def test_every_subset_is_drawn_equally_often():
    draws, n, k, subsets = 5_000, 5, 2, 10
    pairs = random_select(ragged([n] * draws), [k] * draws, seed=12, stream=0).view(draws, k) % n
    counts = np.unique(pairs.numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == subsets
    statistic = ((counts - draws / subsets) ** 2).sum() / (draws / subsets)
    assert statistic < 33.7  # chi-square with 9 degrees of freedom stays below in 99.99 %


def test_needs_no_value_from_the_device():
    """Meta tensors have no values: whatever would read one back raises."""
    picks = random_select(ragged([9, 4], "meta"), [3, 2], seed=0, stream=0)
    assert (picks.shape, picks.device.type) == ((5,), "meta")


def select(keep=(1,), **names):
    return random_select(ragged([3]), keep, **{"seed": 0, "stream": 0, **names})


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda: select(impl="cuda")),
        refusal(
            "too long",
            ValueError,
            "a segment has 16385 rows and the kernel takes 16384; pass impl=",
            lambda: random_select(ragged([16385], DEVICE), [1], seed=0, stream=0, impl="triton"),
        ),
        refusal(
            "segments",
            TypeError,
            "segments must be a Ragged, got list",
            lambda: random_select([3], [1], seed=0, stream=0),
        ),
        refusal(
            "too many", ValueError, "keep=4 for segment 0, which has 3 rows", lambda: select([4])
        ),
        refusal("negative", ValueError, "keep=-1 for segment 0", lambda: select([-1])),
        refusal("count", ValueError, "keep has 2 entries for 1 segments", lambda: select([1, 1])),
        refusal("fraction", TypeError, "keep must hold host ints, got 0.5", lambda: select([0.5])),
        refusal("bool", TypeError, "keep must hold host ints, got True", lambda: select([True])),
        refusal(
            "keep tensor",
            TypeError,
            "keep must be a sequence of host ints",
            lambda: select(torch.tensor([1])),
        ),
        refusal("seed", ValueError, f"seed={2**63} is out of range", lambda: select(seed=2**63)),
        refusal("seed type", TypeError, "seed must be an int", lambda: select(seed=1.0)),
        refusal("seed bool", TypeError, "seed must be an int", lambda: select(seed=np.True_)),
        refusal("seed array", TypeError, "seed must be an int", lambda: select(seed=np.array(3))),
        refusal("keep array", TypeError, "must hold host ints", lambda: select([np.array(1.0)])),
        refusal("NumPy bool", TypeError, "must hold host ints", lambda: select([np.True_])),
        refusal("NumPy stream", ValueError, "stream=-1 is", lambda: select(stream=np.int8(-1))),
        refusal(
            "seed dtype",
            TypeError,
            "seed must be int64, got torch.int32",
            lambda: select(seed=torch.zeros(1, dtype=torch.int32)),
        ),
        refusal(
            "seed size",
            ValueError,
            "seed must hold one number, got shape (2,)",
            lambda: select(seed=torch.zeros(2, dtype=torch.int64)),
        ),
        refusal(
            "seed device",
            ValueError,
            "seed is on meta but the other arguments are on cpu",
            lambda: select(seed=torch.zeros(1, dtype=torch.int64, device="meta")),
        ),
        refusal(
            "stream dtype",
            TypeError,
            "stream must be int32, got torch.int64",
            lambda: select(stream=torch.zeros(1, dtype=torch.int64)),
        ),
        refusal(
            "hash rank",
            ValueError,
            "image_hash must have 1 dimensions, got shape (1, 1)",
            lambda: select(image_hash=torch.zeros(1, 1, dtype=torch.int64)),
        ),
        refusal("stream", ValueError, "stream=-1 is out of range", lambda: select(stream=-1)),
        refusal(
            "hash dtype",
            TypeError,
            "image_hash must be int64",
            lambda: select(image_hash=torch.zeros(1)),
        ),
        refusal(
            "hash count",
            ValueError,
            "image_hash has 2 entries for 1 segments",
            lambda: select(image_hash=torch.zeros(2, dtype=torch.int64)),
        ),
        refusal(
            "device",
            ValueError,
            "image_hash is on meta but the other arguments are on cpu",
            lambda: select(image_hash=torch.zeros(1, dtype=torch.int64, device="meta")),
        ),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_the_old_keyword_keys_warns_once_and_names_the_new_one(impl):
    segments, hashes = ragged([20, 20]), torch.tensor([5, 6])
    names = {"seed": 1, "stream": 2, "impl": impl}
    with pytest.warns(DeprecationWarning, match=r"keys=\.\.\.\) is now image_hash=") as warned:
        index = random_select(segments, [4, 4], keys=hashes, **names)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert torch.equal(index, random_select(segments, [4, 4], image_hash=hashes, **names))


def test_the_old_keyword_keys_is_refused_beside_the_new_one():
    hashes = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(TypeError, match="got image_hash and keys, its old name; pass image_hash"):
        select(keys=hashes, image_hash=hashes)
