"""The model families vtfast can prune: one file each, and this table of them.

A new family is an entry in the `FAMILIES` of a file, and a line here.
"""

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from vtfast.errors import UnsupportedModelError

if TYPE_CHECKING:
    from vtfast.methods.stage import Stage
    from vtfast.models.base import Family


class Supported(NamedTuple):
    """A class of transformers that vtfast prunes.

    module: ours. models: as people call them. layouts: those it runs in.
    """

    module: str
    models: str
    layouts: tuple[str, ...] = ("padded", "packed")


SUPPORTED = {
    "LlavaForConditionalGeneration": Supported("llava", "LLaVA-1.5 (CLIP or SigLIP tower)"),
    "Qwen2VLForConditionalGeneration": Supported("qwen_vl", "Qwen2-VL"),
    "Qwen2_5_VLForConditionalGeneration": Supported("qwen_vl", "Qwen2.5-VL"),
    "Qwen3VLForConditionalGeneration": Supported("qwen_vl", "Qwen3-VL"),
    "Qwen3VLMoeForConditionalGeneration": Supported("qwen_vl", "Qwen3-VL, mixture of experts"),
    "Qwen3_5ForConditionalGeneration": Supported("qwen_vl", "Qwen3.5", ("padded",)),
    "Qwen3_5MoeForConditionalGeneration": Supported(
        "qwen_vl", "Qwen3.5, mixture of experts", ("padded",)
    ),
    "InternVLForConditionalGeneration": Supported("tiles", "InternVL 3 and 3.5"),
    "LlavaNextForConditionalGeneration": Supported("llava_next", "LLaVA-NeXT (1.6)"),
    "LlavaOnevisionForConditionalGeneration": Supported("llava_next", "LLaVA-OneVision"),
    "Mistral3ForConditionalGeneration": Supported("mistral3", "Mistral Small 3.1 and 3.2"),
    "SmolVLMForConditionalGeneration": Supported("tiles", "SmolVLM and SmolVLM2"),
    "Idefics3ForConditionalGeneration": Supported("tiles", "Idefics3"),
    "Glm4vForConditionalGeneration": Supported("glm4v", "GLM-4.1V"),
    "Glm46VForConditionalGeneration": Supported("glm4v", "GLM-4.6V"),
    "AriaForConditionalGeneration": Supported("aria", "Aria"),
}
# What people ask for, and what would have to be done first.
NOT_YET = {
    "Gemma3": "most of its layers see a window of the sequence, and pictures are read both ways",
    "Gemma4": "most of its layers see a window of the sequence, and some share keys and values",
    "MiniCPMV": "its pictures come through a resampler of their own",
    "Molmo2": "its decoder has layers of its own",
}


def supported() -> dict[str, str]:
    """The classes of transformers that vtfast can prune, with the models that each is for."""
    return {name: one.models for name, one in SUPPORTED.items()}


def inner_model(model: object) -> Any:
    """The one model that vtfast can prune: the given one, or the one that a wrapper holds.

    A wrapper is any module with exactly one supported model inside, at any depth: of PEFT,
    `torch.compile`, DistributedDataParallel, FSDP, or a user's own. Wrappers may wrap one another.

    Raises UnsupportedModelError where there is no such model, or more than one (names them).
    """
    found = list(_supported_in(model, "model", set()))
    if len(found) == 1:
        return found[0][1]
    if found:
        inside = ", ".join(f"{path} ({type(inner).__name__})" for path, inner in found)
        raise UnsupportedModelError(
            f"{type(model).__name__} holds {len(found)} models that vtfast can prune; "
            f"pass one of them: {inside}"
        )
    kind = getattr(getattr(model, "config", None), "model_type", None)
    kind = f" (model_type {kind!r})" if kind else ""
    name = type(model).__name__
    missing = next((f": not yet, since {why}" for n, why in NOT_YET.items() if n in name), "")
    if isinstance(model, str):
        missing = f", such as {model!r}: load the model first, with from_pretrained"
    raise UnsupportedModelError(
        f"cannot patch {name}{kind}{missing}; supported are {', '.join(SUPPORTED)}"
    )


def family_of(model: Any) -> "Family":
    """The family of a model that `inner_model` returned, checked to be one vtfast can prune.

    Raises UnsupportedModelError for a model of a supported class with parts vtfast cannot prune.
    """
    family = family_of_class(supported_class(model).__name__)
    family.check(model)
    return family


def family_of_class(name: str) -> "Family":
    """The family of a class in `SUPPORTED`."""
    module = import_module(f"vtfast.models.{SUPPORTED[name].module}")
    family: Family = module.FAMILIES[name]
    return family


def check_stages(model: Any, family: "Family", stages: Iterable["Stage"]) -> None:
    """Raise UnsupportedModelError, or PlanError, where a method of these stages needs attention
    scores that vtfast cannot compute: of the language model or of the vision tower."""
    stages, name = list(stages), supported_class(model).__name__
    scored = [stage.score_layer for stage in stages if stage.score_layer is not None]
    family.check_scores(model, scored)
    needed = [s.method.name for s in stages if "vision_scores" in s.method.needs]
    if needed and not knows_tower(name):
        raise UnsupportedModelError(
            f"method {needed[0]!r} needs scores of the vision tower, not known for {name}; "
            "use a method that needs none (diversity, cdpruner, random), or one of "
            f"{', '.join(filter(knows_tower, SUPPORTED))}"
        )


def knows_tower(name: str) -> bool:
    """Whether vtfast knows how the vision tower of a class in `SUPPORTED` attends."""
    family, generic = family_of_class(name), import_module("vtfast.models.generic")
    return type(family).tower_attention is not generic.PictureReader.tower_attention


def reader_of(config: Any) -> tuple["Family", Any]:
    """The family of models with this configuration, and a multimodal model without any weights:
    enough to read which pictures a call brings (`Family.sources`)."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING

    cls: Any = MODEL_MAPPING[type(config)]
    bare = cls.__new__(cls)
    nn.Module.__init__(bare)
    bare.config = config
    whole: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    return family_of_class(whole.__name__), bare


def supported_class(model: object) -> type:
    """The transformers class of a supported model, or the one it derives from."""
    return next(cls for cls in type(model).__mro__ if _is_supported(cls))


def _is_supported(cls: type) -> bool:
    return cls.__name__ in SUPPORTED and cls.__module__.startswith("transformers.")


def _supported_in(module: object, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Supported models in a module, each once and none inside another, with how to write them."""
    if id(module) in seen:
        return
    seen.add(id(module))
    if any(map(_is_supported, type(module).__mro__)):
        yield path, module
    elif isinstance(module, nn.Module):
        for name, child in module.named_children():
            step = f"[{name}]" if name.isdigit() else f".{name}"
            yield from _supported_in(child, path + step, seen)
