"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL in vLLM."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_vl
from vllm.model_executor.models.interfaces import SupportsMultiModalPruning
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import VideoProcessorItems

from vtfast.kernels.image_hash import image_hash
from vtfast.vllm import cpu_runner
from vtfast.vllm.model import Grid, Pruned
from vtfast.vllm.processor import PruningProcessor

_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class _Processor(PruningProcessor):
    def tokens_of(self, kind: str, items: Any, number: int, kwargs: Mapping[str, object]) -> int:
        info: Any = self.info  # type: ignore[attr-defined]
        item = items.get(number)
        if item is None:  # a client has sent the picture before
            return int(info.get_max_image_tokens())
        how = {"image_processor": info.get_image_processor(**kwargs), "mm_kwargs": kwargs}
        if kind == "image":
            size = items.get_image_size(number)
            return int(
                info.get_num_image_tokens(image_width=size.width, image_height=size.height, **how)
            )
        clip = VideoProcessorItems([item[0] if isinstance(item, tuple) else item])
        size, frames = clip.get_frame_size(0), clip.get_num_frames(0)
        return int(
            info.get_num_video_tokens(
                image_width=size.width, image_height=size.height, num_frames=frames, **how
            )
        )

    def tokens_in(self, kind: str, fields: Any, stock: int) -> int:
        # The stock number of a clip is that of --video-pruning-rate, which is set and not meant.
        side = self.info.get_hf_config().vision_config.spatial_merge_size  # type: ignore[attr-defined]
        return int(fields[f"{kind}_grid_thw"].data.prod()) // side**2


class _Pruned(Pruned):
    def _grid(self, grid: Sequence[int], seconds: float) -> Grid:
        tower = self.config.vision_config  # type: ignore[attr-defined]
        side = tower.spatial_merge_size
        frames, rows, columns = map(int, grid)
        step = seconds * getattr(tower, "tokens_per_second", 1.0) if frames > 1 else 1.0
        return frames, rows // side, columns // side, step

    def grids_of(self, kind: str, call: dict[str, Any]) -> list[Grid]:
        grids = torch.as_tensor(call[f"{kind}_grid_thw"]).tolist()
        seconds = call.get("second_per_grid_ts")
        each = [1.0] * len(grids) if seconds is None else [float(one) for one in seconds]
        return [self._grid(*one) for one in zip(grids, each, strict=True)]

    def part(self, kind: str, call: dict[str, Any], first: int, last: int) -> dict[str, Any]:
        grids = torch.as_tensor(call[f"{kind}_grid_thw"])
        patches = [0, *grids.prod(1).cumsum(0).tolist()]
        of_pictures = {
            name: call[name][first:last]
            for name in (f"{kind}_grid_thw", "second_per_grid_ts")
            if name in call
        }
        pixels = call[_PIXELS[kind]][patches[first] : patches[last]]
        return {**call, **of_pictures, _PIXELS[kind]: pixels}

    def grid_of(self, feature: Any) -> Grid:
        seconds = feature.data.get("second_per_grid_ts")
        each = 1.0 if seconds is None else float(seconds.data)
        return self._grid(feature.data[f"{feature.modality}_grid_thw"].data.tolist(), each)

    def image_hash(self, kind: str, call: dict[str, Any]) -> Tensor:
        pixels = self._normalised(call[_PIXELS[kind]])
        return image_hash(pixels, torch.as_tensor(call[f"{kind}_grid_thw"]).to(pixels.device))

    def _normalised(self, patches: Tensor) -> Tensor:
        """The pixels as transformers' image processor hands them to the tower, bit for bit: vLLM
        sends bytes and lets the tower normalise them, in a product and a sum that round otherwise
        than (x - mean) / std."""
        this: Any = self
        if not this.multimodal_config.mm_device_do_normalize:
            return patches.type(this.visual.dtype)
        from vllm.model_executor.layers.fusion.mm_input_norm import _load_norm_params

        given = _load_norm_params(this.model_config)
        mean, std = (
            (torch.tensor(value) * (1.0 / given.rescale_factor)).to(patches.device)[None, :, None]
            for value in (given.image_mean, given.image_std)
        )
        values = patches.view(len(patches), mean.shape[1], -1).float()
        return ((values - mean) / std).view_as(patches).type(this.visual.dtype)


class _Processor2(_Processor, qwen2_vl.Qwen2VLMultiModalProcessor):
    pass


class _Processor25(_Processor, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):
    pass


class _Processor3(_Processor, qwen3_vl.Qwen3VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    _Processor2,
    info=qwen2_vl.Qwen2VLProcessingInfo,
    dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder,
)
class PrunedQwen2VL(_Pruned, qwen2_vl.Qwen2VLForConditionalGeneration, SupportsMultiModalPruning):
    """Qwen2-VL; clips too."""


@MULTIMODAL_REGISTRY.register_processor(
    _Processor25,
    info=qwen2_5_vl.Qwen2_5_VLProcessingInfo,
    dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder,
)
class PrunedQwen25VL(_Pruned, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL; clips too."""


@MULTIMODAL_REGISTRY.register_processor(
    _Processor3,
    info=qwen3_vl.Qwen3VLProcessingInfo,
    dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder,
)
class PrunedQwen3VL(_Pruned, qwen3_vl.Qwen3VLForConditionalGeneration):
    """Qwen3-VL; DeepStack features of a token go with it. Pictures alone."""


cpu_runner.mend()
