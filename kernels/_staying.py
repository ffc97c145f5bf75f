"""Which tokens stay when visual ones are dropped, in plain PyTorch, and in NumPy on a CPU.

On a CPU NumPy takes a third of PyTorch's time, for 64 visual tokens (where most of it goes into
starting operations) as for 16,384.
"""

import torch

from ._numpy import np, numpy_reads


def staying(
    picks: torch.Tensor, visual: torch.Tensor, total: int, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which `size` of `total` tokens stay, where the picks were, and where they are then: int64."""
    # The values of a traced tensor are not there yet.
    plain = not torch.compiler.is_compiling() and type(picks) is type(visual) is torch.Tensor
    if plain and numpy_reads(picks):
        found = _staying_numpy(picks.numpy(), visual.numpy(), total)
        stay, kept, now = map(torch.from_numpy, found)
        return stay, kept, now
    kept = visual[picks]
    stays = torch.ones(total, dtype=torch.bool, device=visual.device)
    stays.index_fill_(0, visual, False).index_fill_(0, kept, True)
    stay = torch.nonzero_static(stays, size=size)[:, 0]
    return stay, kept, kept - picks + torch.arange(len(picks), device=visual.device)


def _staying_numpy(
    picks: np.ndarray, visual: np.ndarray, total: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kept = visual[picks]
    stays = np.ones(total, np.bool_)
    stays[visual] = False
    stays[kept] = True
    return stays.nonzero()[0], kept, kept - picks + np.arange(len(picks))
