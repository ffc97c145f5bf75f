"""LLaVA in vLLM."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from vllm.compilation.decorators import support_torch_compile
from vllm.model_executor.models import llava as stock
from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModalPruning
from vllm.model_executor.models.llama import LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.vision import (
    get_num_selected_vision_tokens,
    get_vision_encoder_info,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtfast.kernels.image_hash import image_hash
from vtfast.vllm import cpu_runner
from vtfast.vllm.model import Grid, Pruned
from vtfast.vllm.processor import PruningProcessor


def _tokens(config: Any) -> int:
    """Visual tokens of every picture."""
    tower = get_vision_encoder_info(config)
    side = tower.get_image_size()
    whole = tower.get_num_image_tokens(image_width=side, image_height=side)
    return int(get_num_selected_vision_tokens(whole, config.vision_feature_select_strategy))


class _Processor(PruningProcessor, stock.LlavaMultiModalProcessor):
    def tokens_of(self, kind: str, items: Any, number: int, kwargs: Mapping[str, object]) -> int:
        return _tokens(self.info.get_hf_config())


def _processor(info: Any, dummy_inputs: Any) -> Any:
    if isinstance(info, stock.LlavaProcessingInfo):
        return _Processor(info, dummy_inputs)
    return stock._build_llava_or_pixtral_hf_processor(info, dummy_inputs)


@MULTIMODAL_REGISTRY.register_processor(
    _processor,
    info=stock._build_llava_or_pixtral_hf_info,
    dummy_inputs=stock.LlavaDummyInputsBuilder,
)
class PrunedLlava(
    Pruned,
    stock.LlavaForConditionalGeneration,
    SupportsMRoPE,
    SupportsMultiModalPruning,
):
    """Tokens that stay keep their places by three equal axes of M-RoPE."""

    def grids_of(self, kind: str, call: dict[str, Any]) -> list[Grid]:
        return [self._grid()] * len(call["pixel_values"])

    def part(self, kind: str, call: dict[str, Any], first: int, last: int) -> dict[str, Any]:
        return {"pixel_values": call["pixel_values"][first:last]}

    def grid_of(self, feature: Any) -> Grid:
        return self._grid()

    def _grid(self) -> Grid:
        tokens = _tokens(self.config)
        side = isqrt(tokens)
        return (1, side, side, 1.0) if side**2 == tokens else (1, 1, tokens, 1.0)

    def places(self, grid: Grid) -> Tensor:
        return torch.arange(grid[1] * grid[2])[:, None].expand(-1, 3)

    def image_hash(self, kind: str, call: dict[str, Any]) -> Tensor:
        return image_hash(call["pixel_values"])


@support_torch_compile(
    dynamic_arg_dims={
        "input_ids": {0: "b"},
        "positions": {-1: "b"},  # [3, tokens], unlike the stock class
        "intermediate_tensors": {0: "b"},
        "inputs_embeds": {0: "b"},
    }
)
class _LlamaModel(LlamaModel):
    pass


class LlamaWithGaps(LlamaForCausalLM):
    """A Llama whose tokens may leave places out."""

    def _init_model(self, vllm_config: Any, prefix: str = "", **kwargs: Any) -> LlamaModel:
        return _LlamaModel(vllm_config=vllm_config, prefix=prefix, **kwargs)


cpu_runner.mend()
