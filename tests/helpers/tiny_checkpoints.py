"""Folders of tiny checkpoints, with the files that published ones have: what the CLI tests load.

The tokenizer knows single characters and the family's own special tokens. The processor files are
those of a published checkpoint of the family, with sizes that fit the tiny models.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

from tiny_models import FAMILIES
from tiny_parts import IMAGE, VOCABULARY
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from vtfast.toy.words import chat_template

_CHARACTERS = ascii_letters + digits + "ĠĊ.,:;?!'\"()<>/-_"  # Ġ is a space, Ċ ends a line
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_COLOURS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_convert_rgb": True}


@dataclass(frozen=True)
class Files:
    """The files of a family's checkpoints beside its weights.

    processor: the stock class. marks: special tokens, whose ids count up from that of a picture.
    shown: how the chat template writes a picture. pictures, settings: preprocessor_config.json and
    processor_config.json. clips: the class of the video processor, for those that have one.
    named: special tokens that the tokenizer knows by a name.
    """

    processor: str
    marks: tuple[str, ...]
    shown: str
    pictures: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    clips: str = ""
    named: Mapping[str, str] = field(default_factory=dict)


_QWEN_MARKS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
_GLM_MARKS = ("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>",
              "<|begin_of_video|>", "<|end_of_video|>")  # fmt: skip
_IDEFICS_MARKS = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
_PATCHES = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, **_COLOURS}
_PIXELS = {"min_pixels": 56 * 56, "max_pixels": 112 * 112}
_AREA = {"size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}}


def _qwen(processor: str, clips: str, **sizes: Any) -> Files:
    return Files(
        processor,
        _QWEN_MARKS,
        "<|vision_start|><|image_pad|><|vision_end|>",
        {"image_processor_type": "Qwen2VLImageProcessor", **_PATCHES, **sizes},
        clips=clips,
    )


def _glm(version: str) -> Files:
    return Files(
        f"{version}Processor",
        _GLM_MARKS,
        "<|begin_of_image|><|image|><|end_of_image|>",
        {"image_processor_type": f"{version}ImageProcessor", **_PATCHES, **_AREA},
        clips=f"{version}VideoProcessor",
    )


_QWEN3 = _qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor", **_AREA)
_TILES = {"image_grid_pinpoints": [[48, 96], [96, 48], [96, 96]]}
_CLIP = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}, **_COLOURS}
_CLIP_TOKENS = {
    "patch_size": 8,
    "num_additional_image_tokens": 1,
    "vision_feature_select_strategy": "default",
    "image_token": "<image>",
}
FILES = {
    "llava": Files(
        "LlavaProcessor",
        ("<image>",),
        "<image>",
        {"image_processor_type": "CLIPImageProcessor", **_CLIP},
        _CLIP_TOKENS,
    ),
    "qwen2": _qwen("Qwen2VLProcessor", "", **_PIXELS),
    "qwen": _qwen("Qwen2_5_VLProcessor", "", **_PIXELS),
    "qwen3": _QWEN3,
    "qwen3-moe": _QWEN3,
    "qwen3.5": _QWEN3,
    "qwen3.5-moe": _QWEN3,
    "glm4v": _glm("Glm4v"),
    "glm46v": _glm("Glm46V"),
    "internvl": Files(
        "InternVLProcessor",
        ("<IMG_CONTEXT>", "<video>", "<img>", "</img>"),
        "<IMG_CONTEXT>",
        {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "size": {"height": 48, "width": 48},
            "crop_to_patches": False,
            "min_patches": 1,
            "max_patches": 6,
            **_COLOURS,
        },
        {"image_seq_length": 36},
        clips="InternVLVideoProcessor",
        named={
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
        },
    ),
    "aria": Files(
        "AriaProcessor",
        ("<|img|>", "<fim_prefix>", "<fim_suffix>"),
        "<fim_prefix><|img|><fim_suffix>",
        {"image_processor_type": "AriaImageProcessor", "max_image_size": 980, **_COLOURS},
        {"size_conversion": {980: 36}},
        named={"image_token": "<|img|>"},
    ),
    "llava-next": Files(
        "LlavaNextProcessor",
        ("<image>",),
        "<image>",
        {"image_processor_type": "LlavaNextImageProcessor", **_CLIP, **_TILES},
        _CLIP_TOKENS,
    ),
    "llava-onevision": Files(
        "LlavaOnevisionProcessor",
        ("<image>", "<video>"),
        "<image>",
        {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": 48, "width": 48},
            **_COLOURS,
            **_TILES,
        },
        {
            "num_image_tokens": 36,
            "vision_feature_select_strategy": "full",
            "image_token": "<image>",
            "video_token": "<video>",
        },
        clips="LlavaOnevisionVideoProcessor",
    ),
    "mistral3": Files(
        "PixtralProcessor",
        ("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        "[IMG]",
        {
            "image_processor_type": "PixtralImageProcessorFast",
            "patch_size": 4,
            "size": {"longest_edge": 48},
            **_COLOURS,
        },
        {
            "patch_size": 4,
            "spatial_merge_size": 2,
            "image_token": "[IMG]",
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
        },
    ),
    "idefics3": Files(
        "Idefics3Processor",
        _IDEFICS_MARKS,
        "<image>",
        {
            "image_processor_type": "Idefics3ImageProcessor",
            "do_image_splitting": True,
            "max_image_size": {"longest_edge": 48},
            "size": {"longest_edge": 96},
            **_COLOURS,
        },
        {"image_seq_len": 36},
    ),
    "smolvlm": Files(
        "SmolVLMProcessor",
        _IDEFICS_MARKS,
        "<image>",
        {
            "image_processor_type": "SmolVLMImageProcessor",
            "do_image_splitting": True,
            "max_image_size": {"longest_edge": 48},
            "size": {"longest_edge": 96},
            "video_sampling": {"fps": 1, "max_frames": 8, "video_size": {"longest_edge": 48}},
            **_COLOURS,
        },
        {"image_seq_len": 36},
        clips="SmolVLMVideoProcessor",
    ),
}
# What a checkpoint's model has beside the tiny model of its family: Aria's processor knows no
# smaller pictures.
MORE = {"aria": {"tower": {"image_size": 980, "patch_size": 140}}}
# Visual tokens of a picture of 110 x 80 pixels with these sizes: rows times columns.
TOKENS = {
    "llava": 6 * 6,
    **dict.fromkeys(("qwen2", "qwen", "qwen3", "qwen3-moe", "qwen3.5", "qwen3.5-moe"), 3 * 4),
    **dict.fromkeys(("glm4v", "glm46v"), 2 * 3),
    "aria": 36,  # of the whole picture, for however many patches
    "internvl": 7 * 36,  # 2 rows of 3 tiles, and the whole picture as one
    # The whole picture, four tiles without what fills up their upper and lower edges, and a token
    # at the end of each row.
    **dict.fromkeys(("llava-next", "llava-onevision"), 6 * 6 + 8 * (12 + 1)),
    "mistral3": 5 * 6,
    **dict.fromkeys(("idefics3", "smolvlm"), 5 * 36),  # 2 x 2 tiles and the whole picture
}


def _is_built(name: str) -> bool:
    try:
        return FAMILIES[name] is not None
    except KeyError:
        return False


BUILT = [name for name in FILES if _is_built(name)]  # families that have a tiny model


def write_processor(name: str, folder: Path) -> Path:
    """Write the files of a family's processor and tokenizer into a folder; returns it."""
    files = FILES[name]
    folder.mkdir(parents=True, exist_ok=True)
    _tokenizer(files).save_pretrained(folder)
    parts = {"image": files.shown}
    if files.marks[1:] and "video" in files.marks[1]:
        parts["video"] = files.shown.replace(*files.marks[:2])
    (folder / "chat_template.jinja").write_text(chat_template(parts))
    own = {"processor_class": files.processor}
    written = {"preprocessor_config.json": {**files.pictures, **own}}
    if files.settings:
        written["processor_config.json"] = {**files.settings, **own}
    if files.clips:
        clips = {"video_processor_type": files.clips, **files.pictures, **own}
        del clips["image_processor_type"]
        written["video_preprocessor_config.json"] = clips
    for file, content in written.items():
        (folder / file).write_text(json.dumps(content, indent=2))
    return folder


def write_checkpoint(name: str, folder: Path) -> Path:
    """Write a whole tiny checkpoint of a family, in float32; returns its folder."""
    FAMILIES[name].build(**MORE.get(name, {})).save_pretrained(folder)
    return write_processor(name, folder)


def _tokenizer(files: Files) -> PreTrainedTokenizerFast:
    known = [*_SPECIAL, *_CHARACTERS]
    ids = {token: number for number, token in enumerate(known)}
    ids |= {mark: IMAGE + number for number, mark in enumerate(files.marks)}
    assert len(known) <= IMAGE
    assert max(ids.values()) < VOCABULARY
    characters = Tokenizer(BPE(ids, merges=[], unk_token="<unk>"))
    characters.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    characters.decoder = ByteLevelDecoder()
    characters.add_special_tokens(list(files.marks))
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=dict(files.named),
        padding_side="left",
    )
