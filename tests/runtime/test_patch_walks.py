"""Random conversations on one cache: after every operation the logits are the oracle's.

Each number is one conversation. Its operations and their arguments are drawn from the number, so a
failing number can be run again: `pytest tests/runtime/test_patch_walks.py -k 17`.
"""

import copy
import pickle
import random

import pytest
import torch
from model_runs import FOUR_STAGES, both_layouts
from tiny_parts import IMAGE, VIDEO, Picture
from turns import Turns

import vtfast
from vtfast import Prune

PLANS = [
    FOUR_STAGES,
    [Prune(0, "diversity", 0.5)],
    [Prune(2, "topk", 0.3)],
    [Prune(1, "random", 5), Prune(4, "drop", 0)],
    [Prune(0, "drop", 0)],
    [Prune(0, "random", 0.9, per="frame"), Prune(2, "diversity", 0.5, per="frame")],
]


class Walk:
    """One talk, drawn from a number."""

    def __init__(self, family, number):
        self.family, self.draw = family, random.Random(number)
        self.plan = self.draw.choice(PLANS)
        self.rows = self.draw.choice([1, 1, 2, 3])
        self.masked = self.rows > 1 or self.draw.random() < 0.5

    def go(self, turns):
        """From four to eight operations."""
        self.draw.choice([self.say, self.say, self.text])(turns)
        for _ in range(self.draw.randint(3, 7)):
            names = ("say", "say", "text", "step", "step", "several", "crop", "copied", "pickled")
            names += ("selected", "reordered", "repeated") if self.masked else ()
            getattr(self, self.draw.choice(names))(turns)

    def say(self, turns):
        parts = [self.parts() for _ in turns.ids]
        turns.say(*parts, side=self.draw.choice(["left", "left", "right"]), seed=self.number())

    def text(self, turns):
        turns.say(*[[self.draw.randint(1, 8)] for _ in turns.ids], seed=self.number())

    def step(self, turns):
        turns.step(self.draw.randint(1, 4))

    def several(self, turns):
        generator = torch.Generator().manual_seed(self.number())
        shape = len(turns.ids), self.draw.randint(2, 5)
        turns.feed(torch.randint(3, 89, shape, generator=generator))

    def crop(self, turns):
        """Not into a picture, and not over padding."""
        real = (turns.ids != IMAGE) & (turns.ids != VIDEO) & turns.mask.bool()
        at_the_end = int(real.flip(1).long().cumprod(1).sum(1).min())
        if at_the_end > 1:
            turns.crop(self.draw.randint(1, min(6, at_the_end - 1)))

    def copied(self, turns):
        turns.cache = copy.deepcopy(turns.cache)

    def pickled(self, turns):
        turns.cache = pickle.loads(pickle.dumps(turns.cache))

    def selected(self, turns):
        rows = range(len(turns.ids))
        turns.rearrange([self.draw.choice(rows) for _ in range(self.draw.randint(1, len(rows)))])

    def reordered(self, turns):
        rows = range(len(turns.ids))
        turns.rearrange([self.draw.choice(rows) for _ in rows], "reorder_cache")

    def repeated(self, turns):
        if len(turns.ids) < 4:
            turns.rearrange(2, "batch_repeat_interleave")

    def parts(self):
        """A sample: text, perhaps one or two pictures, text."""
        parts = [self.draw.randint(1, 6)]
        for _ in range(self.draw.choice([0, 1, 1, 2])):
            parts += [self.picture(), self.draw.randint(1, 4)]
        return [*parts, self.draw.randint(1, 7)]

    def picture(self):
        if not self.family.any_size:
            return Picture(seed=self.number())
        video = self.draw.random() < 0.3 and self.family.mixes
        frames = self.draw.choice([2, 3]) if video else 1
        height, width = (2 * self.draw.randint(2, 5) for _ in range(2))
        return Picture((frames, height, width), seed=self.number(), video=video)

    def number(self):
        return self.draw.randrange(50)


@pytest.mark.parametrize("number", range(25))
@both_layouts
def test_a_random_talk_is_the_oracles(family, path, number):
    walk, model = Walk(family, number), family.build()
    with vtfast.patch(model, walk.plan, path=path, record=True) as handle:
        turns = Turns(family, model, handle, rows=walk.rows, masked=walk.masked)
        walk.go(turns)
        turns.check()
