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
from vtfast.toy.model import family_of
from vtfast.toy.scene import SQUARE, Size
from vtfast.toy.words import EOS, LONGEST_ANSWER, WORD_IDS

TOLERANCE = 0.01
_BATCH = 50


def accuracy(
    model: Any,
    processor: Any,
    task: str,
    n: int = 500,
    seed: int = 0,
    progress: bool = False,
    sizes: Sequence[Size] = (SQUARE,),
) -> float:
    """Fraction of `scenes(n, seed, task, sizes)` that greedy `generate` answers exactly."""
    right = 0
    for pictures, questions, answers in _batches(task, n, seed, progress, sizes):
        inputs = _inputs(model, processor, pictures, questions)
        rows = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST_ANSWER)
        said = rows[:, inputs["input_ids"].shape[1] :]
        words = processor.batch_decode(said, skip_special_tokens=True)
        right += sum(a == b for a, b in zip(words, answers, strict=True))
    return right / n


@torch.inference_mode()
def drop_all_curve(
    model: Any,
    processor: Any,
    task: str,
    n: int = 500,
    seed: int = 0,
    progress: bool = False,
    sizes: Sequence[Size] = (SQUARE,),
) -> list[float]:
    """Accuracy on `scenes(n, seed, task, sizes)` without visual tokens from layer L on, every L.

    Returns `layers + 1` fractions: entry 0 is a decoder that never sees the picture, the last one
    drops nothing. A scene is right when each word of the answer and the end mark is the argmax
    after the true words before it, that is when greedy decoding is right.
    """
    decoder = model.model.language_model
    right = torch.zeros(len(decoder.layers) + 1, dtype=torch.int64)
    for pictures, questions, answers in _batches(task, n, seed, progress, sizes):
        inputs = _inputs(model, processor, pictures, questions)
        target = torch.tensor([[WORD_IDS[w] for w in a.split()] + [EOS] for a in answers])
        target = target.to(model.device)
        ids = torch.cat([inputs["input_ids"], target[:, :-1]], 1)
        embeds, visual = _embed(model, inputs, ids)
        positions = family_of(model).input_positions(model, ids, inputs)
        for first, states in enumerate(_final_states(decoder, embeds, visual, positions)):
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
    """The horizon of the task that needs its picture longest, of those that have one."""
    return max((layer for layer in horizons.values() if layer is not None), default=None)


def measure(
    model: Any, processor: Any, n: int, seed: int, progress: bool = False
) -> dict[str, Any]:
    """Accuracy by `generate`, drop-all curve and horizon of every task, as a dict for JSON.

    The scenes are of the sizes that the family is trained on, in turn.
    """
    sizes = family_of(model).SIZES
    asked = (n, seed, progress, sizes)
    exact = {task: accuracy(model, processor, task, *asked) for task in TASKS}
    curves = {task: drop_all_curve(model, processor, task, *asked) for task in TASKS}
    return {
        "measured_on": {
            "scenes_per_task": n,
            "seed": seed,
            "sizes": [list(size) for size in sizes],
        },
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
    model: Any, inputs: Mapping[str, torch.Tensor], ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows `ids` of prompt and answer as the decoder's input, and which columns are visual."""
    is_visual = ids == model.config.image_token_id
    features = family_of(model).image_features(model, inputs)
    embeds = model.get_input_embeddings()(ids)
    return embeds.masked_scatter(is_visual[..., None], features.to(embeds)), is_visual[0]


def _final_states(
    decoder: Any, hidden: torch.Tensor, visual: torch.Tensor, positions: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Normed final states of the text columns, visual ones dropped at layer 0, 1, …, never.

    The full sequence runs once and is left at every layer by a copy without visual columns.
    Survivors keep their rotary positions. All rows are of one length, so causal needs no mask.
    """
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


def _batches(
    task: str, n: int, seed: int, progress: bool, sizes: Sequence[Size]
) -> Iterator[tuple[list, list, list]]:
    """The scenes in batches of one size each, so that rows are of one length."""
    alike: dict[Size, list[tuple]] = {}
    for scene in zip(*scenes(n, seed, task, sizes), strict=True):
        alike.setdefault(scene[0].size, []).append(scene)
    with tqdm(total=n, desc=task, unit="scene", disable=not progress, leave=False) as bar:
        for group in alike.values():
            for start in range(0, len(group), _BATCH):
                part = group[start : start + _BATCH]
                pictures, questions, answers = map(list, zip(*part, strict=True))
                yield pictures, questions, answers
                bar.update(len(part))
