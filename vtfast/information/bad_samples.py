"""Measure a batch of samples of which one may be refused, by the processor or by the model."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch

from vtfast.errors import InputError, VTFastError
from vtfast.inputs.checkpoints import short
from vtfast.inputs.data import Skipped
from vtfast.methods.own import was_raised_in_a_method

# What code raises that is wrong for every sample; processors' errors come as InputError.
_FAULTS_OF_CODE = (TypeError, AttributeError, NameError, ImportError, AssertionError)

Record = Mapping[str, Any]
Measure = Callable[[list[int]], Iterable[Record]]


class Samples(Protocol):
    """What a run reads of a `vtfast.information.Dataset` besides its batches."""

    task: str
    skip_bad: bool
    skipped: list[Skipped]

    def __len__(self) -> int: ...
    def name_of(self, index: int) -> str: ...
    def keys(self) -> list[str]: ...
    def fingerprint(self, first: int | None = None) -> str: ...


def measure_batch(
    block: list[int], measure: Measure, data: Samples
) -> tuple[dict[int, Record], dict[int, Skipped]]:
    """The records of some samples, by number; and those that cannot be measured, and why.

    If the batch fails, its samples are measured one by one, to find those that fail alone.

    Raises InputError, which names the sample, for the first of them unless `data.skip_bad`. What
    is no fault of a sample, such as a patched model or a broken GPU, is raised in any case.
    """
    try:
        return dict(zip(block, measure(block), strict=True)), {}
    except Exception as error:
        if _is_general(error):
            raise
        failed = error
    records: dict[int, Record] = {}
    skipped: dict[int, Skipped] = {}
    if len(block) > 1:
        for number in block:
            more = measure_batch([number], measure, data)
            records |= more[0]
            skipped |= more[1]
        if not skipped and not data.skip_bad:
            raise failed  # it is the batch that is too large
        return records, skipped
    bad = Skipped(data.name_of(block[0]), short(failed))
    if not data.skip_bad:
        raise InputError(
            f"{bad}; correct it, or leave out such samples: --skip-bad, or "
            "Dataset(..., skip_bad=True)"
        ) from failed
    return {}, {block[0]: bad}


def finished(
    done: Mapping[int, Record], skipped: Mapping[int, Skipped], data: Samples
) -> tuple[list[Record], tuple[Skipped, ...]]:
    """All records in the order of the samples, and everything of the data set that was skipped.

    Raises InputError where every sample was.
    """
    if not done:
        raise InputError(f"{data.task}: no sample can be measured; {skipped[min(skipped)]}")
    return [done[n] for n in sorted(done)], (*data.skipped, *(skipped[n] for n in sorted(skipped)))


def _is_general(error: Exception) -> bool:
    """Whether an error is no fault of a sample, but of the model, the GPU, or the code."""
    if was_raised_in_a_method(error) and not isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, VTFastError):
        return not isinstance(error, InputError)
    return isinstance(error, (torch.AcceleratorError, *_FAULTS_OF_CODE))
