"""One of two processes that train tiny models whose weights are sharded: see `two_processes`."""

import functools
from pathlib import Path
from typing import Any

import accelerate
import torch
import torch.distributed as dist
from model_runs import fed, logits_of
from sharded_runs import PLANS, gradients, labels_of, largest
from tiny_models import FAMILIES
from tiny_parts import Picture
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from two_processes import main

import vtfast
from vtfast import Prune


def whole_step(family: Any, plan: Any) -> dict[str, torch.Tensor]:
    """The mean over both processes' batches of loss and gradients, without sharding."""
    model = family.build()
    with vtfast.patch(model, plan):
        steps = [gradients(model, fed(family, batch)) for batch in batches(family)]
    return {name: (steps[0][name] + steps[1][name]) / 2 for name in steps[0]}


def batches(family: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What each of the processes trains on; they differ in samples, pictures and lengths."""
    return family.inputs("batch"), family.inputs("single", seed=7)


def mean_loss(step: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The step with the mean of both processes' losses, as gradients are means already."""
    dist.all_reduce(step["loss"])
    return {**step, "loss": step["loss"] / 2}


def by_layers(model: Any) -> Any:
    """Sharded as most do it: every decoder layer, and the rest."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def by_parts(model: Any) -> Any:
    """Attention and the final norm apart, too."""
    mesh = init_device_mesh("cpu", (2,))
    text = model.model.language_model
    for layer in text.layers:
        fully_shard(layer.self_attn, mesh=mesh)
    for part in (text.embed_tokens, text.norm):
        fully_shard(part, mesh=mesh)
    return by_layers(model)


def by_projections(model: Any) -> Any:
    """The projections that scores are made from apart."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.language_model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            fully_shard(part, mesh=mesh)
    return by_layers(model)


def first_version(model: Any, original: bool) -> Any:
    """Wrapped in FullyShardedDataParallel, layer by layer."""
    layer = {type(model.model.language_model.layers[0])}
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=layer)
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=original, device_id=torch.device("cpu")
    )


def step_error(family: Any, plan: Any, shard: Any, patch_first: bool) -> float:
    """How loss and gradients of a sharded model differ from those of one process."""
    expected, model = whole_step(family, plan), family.build()
    if patch_first:
        vtfast.patch(model, plan)
        model = shard(model)
    else:
        model = shard(model)
        vtfast.patch(model, plan)
    found = mean_loss(gradients(model, fed(family, batches(family)[dist.get_rank()])))
    assert found.keys() == expected.keys()
    return max(largest(found[name], value) for name, value in expected.items())


def logits_error(family: Any, plan: Any, shard: Any, path: str) -> float:
    """How logits differ, in evaluation."""
    found, inputs = [], batches(family)[dist.get_rank()]
    for model in (family.build(), shard(family.build()).eval()):
        with vtfast.patch(model, plan, path=path):
            found.append(logits_of(family, model, inputs))
    return largest(*found)


def first_version_error(family: Any, plan: Any, original: bool, patch_first: bool) -> float:
    """How a process's losses in three training steps differ: those of later steps tell whether
    the gradients were right, which FSDP1 does not give by name."""
    losses: list[list[torch.Tensor]] = [[], []]
    for sharded in (False, True):
        inner = family.build()
        if patch_first:
            vtfast.patch(inner, plan)
        model = first_version(inner, original) if sharded else inner
        if not patch_first:
            vtfast.patch(inner, plan)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            mine = batches(family)[dist.get_rank() :][:1] if sharded else batches(family)
            for batch in mine:
                losses[sharded].append(backward(model, fed(family, batch), len(mine)))
            optimizer.step()
            optimizer.zero_grad()
    expected = losses[0][dist.get_rank() :: 2]
    return max(largest(a, b) for a, b in zip(expected, losses[1], strict=True))


def backward(model: Any, inputs: dict[str, torch.Tensor], steps: int) -> torch.Tensor:
    """The loss; adds 1 / steps of its gradients."""
    loss = model.train()(**inputs, labels=labels_of(inputs), use_cache=False).loss
    (loss / steps).backward()
    return loss.detach()


def one_process_drops_nothing(shard: Any) -> float:
    """A budget of 16 tokens drops some of 24 and none of 12; both processes have to go on."""
    family, plan = FAMILIES["qwen"], [Prune(0, "topk", 16), Prune(3, "dart", 16)]
    big = family.samples([4, Picture((1, 8, 12), seed=1), 7])
    small = family.samples([4, Picture((1, 4, 12), seed=2), 9], seed=1)
    inputs = [family.batch(samples) for samples in (big, small)][dist.get_rank()]
    found = []
    for model in (family.build(), shard(family.build())):
        with vtfast.patch(model, plan):
            found.append(gradients(model, inputs)["loss"])
    return largest(*found)


def refusal(family: Any) -> str:
    """What a model says whose attention modules are FSDP1 units of their own."""
    inner = family.build()
    attention = {type(layer.self_attn) for layer in inner.model.language_model.layers}
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=attention)
    model = FullyShardedDataParallel(
        inner, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
    )
    with vtfast.patch(inner, [Prune(0, "topk", 0.5)]):
        try:
            logits_of(family, model, family.inputs("single"))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "nothing"


def accelerate_error(family: Any) -> float:
    """How the loss of a step under accelerate's FSDP plugin differs from that of one process."""
    expected, model = whole_step(family, "fastv")["loss"], family.build()
    accelerator = accelerate.Accelerator(cpu=True)
    # accelerate reads its plugin on GPUs alone, and on a CPU falls back to DDP without a word.
    accelerator.state.distributed_type = accelerate.DistributedType.FSDP
    accelerator.state.fsdp_plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[type(model.model.language_model.layers[0]).__name__],
    )
    vtfast.patch(model, "fastv")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model, optimizer = accelerator.prepare(model, optimizer)
    assert isinstance(model, FSDPModule)
    inputs, losses = fed(family, batches(family)[dist.get_rank()]), []
    for _ in range(2):
        loss = model.train()(**inputs, labels=labels_of(inputs), use_cache=False).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean_loss({"loss": loss.detach()})["loss"])
    accelerate.state.AcceleratorState._reset_state(True)
    assert losses[1] < losses[0]
    return largest(losses[0], expected)


def work(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("llava", "qwen"):
        family = FAMILIES[name]
        for i, plan in enumerate(PLANS):
            found[f"step {name} {plan}"] = step_error(family, PLANS[plan], by_layers, i % 2 == 0)
        for path in ("padded", "packed"):
            found[f"logits {name} {path}"] = logits_error(family, PLANS["dart"], by_layers, path)
        for shard, plan in ((by_parts, "at-layer-0"), (by_parts, "dart"), (by_projections, "dart")):
            case = f"step {name} {plan} {shard.__name__}"
            found[case] = step_error(family, PLANS[plan], shard, True)
        found[f"accelerate {name}"] = accelerate_error(family)
        # Without the original parameters transformers' Qwen2.5-VL finds no dtype, unpatched too.
        for original in (False, True) if name == "llava" else (True,):
            for first in (False, True):
                found[f"first {name} {original} {first}"] = first_version_error(
                    family, PLANS["fastv" if first else "dart-at-layer-0"], original, first
                )
    for shard in (by_layers, by_parts, by_projections):
        found[f"uneven {shard.__name__}"] = one_process_drops_nothing(shard)
    found["refusal"] = refusal(FAMILIES["llava"])
    return found


if __name__ == "__main__":
    main(work)
