"""Labels that a pruned forward cannot learn: those a visual token or padding would predict."""

from typing import Any

import torch

from vtfast.runtime.call import IGNORED, Call


def ignore_unpredictable(call: dict[str, Any], read: Call) -> tuple[dict[str, Any], int]:
    """The call with such labels set to -100, and how many that are.

    The token after a picture is predicted from the picture's last token, which may be dropped and
    then has no logits; a padded sample's first token is predicted from padding. Collators that mask
    nothing but padding and placeholders label both. `num_items_in_batch`, by which a trainer has
    the loss divided, shrinks by the share of these labels in this call: exactly right for one
    call a step, and as far as calls are alike for several.
    """
    if read.labels is None:
        return call, 0
    mute = read.visual | ~read.valid
    ignored = int((mute[:, :-1] & read.labels[:, 1:]).sum())
    if not ignored:
        return call, 0
    labels = call["labels"]
    mute = torch.as_tensor(mute, device=labels.device)
    unpredictable = torch.cat([torch.zeros_like(mute[:, :1]), mute[:, :-1]], 1)
    call = {**call, "labels": labels.masked_fill(unpredictable, IGNORED)}
    if call.get("num_items_in_batch") is not None:  # a trainer has counted them
        counted = int(read.labels[:, 1:].sum())
        share = (counted - ignored) / counted
        call["num_items_in_batch"] = call["num_items_in_batch"] * share
    if call.get("shift_labels") is not None:  # moved by one already; the loss prefers them
        call["shift_labels"] = call["shift_labels"].masked_fill(mute, IGNORED)
    return call, ignored
