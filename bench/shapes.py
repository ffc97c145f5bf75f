"""The named workloads of the op benches: packed batches of pictures at the sizes of real models.

LLaVA-1.5 has 576 visual tokens of 4096 numbers and 32 heads. In Qwen2.5-VL the number of tokens
depends on the size of the picture; they have 3584 numbers, 28 query and 4 key heads. The mixes are
pictures of different sizes, drawn once from a fixed seed.
"""

import random
from dataclasses import dataclass, replace

import torch

TEXT = 64  # tokens around a picture, where an op sees the whole prompt


@dataclass(frozen=True)
class Workload:
    """One packed batch: sequences of `lengths` tokens, `dim` numbers each, and attention heads."""

    name: str
    lengths: tuple[int, ...]
    dim: int
    heads: int
    key_heads: int
    head_size: int = 128

    @property
    def total(self) -> int:
        return sum(self.lengths)

    def keep(self, share: float) -> list[int]:
        """How many tokens of each picture are kept."""
        return [max(1, int(share * n + 0.5)) for n in self.lengths]

    def prompt(self, share: float = 1.0) -> "Workload":
        """The batch with its text, after pruning to this share: what attention sees."""
        name = f"{self.name}, {'full' if share == 1 else f'{share:.0%}'}"
        return replace(self, lengths=tuple(n + TEXT for n in self.keep(share)), name=name)


def _mix(count: int, low: int, high: int) -> tuple[int, ...]:
    draw = random.Random(count)
    return tuple(draw.randint(low, high) for _ in range(count))


LLAVA, QWEN = (4096, 32, 32), (3584, 28, 4)
WORKLOADS = [
    *(Workload(f"llava b{batch}", (576,) * batch, *LLAVA) for batch in (1, 8, 32)),
    *(Workload(f"qwen {n}k", (1024 * n,), *QWEN) for n in (1, 4, 16)),
    Workload("qwen mix b8", _mix(8, 64, 4096), *QWEN),
    Workload("qwen mix b32", _mix(32, 64, 1536), *QWEN),
]


def workloads(tiny: bool, *names: str) -> list[Workload]:
    """The workloads of these names, or all; `tiny` ones keep their names and proportions."""
    chosen = [w for w in WORKLOADS if w.name in names or not names]
    return [_shrunk(w) for w in chosen] if tiny else chosen


def _shrunk(w: Workload) -> Workload:
    lengths, heads = tuple(5 + n // 256 for n in w.lengths[:4]), w.heads // w.key_heads * 2
    return replace(w, lengths=lengths, dim=32, heads=heads, key_heads=2, head_size=16)


def dtype_for(device: str) -> torch.dtype:
    """The dtype in which models run on this device."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def normal(seed: int, *shape: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    """Random numbers and not zeros, because a GPU's power and so its speed depend on the values."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)
