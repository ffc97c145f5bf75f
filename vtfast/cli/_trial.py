"""What `vtfast doctor` tries once torch and transformers can be imported: ops, models, a patch."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as ATTENTIONS

from vtfast import ops, toy
from vtfast.errors import UnsupportedVersionError
from vtfast.inputs.checkpoints import quiet
from vtfast.inputs.devices import device_named, torch_build, why_no_gpu
from vtfast.inputs.hub import hub_cache, short
from vtfast.models import SUPPORTED
from vtfast.models.self_check import TESTED
from vtfast.patching import check_class, is_patched, patch
from vtfast.runtime import attention
from vtfast.toy.evaluate import accuracy, dataset
from vtfast.toy.model import BUNDLED


def run(advice: list[str]) -> dict[str, Any]:
    """All findings; adds to `advice`."""
    cpu = {"name": "cpu", "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    devices: list[dict[str, Any]] = [cpu]
    for number in range(torch.cuda.device_count()):
        about, free = torch.cuda.get_device_properties(number), torch.cuda.mem_get_info(number)[0]
        gpu = {"name": f"cuda:{number}", "model": about.name, "memory_bytes": about.total_memory}
        devices.append({**gpu, "free_bytes": free, "capability": f"{about.major}.{about.minor}"})
    advice += filter(None, [why_no_gpu()])
    with quiet():
        tried = [try_op(name, advice) for name in op_calls()]
        checks = [try_check(name, advice) for name in CHECKS]
    return {"runtime": torch_build(), "devices": devices, "ops": tried, "checks": checks}


def op_calls() -> dict[str, Callable[[str], Any]]:
    """A small call of every op in `vtfast.ops`, given `impl`."""
    device, generator = device_named("auto"), torch.Generator().manual_seed(0)
    x, q, k = (torch.randn(9, n, 16, generator=generator).to(device) for n in (1, 4, 2))
    segments, index = ops.Ragged.from_lengths([6, 3], device), torch.tensor([7, 0], device=device)
    weights = x[:, 0, 0].abs()
    return {
        "coverage_select": lambda i: ops.coverage_select(
            x[:, 0], weights, segments, [3, 1], impl=i
        ),
        "diversity_select": lambda i: ops.diversity_select(x[:, 0], segments, [3, 1], impl=i),
        "dpp_select": lambda i: ops.dpp_select(x[:, 0], weights, segments, [3, 1], impl=i),
        "gather_rows": lambda i: ops.gather_rows(index, x, q, impl=i),
        "image_hash": lambda i: ops.image_hash(x, impl=i),
        "last_query_scores": lambda i: ops.last_query_scores(q[:2], k, segments, scale=1, impl=i),
        "ragged_attention": lambda i: ops.ragged_attention(q, k, k, segments, segments, impl=i),
        "ragged_decode": lambda i: ops.ragged_decode(q[:2], k, k, [6, 3], impl=i),
        "random_select": lambda i: ops.random_select(segments, [2, 1], seed=0, stream=0, impl=i),
        "topk_select": lambda i: ops.topk_select(x[:, 0, 0], segments, [2, 1], impl=i),
    }


class _Launches(TorchDispatchMode):
    """Notes which of vtfast's registered ops, which launch kernels, are called."""

    seen = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += f" {func}"
        return func(*args, **(kwargs or {}))


def try_op(name: str, advice: list[str]) -> dict[str, str]:
    """Which implementation an op takes with `impl="auto"`, seen in a call, and why."""
    call, launches = op_calls()[name], _Launches()
    implementation, reason, status = "triton", f"{device_named('auto').type} tensors", "ok"
    try:
        with launches:
            result = call("auto")
        torch.testing.assert_close(result, call("eager"), rtol=1e-2, atol=1e-3)
    except Exception as error:
        implementation, reason, status = "none", short(error), "broken"
        advice.append(f"the op {name} fails here; report it with this output")
    if status == "ok" and f"vtfast.{name}." not in launches.seen:
        implementation, reason = "eager", "Triton's interpreter is used only if asked for"
        try:
            call("triton")
        except (RuntimeError, ValueError) as error:  # the op itself says why
            reason = str(error).removeprefix(f"{name}: ").partition(";")[0]
    return {"name": name, "implementation": implementation, "reason": reason, "status": status}


def try_check(name: str, advice: list[str]) -> dict[str, str]:
    """The result of one of `CHECKS`; if it fails, what to do is added to `advice`."""
    try:
        return {"name": name, "result": CHECKS[name](), "status": "ok"}
    except Exception as error:
        fix, status = f"the check '{name}' fails; reinstall vtfast, or report this output", "broken"
        if isinstance(error, UnsupportedVersionError):
            fix = f"install a tested release: pip install transformers=={TESTED[-1]}"
        if isinstance(error, UserWarning):
            fix, status = str(error), "warning"
        advice.append(fix)
        return {"name": name, "result": short(error), "status": status}


def _bundled_model(name: str) -> str:
    if accuracy(*toy.load(name), "background", 1) < 1:
        raise ValueError("an easy question is answered wrong")
    return "an easy question is answered right, as it should be"


def _patch_and_generate() -> str:
    """Patch the bundled LLaVA, keep everything, keep half, and undo the patch."""
    model, processor = toy.load("llava")
    inputs = dataset(processor, "background", 1, 0).batch([0], device_named("auto")).inputs
    model = model.to(device_named("auto"))
    generate = partial(model.generate, **inputs, do_sample=False, max_new_tokens=4)
    plain = generate()
    with patch(model, keep=1.0):
        if not torch.equal(generate(), plain):
            raise ValueError("keep=1.0 does not give the unpruned answer")
    with patch(model, keep=0.5) as handle:
        generate()
        half = str(handle.report).rpartition("\n")[-1].strip()
    if is_patched(model) or not torch.equal(generate(), plain):
        raise ValueError("the patch leaves something behind")
    return f"keep 1.0 changes nothing; keep 0.5: {half}; nothing stays behind"


def _self_check(name: str) -> str:
    cls = getattr(transformers, name, None)
    if cls is None:
        return f"transformers {transformers.__version__} does not have it"
    check_class(cls)  # what a first patch does on an untested release
    layouts = SUPPORTED[name].layouts
    where = "both layouts" if len(layouts) > 1 else f"the {layouts[0]} layout"
    return f"a tiny pruned model has the logits of the masked sequence, in {where}"


def _registry() -> str:
    attention.register()
    if not attention.is_registered() or ATTENTIONS[attention.NAME] is not attention.attend:
        raise ValueError(f"another package has registered the attention {attention.NAME!r}")
    return f"{attention.NAME!r} is vtfast's attention"


CHECKS: dict[str, Callable[[], str]] = {
    **{f"toy-{name} answers": partial(_bundled_model, name) for name in BUNDLED},
    "transformers": lambda: f"{transformers.__version__}; tested releases: {', '.join(TESTED)}",
    **{f"self-check of {name}": partial(_self_check, name) for name in SUPPORTED},
    "patch and generate": _patch_and_generate,
    "attention registry": _registry,
    "hub cache": hub_cache,
}
