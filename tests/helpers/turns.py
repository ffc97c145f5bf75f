"""Several turns on one cache, fed by hand, and a check of all of them by the oracle.

Every call feeds a chunk to a patched model and notes its logits and what was dropped. `check` then
builds one sequence of everything said and compares the logits of every token still there with the
oracle's. Crops and rearranged samples are noted too, so any order of calls can be checked.
"""

import copy

import torch
from cache_name import CACHE, cache_of
from model_oracle import Oracle
from model_runs import ATOL
from tiny_parts import IMAGE, VIDEO, VOCABULARY, Sample


class Turns:
    """A conversation of some samples on one cache.

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
        self.known = torch.zeros(rows, 0, dtype=torch.bool)
        self.positions = torch.zeros(0)  # [axes, samples, length] from the first chunk on
        self.pictures = [[] for _ in range(rows)]
        self.gone = {}  # layer -> bool [samples, length]: lost from this layer's input on

    def say(self, *parts, side="left", seed=0):
        """One chunk: the parts of every sample, as `Family.samples` takes them."""
        self._feed(*self._chunk(parts, seed, side))

    def generate(self, *parts, steps=4, seed=0):
        """One chunk and the answer to it, by `generate` with everything said so far.

        Qwen is given all positions: with a cache it cannot find those of a second picture itself.
        """
        chunk, pictures = self._chunk(parts, seed)
        start, end = self._append(chunk, pictures)
        given = {**chunk, "input_ids": self.ids, "attention_mask": self.mask}
        if "mm_token_type_ids" in chunk:
            given["mm_token_type_ids"] = self.inputs()["mm_token_type_ids"]
            given["position_ids"] = self._position_ids(0)
        out = self.model.generate(
            **given,
            **{CACHE: self.cache},
            max_new_tokens=steps,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        self.cache = cache_of(out)
        # The last token is not in the cache; a step says it again.
        new = out.sequences[:, end:-1]
        self._append({"input_ids": new, "attention_mask": torch.ones_like(new)}, [[] for _ in new])
        logits = torch.stack(out.logits, 1)
        assert torch.equal(logits.argmax(-1), out.sequences[:, end:])
        unknown = torch.zeros(len(new), end - start - 1, VOCABULARY)
        known = torch.ones_like(self.ids[:, start:])
        known[:, : end - start - 1] = 0
        self._note(torch.cat([unknown, logits], 1), known)
        self._note_what_was_dropped(start, end)

    def step(self, count=1):
        """The best next token of every sample, `count` times."""
        for _ in range(count):
            last = self.mask.shape[1] - 1 - self.mask.flip(1).argmax(1)
            best = self.logits[torch.arange(len(last)), last].argmax(-1, keepdim=True)
            self.feed(best)

    def feed(self, ids, mask=None):
        """One chunk of these text tokens [samples, T]."""
        mask = torch.ones_like(ids) if mask is None else mask
        self._feed({"input_ids": ids, "attention_mask": mask}, [[] for _ in ids])

    def crop(self, count):
        """Take back the last `count` tokens."""
        self.cache.crop(-count)
        self.ids, self.mask, self.logits, self.known = (
            t[:, :-count] for t in (self.ids, self.mask, self.logits, self.known)
        )
        self.positions = self.positions[:, :, :-count]
        self.gone = {layer: lost[:, :-count] for layer, lost in self.gone.items()}

    def rearrange(self, rows, how="batch_select_indices"):
        """Continue with these samples, by this method of the cache and the argument it takes."""
        numbers = torch.arange(len(self.ids))
        if how == "batch_repeat_interleave":
            self.cache.batch_repeat_interleave(rows)
            index = numbers.repeat_interleave(rows)
        else:
            getattr(self.cache, how)(torch.tensor(rows))
            index = numbers[rows]
        self.ids, self.mask, self.logits, self.known = (
            t[index] for t in (self.ids, self.mask, self.logits, self.known)
        )
        self.positions = self.positions[:, index]
        self.gone = {layer: lost[index] for layer, lost in self.gone.items()}
        self.pictures = [list(self.pictures[i]) for i in index]

    def fork(self):
        """The same conversation on a copy of its cache."""
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
        """The columns every sample has lost, by layer, as the oracle takes them."""
        return {layer: [row.nonzero()[:, 0] for row in lost] for layer, lost in self.gone.items()}

    def check(self):
        """All logits that were given are the oracle's."""
        oracle = Oracle(self.plain, self.inputs())
        alive = oracle.survivors(self.lost()) & self.known
        expected = oracle.logits(self.lost())
        torch.testing.assert_close(self.logits[alive], expected[alive], rtol=0, atol=ATOL)

    def _chunk(self, parts, seed, side="left"):
        samples = self.family.samples(*parts, seed=seed)
        chunk = self.family.batch(samples)
        if side == "right":
            order = chunk["attention_mask"].argsort(dim=1, descending=True, stable=True)
            chunk = {
                k: v.gather(1, order) if v.shape == order.shape else v for k, v in chunk.items()
            }
        return chunk, [sample.pictures for sample in samples]

    def _append(self, chunk, pictures):
        """Where the chunk starts and ends, once it is part of everything said."""
        start = self.ids.shape[1]
        self.ids = torch.cat([self.ids, chunk["input_ids"]], 1)
        self.mask = torch.cat([self.mask, chunk["attention_mask"]], 1)
        for row, more in zip(self.pictures, pictures, strict=True):
            row.extend(more)
        if start and not any(pictures):
            more = self.positions.amax(2, keepdim=True) + chunk["attention_mask"].cumsum(1)
            self.positions = torch.cat([self.positions, more * chunk["attention_mask"]], 2)
        else:
            self.positions = Oracle(self.plain, self.inputs()).positions
        return start, self.ids.shape[1]

    def _position_ids(self, start):
        positions = self.positions[:, :, start:]
        return positions if len(positions) > 1 else positions[0]

    def _feed(self, chunk, pictures):
        start, _ = self._append(chunk, pictures)
        given = {**chunk, "attention_mask": self.mask}
        if not self.masked:
            del given["attention_mask"]
        with torch.no_grad():
            out = self.model(
                **given,
                position_ids=self._position_ids(start),
                **{CACHE: self.cache},
                use_cache=True,
            )
        self.cache = cache_of(out)
        self._note(out.logits, torch.ones_like(chunk["input_ids"]))
        self._note_what_was_dropped(start)

    def _note(self, logits, known):
        self.logits = torch.cat([self.logits, logits], 1)
        self.known = torch.cat([self.known, known.bool()], 1)

    def _note_what_was_dropped(self, start, end=None):
        length = self.ids.shape[1]
        self.gone = {
            layer: torch.nn.functional.pad(lost, (0, length - lost.shape[1]))
            for layer, lost in self.gone.items()
        }
        if self.handle is None or self.handle.report is self.report:
            return
        self.report = self.handle.report
        now = self.ids[:, start:end]
        visual = (now == IMAGE) | (now == VIDEO)
        for layer, kept in self.report.kept.items():
            lost = visual.clone()
            for row, columns in zip(lost, kept, strict=True):
                row[columns] = False
            none = torch.zeros_like(self.ids, dtype=torch.bool)
            self.gone.setdefault(layer, none)[:, start:end] |= lost
