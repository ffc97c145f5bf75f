"""The bundled Qwens as stock transformers models: pictures of several sizes, M-RoPE.

Patches of 6 pixels, merged two by two: a visual token is 12 x 12 pixels, as in the LLaVA. The
decoder has grouped query attention. The word list is the LLaVA's with three tokens more.

Qwen2.5-VL's tower has windows of 4 x 4 visual tokens, smaller at the right and lower edge of most
sizes. Qwen3-VL's sees all of a picture, adds a learned grid of positions that is interpolated to
the picture's size, and has DeepStack: features of two of its layers are added to the visual tokens
behind the first two decoder layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from vtfast.errors import InputError
from vtfast.processors import Qwen25VLProcessor
from vtfast.toy.family import PIXEL_MEAN, PIXEL_STD, Seen, draw_weights
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

SIZES: Sequence[Size] = (
    *((96, 96), (120, 96), (96, 120), (108, 108)),
    *((108, 96), (96, 108), (144, 96), (96, 144)),
)
LAYERS, WIDTH = 8, 128
PATCH, MERGE, FRAMES = 6, 2, 2  # pixels along a patch, patches along a token, frames in a token
_HEADS = 4
_TOKENS = {
    "video_token": "<video>",
    "vision_start_token": "<vision_start>",
    "vision_end_token": "<vision_end>",
}
VIDEO, VISION_START, VISION_END = range(len(WORDS), len(WORDS) + len(_TOKENS))
_TEXT = {
    "vocab_size": len(WORDS) + len(_TOKENS),
    "hidden_size": WIDTH,
    "intermediate_size": 352,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _HEADS // 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_TOWER = {
    "hidden_size": 96,
    "num_heads": 3,
    "intermediate_size": 256,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": FRAMES,
    "out_hidden_size": WIDTH,
}


class PicturesProcessor(Qwen25VLProcessor):
    """The same for Qwen3-VL, whose pictures are read alike and whose clips are not."""

    def _process_videos(self, videos: Any, fps: float | None = None, **_: Any) -> Any:
        raise InputError(
            "the bundled Qwen3-VL takes no clips; pass pictures, or use the bundled Qwen2.5-VL"
        )


@dataclass(eq=False)
class Qwen:
    """A `Family` of one of Qwen's classes.

    Attributes:
        config, model: classes of transformers.
        text, tower: what the configuration has beside `_TEXT` and `_TOWER`.
        summed_in_tower: parts of a tower's layer whose outputs are added to its residual stream.
        processor: class of the processor.
    """

    MODEL_TYPE: str
    config: type
    model: type
    text: dict[str, Any]
    tower: dict[str, Any]
    summed_in_tower: tuple[str, str]
    processor: type[Qwen25VLProcessor] = Qwen25VLProcessor
    LEAST_LAYERS: int = 1
    SIZES: Sequence[Size] = SIZES
    BEFORE: Sequence[int] = (BOS, WORD_IDS["USER:"], VISION_START)
    AFTER: Sequence[int] = (VISION_END,)

    def build_model(self, layers: int = LAYERS, seed: int = 0) -> Any:
        """An untrained float32 model of `layers` decoder layers, its weights drawn from `seed`."""
        config = self.config(
            text_config={**_TEXT, "num_hidden_layers": layers, **self.text},
            vision_config={**_TOWER, **self.tower},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=VISION_START,
            vision_end_token_id=VISION_END,
            tie_word_embeddings=False,
        )
        model = self.model(config).float()
        tower = [
            (f"*visual.blocks.*{name}.weight", self.tower["depth"]) for name in self.summed_in_tower
        ]
        decoder = [
            (f"*{name}.weight", layers)
            for name in ("o_proj", "down_proj", "deepstack_merger_list.*linear_fc2")
        ]
        draw_weights(model, seed, tower + decoder)
        return model

    def build_processor(self) -> Qwen25VLProcessor:
        """The word-level tokenizer and Qwen2-VL's image processor on Pillow.

        A picture keeps its shape as far as multiples of 12 pixels allow, and has at least the
        pixels of the smallest and at most those of the largest picture trained on.
        """
        areas = [width * height for width, height in SIZES]
        pictures = Qwen2VLImageProcessorPil(
            # In pixels, despite the names.
            size={"shortest_edge": min(areas), "longest_edge": max(areas)},
            patch_size=PATCH,
            merge_size=MERGE,
            temporal_patch_size=FRAMES,
            image_mean=[PIXEL_MEAN] * 3,
            image_std=[PIXEL_STD] * 3,
        )
        tokenizer = build_tokenizer(**_TOKENS)
        parts = {kind: f"<vision_start><{kind}><vision_end>" for kind in ("image", "video")}
        return self.processor(pictures, tokenizer, chat_template(parts))

    def load_processor(self, folder: Path | str) -> Qwen25VLProcessor:
        return self.processor.from_pretrained(folder, local_files_only=True)

    def positions(self, size: Size) -> torch.Tensor:
        """Positions of the prefix in time, height and width: int64 [3, P]."""
        columns, rows = (side // GRID for side in size)
        before, first_after = len(self.BEFORE), len(self.BEFORE) + max(rows, columns)
        visual = torch.stack(
            (
                torch.zeros(rows * columns, dtype=torch.int64),
                torch.arange(rows).repeat_interleave(columns),
                torch.arange(columns).repeat(rows),
            )
        )
        after = first_after + torch.arange(len(self.AFTER))
        return torch.cat(
            (torch.arange(before).expand(3, -1), before + visual, after.expand(3, -1)), dim=1
        )

    def see(self, model: Any, pixels: torch.Tensor) -> Seen:
        """The glyph head reads the merged tokens, as the decoder does."""
        patches, grid = as_patches(pixels)
        tower = model.model.visual(patches, grid_thw=grid)
        seen = tower.pooler_output.view(len(pixels), -1, WIDTH)
        return Seen(seen, seen.float(), getattr(tower, "deepstack_features", ()))

    def decode(
        self,
        model: Any,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        seen: Seen,
    ) -> torch.Tensor:
        stacked = {}
        if seen.added:
            where = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
            where[:, len(self.BEFORE) :][:, : seen.visual.shape[1]] = True
            stacked = {"visual_pos_masks": where, "deepstack_visual_embeds": seen.added}
        return model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions[:, None],
            use_cache=False,
            **stacked,
        ).last_hidden_state

    def prepare_training(self, model: Any) -> None:
        for block in model.model.visual.blocks:
            block.attn.forward = partial(attend_equal_windows_at_once, block.attn)


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


QWEN25 = Qwen(
    "qwen2_5_vl",
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    # Sections: time, height, width, together half of a head.
    text={"rope_parameters": {**_ROPE, "mrope_section": [4, 6, 6]}},
    tower={"depth": 4, "window_size": 4 * GRID, "fullatt_block_indexes": [1, 3]},
    summed_in_tower=("attn.proj", "down_proj"),
)
QWEN3 = Qwen(
    "qwen3_vl",
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    text={
        "head_dim": WIDTH // _HEADS,
        "rope_parameters": {**_ROPE, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
    },
    tower={
        "depth": 3,
        "num_position_embeddings": (96 // PATCH) ** 2,
        "deepstack_visual_indexes": [0, 1],
    },
    summed_in_tower=("attn.proj", "linear_fc2"),
    processor=PicturesProcessor,
    LEAST_LAYERS=3,
)
