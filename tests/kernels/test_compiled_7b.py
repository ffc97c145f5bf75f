"""Compiled kernels at the shapes of 7B models, executed as PTX on a CPU: `make ptx-full`.

LLaVA-1.5 7B has 576 visual tokens of 4096 numbers and 32 heads; Qwen2.5-VL 7B has 3584 numbers, and
28 query heads on 4 key heads. Every launch runs in one order, and those of attention and diversity,
which take minutes, are not checked for races: smaller ones at the same settings are, in
`test_compiled_cases.py`, and in three orders.
"""

import pytest
import torch
from devices import ARCH
from kernel_checks import check_op
from ptx_driver import settings
from shapes import Workload, normal, workloads

from vtfast.kernels.diversity_select import diversity_select
from vtfast.kernels.gather import gather_rows
from vtfast.kernels.image_hash import image_hash
from vtfast.kernels.last_query_scores import last_query_scores
from vtfast.kernels.ragged import Ragged
from vtfast.kernels.ragged_attention import ragged_attention
from vtfast.kernels.ragged_decode import ragged_decode
from vtfast.kernels.topk_select import topk_select

assert ARCH, "set VTFAST_TEST_DEVICE to sm_80 or sm_90"
pytestmark = [pytest.mark.full, pytest.mark.usefixtures("poisoned_memory")]
PICTURES = workloads(False, "llava b1", "qwen 1k", "qwen 4k", "qwen 16k")
CPU = {"device": "cpu", "dtype": torch.bfloat16}
each_picture = pytest.mark.parametrize("picture", PICTURES, ids=lambda w: w.name)
each_model = pytest.mark.parametrize("picture", PICTURES[:2], ids=lambda w: w.name)


@pytest.fixture(autouse=True)
def one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "orders", 1)


def tokens(picture: Workload) -> tuple[torch.Tensor, Ragged, list[int]]:
    """Hidden states of a picture's tokens, and how many to keep."""
    segments = Ragged.from_lengths(picture.lengths, "cpu")
    return normal(0, picture.total, picture.dim, **CPU), segments, picture.keep(0.25)


def heads(picture: Workload, queries: int, keys: int) -> list[torch.Tensor]:
    numbers = ((queries, picture.heads), (keys, picture.key_heads), (keys, picture.key_heads))
    return [normal(i, *size, picture.head_size, **CPU) for i, size in enumerate(numbers)]


@each_picture
def test_selecting_and_gathering(picture: Workload) -> None:
    hidden, segments, keep = tokens(picture)
    positions, scores = torch.arange(picture.total), hidden[:, 0].float()
    index = topk_select(scores, segments, keep)
    check_op(gather_rows, index, hidden, positions)


def test_hashes() -> None:
    """Two pictures of LLaVA, and one of Qwen of 1,024 tokens beside a smaller one."""
    check_op(image_hash, normal(0, 2, 3, 336, 336, **CPU))
    grid = torch.tensor([[1, 64, 64], [1, 10, 36]])
    check_op(image_hash, normal(1, 4096 + 360, 1176, **CPU), grid)


@each_picture
def test_diversity(picture: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "check", False)
    check_op(diversity_select, *tokens(picture))


@each_model
@pytest.mark.parametrize("rows", [640, 16384])
def test_scores(picture: Workload, rows: int) -> None:
    q, k, _ = heads(picture, 1, rows)
    segments = Ragged.from_lengths([rows], "cpu")
    check_op(last_query_scores, q, k, segments, scale=picture.head_size**-0.5)


@each_model
@pytest.mark.parametrize("rows", [640, 4096])
def test_attention(picture: Workload, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "check", False)
    segments = Ragged.from_lengths([rows], "cpu")
    check_op(ragged_attention, *heads(picture, rows, rows), segments, segments)


@each_model
@pytest.mark.parametrize("rows", [640, 16384])
def test_decode(picture: Workload, rows: int) -> None:
    check_op(ragged_decode, *heads(picture, 1, rows), [rows], starts=[0])
