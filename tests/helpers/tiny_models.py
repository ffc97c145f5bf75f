"""Tiny random LLaVA and Qwen2.5-VL models, and batches for them: what the model tests run on.

The weights are spread widely, so that attention is not flat and the best token is not decided by
rounding; no token ends a generation. Every call builds the same model again from a fixed seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

LAYERS = 6
PAD, START, IMAGE, VIDEO, VISION_START, VISION_END = 0, 1, 90, 91, 92, 93
VOCABULARY = 120
LLAVA_TOKENS = 36  # 48 pixels in patches of 8


@dataclass(frozen=True)
class Picture:
    """An image or a clip in a sample: patches before merging (t, h, w); LLaVA has one size only."""

    grid: tuple[int, int, int] = (1, 12, 12)
    seed: int = 0
    video: bool = False


@dataclass
class Sample:
    """One sample of a batch, without padding."""

    ids: list[int]
    pictures: list[Picture] = field(default_factory=list)


Part = int | Picture  # number of text tokens, or a picture


@dataclass(frozen=True)
class Family:
    """How to build one model family and its inputs."""

    name: str
    build: Callable[..., PreTrainedModel]
    tokens_of: Callable[[Picture], int]
    batch: Callable[..., dict[str, torch.Tensor]]
    standard: dict[str, list[Sequence[Part]]]

    def samples(self, *parts: Sequence[Part], seed: int = 0) -> list[Sample]:
        """Samples from their parts: text of so many random tokens, or a picture."""
        generator = torch.Generator().manual_seed(seed)
        out = []
        for sample in parts:
            ids, pictures = [START], []
            for part in sample:
                if isinstance(part, Picture):
                    ids += self._placeholders(part)
                    pictures.append(part)
                else:
                    ids += torch.randint(3, 89, (part,), generator=generator).tolist()
            out.append(Sample(ids, pictures))
        return out

    def named(self, name: str, seed: int = 0) -> list[Sample]:
        """The samples of `standard[name]`: "single", a "batch" with 0, 1 and 2 images, …"""
        return self.samples(*self.standard[name], seed=seed)

    def inputs(
        self, name: str = "single", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> dict:
        """The model inputs of `named`."""
        return self.batch(self.named(name, seed), dtype)

    def _placeholders(self, picture: Picture) -> list[int]:
        if self.name == "llava":
            return [IMAGE] * LLAVA_TOKENS
        token = VIDEO if picture.video else IMAGE
        return [VISION_START, *[token] * self.tokens_of(picture), VISION_END]


def visual_columns(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Column numbers of the visual tokens of every sample, ascending."""
    visual = (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == VIDEO)
    return [row.nonzero()[:, 0] for row in visual]


def image_columns(family: Family, samples: list[Sample], inputs: dict) -> list[list[torch.Tensor]]:
    """Column numbers of the visual tokens of every picture of every sample."""
    columns = visual_columns(inputs)
    return [
        list(row.split([family.tokens_of(p) for p in sample.pictures]))
        for row, sample in zip(columns, samples, strict=True)
    ]


def _pad_left(samples: list[Sample]) -> dict[str, torch.Tensor]:
    length = max(len(s.ids) for s in samples)
    return {
        "input_ids": torch.tensor([[PAD] * (length - len(s.ids)) + s.ids for s in samples]),
        "attention_mask": torch.tensor(
            [[0] * (length - len(s.ids)) + [1] * len(s.ids) for s in samples]
        ),
    }


def _llava_batch(samples: list[Sample], dtype: torch.dtype = torch.float32) -> dict:
    inputs = _pad_left(samples)
    pixels = [_noise(p.seed, 3, 48, 48) for s in samples for p in s.pictures]
    if pixels:
        inputs["pixel_values"] = torch.stack(pixels).to(dtype)
    return inputs


def _qwen_batch(samples: list[Sample], dtype: torch.dtype = torch.float32) -> dict:
    inputs = _pad_left(samples)
    ids = inputs["input_ids"]
    inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    for video, pixels, grid in (
        (False, "pixel_values", "image_grid_thw"),
        (True, "pixel_values_videos", "video_grid_thw"),
    ):
        pictures = [p for s in samples for p in s.pictures if p.video == video]
        if pictures:
            patches = [_noise(p.seed, _patches(p), 3 * 2 * 14 * 14) for p in pictures]
            inputs[pixels] = torch.cat(patches).to(dtype)
            inputs[grid] = torch.tensor([p.grid for p in pictures])
    if "video_grid_thw" in inputs:
        inputs["second_per_grid_ts"] = torch.ones(len(inputs["video_grid_thw"]))
    return inputs


def _patches(picture: Picture) -> int:
    t, h, w = picture.grid
    return t * h * w


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + seed))


def build_llava(
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    *,
    vision_config: object = None,
    text_config: object = None,
) -> PreTrainedModel:
    """A LLaVA of 6 layers, 64 wide, with a CLIP tower of 36 tokens per image."""
    config = LlavaConfig(
        vision_config=vision_config
        or CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=48,
            patch_size=8,
            projection_dim=32,
        ),
        text_config=text_config or LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=LLAVA_TOKENS,
    )
    return _finish(LlavaForConditionalGeneration(config), dtype, attention)


def build_qwen(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", **text: object
) -> PreTrainedModel:
    """A Qwen2.5-VL of 6 layers, 64 wide, with M-RoPE and window attention in its tower."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope, **text},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    return _finish(Qwen2_5_VLForConditionalGeneration(config), dtype, attention)


TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "pad_token_id": PAD,
    "bos_token_id": START,
    "eos_token_id": 2,
}


@torch.no_grad()
def _finish(model: PreTrainedModel, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 and "embedding" not in name:  # norms and biases start equal
            continue
        scale = 0.25 if "layers" in name or "lm_head" in name else 0.1
        scale = 1.0 if "embed_tokens" in name else scale
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    model.lm_head.weight[IMAGE : VISION_END + 1] = 0  # a placeholder is never the best next token
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.set_attn_implementation(attention)
    return model.eval().to(dtype)


FAMILIES = {
    "llava": Family(
        "llava",
        build_llava,
        tokens_of=lambda picture: LLAVA_TOKENS,
        batch=_llava_batch,
        standard={
            "single": [[4, Picture(seed=1), 7]],
            "batch": [
                [9],
                [3, Picture(seed=2), 5],
                [2, Picture(seed=3), Picture(seed=4), 6],  # no text between the two
            ],
        },
    ),
    "qwen": Family(
        "qwen",
        build_qwen,
        tokens_of=lambda picture: _patches(picture) // 4,
        batch=_qwen_batch,
        standard={
            "single": [[4, Picture((1, 8, 12), seed=1), 7]],
            "batch": [
                [9],
                [3, Picture((1, 12, 8), seed=2), 5],
                [2, Picture((1, 6, 12), seed=3), 1, Picture((1, 12, 12), seed=4), 6],
            ],
            "video": [
                [3, Picture((3, 6, 8), seed=5, video=True), 5],
                [2, Picture((1, 8, 8), seed=6), 2, Picture((2, 8, 6), seed=7, video=True), 4],
            ],
        },
    ),
}
