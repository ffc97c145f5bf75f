"""What `vtfast doctor` tries: every op once, the self-check, the bundled models, a patch."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vtfast import ops, toy
from vtfast.cli._checkup import BROKEN, OK, WARNING, Check, Op, short
from vtfast.errors import UnsupportedVersionError
from vtfast.models import SUPPORTED
from vtfast.models.self_check import TESTED
from vtfast.patching import check_class, is_patched, patch
from vtfast.runtime import attention

_CHECKPOINTS = Path(toy.__file__).parent / "checkpoints"
_FREE_BYTES = 20e9  # fewer do not hold the weights of a 7B model


def try_ops(advice: list[str]) -> list[Op]:
    """Call every op with small inputs, and see from outside whether it launches its kernel."""
    device, found = _device(), []
    for name, call in op_calls(device).items():
        try:
            with _Launches() as launches:
                got = call("auto")
            implementation, reason = "triton", f"{device.type} tensors"
            if name not in launches.seen:
                implementation, reason = "eager", _why_not_triton(name, call)
            torch.testing.assert_close(got, call("eager"), rtol=1e-2, atol=1e-3)
            found.append(Op(name, implementation, reason, OK))
        except Exception as error:
            found.append(Op(name, "none", short(error), BROKEN))
            advice.append(f"the op {name} fails here; report it with this output")
    return found


def op_calls(device: torch.device) -> dict[str, Callable[[str], Any]]:
    """A small call of every op in `vtfast.ops`, given `impl`."""
    cut = ops.Ragged.from_lengths([6, 3], device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 16, generator=generator).to(device)
    q = torch.randn(9, 4, 16, generator=generator).to(device)
    k = torch.randn(9, 2, 16, generator=generator).to(device)
    index = torch.tensor([7, 0, 3], device=device)
    return {
        "diversity_select": lambda impl: ops.diversity_select(x, cut, [3, 1], impl=impl),
        "gather_rows": lambda impl: ops.gather_rows(index, x, q, impl=impl),
        "last_query_scores": lambda i: ops.last_query_scores(q[:2], k, cut, scale=0.25, impl=i),
        "ragged_attention": lambda impl: ops.ragged_attention(q, k, k, cut, cut, impl=impl),
        "ragged_decode": lambda impl: ops.ragged_decode(q[:2], k, k, [6, 3], impl=impl),
        "random_select": lambda i: ops.random_select(cut, [2, 1], seed=0, stream=0, impl=i),
        "topk_select": lambda impl: ops.topk_select(x[:, 0], cut, [2, 1], impl=impl),
    }


def try_the_rest(advice: list[str]) -> list[Check]:
    """The bundled models, a patch, what is registered with transformers, the local cache."""
    names = sorted(path.name for path in _CHECKPOINTS.iterdir() if path.is_dir())
    tries: dict[str, Callable[[], str]] = {
        **{f"toy-{name} answers": partial(_ask_toy, name) for name in names},
        "transformers": _release,
        **{f"self-check of {name}": partial(_self_check, name) for name in SUPPORTED},
        "patch and generate": _patch_and_undo,
        "attention registry": _registry,
    }
    found = []
    for name, attempt in tries.items():
        try:
            found.append(Check(name, attempt(), OK))
        except Exception as error:
            found.append(Check(name, short(error), BROKEN))
            advice.append(_what_to_do(name, error))
    return [*found, _hub_cache(advice)]


class _Launches(TorchDispatchMode):
    """Notes which of our registered ops are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "vtfast":
            self.seen.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _why_not_triton(name: str, call: Callable[[str], Any]) -> str:
    """What the op itself says when its kernel is asked for."""
    try:
        call("triton")
    except (RuntimeError, ValueError) as error:
        return str(error).removeprefix(f"{name}: ").partition(";")[0]
    return "the kernel runs here in Triton's interpreter, which has to be asked for"


def _ask_toy(name: str) -> str:
    """Load a bundled model, see that its tokens fit its processor, and ask it one question."""
    model, processor = toy.load(name)
    token, known = processor.image_token, model.config.image_token_id
    if processor.tokenizer.convert_tokens_to_ids(token) != known:
        raise ValueError(f"the processor's {token} is not the model's token {known}")
    inputs, truth = _question(processor)
    said = _say(model, inputs)
    answer = processor.decode(said, skip_special_tokens=True)
    if answer != truth:
        raise ValueError(f"it says {answer!r} where {truth!r} is right")
    return f'"{answer}", as it should'


def _release() -> str:
    """Whether the installed transformers is one vtfast was tested with."""
    tested, here = ", ".join(TESTED), transformers.__version__
    if here in TESTED:
        return f"{here} is one of the releases vtfast was tested with ({tested})"
    return f"{here} is not one of the releases vtfast was tested with ({tested}); see self-checks"


def _self_check(name: str) -> str:
    """What a first patch asks on a release that was not tested."""
    check_class(getattr(transformers, name))
    return "a tiny pruned one has the logits of the masked sequence, in both layouts"


def _what_to_do(name: str, error: Exception) -> str:
    if isinstance(error, UnsupportedVersionError):
        return f"install a tested release: pip install transformers=={TESTED[-1]}"
    return f"the check '{name}' fails; reinstall vtfast, or report this output"


def _patch_and_undo() -> str:
    """Patch the bundled LLaVA, keep everything, keep half, and take the patch out again."""
    model, processor = toy.load("llava")
    model = model.to(_device())
    inputs, _ = _question(processor)
    inputs = inputs.to(model.device)
    plain, visual = (
        _say(model, inputs),
        int((inputs["input_ids"] == model.config.image_token_id).sum()),
    )
    with patch(model, keep=1.0):
        if not torch.equal(_say(model, inputs), plain):
            raise ValueError("keep=1.0 does not give the unpruned answer")
    with patch(model, keep=0.5) as handle:
        _say(model, inputs)
        report = handle.report
    if is_patched(model) or not torch.equal(_say(model, inputs), plain):
        raise ValueError("the patch leaves something behind")
    assert report is not None
    return (
        f"keep 1.0 changes nothing; keep 0.5 leaves {report.average:.1f} of {visual} tokens on "
        f"average ({report.path} layout); nothing stays behind"
    )


def _registry() -> str:
    """The name vtfast adds to transformers' registries has to be its own."""
    attention.register()
    if ALL_ATTENTION_FUNCTIONS[attention.NAME] is not attention.attend:
        raise ValueError(f"another package has registered the attention {attention.NAME!r}")
    if attention.NAME not in ALL_MASK_ATTENTION_FUNCTIONS:
        raise ValueError(f"transformers has no mask function {attention.NAME!r}")
    return f"{attention.NAME!r} is ours"


def _hub_cache(advice: list[str]) -> Check:
    """Where hub models are kept, and whether more can be."""
    folder = there = Path(constants.HF_HUB_CACHE)
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    result, status = f"{folder}, {free / 1e9:.0f} GB free", OK
    if not os.access(there, os.W_OK):
        status, result = WARNING, f"{folder}, not writable"
        advice.append(f"hub models cannot be kept in {folder}: set HF_HOME to a folder of yours")
    elif free < _FREE_BYTES:
        status = WARNING
        advice.append(f"{folder} has little room for hub models: make some, or set HF_HOME")
    if constants.HF_HUB_OFFLINE:
        result += ", offline (HF_HUB_OFFLINE)"
    return Check("hub cache", result, status)


def _question(processor: Any) -> tuple[Any, str]:
    """A drawn scene and its easiest question, encoded; and the true answer."""
    (picture,), (question,), (truth,) = toy.scenes(1, 0, "background")
    text = toy.prompt(processor, question)
    return processor(images=[picture], text=[text], return_tensors="pt"), truth


def _say(model: Any, inputs: Any) -> torch.Tensor:
    rows = model.generate(**inputs, do_sample=False, max_new_tokens=4)
    return rows[0, inputs["input_ids"].shape[1] :]
