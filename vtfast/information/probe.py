"""Run a batch once, then continue from any decoder layer with the text and some visual tokens.

Scores, horizons and the oracle experiment are built on it. Tokens are removed physically and keep
their positions. Everything that is asked of one layer runs as one packed batch through the model's
own decoder layers (`packing`); what the model adds between them (DeepStack) is added here too, to
the tokens that are there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtfast.errors import InputError, StateError
from vtfast.information.answers import check_answers, with_answers
from vtfast.information.packing import Kept, Packing, Padded, TextOfBatch
from vtfast.information.pictures import find_pictures
from vtfast.kernels._launch import use_triton
from vtfast.kernels._online_softmax import why_unsupported_heads
from vtfast.models import family_of
from vtfast.patching import check_transformers, is_patched
from vtfast.runtime import attention, names
from vtfast.runtime.handed import Handed
from vtfast.runtime.layout import Entry

_HEAD_ROWS = 256  # predictions whose logits over the vocabulary are held at once
_CPU_BYTES = 64 << 20  # of a packed batch; 64 to 1024 sequences of a toy took equally long


@dataclass(frozen=True)
class Reading:
    """p of each token of the true answer given those before it, and whether it is the largest."""

    p: tuple[float, ...]
    best: tuple[bool, ...]


class Probe:
    """A batch that was run in full, and the hidden states that entered some layers.

    Args:
        model: an unpatched one in eval mode.
        inputs: a batch whose last tokens predict the first token of the answers.
        answers: token ids of each sample's answer, at least one.
        layers: those from which `follow` can continue.
        chunk: sequences in a packed batch at most; None: as many as fit a share of the memory.
            Either is halved when memory runs out, down to one.
        impl: of the ops.

    Attributes:
        pictures: in reading order.
        full: a `Reading` per sample of the whole answer, with no visual token removed.
        original: int64 per sample, the column in `inputs` of every column here (answers go after
            the prompt, and prompts of several lengths are padded anew).
        visual: int64 per sample, columns in `inputs` of its visual tokens.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        answers: Sequence[Sequence[int]],
        layers: Sequence[int],
        *,
        chunk: int | None = None,
        impl: str = "auto",
    ) -> None:
        family = family_of(model)
        check_transformers(model, family, "packed")
        if is_patched(model):
            raise StateError("the model is patched; call vtfast.unpatch(model) before scoring it")
        if model.training:
            raise StateError("the model is in training mode; call model.eval() first")
        self._parts: Any = family.parts(model)
        self._head = model.get_output_embeddings()
        weight = self._head.weight
        why = why_unsupported_heads(weight.dtype, self._parts.head_size)
        self._kernel = use_triton("Probe", impl, weight.device, why_unsupported=why)
        self.answers = check_answers(answers, inputs, self._head.weight.shape[0])
        call, self.original = with_answers(inputs, self.answers, model.device)
        ids, mask = call["input_ids"], call["attention_mask"].cpu().numpy()
        self.samples, length = ids.shape
        self.pictures, visual = find_pictures(family, self._parts.multimodal, call)
        bare = set(range(self.samples)) - {picture.sample for picture in self.pictures}
        if bare:
            raise InputError(f"sample {min(bare)} of the batch has no picture; leave it out")

        text = [np.flatnonzero(row) for row in mask.astype(bool) & ~visual]
        self._batch = TextOfBatch(text, self.answers, length)
        self.visual = [o[v] for o, v in zip(self.original, visual, strict=True)]
        self._states: dict[int, Tensor] = {}
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._added: dict[int, Tensor] = {}  # behind a layer, to each row of the batch
        longest = max(map(len, self.answers))
        with self._capturing(layers):
            out = model(**call, use_cache=False, logits_to_keep=longest)
        rows = [out.logits[b, longest - len(a) :] for b, a in enumerate(self.answers)]
        p, best = _read(torch.cat(rows), torch.tensor([*chain(*self.answers)], device=ids.device))
        self.full = _split(p, best, [len(answer) for answer in self.answers])
        self._chunk = chunk
        self.num_layers, self.model_type = len(self._parts.layers), model.config.model_type

    def follow(
        self,
        layers: Sequence[int],
        kept: Sequence[Kept],
        tick: Callable[[], object] = lambda: None,
    ) -> list[list[Reading]]:
        """Predictions when from a layer on only `kept` remains: by layer, then by sequence.

        `tick` is called after every layer.
        """
        chunk = self._chunk or self._room(kept)
        packings: list[Packing] = []
        readings, device = [], self._head.weight.device
        with torch.no_grad(), self._packed_attention():
            for layer in layers:
                found: list[Reading] | None = None
                while found is None:
                    try:
                        packings = packings or [
                            self._batch.pack(kept[start : start + chunk], device, self._kernel)
                            for start in range(0, len(kept), chunk)
                        ]
                        found = [r for packing in packings for r in self._run(layer, packing)]
                    except torch.OutOfMemoryError:
                        if chunk == 1:
                            raise
                        packings, chunk = [], -(-min(chunk, len(kept)) // 2)
                        self._chunk = chunk
                readings.append(found)
                tick()
        return readings

    def _run(self, layer: int, packing: Packing) -> list[Reading]:
        """Run a packed batch from a layer to the end, and read its predictions."""
        assert self._rotary is not None
        hidden = self._states[layer][packing.rows][None]
        cos, sin = (t[packing.rows][None] for t in self._rotary)
        handed = Handed(shares=True)
        run = SimpleNamespace(span=Entry(attention=packing.attention), handed=handed)
        attending = 0
        for number, block in enumerate(self._parts.layers[layer:], start=layer):
            if self._parts.attends[number] == number:
                attending += 1
                hidden = block(
                    hidden,
                    attention_mask=None,
                    position_ids=None,
                    position_embeddings=(cos, sin),
                    vtfast_state=run,
                )
            else:
                hidden = _run_recurrent(block, hidden, packing.padded)
            if number in self._added:
                hidden = hidden + self._added[number][packing.rows].to(hidden.dtype)
        if handed.attended != attending:
            raise names.unsupported("does not pass keywords on to attention", block)
        last = self._parts.text.norm(hidden[0, packing.ends])
        read = [
            _read(self._head(rows), targets)
            for rows, targets in zip(
                last.split(_HEAD_ROWS), packing.targets.split(_HEAD_ROWS), strict=True
            )
        ]
        p, best = ([*chain(*parts)] for parts in zip(*read, strict=True))
        found = _split(p, best, packing.tokens)
        return [found[place] for place in packing.order]

    def _room(self, kept: Sequence[Kept]) -> int:
        """How many sequences fit a share of the device's memory, with activations and keys."""
        config, device = self._parts.text.config, self._head.weight.device
        size = self._head.weight.element_size()
        width = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        heads = config.num_attention_heads + config.num_key_value_heads
        row = size * (4 * config.hidden_size + 3 * config.intermediate_size + 2 * heads * width)
        key = size * 2 * config.num_key_value_heads * width
        longest = max((len(self._batch.text[k.sample]) + len(k.columns) for k in kept), default=1)
        budget = _CPU_BYTES
        if device.type == "cuda":
            budget = torch.cuda.mem_get_info(device)[0] // 4
        return max(1, budget // (longest * (row + key)))

    @contextmanager
    def _capturing(self, layers: Sequence[int]) -> Iterator[None]:
        """Record the states entering some layers, the rotary phases, and what is added behind
        the first of these layers and later ones, while the block runs."""
        handles = []

        def note(number: int, args: Any, kwargs: dict[str, Any]) -> None:
            self._states[number] = args[0].flatten(0, 1)
            cos, sin = kwargs["position_embeddings"]
            shape = (self.samples, *cos.shape[1:])
            self._rotary = cos.expand(shape).flatten(0, 1), sin.expand(shape).flatten(0, 1)

        def note_added(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
            where: Any = kwargs.get(names.DEEPSTACK[0])
            for number, rows in enumerate(kwargs.get(names.DEEPSTACK[1]) or ()):
                if number >= min(layers):
                    added = rows.new_zeros(where.numel(), rows.shape[-1])
                    added[where.flatten()] = rows
                    self._added[number] = added

        try:
            text = self._parts.text
            handles.append(text.register_forward_pre_hook(note_added, with_kwargs=True))
            for number in layers:
                hook = lambda _, args, kwargs, number=number: note(number, args, kwargs)  # noqa: E731
                block = self._parts.layers[number]
                handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _packed_attention(self) -> Iterator[None]:
        """Use the attention function of the packed layout while the block runs."""
        text = self._parts.text
        before = text.config._attn_implementation
        attention.register()
        text.set_attn_implementation(attention.NAME)
        try:
            yield
        finally:
            text.set_attn_implementation(before)


def _read(logits: Tensor, targets: Tensor) -> tuple[list[float], list[bool]]:
    """p of the targets under a softmax in fp32, and whether they are the largest."""
    logits = logits.float()
    p = logits.softmax(-1).gather(1, targets[:, None])[:, 0]
    return p.tolist(), (logits.argmax(-1) == targets).tolist()


def _split(p: Sequence[float], best: Sequence[bool], counts: Sequence[int]) -> list[Reading]:
    starts = np.cumsum([0, *counts]).tolist()
    return [Reading(tuple(p[a:b]), tuple(best[a:b])) for a, b in pairwise(starts)]


def _run_recurrent(block: Any, hidden: Tensor, padded: Padded) -> Tensor:
    """Run a layer that keeps a state on whole sequences; hidden and the result are packed."""
    out = block(
        hidden[0, padded.rows],
        attention_mask=padded.real,
        position_ids=None,
        position_embeddings=None,  # it has no positions
    )
    return out[padded.own][None]
