"""Tiny trained vision-language models, bundled, and drawn pictures with questions for them.

The models are of the real classes (`LlavaForConditionalGeneration`,
`Qwen2_5_VLForConditionalGeneration`, `Qwen3VLForConditionalGeneration`) at 2 to 3 million
parameters, trained from scratch on drawn scenes. They make accuracy under pruning measurable
without a download. With 64 to 96 visual tokens they show what pruning does to meaning, not to
speed.

    model, processor = vtfast.toy.load("llava")
    pictures, questions, answers = vtfast.toy.scenes(8, seed=0, task="code")

Importing this package is light: pictures need numpy and Pillow, models need transformers, each
only when first used.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtfast.toy.tasks import TASKS

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from vtfast.toy.scene import Size

__all__ = ["TASKS", "folder", "load", "prompt", "scenes"]


def load(name: str = "llava", dtype: "torch.dtype | None" = None) -> tuple[Any, Any]:
    """The bundled model `name` and its processor, without a network.

    Args:
        name: `"llava"` (12 decoder layers, the strong one), `"llava-small"` (8 layers, whose
            horizon lies elsewhere), `"qwen"` (Qwen2.5-VL's class, 8 layers, for pictures of
            several sizes; its processor is a `vtfast.processors.Qwen25VLProcessor`), or `"qwen3"`
            (Qwen3-VL's class with DeepStack, likewise, but without clips); or with `toy-` before
            it, as commands call it.
        dtype: of the weights; float32 unless given.

    Returns the model in eval mode, with its measured horizon in `model.config.vtfast_horizon`,
    and the processor. Raises InputError for another name, saying which there are.
    """
    from vtfast.toy import model

    return model.load(name, dtype)


def folder(name: str = "llava") -> str:
    """The path of the folder of a bundled model, an ordinary checkpoint: for other programs.

    Raises InputError for another name than those of `load`.
    """
    from vtfast.toy import model

    return str(model.folder(name))


def prompt(processor: Any, question: str) -> str:
    """The chat prompt that asks `question` about one picture, as `USER: <image>\\n… ASSISTANT:`."""
    from vtfast.toy import model

    return model.prompt(processor, question)


def scenes(
    n: int, seed: int, task: str, sizes: Sequence["Size"] = ((96, 96),)
) -> tuple[list["Image"], list[str], list[str]]:
    """`n` drawn pictures, each with the question of `task` about it and the true answer.

    Scene i depends on (seed, task, i) and its size alone, so a longer list begins with the shorter
    one. For one picture with all six questions see `vtfast.toy.scene.Scene`.

    Args:
        n: how many, ≥ 0.
        seed: any int ≥ 0.
        task: one of `TASKS`.
        sizes: (width, height) in pixels, which take turns: multiples of 12, at least 96. The LLaVAs
            see any picture as 96 x 96; the Qwens were trained on `vtfast.toy.qwen.SIZES`.

    Returns RGB pictures, questions and answers (space-separated words): three lists of length n.
    Raises InputError for an unknown task or a bad n, seed or size.
    """
    from vtfast.toy import scene

    drawn = scene.scene_list(n, seed, task, sizes)
    asked = [one.question(task) for one in drawn]
    return [one.picture() for one in drawn], [q for q, _ in asked], [a for _, a in asked]
