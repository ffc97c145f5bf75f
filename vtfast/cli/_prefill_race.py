"""The second half of `vtfast demo`: prefill time of a mid-size LLaVA, full and pruned.

The model has random weights, so its answers mean nothing, but its prefill has the shape of a real
one: 576 visual tokens, in a decoder so large that they take most of the time. Each pruned variant
is timed beside its ideal: the same model, unpatched, with as few visual tokens from the start.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vtfast.errors import PlanError
from vtfast.patching import patch
from vtfast.plan import Plan

_PATCH_SIDE, _VOCABULARY, _IMAGE = 14, 1024, 3


@dataclass(frozen=True)
class MidSize:
    """Sizes of the model that is timed, and of its prompt: one picture of grid x grid patches.

    The vision tower is tiny on purpose: encoding the picture is the same work in every variant and
    would only bring the ratios closer to 1.
    """

    layers: int = 16
    width: int = 1024
    heads: int = 16
    grid: int = 24
    text_tokens: int = 64
    seed: int = 0

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the picture."""
        return self.grid**2

    def build(self) -> LlavaForConditionalGeneration:
        """The model in fp32 and eval mode; equal seeds give equal weights."""
        vision = CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=self.grid * _PATCH_SIDE,
            patch_size=_PATCH_SIDE,
            projection_dim=64,
        )
        text = LlamaConfig(
            vocab_size=_VOCABULARY,
            hidden_size=self.width,
            intermediate_size=self.width * 43 // 16,  # LLaMA-7B's ratio: 11008 / 4096
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=_IMAGE,
            image_seq_length=self.visual_tokens,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return LlavaForConditionalGeneration(config).eval()

    def inputs(self) -> dict[str, Tensor]:
        """The prompt, as `generate` takes it: a little text, a picture of noise, more text."""
        generator = torch.Generator().manual_seed(self.seed)
        words = torch.randint(_IMAGE + 1, _VOCABULARY, (1, self.text_tokens), generator=generator)
        picture = torch.full((1, self.visual_tokens), _IMAGE)
        ids = torch.cat((words[:, :8], picture, words[:, 8:]), 1)
        side = self.grid * _PATCH_SIDE
        pixels = torch.randn(1, 3, side, side, generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


TINY = MidSize(layers=4, width=64, heads=4, grid=6, text_tokens=16)  # says nothing about speed


@dataclass(frozen=True)
class Variant:
    """A prefill to time: pruned by `plan`, or unpatched with the first `visual_tokens` tokens."""

    name: str
    keep: float | None
    visual_tokens: float
    plan: Plan | None = None


@dataclass(frozen=True)
class Timing:
    """Prefill time of a variant.

    Attributes:
        seconds: median over the rounds.
        share: of the full model's time in the same round; median over the rounds.
        p20, p80: percentiles of that share.
    """

    variant: Variant
    seconds: float
    share: float
    p20: float
    p80: float


class Race:
    """Times prefills: full, and for every keep pruned and unpatched on as few tokens.

    Making a `Race` is quick and raises PlanError if the preset cannot meet a keep on this model;
    `run` does the timing.

    Args:
        sizes: of the model and the prompt.
        preset, keeps, seed: how to prune, as in `vtfast.patch`.
        rounds: int ≥ 1; each times every variant once, in alternating order.
    """

    def __init__(
        self, sizes: MidSize, preset: str, keeps: Sequence[float], *, seed: int, rounds: int
    ) -> None:
        self.sizes, self.seed, self.rounds = sizes, seed, rounds
        n = sizes.visual_tokens
        self.variants = [Variant("full", None, n)]
        with torch.device("meta"):
            weightless = sizes.build()
        for keep in keeps:
            plan = _plan(weightless, preset, keep)
            average = plan.average_tokens(n, sizes.layers)
            self.variants += [
                Variant("pruned", keep, average, plan),
                Variant("natively shorter", keep, int(average + 0.5)),
            ]

    @property
    def threads(self) -> int:
        """CPU threads that torch computes with."""
        return torch.get_num_threads()

    @property
    def passes(self) -> int:
        """How many prefills `run` makes: every variant once to warm up, then in every round."""
        return (1 + self.rounds) * len(self.variants)

    @torch.inference_mode()
    def run(self, on_pass: Callable[[], object] = lambda: None) -> list[Timing]:
        """One timing per variant; `on_pass` is called after every prefill."""
        model, inputs = self.sizes.build(), self.sizes.inputs()
        seconds = np.zeros((1 + self.rounds, len(self.variants)))
        for number in range(1 + self.rounds):
            order = list(enumerate(self.variants))
            for column, variant in order if number % 2 else reversed(order):
                seconds[number, column] = self._seconds(model, inputs, variant)
                on_pass()
        seconds = seconds[1:]  # without the warm-up
        shares = seconds / seconds[:, :1]
        return [
            Timing(variant, float(np.median(taken)), *np.percentile(share, (50, 20, 80)).tolist())
            for variant, taken, share in zip(self.variants, seconds.T, shares.T, strict=True)
        ]

    def _seconds(self, model: Any, inputs: dict[str, Tensor], variant: Variant) -> float:
        if variant.plan is None:
            return _timed(_prefill, model, inputs, int(variant.visual_tokens))
        with patch(model, variant.plan, seed=self.seed):
            return _timed(_prefill, model, inputs, self.sizes.visual_tokens)


def _prefill(model: Any, inputs: dict[str, Tensor], visual_tokens: int) -> None:
    """Encode the picture and prefill, as `generate` would; with fewer tokens, the first ones."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    is_visual = ids == _IMAGE
    if visual_tokens == int(is_visual.sum()):
        model(**inputs, logits_to_keep=1)
        return
    (features,) = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    kept = ~is_visual | (is_visual.cumsum(1) <= visual_tokens)
    embeds = model.get_input_embeddings()(ids)
    embeds = embeds.masked_scatter(is_visual[..., None], features)[:, kept[0]]
    model(inputs_embeds=embeds, attention_mask=mask[:, kept[0]], logits_to_keep=1)


def _timed(function: Callable[..., None], *args: Any) -> float:
    started = perf_counter()
    function(*args)
    return perf_counter() - started


def _plan(model: Any, preset: str, keep: float) -> Plan:
    """The plan that `patch` makes of a preset for this model."""
    try:
        with patch(model, preset, keep=keep) as handle:
            return handle.plan
    except PlanError as error:
        raise PlanError(f"{error} (on the model that is timed; or pass --no-timing)") from None
