"""Let a model answer: stream the words, take the times, and compare two ways to run it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import TextStreamer

from vtfast.inputs.prompts import Prompt
from vtfast.runtime.names import returned_cache

ROUNDS, PATIENCE = 5, 20.0  # timed rounds at most, and seconds after which none is begun


@dataclass(frozen=True)
class Answer:
    """What a model said, and what that took.

    Attributes:
        text: without special tokens. `tokens` counts them all.
        finished: whether it ended by itself; False where it was cut at the most tokens allowed.
        first_seconds: to the first token, the pictures' encoding included.
        token_ms: per further token, None where there is none.
        cache_bytes: of keys and values allocated at the end.
    """

    text: str
    tokens: int
    finished: bool
    first_seconds: float
    token_ms: float | None
    cache_bytes: int


def ask(
    model: Any,
    prompt: Prompt,
    max_new_tokens: int,
    write: Callable[[str], object] = lambda text: None,
    on_token: Callable[[], object] = lambda: None,
) -> Answer:
    """The model's greedy answer; `write` gets its text as it comes, `on_token` every token."""
    tokenizer = prompt.tokenizer
    stream = _Stream(tokenizer, write, on_token)
    inputs = prompt.inputs.to(model.device)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    started = perf_counter()
    out = model.generate(
        **inputs,
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        streamer=stream,
        return_dict_in_generate=True,
    )
    said = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    first, last = stream.times[0], stream.times[-1]
    layers = returned_cache(out).layers
    ends = model.generation_config.eos_token_id
    return Answer(
        text=tokenizer.decode(said, skip_special_tokens=True),
        tokens=len(said),
        finished=said[-1] in (ends if isinstance(ends, list) else [ends]),
        first_seconds=first - started,
        token_ms=1000 * (last - first) / (len(said) - 1) if len(said) > 1 else None,
        cache_bytes=sum(t.nbytes for layer in layers for t in (layer.keys, layer.values)),
    )


def alternate(
    ways: Mapping[str, Callable[[], Answer]], on_answer: Callable[[], object] = lambda: None
) -> dict[str, list[Answer]]:
    """Answers of every way in up to `ROUNDS` rounds, each in the opposite order of the one before.

    At least one round; none is begun after `PATIENCE` seconds. Every way has to be warm.
    """
    answers: dict[str, list[Answer]] = {name: [] for name in ways}
    started = perf_counter()
    for number in range(ROUNDS):
        if number and perf_counter() - started > PATIENCE:
            break
        for name in list(ways)[:: 1 if number % 2 else -1]:
            answers[name].append(ways[name]())
            on_answer()
    return answers


def typical(answers: Sequence[Answer]) -> Answer:
    """The first of some equal answers, with the median of their times."""
    steps = [a.token_ms for a in answers if a.token_ms is not None]
    return replace(
        answers[0],
        first_seconds=median(a.first_seconds for a in answers),
        token_ms=median(steps) if steps else None,
    )


class _Stream(TextStreamer):
    """Hands on text as soon as words are whole, and notes when each token came."""

    def __init__(
        self, tokenizer: Any, write: Callable[[str], object], on_token: Callable[[], object]
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.times: list[float] = []
        self._write, self._on_token = write, on_token

    def put(self, value: Any) -> None:
        if not self.next_tokens_are_prompt:
            self.times.append(perf_counter())
            self._on_token()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._write(text)
