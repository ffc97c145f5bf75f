"""What the tiny random models of all families share, and how a batch for one is written.

The weights are spread widely, so that attention is not flat and the best token is not decided by
rounding; no token ends a generation. Every call builds the same model again from a fixed seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature

import torch
from transformers import PreTrainedModel

LAYERS = 6
PAD, START, IMAGE, VIDEO, VISION_START, VISION_END = 0, 1, 90, 91, 92, 93
VOCABULARY = 120


@dataclass(frozen=True)
class Picture:
    """An image or a clip in a sample: patches before merging (t, h, w), where sizes differ."""

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
    """How to build one model family and its inputs.

    placeholders: the ids that stand for a picture, with those that are always around them.
    any_size: whether pictures are of any size, and clips are known. layouts: those it can run in.
    mixes: whether pictures and clips may come in one call.
    """

    name: str
    build: Callable[..., PreTrainedModel]
    placeholders: Callable[[Picture], list[int]]
    batch: Callable[..., dict[str, torch.Tensor]]
    standard: dict[str, list[Sequence[Part]]]
    any_size: bool = False
    layouts: tuple[str, ...] = ("padded", "packed")
    mixes: bool = True

    def tokens_of(self, picture: Picture) -> int:
        """Visual tokens of a picture."""
        return sum(token in (IMAGE, VIDEO) for token in self.placeholders(picture))

    def samples(self, *parts: Sequence[Part], seed: int = 0) -> list[Sample]:
        """Samples from their parts: text of so many random tokens, or a picture."""
        generator = torch.Generator().manual_seed(seed)
        out = []
        for sample in parts:
            ids, pictures = [START], []
            for part in sample:
                if isinstance(part, Picture):
                    ids += self.placeholders(part)
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


def text_of(model: PreTrainedModel) -> torch.nn.Module:
    """The language model within a multimodal one."""
    inner = model.model
    return inner.text_model if hasattr(inner, "text_model") else inner.language_model


def text_name(model: PreTrainedModel) -> str:
    """How the language model is called within a multimodal one."""
    return next(name for name, module in model.named_modules() if module is text_of(model))


def encoded(model: PreTrainedModel, kind: str, inputs: dict) -> object:
    """What `get_{kind}_features` makes of the inputs that it has arguments for."""
    encode = getattr(model.model, f"get_{kind}_features")
    taken = signature(encode).parameters
    return encode(**{name: value for name, value in inputs.items() if name in taken})


def pad_left(samples: list[Sample]) -> dict[str, torch.Tensor]:
    length = max(len(s.ids) for s in samples)
    return {
        "input_ids": torch.tensor([[PAD] * (length - len(s.ids)) + s.ids for s in samples]),
        "attention_mask": torch.tensor(
            [[0] * (length - len(s.ids)) + [1] * len(s.ids) for s in samples]
        ),
    }


def patches(picture: Picture) -> int:
    t, h, w = picture.grid
    return t * h * w


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + seed))


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
def finish(
    model: PreTrainedModel,
    dtype: torch.dtype,
    attention: str,
    *,
    seed: int = 1,
    last_mark: int = VISION_END,
) -> PreTrainedModel:
    """Random weights from `seed`: one with which no token of a test is decided by rounding.

    Tokens from the placeholder to `last_mark` are never the best next one.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        drawn = "embedding" in name or "newline" in name
        if parameter.ndim < 2 and not drawn:  # norms start equal
            if name.endswith(".bias"):
                parameter.zero_()
            if "A_log" in name:  # but how fast a recurrent layer forgets does not
                parameter.copy_(torch.linspace(0.0, 1.0, len(parameter)))
            continue
        scale = 0.25 if "layers" in name or "lm_head" in name else 0.1
        scale = 1.0 if "embed_tokens" in name else scale
        scale = 0.1 if "linear_attn" in name else scale  # a state adds rounding up
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    # Of an embedding, too, the rows must stay apart: pictures are also found by them.
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    model.lm_head.weight[IMAGE : last_mark + 1] *= 1e-3 if tied else 0
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.set_attn_implementation(attention)
    return model.eval().to(dtype)
