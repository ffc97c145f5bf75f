"""Put a pruning plan into a stock Hugging Face model, and take it out again."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

from torch import nn

from vtfast.errors import AlreadyPatchedError, InputError, StateError
from vtfast.kernels._checks import IMPLS
from vtfast.models import check_stages, family_of, family_of_class, inner_model, supported_class
from vtfast.models.base import Family
from vtfast.models.self_check import check_release, self_check
from vtfast.plan import Plan
from vtfast.plan_file import check_seed, is_plan_file
from vtfast.prune import Prune
from vtfast.report import Report
from vtfast.runtime import attention
from vtfast.runtime.config import PatchConfig
from vtfast.runtime.hooks import PatchHooks

_DEFAULT_KEEP = float("0.5")  # an object of its own: tells a given 0.5 from none
_PATHS = ("auto", "packed", "padded")
_POSITIONS = ("keep", "renumber")
AnyPlan = str | PathLike[str] | Plan | Sequence[Prune]


class Handle:
    """A patched model: its plan, the report of its last prefill, `set` to give it another plan, and
    `remove` to undo the patch.

    A context manager; leaving it removes the patch, also after an exception.
    """

    def __init__(self, hooks: PatchHooks) -> None:
        self._hooks = hooks

    @property
    def plan(self) -> Plan:
        """The plan the model runs."""
        return self._hooks.config.plan

    @property
    def report(self) -> Report | None:
        """The last finished prefill with pictures; None before the first."""
        return self._hooks.report

    def set(
        self, plan: AnyPlan | None = None, *, keep: float = _DEFAULT_KEEP, horizon: Any = None
    ) -> None:
        """Give the model another plan, from the next prefill on, as a server does that has several
        budgets. Every other setting of the patch stays.

        A generation keeps the plan that it began with: what goes on from its KV cache, later
        pictures included, and the rest of a call of `generate` that has begun in another thread.

        Args:
            plan, keep, horizon: as `vtfast.patch` takes them. Without `plan` the preset that the
                model has now gets this `keep`, at its horizon unless another is passed.

        Raises what `vtfast.patch` raises for such a plan, and StateError once the patch has been
        removed; the model then runs on by the plan it had.

        Example:
            >>> handle.set("divprune", keep=0.25)
            >>> handle.set(keep=0.1)
            >>> model.generate(**inputs)
        """
        hooks = self._hooks
        with attention.LOCK:
            if not hooks.installed:
                raise StateError("the patch was removed; call vtfast.patch(model, …) again")
            model: Any = hooks.parts.model
            family = family_of(model)
            found = _resolve(model, family, plan, keep, horizon, hooks.config.plan)
            config = replace(hooks.config, plan=found)
            check_stages(model, family, config.stages.values())
            hooks.set(config)

    def remove(self) -> None:
        """Undo the patch; the model is then exactly what it was. Idempotent."""
        self._hooks.remove()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "active" if self._hooks.installed else "removed"
        return f"<vtfast.Handle {state}: {self.plan}>"


def patch(
    model: nn.Module,
    plan: str | PathLike[str] | Plan | Sequence[Prune] = "divprune+random",
    *,
    keep: float = _DEFAULT_KEEP,
    horizon: Any = None,
    seed: int | None = None,
    positions: str = "keep",
    impl: str = "auto",
    path: str = "auto",
    record: bool = False,
    strict_labels: bool = False,
) -> Handle:
    """Make a model drop visual tokens from now on, in `generate` and in plain calls.

    Only hooks are added to this instance: no class and no other model changes, and `unpatch` leaves
    no trace. Nothing is changed when an error is raised.

    A call of the model may say where prompts end, `model(**inputs, prompt_length=n)` (an int or one
    a sample, columns of `input_ids`), so that an answer behind a prompt chooses no tokens; labels
    tell it too. docs/training.md has more.

    Args:
        model: a model of a class in `vtfast.supported()`. Of any other module that holds exactly
            one such model (PEFT, `torch.compile`, DDP, FSDP), the model inside is patched.
        plan: a preset's name, a `Plan`, a list of `Prune`, or a file that `Plan.save` or
            `vtfast tune` wrote, "plan.json". See `Plan.preset` for the names.
        keep: float in (0, 1], with a preset only: visual tokens per image averaged over all decoder
            layers, as the papers count.
        horizon: int layer (or a measured horizon), with a preset only. Default: the checkpoint's
            `config.vtfast_horizon`, else 0.625 of the layers for LLaVA and 0.75 for the others (of
            LLaVA-1.5 and Qwen2.5-VL, arXiv 2512.07580), labelled "default, not measured".
        seed: int, of the random stages; the same picture, seed, layer and budget give the same
            picks on every device. Default: the plan's own, else 0.
        positions: "keep": rotary positions of the original sequence. "renumber": after a stage that
            drops, the tokens of a sample count 0, 1, … again on all rotary axes, new ones continue
            from each layer's own length, and keys cached in earlier layers keep theirs; as in the
            papers' code. A second turn and drafts are refused.
        impl: "auto" (Triton kernels on a GPU, plain PyTorch elsewhere) | "triton" | "eager": which
            implementation of the ops. An explicit one never falls back.
        path: "padded" works with every attention implementation; "packed" runs the pruned batch
            without padding, [1, tokens, D], from the first stage that drops tokens on, or from
            layer 0 on if the batch is padded (`output_hidden_states` shows it); samples that are
            all as long stay [B, n, D], unless impl="triton". "auto" packs where
            samples differ so much that at least a sixteenth of the padded batch, summed over
            layers, would be padding, and pads elsewhere, so a single prompt too; and wherever
            packing cannot serve (gradients, a static cache, attention maps, an attention other
            than SDPA). `report.path_reason` says why.
        strict_labels: refuse labels (other than -100) that a visual token or padding would predict.
            By default they are ignored like -100, with one warning that counts them.
        record: also keep, in `handle.report`, which tokens stayed and how long selection took
            (which waits for the device).

    Returns a `Handle`: `.remove()`, `.plan`, `.report`; usable in a `with` statement.

    Raises:
        AlreadyPatchedError: the model is patched; names the active plan.
        UnsupportedModelError: any other model, or a module that holds several (names them).
        UnsupportedVersionError: a release of transformers vtfast does not work with. An untested
            release is checked on a tiny model, in about half a second, when a process first patches
            a kind of model; VTFAST_SELF_CHECK=always checks every release, =never none.
        PlanError: a plan that is invalid, does not fit the model, or names an unknown method.
        InputError: an argument out of its range. StateError: impl="triton" without Triton.

    Example:
        >>> with vtfast.patch(model, keep=0.25) as handle:
        ...     model.generate(**inputs)
        >>> handle.report.average
    """
    choices = (("impl", impl, IMPLS), ("path", path, _PATHS), ("positions", positions, _POSITIONS))
    for name, value, allowed in choices:
        if value not in allowed:
            raise InputError(f"{name}={value!r}; pass one of {', '.join(map(repr, allowed))}")
    seed = check_seed(seed)
    model = inner_model(model)
    active = _hooks_of(model)
    if active is not None:
        raise AlreadyPatchedError(
            f"the model is patched already, with the plan {active.config.plan.name!r}; "
            "call set(…) of its handle, or vtfast.unpatch(model) before patching again"
        )
    family = family_of(model)
    plan = _resolve(model, family, plan, keep, horizon)
    check_transformers(model, family, path)
    how = seed, positions, impl, path, bool(record), bool(strict_labels)
    return _attach(model, family, plan, *how)


def check_transformers(model: Any, family: Family, path: str) -> None:
    """Make sure that vtfast works with the installed transformers, once for each kind of model.

    A release vtfast was not tested with runs the self-check of `vtfast.models.self_check`; a
    release that fails it raises UnsupportedVersionError. VTFAST_SELF_CHECK=always|auto|never.
    """
    implementation = attention.plain(model.config.get_text_config()._attn_implementation)
    how = _patch_tiny, implementation, path
    check_release(family, supported_class(model), model.config, *how)


def check_class(cls: type) -> None:
    """Run the self-check for a class of transformers, whatever the release."""
    config = cls.config_class()  # type: ignore[attr-defined]
    self_check(family_of_class(cls.__name__), cls, config, _patch_tiny)


def _patch_tiny(model: nn.Module, stages: Sequence[Prune], path: str) -> Handle:
    how = 0, "keep", "eager", path, True, False
    handle = _attach(model, family_of(model), Plan(tuple(stages)), *how)
    handle._hooks.packed.always = True  # its own cache is tried with single samples too
    return handle


def _attach(model: nn.Module, family: Family, plan: Plan, *how: Any) -> Handle:
    """Patch without checking the release of transformers."""
    parts = family.parts(model)
    config = PatchConfig(plan, len(parts.layers), parts.added, *how)
    check_stages(model, family, config.stages.values())
    hooks = PatchHooks(config, parts)
    hooks.install()
    return Handle(hooks)


def unpatch(model: nn.Module) -> None:
    """Undo `patch` in a model or in all models that a wrapper holds; each is then exactly what it
    was. An unpatched model is left alone."""
    while (hooks := _hooks_of(model)) is not None:
        hooks.remove()


def is_patched(model: nn.Module) -> bool:
    """Whether `patch` is active on this model, or on a model that this wrapper holds."""
    return _hooks_of(model) is not None


def _resolve(
    model: Any, family: Family, plan: Any, keep: Any, horizon: Any, now: Plan | None = None
) -> Plan:
    """The plan for this model, with the default horizon where a preset needs one; without a plan
    the one it has `now` again."""
    source, num_layers = "given", len(family.parts(model).layers)
    about = {"num_layers": num_layers, "model_type": model.config.model_type}
    keep = None if keep is _DEFAULT_KEEP else keep
    if plan is None and now is not None:
        return now.again(keep, horizon, **about)
    is_preset = isinstance(plan, str) and not is_plan_file(plan)
    if horizon is None and is_preset and plan.partition("+")[2]:
        horizon = getattr(model.config, "vtfast_horizon", None)
        source = "from the checkpoint"
        if horizon is None:
            horizon = int(family.default_horizon * num_layers + 0.5)
            source = "default, not measured"
    return Plan.resolve(plan, keep=keep, horizon=horizon, horizon_source=source, **about)


def _hooks_of(model: nn.Module) -> PatchHooks | None:
    """The `PatchHooks` of a patched model, found by its hooks (so a deep copy finds its own)."""
    if not isinstance(model, nn.Module):
        return None
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            owner = getattr(getattr(hook, "func", hook), "__self__", None)
            if isinstance(owner, PatchHooks):
                return owner
    return None
