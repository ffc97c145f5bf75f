"""How good a toy model is, and from which layer on it no longer needs its visual tokens.

The horizon of a task is the first decoder layer from which on dropping all visual tokens costs at
most one point of accuracy. Everything is measured on scenes drawn from a seed, which are never
training pictures.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers.utils.logging import tqdm

from vtfast.toy import TASKS, prompt, scenes
from vtfast.toy.model import EOS, LONGEST_ANSWER, WORD_IDS

TOLERANCE = 0.01
_BATCH = 50


def accuracy(
    model: Any, processor: Any, task: str, n: int = 500, seed: int = 0, progress: bool = False
) -> float:
    """Fraction of `scenes(n, seed, task)` that greedy `generate` answers exactly, in [0, 1]."""
    right = 0
    for pictures, questions, answers in _batches(task, n, seed, progress):
        inputs = _inputs(model, processor, pictures, questions)
        rows = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST_ANSWER)
        said = rows[:, inputs["input_ids"].shape[1] :]
        words = processor.batch_decode(said, skip_special_tokens=True)
        right += sum(a == b for a, b in zip(words, answers, strict=True))
    return right / n


@torch.inference_mode()
def drop_all_curve(
    model: Any, processor: Any, task: str, n: int = 500, seed: int = 0, progress: bool = False
) -> list[float]:
    """Accuracy on `scenes(n, seed, task)` without visual tokens from layer L on, for every L.

    Returns `layers + 1` fractions: entry 0 is a decoder that never sees the picture, the last one
    drops nothing. A scene is right when each word of the answer and the end mark is the argmax
    after the true words before it, that is when greedy decoding is right.
    """
    decoder = model.model.language_model
    right = torch.zeros(len(decoder.layers) + 1, dtype=torch.int64)
    for pictures, questions, answers in _batches(task, n, seed, progress):
        inputs = _inputs(model, processor, pictures, questions)
        target = torch.tensor([[WORD_IDS[w] for w in a.split()] + [EOS] for a in answers])
        target = target.to(model.device)
        embeds, visual = _embed(model, inputs, target[:, :-1])
        for first, states in enumerate(_final_states(decoder, embeds, visual)):
            said = model.lm_head(states[:, -target.shape[1] :]).argmax(-1)
            right[first] += int((said == target).all(1).sum())
    return [count / n for count in right.tolist()]


def horizon(curve: Sequence[float], tolerance: float = TOLERANCE) -> int | None:
    """The first layer from which on a `drop_all_curve` stays within `tolerance` of its last entry.

    None where even the last decoder layer needs visual tokens.
    """
    least = curve[-1] - tolerance - 1e-9
    needed = [layer for layer, value in enumerate(curve[:-1]) if value < least]
    first = needed[-1] + 1 if needed else 0
    return first if first < len(curve) - 1 else None


def hardest_horizon(horizons: Mapping[str, int | None]) -> int | None:
    """The horizon of the hardest task that has one, in the order of `TASKS`."""
    return next((horizons[task] for task in reversed(TASKS) if horizons[task] is not None), None)


def measure(
    model: Any, processor: Any, n: int, seed: int, progress: bool = False
) -> dict[str, Any]:
    """Accuracy by `generate`, drop-all curve and horizon of every task, as a dict for JSON."""
    exact = {task: accuracy(model, processor, task, n, seed, progress) for task in TASKS}
    curves = {task: drop_all_curve(model, processor, task, n, seed, progress) for task in TASKS}
    return {
        "measured_on": {"scenes_per_task": n, "seed": seed},
        "accuracy": exact,
        "horizon": {task: horizon(curves[task]) for task in TASKS},
        "accuracy_without_visual_tokens_from_layer": curves,
    }


def table(card: Mapping[str, Any]) -> str:
    """What `measure` returned as text, a task a line, in percent."""
    curves = card["accuracy_without_visual_tokens_from_layer"]
    layers = len(curves[TASKS[0]]) - 1
    rows = [["task", "exact", "horizon", *(f"L{layer}" for layer in range(layers))]]
    for task in TASKS:
        first = card["horizon"][task]
        shown = [100 * card["accuracy"][task], *(100 * value for value in curves[task][:-1])]
        exact, *dropped = (f"{value:.1f}" for value in shown)
        rows.append([task, exact, "none" if first is None else str(first), *dropped])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(cell.rjust(width) for cell, width in line) for line in lines)


def _embed(
    model: Any, inputs: Mapping[str, torch.Tensor], answer: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt and `answer` as the decoder's input, and which of its columns are visual."""
    ids = torch.cat([inputs["input_ids"], answer], 1)
    is_visual = ids == model.config.image_token_id
    features = model.model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    embeds = model.get_input_embeddings()(ids)
    embeds = embeds.masked_scatter(is_visual[..., None], torch.cat(tuple(features)).to(embeds))
    return embeds, is_visual[0]


def _final_states(
    decoder: Any, hidden: torch.Tensor, visual: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Normed final states of the text columns, visual ones dropped at layer 0, 1, …, never.

    The full sequence runs once and is left at every layer by a copy without visual columns.
    Survivors keep their rotary positions. All rows are of one length, so causal needs no mask.
    """
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    full = decoder.rotary_emb(hidden, positions)
    text = tuple(part[:, ~visual] for part in full)
    for first, layer in enumerate(decoder.layers):
        states = hidden[:, ~visual]
        for later in decoder.layers[first:]:
            states = later(states, attention_mask=None, position_embeddings=text)
        yield decoder.norm(states)
        hidden = layer(hidden, attention_mask=None, position_embeddings=full)
    yield decoder.norm(hidden)


def _inputs(model: Any, processor: Any, pictures: list, questions: list[str]) -> Any:
    texts = [prompt(processor, question) for question in questions]
    images = [[picture] for picture in pictures]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    return inputs.to(model.device)


def _batches(task: str, n: int, seed: int, progress: bool) -> Iterator[tuple[list, list, list]]:
    pictures, questions, answers = scenes(n, seed, task)
    with tqdm(total=n, desc=task, unit="scene", disable=not progress, leave=False) as bar:
        for start in range(0, n, _BATCH):
            part = slice(start, start + _BATCH)
            yield pictures[part], questions[part], answers[part]
            bar.update(len(pictures[part]))
