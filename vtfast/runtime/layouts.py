"""The two ways rows can sit in the tensors the layers see, behind one interface.

`Packed`: the batch is one sequence without padding, [1, rows, D]; attention gets `Spans`, the cache
`RaggedLayer`s. `Padded`: a rectangle [B, longest, D], right-aligned so that the last token stays
last; attention gets masks from transformers' own mask functions, the cache is transformers' own.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_causal_mask

from vtfast.runtime.cache import Holes, adopt, state_of
from vtfast.runtime.ragged_cache import RaggedLayer, Rows, Spans
from vtfast.runtime.visual import to_device

if TYPE_CHECKING:
    from vtfast.runtime.forward import Pass, Stage


class Packed:
    """No padding: rows are where they are."""

    is_packed = True

    def enter(
        self,
        run: "Pass",
        stage: "Stage",
        hidden: Tensor,
        rotary: list[Tensor],
        source: Tensor | None,
        dropped: bool,
    ) -> Tensor:
        """Lay out the rows `source` of hidden (None: all) for the layers from this stage on."""
        if source is not None:
            hidden, *rows = (t[None] for t in run.gather(source, (hidden, *rotary)))
            rotary[:] = rows
        elif not run.changed:
            hidden, *rows = (t.reshape(1, -1, t.shape[-1]) for t in (hidden, *rotary))
            rotary[:] = rows
        run.slots = None
        if run.cache is None:
            run.spans = Spans.without_past(run.lengths, hidden.device)
            return hidden
        state = adopt(run.cache, True, run.settings.plan)
        seen = run.cache.get_seq_length()
        cached = state.rows.get(stage.layer)
        if cached is None:
            cached = state.rows[stage.layer] = self._ragged(run, stage, hidden.device)
        run.spans = cached.extend(run.lengths)
        if stage.layer == 0:
            state.gap = seen + run.chunk - max(cached.lengths)
        return hidden

    def step(self, run: "Pass", layer: int, hidden: Tensor) -> None:
        state = state_of(run.cache)
        if state is not None and layer in state.rows:
            run.spans = state.rows[layer].extend([1] * run.batch, step=True)

    @staticmethod
    def _ragged(run: "Pass", stage: "Stage", device: torch.device) -> Rows:
        """Make the layers of this stage ragged; what they hold already is taken over."""
        layers = run.cache.layers
        past = layers[stage.layer].get_seq_length() if stage.layer < len(layers) else 0
        lengths, valid = [past] * run.batch, None
        if past and run.mask is not None and run.visual is not None and run.visual.past:
            lengths = run.visual.past
            valid = run.mask[:, :past].flatten().bool()
            valid = torch.nonzero_static(valid, size=sum(lengths))[:, 0]
        rows = Rows(lengths, device)
        for i in range(stage.layer, stage.until):
            layer = RaggedLayer(rows)
            if past:
                layer.adopt(layers[i], valid)
            if i < len(layers):
                layers[i] = layer
            else:
                layers.append(layer)
        return rows


class Padded:
    """Left padding, as transformers does it, for every attention implementation."""

    is_packed = False

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config

    def enter(
        self,
        run: "Pass",
        stage: "Stage",
        hidden: Tensor,
        rotary: list[Tensor],
        source: Tensor | None,
        dropped: bool,
    ) -> Tensor:
        if dropped or not run.changed:
            hidden, *rows = self._align(run, source, hidden, *rotary)
            rotary[:] = rows
        longest, device = hidden.shape[1], hidden.device
        valid = self._valid(run, longest, device)
        past, seen, known = 0, 0, None
        state = None
        if run.cache is not None:
            state = adopt(run.cache, False, run.settings.plan)
            past, seen = run.cache.get_seq_length(stage.layer), run.cache.get_seq_length()
            holes = state.holes.get(stage.layer)
            if holes is not None:
                known = holes.mask
            elif past and run.mask is not None:
                known = run.mask[:, :past].bool()
        mask = None
        if known is not None or valid is not None:
            real = lambda n: torch.ones(run.batch, n, dtype=torch.bool, device=device)  # noqa: E731
            mask = torch.cat(
                [
                    real(past) if known is None else known,
                    real(longest) if valid is None else valid,
                ],
                dim=1,
            )
        run.layer_mask = (self._mask(run.cache, stage.layer, hidden, mask),)
        if state is not None:
            state.holes[stage.layer] = Holes(mask)
            if stage.layer == 0:
                state.gap = seen + run.chunk - past - longest
        return hidden

    def step(self, run: "Pass", layer: int, hidden: Tensor) -> None:
        state = state_of(run.cache)
        if state is not None and layer in state.holes:
            holes = state.holes[layer]
            holes.step(run.mask)
            run.layer_mask = (self._mask(run.cache, layer, hidden, holes.mask),)

    def _align(self, run: "Pass", source: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Right-align each sample's rows in a rectangle; padding repeats row 0."""
        device, lengths = tensors[0].device, run.lengths
        longest, total = max(lengths), sum(lengths)
        rows = torch.arange(total, device=device)
        starts = [sum(lengths[:b]) for b in range(run.batch)]
        if min(lengths) == longest:
            run.slots = None
            fill = rows
        else:
            shift = to_device(
                [
                    b * longest + longest - n - s
                    for b, (n, s) in enumerate(zip(lengths, starts, strict=True))
                ],
                device,
            )
            of_sample = torch.repeat_interleave(
                shift, to_device(lengths, device), output_size=total
            )
            run.slots = rows + of_sample
            fill = torch.zeros(run.batch * longest, dtype=torch.int64, device=device)
            fill[run.slots] = rows
        if source is not None:
            fill = source[fill]
        out = run.gather(fill, tensors)
        return tuple(t.view(run.batch, longest, -1) for t in out)

    @staticmethod
    def _valid(run: "Pass", longest: int, device: torch.device) -> Tensor | None:
        if run.slots is None:
            return None
        flat = torch.zeros(run.batch * longest, dtype=torch.bool, device=device)
        return flat.index_fill_(0, run.slots, True).view(run.batch, longest)

    def _mask(self, cache: Cache | None, layer: int, hidden: Tensor, mask: Tensor | None) -> Any:
        """transformers' mask for a layer of this length. Its shortcut (`is_causal` for a mask)
        would read our mask back, so it is closed when there is one."""
        return create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=mask,
            past_key_values=cache,
            position_ids=None,  # gaps would be taken for packed sequences
            layer_idx=layer,
            allow_is_causal_skip=mask is None,
        )


Layout = Packed | Padded
