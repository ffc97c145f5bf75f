"""The named workloads: what real models put before the ops.

A workload is a packed batch of pictures. LLaVA-1.5 has 576 visual tokens of 4096 numbers and 32
heads; Qwen2.5-VL has as many tokens as the picture is large, of 3584 numbers, 28 query and 4 key
heads. The mixes are pictures of different sizes, drawn once from a fixed seed.
"""

import random
from dataclasses import dataclass, replace

import torch

HEAD_SIZE = 128
TEXT = 64  # tokens around a picture, where an op sees the whole prompt


@dataclass(frozen=True)
class Workload:
    """One packed batch: `lengths` rows of `dim` numbers, attention with so many heads."""

    name: str
    lengths: tuple[int, ...]
    dim: int
    heads: int
    key_heads: int
    head_size: int = HEAD_SIZE

    @property
    def rows(self) -> int:
        return sum(self.lengths)

    def keep(self, share: float) -> list[int]:
        """How many rows of each picture stay."""
        return [max(1, int(share * n + 0.5)) for n in self.lengths]

    def kept(self, share: float) -> "Workload":
        """The batch after pruning, text included: what attention sees from then on."""
        return self.with_lengths([n + TEXT for n in self.keep(share)], f"{self.name}, {share:.0%}")

    def prompt(self) -> "Workload":
        """The batch before pruning, text included."""
        return self.with_lengths([n + TEXT for n in self.lengths], f"{self.name}, full")

    def with_lengths(self, lengths: list[int], name: str) -> "Workload":
        return replace(self, lengths=tuple(lengths), name=name)


def _mix(seed: int, count: int, low: int, high: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randint(low, high) for _ in range(count))


def _llava(batch: int) -> Workload:
    return Workload(f"llava b{batch}", (576,) * batch, 4096, 32, 32)


def _qwen(name: str, lengths: tuple[int, ...]) -> Workload:
    return Workload(f"qwen {name}", lengths, 3584, 28, 4)


WORKLOADS = {
    w.name: w
    for w in (
        _llava(1),
        _llava(8),
        _llava(32),
        _qwen("1k", (1024,)),
        _qwen("4k", (4096,)),
        _qwen("16k", (16384,)),
        _qwen("mix b8", _mix(8, 8, 64, 4096)),
        _qwen("mix b32", _mix(32, 32, 64, 1536)),
    )
}


def workloads(tiny: bool, *names: str) -> list[Workload]:
    """The workloads of these names, all without one; `tiny` ones have the same names and forms."""
    chosen = [WORKLOADS[name] for name in names or WORKLOADS]
    return [_shrunk(w) for w in chosen] if tiny else chosen


def _shrunk(w: Workload) -> Workload:
    lengths = tuple(5 + n // 256 for n in w.lengths)
    return replace(w, lengths=lengths[:4], dim=32, heads=w.heads // w.key_heads * 2, key_heads=2,
                   head_size=16)  # fmt: skip


def dtype_for(device: str) -> torch.dtype:
    """What models run in there."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def normal(seed: int, *shape: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    """Random numbers, never zeros: power and caches depend on what is in a tensor."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)
