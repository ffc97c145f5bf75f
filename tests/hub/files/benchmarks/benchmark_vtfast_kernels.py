"""Time the kernels beside plain PyTorch: `kernels benchmark` runs this file.

Pictures of LLaVA-1.5, 576 tokens of 4,096 numbers, half of which are kept. On a CPU, where no
kernel runs, "speedup" compares the reference with plain PyTorch.
"""

import torch

from kernels import Benchmark

PICTURES, TOKENS, KEEP, WIDTH, HEADS, SIZE = 8, 576, 288, 4096, 32, 128


class Selection(Benchmark):
    seed = 0

    def setup(self) -> None:
        total, dtype = PICTURES * TOKENS, torch.float16 if self.device == "cuda" else torch.float32
        self.segments = self.kernel.Ragged.from_lengths([TOKENS] * PICTURES, self.device)
        self.keep = [KEEP] * PICTURES
        self.features = torch.randn(total, WIDTH, device=self.device, dtype=dtype)
        self.scores = torch.randn(total, device=self.device)
        self.index = torch.arange(0, total, 2, device=self.device)

    def benchmark_gather_rows(self) -> None:
        (self.out,) = self.kernel.gather_rows(self.index, self.features)

    def verify_gather_rows(self) -> torch.Tensor:
        return self.features[self.index]

    def benchmark_random_select(self) -> None:
        self.out = self.kernel.random_select(self.segments, self.keep, seed=0, stream=0)

    def verify_random_select(self) -> torch.Tensor:
        return self.kernel.random_select(self.segments, self.keep, seed=0, stream=0, impl="eager")

    def benchmark_topk_select(self) -> None:
        self.out = self.kernel.topk_select(self.scores, self.segments, self.keep)

    def verify_topk_select(self) -> torch.Tensor:
        picks = self.scores.view(PICTURES, TOKENS).topk(KEEP).indices.sort().values
        firsts = torch.arange(0, PICTURES * TOKENS, TOKENS, device=self.device)
        return (picks + firsts[:, None]).flatten().int()

    def benchmark_diversity_select(self) -> None:
        # Not compared: distances of 16-bit features round differently, and one other pick leads to
        # others. The tests replay every pick.
        self.out = self.kernel.diversity_select(self.features, self.segments, self.keep)


class Attention(Benchmark):
    seed = 0

    def setup(self) -> None:
        dtype = torch.float16 if self.device == "cuda" else torch.float32
        self.segments = self.kernel.Ragged.from_lengths([TOKENS] * 2, self.device)
        shape = 2 * TOKENS, HEADS, SIZE
        self.qkv = [torch.randn(shape, device=self.device, dtype=dtype) for _ in range(3)]

    def benchmark_ragged_attention(self) -> None:
        self.out = self.kernel.ragged_attention(*self.qkv, self.segments, self.segments)

    def verify_ragged_attention(self) -> torch.Tensor:
        q, k, v = (x.view(2, TOKENS, HEADS, SIZE).transpose(1, 2) for x in self.qkv)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).flatten(0, 1)
