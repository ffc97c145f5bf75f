"""All ops by their names; an op and its Triton kernels are imported when it is first used.

>>> from vtfast.ops import Ragged, topk_select
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .kernels.coverage_select import coverage_select
    from .kernels.diversity_select import diversity_select
    from .kernels.dpp_select import dpp_select
    from .kernels.gather import gather_rows
    from .kernels.image_hash import image_hash
    from .kernels.last_query_scores import last_query_scores
    from .kernels.ragged import Ragged
    from .kernels.ragged_attention import ragged_attention
    from .kernels.ragged_decode import ragged_decode
    from .kernels.random_select import random_select
    from .kernels.topk_select import topk_select

__all__ = [
    "Ragged",
    "coverage_select",
    "diversity_select",
    "dpp_select",
    "gather_rows",
    "image_hash",
    "last_query_scores",
    "ragged_attention",
    "ragged_decode",
    "random_select",
    "topk_select",
]

_FILES = {"Ragged": "ragged", "gather_rows": "gather"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"vtfast.ops has no op {name!r}; it has {', '.join(__all__)}")
    op = getattr(import_module(f".kernels.{_FILES.get(name, name)}", __package__), name)
    globals()[name] = op  # later look-ups skip this function
    return op


def __dir__() -> list[str]:
    return __all__
