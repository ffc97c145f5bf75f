"""The bundled LLaVA as a stock transformers model: its sizes, words, processor, and loading it.

A folder written here is an ordinary checkpoint: `AutoModelForImageTextToText` and `AutoProcessor`
read it, without torchvision and without a network. The path through the model is LLaVA-1.5's:
CLIP tower, second-to-last layer without CLS, two-layer projector, Llama decoder; 64 visual tokens
in an 8 x 8 grid.

The tower's last layer and its CLS token are never trained: nothing reads them. Methods that rank
by CLS attention would see noise here.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vtfast.errors import InputError
from vtfast.toy.scene import CODE_LENGTH, COLOURS, GLYPHS, SHAPES, SIDE

PATCH = 12
VISUAL_TOKENS = (SIDE // PATCH) ** 2
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
LAYERS, WIDTH = 12, 128
LONGEST_ANSWER = CODE_LENGTH + 1  # words and </s>

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_QUESTION_WORDS = (
    *("USER:", "ASSISTANT:", "?", ".", "what", "which", "how", "many", "colour", "is", "the"),
    *("background", "shape", "main", "digit", "in", "cell", "cells", "are", "there", "read"),
    "code",
)
WORDS = (*_SPECIAL, *_QUESTION_WORDS, *COLOURS, *SHAPES, *GLYPHS)
WORD_IDS = {word: i for i, word in enumerate(WORDS)}
PAD, BOS, EOS, IMAGE = (WORD_IDS[word] for word in ("<pad>", "<s>", "</s>", "<image>"))

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}"
    "{% else %}ASSISTANT: "
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_CHECKPOINTS = Path(__file__).parent / "checkpoints"
_BUNDLED = ("llava", "llava-small")
_PLANNED = ("qwen",)


def load(
    name: str = "llava", dtype: torch.dtype | None = None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The bundled model `name` in eval mode, in `dtype` (None: float32), and its processor.

    Never touches the network. Raises InputError for a name that is not bundled.
    """
    if name in _PLANNED:
        raise InputError(
            f"the toy model {name!r} is not in this version yet; available: {', '.join(_BUNDLED)}"
        )
    if name not in _BUNDLED:
        raise InputError(f"there is no toy model {name!r}; available: {', '.join(_BUNDLED)}")
    return load_folder(_CHECKPOINTS / name, dtype)


def load_folder(
    folder: Path | str, dtype: torch.dtype | None = None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The same from a folder that `save` wrote."""
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype or torch.float32, local_files_only=True
    )
    return model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True)


def prompt(processor: Any, question: str) -> str:
    """The prompt that asks `question` about one picture: `USER: <image>\\n… ASSISTANT:`."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )


def build_model(layers: int = LAYERS, seed: int = 0) -> LlavaForConditionalGeneration:
    """An untrained float32 model with `layers` decoder layers, its weights drawn from `seed`.

    Weights are N(0, 1 / fan-in), smaller where a residual stream sums them up: at width 128 the
    library's default of 0.02 is too small to learn from in a short run.
    """
    heads, tower_layers = 4, 4
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=tower_layers,
        num_attention_heads=heads,
        image_size=SIDE,
        patch_size=PATCH,
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
    model = LlavaForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            std = _initial_std(name, weight, layers, tower_layers)
            if std:
                weight.normal_(0, std, generator=generator)
    return model


def _initial_std(name: str, weight: torch.Tensor, layers: int, tower_layers: int) -> float:
    """Standard deviation to draw a weight with; 0 leaves it (biases, norms)."""
    if "embed_tokens" in name:
        return 0.5
    if "position_embedding" in name or name.endswith("class_embedding"):
        return 0.2
    if weight.ndim < 2:
        return 0.0
    std = weight[0].numel() ** -0.5
    if "lm_head" in name:
        return 0.3 * std
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return std * (2 * layers) ** -0.5
    if name.endswith(("out_proj.weight", "fc2.weight")):
        return std * (2 * tower_layers) ** -0.5
    return std


def build_processor() -> LlavaProcessor:
    """A word-level tokenizer over `WORDS`, padding left, and CLIP's image processor on Pillow."""
    words = Tokenizer(WordLevel(WORD_IDS, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )
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
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=_CHAT_TEMPLATE,
    )


def save(model: LlavaForConditionalGeneration, folder: Path | str) -> None:
    """Write a stock checkpoint folder: bf16 safetensors, configuration, tokenizer, processor.

    `model` itself becomes bf16.
    """
    model.generation_config = GenerationConfig(
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, max_new_tokens=LONGEST_ANSWER
    )
    model.bfloat16().save_pretrained(folder)
    build_processor().save_pretrained(folder)
