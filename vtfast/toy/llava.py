"""The bundled LLaVA as a stock transformers model: its sizes, processor, and path to the decoder.

The path through the model is LLaVA-1.5's: CLIP tower, second-to-last layer without CLS, two-layer
projector, Llama decoder; 64 visual tokens in an 8 x 8 grid.

The tower's last layer and its CLS token are never trained: nothing reads them. Methods that rank
by CLS attention would see noise here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from vtfast.toy.family import PIXEL_MEAN, PIXEL_STD, Seen, draw_weights
from vtfast.toy.scene import GRID, SIDE, SQUARE, Size
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

MODEL_TYPE: str = "llava"
LEAST_LAYERS: int = 1
SIZES: Sequence[Size] = (SQUARE,)
BEFORE: Sequence[int] = (BOS, WORD_IDS["USER:"])
AFTER: Sequence[int] = ()
VISUAL_TOKENS = (SIDE // GRID) ** 2
LAYERS, WIDTH = 12, 128


def build_model(layers: int = LAYERS, seed: int = 0) -> LlavaForConditionalGeneration:
    """An untrained float32 model with `layers` decoder layers, its weights drawn from `seed`."""
    heads, tower_layers = 4, 4
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=tower_layers,
        num_attention_heads=heads,
        image_size=SIDE,
        patch_size=GRID,
        projection_dim=WIDTH,
        hidden_act="quick_gelu",
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=352,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=VISUAL_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config).float()
    decoder = [(f"*{name}.weight", layers) for name in ("o_proj", "down_proj")]
    tower = [(f"*{name}.weight", tower_layers) for name in ("out_proj", "fc2")]
    draw_weights(model, seed, decoder + tower)
    return model


def build_processor() -> LlavaProcessor:
    """The word-level tokenizer and CLIP's image processor on Pillow."""
    pictures = CLIPImageProcessorPil(
        do_resize=True,
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        pictures,
        build_tokenizer(),
        patch_size=GRID,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=chat_template({"image": "<image>"}),
    )


def load_processor(folder: Path | str) -> LlavaProcessor:
    return AutoProcessor.from_pretrained(folder, local_files_only=True)


def positions(size: Size) -> torch.Tensor:
    return torch.arange(len(BEFORE) + VISUAL_TOKENS)[None]


def see(model: Any, pixels: torch.Tensor) -> Seen:
    tower = model.model.vision_tower(pixels, output_hidden_states=True)
    seen = tower.hidden_states[model.config.vision_feature_layer][:, 1:]  # without CLS
    return Seen(seen, model.model.multi_modal_projector(seen).float())


def decode(
    model: Any, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, seen: Seen
) -> torch.Tensor:
    decoder = model.model.language_model
    return decoder(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state


def prepare_training(model: Any) -> None:
    pass
