"""Check on a tiny model that vtfast works with the transformers release that is installed.

vtfast reads and changes what transformers' models hand to their parts, which a release may rename
or reorder. A release in `TESTED` has passed the model tests. Any other is checked before a process
first patches a kind of model. A tiny random model of that class runs pruned in both layouts, with
two padded samples of one and two pictures, with and without a KV cache; one sample without padding,
in plain calls of several tokens; beams; and drafts that are cropped off again. Logits must be those
of the full sequence with the dropped tokens masked out, computed layer by layer without vtfast.

It does not try positions="renumber", static caches, videos, right padding, or attention
implementations other than SDPA and eager.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedConfig

from vtfast.errors import InputError, UnsupportedVersionError
from vtfast.models.base import TESTED_TEXT_MODELS, Family
from vtfast.models.self_check_trial import Patch, Trial, runs, tiny_model
from vtfast.runtime import attention
from vtfast.runtime.names import TESTED

VARIABLE = "VTFAST_SELF_CHECK"  # always: tested releases too; auto: others; never

_passed: set[tuple[object, ...]] = set()


def check_release(
    family: Family,
    cls: type,
    config: PreTrainedConfig,
    patch: Patch,
    implementation: str = "sdpa",
    path: str = "packed",
) -> None:
    """Run the self-check if it is due for this kind of model in this process.

    A kind is a class of transformers (a derived class counts as its base), the types of its text
    model and vision tower, and the attention implementation. A text model vtfast was never
    tested with is tried in the padded layout alone unless `path` is "packed".

    Raises UnsupportedVersionError where the self-check fails, before anything is changed.
    """
    mode = os.environ.get(VARIABLE, "auto")
    if mode not in ("always", "auto", "never"):
        raise InputError(f"{VARIABLE}={mode!r}; set it to 'always', 'auto' or 'never'")
    if mode == "never" or (mode == "auto" and transformers.__version__ in TESTED):
        return
    text = config.get_text_config().model_type
    packed = path == "packed" or text in TESTED_TEXT_MODELS
    kind = (cls.__name__, text, config.vision_config.model_type, implementation, packed)
    with attention.LOCK:  # one check at a time; other threads wait for its result
        if kind in _passed:
            return
        started = time.perf_counter()
        self_check(family, cls, config, patch, implementation, packed)
        _passed.add(kind)
        seconds = time.perf_counter() - started
    note = "" if implementation in ("sdpa", "eager") else f"; {implementation!r} itself not tried"
    logging.getLogger("vtfast").info(
        "self-check of %s on transformers %s passed in %.1f s%s",
        *(cls.__name__, transformers.__version__, seconds, note),
    )


def self_check(
    family: Family,
    cls: type,
    config: PreTrainedConfig,
    patch: Patch,
    implementation: str = "sdpa",
    packed: bool = True,
) -> None:
    """Compare a tiny pruned model with the masked full sequence; see the module.

    Only the types of text model and vision tower are read from `config`. Raises
    UnsupportedVersionError naming what differs. Leaves random states, defaults and transformers'
    registries as they were.
    """
    release, doing = f"transformers {transformers.__version__}", ""
    with _undisturbed():
        try:
            model = tiny_model(cls, family.tiny(config))
            batch, alone = (Trial(family, model, patch, pictures) for pictures in (3, 1))
            alone.run_unpatched()
        except Exception as error:
            raise UnsupportedVersionError(
                f"{release} could not be checked here: a tiny {cls.__name__} does not run "
                f"unpatched ({error}). Install a tested release ({', '.join(TESTED)}), patch where "
                f"the tiny model can run, or set {VARIABLE}=never to patch without a check"
            ) from error
        try:
            for path in ("padded", "packed") if packed and not family.recurrent else ("padded",):
                eager = path == "padded" and implementation == "eager"
                model.set_attn_implementation("eager" if eager else "sdpa")
                for doing, run in runs(batch, alone, path):
                    doing = f"{path} layout, {doing}"
                    run()
        except Exception as error:
            raise UnsupportedVersionError(
                f"{release} does not work as vtfast needs it to: in the self-check of "
                f"{cls.__name__} ({doing}): {error}. Nothing was changed; install a tested release "
                f"({', '.join(TESTED)})"
            ) from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Run in fp32 on the CPU whatever the caller's defaults; afterwards they are as before."""
    dtype, registered = torch.get_default_dtype(), attention.is_registered()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]))
        stack.callback(torch.set_default_dtype, dtype)
        if not registered:
            stack.callback(attention.unregister)
        torch.set_default_dtype(torch.float32)
        yield
