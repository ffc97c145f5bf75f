"""Training batches of the toy models: fresh scenes, seven questions packed behind each picture.

A training sequence is a prefix, `<s> USER:` and the visual tokens, then seven turns of question and
answer. The mask lets each turn see the prefix and itself only, and its positions go on from the
prefix, so every turn is distributed as if it were alone in its sequence. Seven answers cost about
1.6 times one.
"""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch

from vtfast.toy.family import PIXEL_MEAN, PIXEL_STD
from vtfast.toy.scene import GRID, SIDE, SQUARE, Scene, Size
from vtfast.toy.tasks import TASKS
from vtfast.toy.words import EOS, WORD_IDS

TURNS = ("code", "digit", "digit", "background", "shape_colour", "shape", "count")
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Some scenes of one size with their packed turns; T counts the tokens of a scene's turns.

    `pixels`: fp32 [B, 3, height, width], normalised. `ids`, `labels`: int64 [B, T], labels already
    shifted and -100 inside questions. `glyphs`: int64 [B, visual tokens], see `Scene.glyph_labels`.
    """

    pixels: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    glyphs: torch.Tensor


def turn(scene: Scene, task: str, cell: int | None = None) -> tuple[list[int], list[int]]:
    """Token ids of one question and answer, and at each the token that comes next or -100."""
    question, answer = scene.question(task, cell)
    asked = [WORD_IDS[word] for word in (*question.split(), "ASSISTANT:")]
    answered = [WORD_IDS[word] for word in answer.split()] + [EOS]
    return asked + answered[:-1], [IGNORED] * (len(asked) - 1) + answered


def turn_lengths() -> list[int]:
    """Tokens of each turn; the same for every scene, so sequences need no padding."""
    scene = Scene.from_seed(0)
    return [len(turn(scene, task)[0]) for task in TURNS]


def layout(prefix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and mask of a sequence, from the positions of its prefix, int64 [axes, P].

    Returns int64 [axes, P + T] and an additive mask [1, 1, P + T, P + T].
    """
    first, lengths = int(prefix.max()) + 1, turn_lengths()
    turns = [first + torch.arange(n).expand(len(prefix), -1) for n in lengths]
    runs = torch.tensor([prefix.shape[1], *lengths])
    owner = torch.repeat_interleave(torch.arange(-1, len(lengths)), runs)  # -1: the prefix
    visible = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    visible &= (owner[None, :] == -1) | (owner[None, :] == owner[:, None])
    mask = torch.zeros(visible.shape, dtype=torch.float32).masked_fill(~visible, -1e4)
    return torch.cat([prefix, *turns], 1), mask[None, None]


def draw_batch(rng: np.random.Generator, count: int, size: Size = SQUARE) -> Batch:
    """`count` fresh scenes with all their turns; the second digit question is about any cell."""
    drawn = [Scene.sample(rng, size) for _ in range(count)]
    ids, labels = [], []
    for scene in drawn:
        cells = iter((scene.asked, int(rng.integers(len(scene.cells)))))
        turns = [turn(scene, task, next(cells) if task == "digit" else None) for task in TURNS]
        ids.append([token for row, _ in turns for token in row])
        labels.append([token for _, row in turns for token in row])
    pixels = torch.from_numpy(np.stack([scene.pixels() for scene in drawn])).float() / 255
    pixels = ((pixels - PIXEL_MEAN) / PIXEL_STD).permute(0, 3, 1, 2).contiguous()
    glyphs = torch.from_numpy(np.stack([scene.glyph_labels(GRID) for scene in drawn]))
    return Batch(pixels, torch.tensor(ids), torch.tensor(labels), glyphs)


def batches(
    seed: int, count: int, sizes: Sequence[Size] = (SQUARE,)
) -> Generator[Batch, None, None]:
    """Endless batches of `count` in a fixed order, the next one drawn while the current one trains.

    A batch is of one size; `sizes` take turns.
    """
    rng = np.random.default_rng([seed, SIDE, len(TASKS)])  # a stream that `scenes` never uses
    turns = cycle(sizes)
    with ThreadPoolExecutor(1) as painter:
        following = painter.submit(draw_batch, rng, count, next(turns))
        while True:
            batch = following.result()
            following = painter.submit(draw_batch, rng, count, next(turns))
            yield batch


def exact_per_task(right: torch.Tensor) -> dict[str, float]:
    """Fraction of turns without a wrong token, per task; `right` is bool [B, T]."""
    found: dict[str, list[float]] = {task: [] for task in TASKS}
    for task, part in zip(TURNS, right.split(turn_lengths(), 1), strict=True):
        found[task].append(part.all(1).float().mean().item())
    return {task: sum(values) / len(values) for task, values in found.items()}
