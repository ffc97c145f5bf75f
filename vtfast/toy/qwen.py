"""The bundled Qwen2.5-VL as a stock transformers model: pictures of several sizes, M-RoPE.

Patches of 6 pixels, merged two by two: a visual token is 12 x 12 pixels, as in the LLaVA. Windows
are 4 x 4 visual tokens, smaller at the right and lower edge of most sizes; the decoder has grouped
query attention. The word list is the LLaVA's with three tokens more.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from vtfast.processors import Qwen25VLProcessor
from vtfast.toy.family import PIXEL_MEAN, PIXEL_STD, draw_weights
from vtfast.toy.scene import GRID, Size
from vtfast.toy.words import (
    BOS,
    EOS,
    IMAGE,
    PAD,
    WORD_IDS,
    WORDS,
    build_tokenizer,
    chat_template,
)

MODEL_TYPE: str = "qwen2_5_vl"
SIZES: Sequence[Size] = (
    *((96, 96), (120, 96), (96, 120), (108, 108)),
    *((108, 96), (96, 108), (144, 96), (96, 144)),
)
LAYERS, WIDTH = 8, 128
PATCH, MERGE, FRAMES = 6, 2, 2  # pixels along a patch, patches along a token, frames in a token
_TOKENS = {
    "video_token": "<video>",
    "vision_start_token": "<vision_start>",
    "vision_end_token": "<vision_end>",
}
VIDEO, VISION_START, VISION_END = range(len(WORDS), len(WORDS) + len(_TOKENS))
BEFORE: Sequence[int] = (BOS, WORD_IDS["USER:"], VISION_START)
AFTER: Sequence[int] = (VISION_END,)


def build_model(layers: int = LAYERS, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """An untrained float32 model with `layers` decoder layers, its weights drawn from `seed`."""
    heads, tower_layers = 4, 4
    text = {
        "vocab_size": len(WORDS) + len(_TOKENS),
        "hidden_size": WIDTH,
        "intermediate_size": 352,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [4, 6, 6],  # time, height, width: half of a head
        },
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "tie_word_embeddings": False,
    }
    vision = {
        "depth": tower_layers,
        "hidden_size": 96,
        "num_heads": 3,
        "intermediate_size": 256,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": FRAMES,
        "window_size": 4 * GRID,
        "fullatt_block_indexes": [1, 3],
        "out_hidden_size": WIDTH,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    tower = [
        (f"*visual.blocks.*{name}.weight", tower_layers) for name in ("attn.proj", "down_proj")
    ]
    decoder = [(f"*{name}.weight", layers) for name in ("o_proj", "down_proj")]
    draw_weights(model, seed, tower + decoder)
    return model


def build_processor() -> Qwen25VLProcessor:
    """The word-level tokenizer and Qwen2-VL's image processor on Pillow.

    A picture keeps its shape as far as multiples of 12 pixels allow, and has at least the pixels of
    the smallest and at most those of the largest picture trained on.
    """
    areas = [width * height for width, height in SIZES]
    pictures = Qwen2VLImageProcessorPil(
        size={"shortest_edge": min(areas), "longest_edge": max(areas)},  # pixels, despite the names
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=FRAMES,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    tokenizer = build_tokenizer(**_TOKENS)
    parts = {kind: f"<vision_start><{kind}><vision_end>" for kind in ("image", "video")}
    return Qwen25VLProcessor(pictures, tokenizer, chat_template(parts))


def load_processor(folder: Path | str) -> Qwen25VLProcessor:
    return Qwen25VLProcessor.from_pretrained(folder, local_files_only=True)


def positions(size: Size) -> torch.Tensor:
    """Positions of the prefix in time, height and width: int64 [3, P]."""
    columns, rows = (side // GRID for side in size)
    before, first_after = len(BEFORE), len(BEFORE) + max(rows, columns)
    visual = torch.stack(
        (
            torch.zeros(rows * columns, dtype=torch.int64),
            torch.arange(rows).repeat_interleave(columns),
            torch.arange(columns).repeat(rows),
        )
    )
    after = first_after + torch.arange(len(AFTER))
    return torch.cat(
        (torch.arange(before).expand(3, -1), before + visual, after.expand(3, -1)), dim=1
    )


def as_patches(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the image processor makes of normalised pixels [B, 3, height, width].

    Returns its pixel_values [B * patches, 3 * FRAMES * PATCH²], the patches of a visual token side
    by side and a picture repeated as FRAMES frames, and its image_grid_thw [B, 3].
    """
    pictures, channels, height, width = pixels.shape
    rows, columns = height // PATCH, width // PATCH
    grid = pixels.view(
        *(pictures, channels, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH)
    )
    tokens = grid.permute(0, 2, 5, 3, 6, 1, 4, 7)  # B, token row and column, patch in it, C, pixel
    frames = tokens.unsqueeze(6).expand(*(-1,) * 6, FRAMES, -1, -1)
    sizes = torch.tensor([[1, rows, columns]], device=pixels.device)
    return frames.reshape(pictures * rows * columns, -1), sizes.expand(pictures, -1)


def see(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The glyph head reads the merged tokens, as the decoder does."""
    patches, grid = as_patches(pixels)
    seen = model.model.visual(patches, grid_thw=grid).pooler_output.view(len(pixels), -1, WIDTH)
    return seen, seen.float()


def decode(
    model: Any, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    return model.model.language_model(
        inputs_embeds=embeds,
        attention_mask={"full_attention": mask},  # a plain one would be taken for a padding mask
        position_ids=positions[:, None],
        use_cache=False,
    ).last_hidden_state


def prepare_training(model: Any) -> None:
    for block in model.model.visual.blocks:
        block.attn.forward = partial(attend_equal_windows_at_once, block.attn)


def attend_equal_windows_at_once(
    self: Any,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **_: Any,
) -> torch.Tensor:
    """`Qwen2_5_VLVisionAttention.forward` of transformers 5.23.0, for training.

    Modifications: windows of one length are one batch, instead of one call each; the attention
    function is the registered one, without a path for eager or for FlashAttention.
    """
    attend = AttentionInterface()[self.config._attn_implementation]
    tokens = hidden_states.shape[0]
    query, key, value = self.qkv(hidden_states).view(tokens, 3, self.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    lengths = cu_seqlens.diff().tolist()
    windows = [part.split(lengths) for part in (query, key, value)]
    mixed: list[torch.Tensor] = [hidden_states] * len(lengths)
    for length in set(lengths):
        places = [i for i, other in enumerate(lengths) if other == length]
        q, k, v = (
            torch.stack([part[i] for i in places]).transpose(1, 2) for part in windows
        )  # [windows, heads, length, head size]
        together, _ = attend(self, q, k, v, None, scaling=self.scaling, is_causal=False)
        for place, one in zip(places, together, strict=True):
            mixed[place] = one
    return self.proj(torch.cat(mixed).reshape(tokens, -1))
