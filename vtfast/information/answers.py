"""Append true answers to their prompts, so that one forward predicts every token of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtfast.errors import InputError
from vtfast.runtime.names import CACHE

_EXTENDED = ("attention_mask", "mm_token_type_ids")  # by a column for every token of an answer
_REFUSED = ("inputs_embeds", "labels", *CACHE, "position_ids")


def check_answers(
    answers: Sequence[Sequence[int]], inputs: Mapping[str, Any], vocabulary: int
) -> list[list[int]]:
    """Check answers and inputs; return token ids, a list for each sample. Raises InputError."""
    ids = inputs.get("input_ids")
    if ids is None or getattr(ids, "ndim", 0) != 2:
        raise InputError(
            "inputs have no input_ids [samples, tokens]; pass what a processor returns"
        )
    for name in _REFUSED:
        if inputs.get(name) is not None:
            raise InputError(f"inputs hold {name}; pass what a processor returns, and no more")
    if len(answers) != len(ids):
        raise InputError(f"{len(answers)} answers for {len(ids)} samples; pass one for each")
    found = [[int(token) for token in answer] for answer in answers]
    for number, answer in enumerate(found):
        if not answer:
            raise InputError(
                f"the answer of sample {number} has no token; pass the ids of at least one, "
                "encoded without special tokens"
            )
        if not all(0 <= token < vocabulary for token in answer):
            raise InputError(
                f"the answer of sample {number} is {answer}; pass token ids below {vocabulary}"
            )
    return found


def with_answers(
    inputs: Mapping[str, Any], answers: Sequence[Sequence[int]], device: torch.device
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Append every answer without its last token to its prompt, and pad on the left.

    Returns the batch, and for each sample the column of `inputs` that each of its columns comes
    from (-1: none).
    """
    call = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
    ids = call["input_ids"]
    mask = call.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    if mask.shape != ids.shape:
        raise InputError(
            f"attention_mask is {tuple(mask.shape)} and input_ids {tuple(ids.shape)}; "
            "pass a mask of the same shape"
        )
    columns = [row.nonzero()[:, 0] for row in mask]
    length = max(len(c) + len(a) - 1 for c, a in zip(columns, answers, strict=True))
    call["attention_mask"] = mask
    for name in ("input_ids", *_EXTENDED):
        if call.get(name) is None:
            continue
        fresh = call[name].new_zeros(len(ids), length)
        for b, (place, answer) in enumerate(zip(columns, answers, strict=True)):
            given, start = call[name][b, place], length - len(place) - len(answer) + 1
            fresh[b, start : start + len(place)] = given
            if name != "mm_token_type_ids":
                tokens = torch.tensor(answer[:-1], device=device).long()
                fresh[b, start + len(place) :] = tokens if name == "input_ids" else 1
        call[name] = fresh
    original = []
    for place, answer in zip(columns, answers, strict=True):
        here = np.full(length, -1)
        start = length - len(place) - len(answer) + 1
        here[start : start + len(place)] = place.cpu().numpy()
        original.append(here)
    return call, original
