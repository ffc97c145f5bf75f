"""One of two processes that share tiny models by tensor parallelism: see `two_processes`."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from model_runs import continuation, fed, logits_of
from sharded_runs import PLANS, gradients, largest
from tiny_models import FAMILIES
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from two_processes import main

import vtfast
from vtfast import Prune

SEEN: dict[str, Any] = {}


@vtfast.register_method("reads-attention", scores=True)
def _reads_attention(context: Any) -> Tensor:
    """Keeps the tokens whose keys are nearest to the query in any single head, by their scores."""
    seen = context.attention
    SEEN.update(query=seen.query, keys=seen.keys, hidden=context.sequences.hidden)
    of_head = seen.query.shape[1] // seen.keys.shape[1]
    keys = seen.keys.repeat_interleave(of_head, 1)
    closest = torch.einsum("shd,thd->ts", seen.query, keys).amax(1)[context.sequences.visual]
    scores = closest * context.scores
    return vtfast.ops.topk_select(scores, context.segments, context.keep, impl=context.impl)


GENERATE = "fastv", "dart+random"  # plans that also generate, which takes longer
READS_ATTENTION = [Prune(2, "reads-attention", 0.5), Prune(4, "reads-attention", 0.2)]


def split(model: Any, folder: Path) -> Any:
    """The model as transformers loads it in each of the processes."""
    model.save_pretrained(folder)  # only the first process writes
    dist.barrier()
    mesh = init_device_mesh("cpu", (2,))
    return type(model).from_pretrained(
        folder, tp_plan="auto", device_mesh=mesh, dtype=torch.float32
    )


def split_by_torch(model: Any) -> Any:
    """The same with torch's own tensor parallelism."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.language_model.layers:
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            parallelize_module(layer, mesh, {name: ColwiseParallel()})
        parallelize_module(layer, mesh, {"self_attn.o_proj": RowwiseParallel()})
    return model


def compared(family: Any, models: tuple[Any, Any], plan: Any, path: str) -> dict[str, Any]:
    """How a split model differs from the whole one."""
    inputs, logits, kept, said = family.inputs("batch"), [], [], []
    for model in models:
        with vtfast.patch(model, plan, path=path, record=True) as handle:
            logits.append(logits_of(family, model, inputs)[:, -1])
            kept.append([row.tolist() for rows in handle.report.kept.values() for row in rows])
            if plan in GENERATE:
                said.append(continuation(model, inputs, steps=4).tolist())
    return {"error": largest(*logits), "kept": kept, "said": said or [None] * 2}


def trained(family: Any, models: tuple[Any, Any], plan: Any) -> float:
    """The largest difference between the gradients of a split model and of the whole one."""
    found = []
    for model in models:
        with vtfast.patch(model, plan):
            found.append(gradients(model, fed(family, family.inputs("batch"))))
        model.eval()
    return max(largest(found[0][name], value) for name, value in found[1].items())


def read(family: Any, models: tuple[Any, Any]) -> dict[str, float]:
    """Differences of what a method reads: to the whole model, and between the processes."""
    seen = []
    for model in models:
        with vtfast.patch(model, READS_ATTENTION[:1]):
            logits_of(family, model, family.inputs("batch"))
        seen.append(dict(SEEN))
    SEEN.clear()
    out = {f"{name} to whole": largest(seen[0][name], seen[1][name]) for name in seen[0]}
    for name, own in seen[1].items():
        parts = [torch.empty_like(own) for _ in range(2)]
        dist.all_gather(parts, own.contiguous())
        out[f"{name} between processes"] = float(not torch.equal(*parts))
    return out


def refusal(model: Any, family: Any) -> str:
    """What a model says whose one key head is split."""
    with vtfast.patch(model, [Prune(0, "topk", 0.5)]):
        try:
            logits_of(family, model, family.inputs("single"))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "nothing"


def work(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    plans = {**PLANS, "reads-attention": READS_ATTENTION}
    for name, family in FAMILIES.items():
        models = family.build(), split(family.build(), folder / name)
        for plan in plans:
            for path in ("padded", "packed"):
                found[f"{name} {plan} {path}"] = compared(family, models, plans[plan], path)
        by_torch = family.build(), split_by_torch(family.build())
        found[f"{name} by torch"] = compared(family, by_torch, READS_ATTENTION, "padded")
        found[f"read {name}"] = read(family, models)
        found[f"trained {name}"] = {
            plan: trained(family, models, plans[plan]) for plan in ("fastv", "dart")
        }
    one_head = FAMILIES["qwen"].build(num_key_value_heads=1)
    found["refusal"] = refusal(split(one_head, folder / "one-head"), FAMILIES["qwen"])
    return found


if __name__ == "__main__":
    main(work)
