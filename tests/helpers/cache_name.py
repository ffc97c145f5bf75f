"""What the transformers installed here calls a KV cache, for calls and outputs in tests."""

from inspect import signature

from transformers import Cache, LlavaForConditionalGeneration
from transformers.utils import ModelOutput

CACHE = next(
    name
    for name in ("cache", "past_key_values")
    if name in signature(LlavaForConditionalGeneration.forward).parameters
)


def cache_of(out: ModelOutput) -> Cache:
    """The cache a model or `generate` has returned."""
    return out[CACHE]
