"""Several turns on one cache, fed by hand, and the oracle's word on all of them together.

Every call feeds a chunk to a patched model and notes its logits and what was dropped. `check` then
builds one sequence of everything said and compares the logits of every token still there with the
oracle's. Crops and rearranged rows are noted too, so any order of calls can be checked.
"""

import copy

import torch
from model_oracle import Oracle
from model_runs import ATOL
from tiny_models import IMAGE, VIDEO, VOCABULARY, Sample


class Turns:
    """A talk of some rows on one cache.

    `handle` is that of the model's patch, made with `record=True`, None before it is patched. With
    `masked=False` no attention mask is passed (then nothing may be padded).
    """

    def __init__(self, family, model, handle=None, *, rows=1, cache=None, masked=True):
        self.family, self.model, self.handle, self.masked = family, model, handle, masked
        self.plain = family.build(attention="eager")
        self.cache, self.report = cache, None
        self.ids = torch.zeros(rows, 0, dtype=torch.long)
        self.mask = torch.zeros(rows, 0, dtype=torch.long)
        self.logits = torch.zeros(rows, 0, VOCABULARY)
        self.positions = torch.zeros(0)  # [axes, rows, length] from the first chunk on
        self.pictures = [[] for _ in range(rows)]
        self.gone = {}  # layer -> bool [rows, length]: lost from this layer's input on

    def say(self, *parts, side="left", seed=0):
        """One chunk: the parts of every row, as `Family.samples` takes them."""
        samples = self.family.samples(*parts, seed=seed)
        chunk = self.family.batch(samples)
        if side == "right":
            order = chunk["attention_mask"].argsort(dim=1, descending=True, stable=True)
            chunk = {
                k: v.gather(1, order) if v.shape == order.shape else v for k, v in chunk.items()
            }
        self._feed(chunk, [sample.pictures for sample in samples])

    def step(self, count=1):
        """The best next token of every row, `count` times."""
        for _ in range(count):
            last = self.mask.shape[1] - 1 - self.mask.flip(1).argmax(1)
            best = self.logits[torch.arange(len(last)), last].argmax(-1, keepdim=True)
            self.feed(best)

    def feed(self, ids, mask=None):
        """These text tokens [rows, T]."""
        mask = torch.ones_like(ids) if mask is None else mask
        self._feed({"input_ids": ids, "attention_mask": mask}, [[] for _ in ids])

    def crop(self, count):
        """Take back the last `count` tokens."""
        self.cache.crop(-count)
        self.ids, self.mask, self.logits = (
            t[:, :-count] for t in (self.ids, self.mask, self.logits)
        )
        self.positions = self.positions[:, :, :-count]
        self.gone = {layer: lost[:, :-count] for layer, lost in self.gone.items()}

    def rearrange(self, rows, how="batch_select_indices"):
        """Go on with these rows, by this method of the cache and the argument it takes."""
        numbers = torch.arange(len(self.ids))
        if how == "batch_repeat_interleave":
            self.cache.batch_repeat_interleave(rows)
            index = numbers.repeat_interleave(rows)
        else:
            getattr(self.cache, how)(torch.tensor(rows))
            index = numbers[rows]
        self.ids, self.mask, self.logits = (t[index] for t in (self.ids, self.mask, self.logits))
        self.positions = self.positions[:, index]
        self.gone = {layer: lost[index] for layer, lost in self.gone.items()}
        self.pictures = [list(self.pictures[i]) for i in index]

    def fork(self):
        """The same talk once more, on a copy of its cache."""
        other = copy.copy(self)
        other.cache = copy.deepcopy(self.cache)
        other.pictures = [list(row) for row in self.pictures]
        other.gone = {layer: lost.clone() for layer, lost in self.gone.items()}
        return other

    def inputs(self):
        """Everything said, as inputs of one forward."""
        samples = [
            Sample(row.tolist(), pictures)
            for row, pictures in zip(self.ids, self.pictures, strict=True)
        ]
        return {**self.family.batch(samples), "attention_mask": self.mask}

    def lost(self):
        """The columns every row has lost, by layer, as the oracle takes them."""
        return {layer: [row.nonzero()[:, 0] for row in lost] for layer, lost in self.gone.items()}

    def check(self):
        """All logits are the oracle's."""
        oracle = Oracle(self.plain, self.inputs())
        alive = oracle.survivors(self.lost())
        expected = oracle.logits(self.lost())
        torch.testing.assert_close(self.logits[alive], expected[alive], rtol=0, atol=ATOL)

    def _feed(self, chunk, pictures):
        start, width = self.ids.shape[1], chunk["input_ids"].shape[1]
        self.ids = torch.cat([self.ids, chunk["input_ids"]], 1)
        self.mask = torch.cat([self.mask, chunk["attention_mask"]], 1)
        for row, more in zip(self.pictures, pictures, strict=True):
            row.extend(more)
        if start and "pixel_values" not in chunk and "pixel_values_videos" not in chunk:
            more = self.positions.amax(2, keepdim=True) + chunk["attention_mask"].cumsum(1)
            self.positions = torch.cat([self.positions, more * chunk["attention_mask"]], 2)
        else:
            self.positions = Oracle(self.plain, self.inputs()).positions
        positions = self.positions[:, :, start:]
        positions = positions if len(positions) > 1 else positions[0]
        given = {**chunk, "attention_mask": self.mask}
        if not self.masked:
            del given["attention_mask"]
        with torch.no_grad():
            out = self.model(
                **given, position_ids=positions, past_key_values=self.cache, use_cache=True
            )
        self.cache = out.past_key_values
        self.logits = torch.cat([self.logits, out.logits], 1)
        self._note_what_was_dropped(start, width)

    def _note_what_was_dropped(self, start, width):
        self.gone = {
            layer: torch.nn.functional.pad(lost, (0, width)) for layer, lost in self.gone.items()
        }
        if self.handle is None or self.handle.report is self.report:
            return
        self.report = self.handle.report
        now = self.ids[:, start:]
        visual = (now == IMAGE) | (now == VIDEO)
        for layer, kept in self.report.kept.items():
            lost = visual.clone()
            for row, columns in zip(lost, kept, strict=True):
                row[columns] = False
            none = torch.zeros_like(self.ids, dtype=torch.bool)
            self.gone.setdefault(layer, none)[:, start:] |= lost
