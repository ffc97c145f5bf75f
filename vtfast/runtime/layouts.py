"""The two ways rows can sit in the tensors the layers see, behind one interface.

`Packed`: the batch is one sequence without padding, [1, rows, D]; attention gets `Spans`, the cache
`RaggedLayer`s. `Padded`: a rectangle [B, longest, D], right-aligned so that the last token stays
last; attention gets masks from transformers' own mask functions, the cache is transformers' own.

Both offer: `place`, which rows to take so that they sit as the layout wants; `enter` and `step`,
what a stage's layers need in a prefill and in a decoding step (the mask, None when packed);
`positions`, numbers 0, 1, … of the rows in their samples; `per_row`, a value per sample spread
over them.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_causal_mask

from vtfast.runtime import names
from vtfast.runtime.kv_cache import Holes, adopt
from vtfast.runtime.packed_kv_cache import RaggedLayer, Rows, Spans
from vtfast.runtime.visual_tokens import to_device

if TYPE_CHECKING:
    from vtfast.runtime.stage import Stage
    from vtfast.runtime.state import Pass


class Packed:
    """No padding: rows are where they are."""

    is_packed = True

    def place(self, run: "Pass", source: Tensor | None, device: torch.device) -> Tensor | None:
        """The rows `source` of the running tensor, one after another."""
        run.slots = None
        return source

    def enter(self, run: "Pass", stage: "Stage", hidden: Tensor) -> None:
        """Make the stage's layers ragged and announce the rows to come."""
        if run.cache is None:
            run.spans = Spans.without_past(run.lengths, hidden.device)
            return
        state = adopt(run.cache, run)
        seen = run.cache.get_seq_length()
        cached: Rows | None = state.stages.get(stage.layer)
        if cached is None:
            cached = state.stages[stage.layer] = self._ragged(run, stage, hidden.device)
        run.spans = cached.extend(run.lengths, run.cache.layers)
        if stage.layer == 0:
            state.gap = seen + run.chunk - max(cached.lengths)

    def step(self, run: "Pass", layer: int, cached: Rows, hidden: Tensor) -> None:
        """Announce one more row per sample."""
        layers, kernels = run.cache.layers, run.settings.kernels
        run.spans = cached.extend([1] * run.batch, layers, step=True, kernels=kernels)

    def positions(self, run: "Pass", layer: int, cached: Rows | None, hidden: Tensor) -> Tensor:
        """int64 [1, rows] in a prefill, [B, 1] in a step."""
        if run.is_step and cached is not None:
            return to_device([n - 1 for n in cached.lengths], hidden.device)[:, None]
        starts = [sum(run.lengths[:b]) for b in range(run.batch)]
        rows = torch.arange(sum(run.lengths), device=hidden.device)
        return rows - self.per_row(run, to_device(starts, hidden.device))

    def per_row(self, run: "Pass", values: Tensor) -> Tensor:
        """[B] → [1, rows] in a prefill, [B, 1] in a step."""
        if run.is_step:
            return values[:, None]
        lengths = to_device(run.lengths, values.device)
        return values.repeat_interleave(lengths, output_size=sum(run.lengths))[None]

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
    """Left padding, as transformers does it, for every attention implementation and cache."""

    is_packed = False

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config
        self._cache_argument = names.cache_argument()

    def place(self, run: "Pass", source: Tensor | None, device: torch.device) -> Tensor:
        """The rows `source` (None: all), each sample right-aligned; padding repeats row 0."""
        lengths, longest, total = run.lengths, max(run.lengths), sum(run.lengths)
        fill, run.slots = torch.arange(total, device=device), None
        if min(lengths) < longest:
            shift = [(b + 1) * longest - sum(lengths[: b + 1]) for b in range(run.batch)]
            run.slots = fill + torch.repeat_interleave(
                to_device(shift, device), to_device(lengths, device), output_size=total
            )
            fill = fill.new_zeros(run.batch * longest).index_copy_(0, run.slots, fill)
        return fill if source is None else source[fill]

    def enter(self, run: "Pass", stage: "Stage", hidden: Tensor) -> Any:
        """The stage's mask; its columns are remembered on the cache."""
        layer, longest, cache = stage.layer, hidden.shape[1], run.cache
        valid = self._valid(run, hidden)
        if cache is None:
            return self._mask(None, layer, hidden, valid)
        state, past = adopt(cache, run), int(cache.get_seq_length(layer))
        if layer == 0:
            state.gap = int(cache.get_seq_length()) + run.chunk - past - longest
        holes: Holes | None = state.stages.get(layer)
        known = holes.mask if holes else run.mask if past else None
        mask = None
        if known is not None or valid is not None:
            # A static cache has columns for tokens to come: causality hides them until then.
            room = cache.get_mask_sizes(longest, layer)[0] - past - longest
            real = torch.ones_like(hidden[:, :1, 0], dtype=torch.bool)
            before = real.expand(-1, past) if known is None else known[:, :past].bool()
            now = real.expand(-1, longest) if valid is None else valid
            mask = torch.cat([before, now, real.expand(-1, room)], 1)
        state.stages[layer] = Holes(mask)
        return self._mask(cache, layer, hidden, mask)

    def step(self, run: "Pass", layer: int, cached: Holes, hidden: Tensor) -> Any:
        """The stage's mask with one more column."""
        cached.step(run.mask, run.cache.get_mask_sizes(1, layer)[0])
        return self._mask(run.cache, layer, hidden, cached.mask)

    def positions(self, run: "Pass", layer: int, cached: Holes | None, hidden: Tensor) -> Tensor:
        """int64 [B, longest] in a prefill, [B, 1] in a step."""
        real = torch.ones_like(hidden[..., 0], dtype=torch.int64)
        if run.is_step and cached is not None:
            gaps = real - real if cached.mask is None else (~cached.mask).sum(1, keepdim=True)
            return run.cache.get_seq_length(layer) - gaps
        valid = self._valid(run, hidden)
        return ((real if valid is None else valid).cumsum(1) - 1).clamp(min=0)

    def per_row(self, run: "Pass", values: Tensor) -> Tensor:
        """[B] → [B, 1]."""
        return values[:, None]

    @staticmethod
    def _valid(run: "Pass", hidden: Tensor) -> Tensor | None:
        """bool [B, longest]: which places hold a row; None if all do."""
        if run.slots is None:
            return None
        flat = torch.zeros_like(hidden[..., 0], dtype=torch.bool).flatten()
        return flat.index_fill_(0, run.slots, True).view(run.batch, -1)

    def _mask(self, cache: Cache | None, layer: int, hidden: Tensor, mask: Tensor | None) -> Any:
        """transformers' mask for a layer of this length. Its shortcut (`is_causal` for a mask)
        would read our mask back, so it is closed when there is one."""
        return create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=mask,
            **{self._cache_argument: cache},
            position_ids=None,  # gaps would be taken for packed sequences
            layer_idx=layer,
            allow_is_causal_skip=mask is None,
        )


Layout = Packed | Padded
