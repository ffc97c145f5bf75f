"""Samples packed into one row without padding, as collators for padding-free training do it."""

from collections.abc import Sequence

import torch
from tiny_parts import Family, Sample
from torch import Tensor, nn
from torch.nn.functional import pad
from toy_scores import bundled

from vtfast import toy


def alone(family: Family, model: nn.Module, sample: Sample) -> dict[str, Tensor]:
    """A sample by itself, without a mask and with its `position_ids`."""
    return with_positions(model, family.batch([sample]))


def toy_scenes(name: str, count: int) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A bundled model, and questions about as many scenes as `alone` has them, unequally long."""
    model, processor = bundled(name)
    asked = zip(*toy.scenes(count, 3, "code")[:2], strict=True)
    parts = []
    for number, (picture, question) in enumerate(asked):
        text = toy.prompt(processor, question + " and" * number)
        inputs = processor(text=[text], images=[picture], return_tensors="pt")
        parts.append(with_positions(model, dict(inputs)))
    return model, parts


def with_positions(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """One sample with `position_ids` instead of a mask."""
    ids = inputs["input_ids"]
    if "mm_token_type_ids" not in inputs:
        positions = torch.arange(ids.shape[1])[None]
    else:
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
        told = {name: inputs[name] for name in names if name in inputs}
        positions, _ = model.model.get_rope_index(ids, **told)
    inputs = {name: value for name, value in inputs.items() if name != "attention_mask"}
    return {**inputs, "position_ids": positions}


def filled_up(parts: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Pixels of tiles, [n, tiles, C, H, W], get zeros behind them up to the most of any call."""
    name = "pixel_values"
    tiled = [part[name] for part in parts if name in part and part[name].ndim == 5]
    most = max((pixels.shape[1] for pixels in tiled), default=0)
    return [
        {**part, name: pad(part[name], (0,) * 7 + (most - part[name].shape[1],))}
        if tiled and name in part
        else part
        for part in parts
    ]


def in_one_row(parts: Sequence[dict[str, Tensor]], *, text_row: bool = False) -> dict[str, Tensor]:
    """These calls as one row; `text_row` puts positions of text above those of M-RoPE."""
    along = {"input_ids": 1, "mm_token_type_ids": 1, "position_ids": -1}
    names = dict.fromkeys(name for part in parts for name in part)
    parts = filled_up(parts)
    row = {
        name: torch.cat([p[name] for p in parts if name in p], along.get(name, 0)) for name in names
    }
    if text_row:
        text = torch.cat([torch.arange(p["input_ids"].shape[1]) for p in parts])[None, None]
        row["position_ids"] = torch.cat([text, row["position_ids"]])
    return row


def in_rows(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of equal length as one batch."""
    along = {"position_ids": -2}
    return {name: torch.cat([r[name] for r in rows], along.get(name, 0)) for name in rows[0]}
