"""Load a bundled model, write a prompt for it, and save a model as a folder like its own.

A folder written here is an ordinary checkpoint of a stock class. `AutoModelForImageTextToText`
reads it, without torchvision and without a network.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig

from vtfast.errors import InputError
from vtfast.toy import llava
from vtfast.toy.family import Family
from vtfast.toy.qwen import QWEN3, QWEN25
from vtfast.toy.words import BOS, EOS, LONGEST_ANSWER, PAD

FAMILIES: dict[str, Family] = {"llava": llava, "qwen": QWEN25, "qwen3": QWEN3}
CHECKPOINTS = Path(__file__).parent / "checkpoints"
PREFIX = "toy-"  # of their names where any model can be named, as in --model
BUNDLED = ("llava", "llava-small", "qwen", "qwen3")


def load(name: str = "llava", dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """The bundled model `name` in eval mode, in `dtype` (None: float32), and its processor.

    Never touches the network. Raises InputError for a name that is not bundled.
    """
    return load_folder(folder(name), dtype)


def folder(name: str) -> Path:
    """The checkpoint of a bundled model. Raises InputError for a name that is not bundled."""
    found = name.removeprefix(PREFIX)
    if found not in BUNDLED:
        names = ", ".join(PREFIX * name.startswith(PREFIX) + one for one in BUNDLED)
        raise InputError(f"there is no toy model {name!r}; available: {names}")
    return CHECKPOINTS / found


def load_folder(path: Path | str, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """The model and the processor of a folder that `save` wrote."""
    model = AutoModelForImageTextToText.from_pretrained(
        path, dtype=dtype or torch.float32, local_files_only=True
    )
    return model.eval(), family_of(model).load_processor(path)


def family_of(model: Any) -> Family:
    """The family whose `build_model` makes models like this one."""
    return next(one for one in FAMILIES.values() if model.config.model_type == one.MODEL_TYPE)


def prompt(processor: Any, question: str) -> str:
    """The prompt that asks `question` about one picture, as `USER: <image>\\n… ASSISTANT:`."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )


def save(model: Any, path: Path | str) -> None:
    """Write a stock checkpoint folder: bf16 safetensors, configuration, tokenizer, processor.

    `model` itself becomes bf16.
    """
    model.generation_config = GenerationConfig(
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, max_new_tokens=LONGEST_ANSWER
    )
    model.bfloat16().save_pretrained(path)
    family_of(model).build_processor().save_pretrained(path)
