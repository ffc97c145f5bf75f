"""Greedy decoding by hand, for tests that do something between two steps."""

import torch
from cache_name import CACHE, cache_of
from model_oracle import Oracle


class Conversation:
    """A prefill, then a token a step; `tokens` is what was said, `cache` what is remembered."""

    def __init__(self, family, model, inputs):
        self.model, self.mask = model, inputs["attention_mask"]
        oracle = Oracle(family.build(), inputs)
        self.positions = oracle.position_ids(0, inputs["input_ids"].shape[1] + 30)
        self.done = inputs["input_ids"].shape[1]
        out = self._forward(**inputs, position_ids=self._next(self.done))
        self.cache, self.tokens = cache_of(out), [out.logits[:, -1:].argmax(-1)]

    def step(self):
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        out = self._forward(
            input_ids=self.tokens[-1],
            attention_mask=self.mask,
            position_ids=self._next(1),
            **{CACHE: self.cache},
        )
        self.tokens.append(out.logits[:, -1:].argmax(-1))

    def keep(self, rows):
        """Continue with these samples of the batch, after the test selected them in the cache."""
        self.mask, self.positions = self.mask[rows], self.positions[..., rows, :]
        self.tokens = [t[rows] for t in self.tokens]

    def forget(self, steps):
        """Go back some steps, after the test cropped the cache."""
        self.done -= steps
        self.mask, self.tokens = self.mask[:, :-steps], self.tokens[:-steps]

    def _next(self, count):
        start = 0 if count > 1 else self.done
        self.done = start + count
        return self.positions[..., start : start + count]

    @torch.no_grad()
    def _forward(self, **inputs):
        return self.model(use_cache=True, **inputs)
