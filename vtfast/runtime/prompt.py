"""Where the prompt of each sample ends, which is where text looks at its pictures from.

`generate` prunes when it has seen the prompt alone. A forward over prompt and answer (a training
step, an answer scored again, drafts to be verified) has to choose the same tokens, so methods see
the prompt and nothing after it.
"""

from typing import Any

import numpy as np

from vtfast.errors import InputError
from vtfast.runtime.call import Call


def tokens_after_prompt(call: Call, logits_to_keep: Any) -> tuple[list[int], int]:
    """Tokens of each sample that follow its prompt, and of how many samples that is unknown.

    The prompt ends with the token that predicts the first token of the answer: as the caller says
    (`prompt_length`); else before the first label that counts; else, if the last n > 1 logits are
    wanted, with the first of those tokens; else with the last token. An end before the sample's
    last picture has ended cannot be where text looks from; then it is unknown, and the whole sample
    is taken. Raises InputError for a `prompt_length` that cannot be.
    """
    columns = call.shape[1]
    valid, visual = call.valid, call.visual
    given, counts = _given(call), call.labels
    asked = logits_to_keep if type(logits_to_keep) is int and logits_to_keep > 1 else 0
    after, unknown = [], 0
    stops = [*call.starts[1:].tolist(), valid.size]
    for number, (start, stop) in enumerate(zip(call.starts.tolist(), stops, strict=True)):
        row, first = divmod(start, columns)
        last = first + stop - start
        pictures = np.flatnonzero(visual[row, first:last])
        behind = first + int(pictures[-1]) + 1 if len(pictures) else first  # the last picture
        end = last
        if given is not None:
            end = first + given[number % len(given)]
            _check_given(given[number % len(given)], number, end, behind, last, valid[row])
        elif counts is not None and counts[row, first:last].any():
            end = first + int(counts[row, first:last].argmax())
        elif asked and not call.is_joined:
            end = columns - asked + 1
        if end <= behind and end < last and len(pictures):
            unknown, end = unknown + 1, last
        after.append(int(valid[row, end:last].sum()))
    return after, unknown


def _given(call: Call) -> list[int] | None:
    if call.prompt_length is None:
        return None
    lengths = call.prompt_length.tolist()
    if len(lengths) not in (1, len(call.starts)):
        raise InputError(
            f"prompt_length has {len(lengths)} entries for {len(call.starts)} samples; "
            "pass an int, or one for each sample"
        )
    return lengths


def _check_given(
    length: int, number: int, end: int, behind: int, last: int, valid: np.ndarray
) -> None:
    """A prompt must end in a token of text after the sample's pictures."""
    begin = f"prompt_length={length} of sample {number}: "
    if not (length > 0 and end <= last):
        raise InputError(f"{begin}expected 1 to {last - end + length}, the tokens of the sample")
    if end <= behind:
        raise InputError(
            f"{begin}a picture ends at token {behind - end + length}; count text behind it too"
        )
    if not valid[end - 1]:
        raise InputError(
            f"{begin}the token there is padding; count the columns of input_ids up to the prompt's "
            "last token, padding on the left included"
        )
