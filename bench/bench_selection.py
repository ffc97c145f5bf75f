"""Gathering rows, random picks, and top-k.

gather: three gathers of PyTorch are the baselines; a copy of as many bytes stands beside them.
random: `randperm` per picture, and one vectorised draw, whose picks need only be complete, distinct
    and ascending. vtfast's must be those that Python integers give for the same seed, bit for bit.
topk: a loop of `torch.topk`, padded batches, FlashInfer. Scores have no ties: there is one answer.
"""

from collections.abc import Callable, Iterator

import torch
from harness import Case, Variant, compiled, installed, main
from oracles import random_select as python_random_select
from parity import exactly, selection, topk_index
from shapes import Workload, dtype_for, normal, workloads

from vtfast.ops import Ragged, gather_rows, random_select, topk_select

LAYERS = 28
COMPILED = ("llava b8", "qwen 16k")  # workloads with a compiled variant


def index_select(index: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x.index_select(0, index) for x in tensors]


def expanded_gather(index: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    rows = index.long()
    views = (rows.view(-1, *[1] * (x.ndim - 1)).expand(-1, *x.shape[1:]) for x in tensors)
    return [x.gather(0, view) for x, view in zip(tensors, views, strict=True)]


GATHERS = (
    Variant("index_select", index_select, "eager"),
    Variant("x[index]", lambda index, *tensors: [x[index] for x in tensors], "fair"),
    Variant("gather", expanded_gather, "fair"),
    Variant("memcpy of as many bytes", lambda i, *xs: [x[: len(i)].clone() for x in xs], "note"),
    Variant("vtfast", gather_rows, "vtfast"),
)


class Selection:
    """Selections from a workload at one share to keep: their inputs, variants and right answers."""

    def __init__(self, w: Workload, share: float, device: str) -> None:
        self.w, self.device, self.keep = w, device, w.keep(share)
        self.segments = Ragged.from_lengths(w.lengths, device)
        kept, self.equal = Ragged.from_lengths(self.keep, device), len(set(w.lengths)) == 1
        self.cells = None if self.equal else kept.cells

    def case(self, name: str, make: Callable, variants: list, gate: Callable, nbytes: int, **facts):
        shape = f"{len(self.w.lengths)} pictures, {self.w.total} rows -> {sum(self.keep)}"
        facts = {"shape": shape, "nbytes": nbytes, **facts}
        return Case(f"{name}{self.w.name}", make=make, variants=variants, gate=gate, **facts)

    def per_picture(self, pick: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """`pick` is given the slice of a picture, how many to keep, and the inputs."""
        offsets = list(self.segments.offsets)
        parts = list(zip(map(slice, offsets, offsets[1:]), self.keep, strict=True))

        def loop(*inputs: torch.Tensor) -> torch.Tensor:
            picks = [pick(part, k, *inputs).sort().values + part.start for part, k in parts]
            return torch.cat(picks).int()

        return loop

    def padded(self, best: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """`best` returns the columns of a padded batch, as many as any picture needs."""
        starts, most, cells = self.segments.cu_seqlens[:-1, None], max(self.keep), self.cells

        def batched(*inputs: torch.Tensor) -> torch.Tensor:
            rows = best(*inputs, most) + starts
            return (rows.flatten() if cells is None else rows[cells]).sort().values.int()

        return batched

    def one_draw(self) -> Callable[..., torch.Tensor]:
        """Random picks: the largest of uniform numbers, drawn for a padded batch at once."""
        shape = (len(self.segments), self.segments.max_seqlen)
        dead = None if self.equal else ~self.segments.live

        def best(*words: torch.Tensor | int) -> torch.Tensor:
            draws = torch.rand(shape, device=self.device)
            draws = draws if dead is None else draws.masked_fill(dead, -1.0)
            return draws.topk(words[-1]).indices

        return self.padded(best)

    def randperm(self, part: slice, k: int, *words: torch.Tensor) -> torch.Tensor:
        return torch.randperm(part.stop - part.start, device=self.device)[:k]

    def words(self, number: int) -> tuple[torch.Tensor, ...]:
        hashes = torch.arange(len(self.keep)) + number * 2**40
        words = torch.tensor([number + 7]), torch.tensor([number], dtype=torch.int32), hashes
        return tuple(word.to(self.device) for word in words)

    def random(self, *words: torch.Tensor):
        named = dict(zip(("seed", "stream", "image_hash"), words, strict=True))
        return random_select(self.segments, self.keep, **named)

    def random_index(self, seed: torch.Tensor, stream: torch.Tensor, hashes: torch.Tensor):
        words = seed.item(), hashes.tolist(), stream.item()
        return torch.tensor(python_random_select(self.w.lengths, self.keep, *words)).int()

    def scores(self, number: int) -> tuple[torch.Tensor]:
        """fp32 scores like FastV's, positive and all different."""
        generator = torch.Generator().manual_seed(number)
        order = torch.randperm(self.w.total, generator=generator).to(self.device)
        return ((order + 1.0) / self.w.total,)

    def topk(self, scores: torch.Tensor):
        return topk_select(scores, self.segments, self.keep)

    def topk_index(self, scores: torch.Tensor) -> torch.Tensor:
        return topk_index(scores, self.w.lengths, self.keep)

    def padded_topk(self) -> Callable[..., torch.Tensor]:
        pad = self.segments.pad
        return self.padded(lambda scores, most: pad(scores, -torch.inf).topk(most).indices)


def gather_cases(device: str, tiny: bool) -> Iterator[Case]:
    dtype = dtype_for(device)

    def case(name: str, w: Workload, widths: list[tuple[int, ...]], positions: bool) -> Case:
        s = Selection(w, 0.25, device)
        row = sum(torch.Size(width).numel() for width in widths) * dtype.itemsize + 8 * positions

        def make(seed: int) -> tuple[torch.Tensor, ...]:
            index = random_select(s.segments, s.keep, seed=seed, stream=0)
            sets = [normal(seed, w.total, *size, device=device, dtype=dtype) for size in widths]
            return (index, *sets, *[torch.arange(w.total, device=device)] * positions)

        more = Variant("index_select, compiled", compiled(index_select), "compiled")
        variants = [*GATHERS, *[more] * (positions and w.name != "llava b1")]
        gate = lambda inputs: exactly([x[inputs[0]] for x in inputs[1:]])  # noqa: E731
        shape = f"{w.total} rows of {row} bytes -> {sum(s.keep)}"
        nbytes = (2 * row + 4) * sum(s.keep)
        return s.case(f"{name}, ", make, variants, gate, nbytes, shape=shape, dtype=dtype)

    for w in workloads(tiny):
        yield case("hidden", w, [(w.dim,)], False)
    for w in workloads(tiny, "llava b1", "llava b8", "qwen 4k"):
        yield case("with cos, sin, positions", w, [(w.dim,), *[(w.head_size,)] * 2], True)
    for w in workloads(tiny, "qwen 16k"):
        rows = [(w.key_heads, w.head_size)] * 2 * LAYERS
        yield case(f"K and V of {LAYERS} layers", w, rows, False)


def random_cases(device: str, tiny: bool) -> Iterator[Case]:
    for w in workloads(tiny):
        s = Selection(w, 0.125, device)
        any_picks, draw = [lambda _, s=s: selection(s.w.lengths, s.keep)], s.one_draw()
        more = Variant("rand, topk, sort, compiled", compiled(draw), "compiled", *any_picks)
        variants = [
            Variant("randperm per picture", s.per_picture(s.randperm), "eager", *any_picks),
            Variant("rand, topk, sort", draw, "fair", *any_picks),
            Variant("vtfast", s.random, "vtfast"),
            *[more] * (w.name in COMPILED),
        ]
        gate = lambda inputs, s=s: exactly(s.random_index(*inputs))  # noqa: E731
        yield s.case("", s.words, variants, gate, 4 * sum(s.keep), dtype=torch.int32)


def topk_cases(device: str, tiny: bool) -> Iterator[Case]:
    for w in workloads(tiny):
        s = Selection(w, 0.5, device)
        padded, pad = s.padded_topk(), s.segments.pad

        def stable(scores: torch.Tensor, most: int, pad: Callable = pad) -> torch.Tensor:
            """The plain stable order, which decides ties."""
            return pad(scores, -torch.inf).sort(dim=1, descending=True, stable=True)[1][:, :most]

        top_k, missing = installed("flashinfer", "top_k")
        missing = missing or ("" if s.equal else "takes equal lengths only")
        best = s.padded(lambda x, most, pad=pad, f=top_k: f(pad(x, 0.0), most)[1])
        more = Variant("padded topk, sort, compiled", compiled(padded), "compiled")
        loop = s.per_picture(lambda part, k, scores: scores[part].topk(k).indices)
        flashinfer = ("FlashInfer top_k, index sort", None if missing else best, "fair", None)
        variants = [
            Variant("topk per picture", loop, "eager"),
            Variant("padded topk, sort", padded, "fair"),
            Variant("padded stable sort", s.padded(stable), "fair"),
            Variant(*flashinfer, missing),
            Variant("vtfast", s.topk, "vtfast"),
            *[more] * (w.name in COMPILED),
        ]
        gate = lambda inputs, s=s: exactly(s.topk_index(*inputs))  # noqa: E731
        nbytes = 4 * w.total + 4 * sum(s.keep)
        yield s.case("", s.scores, variants, gate, nbytes, dtype=torch.float32)


OPS = {"gather": gather_cases, "random": random_cases, "topk": topk_cases}

if __name__ == "__main__":
    main(OPS, __doc__)
