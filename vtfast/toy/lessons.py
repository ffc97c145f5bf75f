"""What the toy models are trained on: fresh scenes, seven questions packed behind each picture.

A training row is `<s> USER:`, the visual tokens, then seven turns of question and answer. The mask
lets each turn see the prefix and itself only, and its positions go on from the prefix, so every
turn is distributed as if it were alone in its row; seven answers cost about 1.6 times one.
"""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from vtfast.toy import TASKS
from vtfast.toy.model import BOS, EOS, PATCH, PIXEL_MEAN, PIXEL_STD, VISUAL_TOKENS, WORD_IDS
from vtfast.toy.scene import SIDE, Scene

TURNS = ("code", "digit", "digit", "background", "shape_colour", "shape", "count")
PREFIX = (BOS, WORD_IDS["USER:"])
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Some scenes with their packed turns; T is the number of tokens of all turns of a row.

    `pixels`: fp32 [B, 3, 96, 96], normalised. `ids`, `labels`: int64 [B, T], labels already shifted
    and -100 inside questions. `glyphs`: int64 [B, visual tokens], see `Scene.glyph_labels`.
    """

    pixels: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    glyphs: torch.Tensor


def turn(scene: Scene, task: str, cell: int | None = None) -> tuple[list[int], list[int]]:
    """Token ids of one question and answer, and at each the token that comes next or -100."""
    question, answer = scene.question(task, cell)
    asked = [WORD_IDS[word] for word in (*question.split(), "ASSISTANT:")]
    told = [WORD_IDS[word] for word in answer.split()] + [EOS]
    return asked + told[:-1], [IGNORED] * (len(asked) - 1) + told


def turn_lengths() -> list[int]:
    """Tokens of each turn; the same for every scene, so rows need no padding."""
    scene = Scene.from_seed(0)
    return [len(turn(scene, task)[0]) for task in TURNS]


def layout() -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [1, S] and additive attention mask [1, 1, S, S] of a row, prefix included."""
    prefix, lengths = len(PREFIX) + VISUAL_TOKENS, turn_lengths()
    positions = torch.cat([torch.arange(prefix)] + [prefix + torch.arange(n) for n in lengths])
    runs = torch.tensor([prefix, *lengths])
    owner = torch.repeat_interleave(torch.arange(-1, len(lengths)), runs)  # -1: the prefix
    visible = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    visible &= (owner[None, :] == -1) | (owner[None, :] == owner[:, None])
    mask = torch.zeros(visible.shape).masked_fill(~visible, -1e4)
    return positions[None], mask[None, None]


def draw_batch(rng: np.random.Generator, size: int) -> Batch:
    """`size` fresh scenes with all their turns; the second digit question is about any cell."""
    drawn = [Scene.sample(rng) for _ in range(size)]
    ids, labels = [], []
    for scene in drawn:
        cells = iter((scene.asked, int(rng.integers(len(scene.cells)))))
        turns = [turn(scene, task, next(cells) if task == "digit" else None) for task in TURNS]
        ids.append([token for row, _ in turns for token in row])
        labels.append([token for _, row in turns for token in row])
    pixels = torch.from_numpy(np.stack([scene.pixels() for scene in drawn])).float() / 255
    pixels = ((pixels - PIXEL_MEAN) / PIXEL_STD).permute(0, 3, 1, 2).contiguous()
    glyphs = torch.from_numpy(np.stack([scene.glyph_labels(PATCH) for scene in drawn]))
    return Batch(pixels, torch.tensor(ids), torch.tensor(labels), glyphs)


def batches(seed: int, size: int) -> Generator[Batch, None, None]:
    """Endless batches in a fixed order, the next one drawn while the current one trains."""
    rng = np.random.default_rng([seed, SIDE, len(TASKS)])  # a stream that `scenes` never uses
    with ThreadPoolExecutor(1) as painter:
        following = painter.submit(draw_batch, rng, size)
        while True:
            batch = following.result()
            following = painter.submit(draw_batch, rng, size)
            yield batch


def exact_per_task(right: torch.Tensor) -> dict[str, float]:
    """Fraction of turns without a wrong token, per task; `right` is bool [B, T]."""
    found: dict[str, list[float]] = {task: [] for task in TASKS}
    for task, part in zip(TURNS, right.split(turn_lengths(), 1), strict=True):
        found[task].append(part.all(1).float().mean().item())
    return {task: sum(values) / len(values) for task, values in found.items()}
