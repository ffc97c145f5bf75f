"""Let a model answer a question: stream the words, measure the time, and compare two variants."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from transformers import TextStreamer

from vtfast.cli._terminal import working
from vtfast.evaluation.asking import cache_bytes
from vtfast.inputs.prompts import Prompt
from vtfast.runtime.names import returned_cache

# At most so many rounds are timed, and none starts after so many seconds.
ROUNDS, PATIENCE = 5, 20.0


@dataclass(frozen=True)
class Answer:
    """What a model said, and what that took in time and memory.

    Attributes:
        text: without special tokens.
        tokens: how many, special tokens included.
        finished: whether the model ended it; False if it reached the longest length allowed.
        first_seconds: until the first token, the encoding of the pictures included.
        token_ms: per further token; None if there is none.
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
    """The model's greedy answer; `write` gets it piece by piece, `on_token` is called per token."""
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
        cache_bytes=cache_bytes(layers),
    )


def ask_on_terminal(
    model: Any, prompt: Prompt, max_new_tokens: int, stdout: Console, stderr: Console
) -> Answer:
    """As `ask`, and every word is printed to stdout as soon as it is complete."""
    begun = False
    try:
        with ExitStack() as waiting:
            waiting.enter_context(working(stderr, "looking at the pictures"))

            def write(text: str) -> None:
                nonlocal begun
                begun = True
                waiting.close()
                stdout.file.write(printable(text))
                stdout.file.flush()

            return ask(model, prompt, max_new_tokens, write)
    finally:
        if begun:  # also if it was interrupted
            print()


def printable(text: str) -> str:
    """The text without characters that would move a terminal's cursor or change its colours."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def alternate(
    variants: Mapping[str, Callable[[], Answer]], on_answer: Callable[[], object] = lambda: None
) -> dict[str, list[Answer]]:
    """Every variant's answers in up to `ROUNDS` rounds, each in the reverse order of the last.

    At least one round is run, and none starts after `PATIENCE` seconds. Every variant must have run
    before, so that no time includes a warm-up.
    """
    answers: dict[str, list[Answer]] = {name: [] for name in variants}
    started = perf_counter()
    for number in range(ROUNDS):
        if number and perf_counter() - started > PATIENCE:
            break
        for name in list(variants)[:: 1 if number % 2 else -1]:
            answers[name].append(variants[name]())
            on_answer()
    return answers


def with_median_times(answer: Answer, timed: Sequence[Answer]) -> Answer:
    """The answer with the median times of `timed`, which are repetitions of it."""
    steps = [a.token_ms for a in timed if a.token_ms is not None]
    return replace(
        answer,
        first_seconds=median(a.first_seconds for a in timed),
        token_ms=median(steps) if steps else None,
    )


class _Stream(TextStreamer):
    """Passes text on as soon as words are complete, and notes when each token came."""

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
