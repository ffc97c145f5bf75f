"""Compare plans: ask a model the same questions unpruned and under each of them.

All plans answer one batch before the next, in alternating order, so that times are compared on the
same pictures at about the same moment. Each finished batch is written to a log, if one is given,
and a run that was stopped continues from there.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from vtfast.errors import InputError, StateError
from vtfast.evaluation.asking import answers
from vtfast.evaluation.results import Comparison, tabulate
from vtfast.information.bad_samples import finished
from vtfast.information.records import Records, fingerprint
from vtfast.inputs.data import Dataset, answer_ids
from vtfast.inputs.distributed import Shards
from vtfast.methods.own import code_of
from vtfast.methods.registry import written
from vtfast.models import inner_model
from vtfast.patching import is_patched, patch
from vtfast.plan import Plan
from vtfast.plan_file import is_plan_file
from vtfast.presets import needs_horizon
from vtfast.prune import Prune

UNPRUNED = "unpruned"
Asked = str | PathLike[str] | Plan | Sequence[Prune]
Match = Callable[[str, str], bool]


def exact(said: str, answer: str) -> bool:
    """Whether two texts are equal, up to case, spacing and surrounding punctuation."""
    return _plain(said) == _plain(answer)


def begins(said: str, answer: str) -> bool:
    """Whether a text begins with the answer, compared as in `exact`, and the word ends there."""
    said, answer = _plain(said), _plain(answer)
    return said.startswith(answer) and not said[len(answer) : len(answer) + 1].isalnum()


MATCHES: Mapping[str, Match] = {"exact": exact, "begins": begins}


def evaluate(
    model: Any,
    dataset: Dataset,
    plans: Asked | Sequence[Asked] | Mapping[str, Asked],
    *,
    keep: float | Sequence[float] | None = None,
    horizon: Any = None,
    seed: int | None = None,
    positions: str = "keep",
    path: str = "auto",
    impl: str = "auto",
    match: str | Match = "exact",
    max_new_tokens: int | None = None,
    batch: int = 8,
    log: Path | str | None = None,
    progress: bool | Callable[[], object] = True,
) -> Comparison:
    """Measure accuracy, tokens, arithmetic, time and memory of plans, beside the unpruned model.

    Decoding is greedy. Except for times the result depends on the arguments alone, also in several
    runs with a `log` and in several processes: under torchrun or `accelerate launch` each takes
    every n-th batch, on the model it has loaded, and all return the whole table. If the dataset
    skips bad samples, the table says which and why.

    Args:
        model: an unpatched one in eval mode.
        dataset: a `vtfast.information.Dataset`.
        plans: presets, `Plan`s, lists of `Prune` and plan files ("plan.json"); in a mapping, under
            names of your own.
        keep: of the presets; several make a row each. Default: each preset's own.
        horizon: of the presets that have one, and of "vtw" without a keep; see `vtfast.patch`.
        seed, positions, path, impl: as in `vtfast.patch`.
        match: "exact" or "begins" (both ignore case, extra spaces and surrounding punctuation), or
            a function (said, answer) -> bool.
        max_new_tokens: of an answer. Default: one more than the longest true answer has.
        batch: questions asked together, int ≥ 1.
        log: a file for finished questions (JSON lines); a run that finds one goes on with all
            questions it has, also if the data set was mended, extended, cut or reordered since.
            Each of several processes writes a file of its own, with its number after the name, and
            reads those of all.
        progress: True for a bar after two seconds, or a function to call after every question.

    Raises InputError and PlanError for what cannot be compared, before anything runs.

    Example:
        >>> found = vtfast.evaluate(model, dataset, ["divprune+random", "random"], keep=0.5)
        >>> found.of("random 0.5").accuracy
    """
    model = checked(model, dataset, match, batch=batch, max_new_tokens=max_new_tokens)
    how = {"seed": seed, "positions": positions, "path": path, "impl": impl}
    matching, is_right = match_of(match)
    resolved = resolve(model, plans, keep, horizon, how)
    most = longest_answer(dataset) if max_new_tokens is None else max_new_tokens
    settings = {
        "plans": {name: _written(plan, seed) for name, plan in resolved.items()},
        **how,
        "seed": seed or 0,
        "match": matching,
        "max_new_tokens": most,
        "batch": batch,
    }
    # The longest answer may be another once the data set is mended: what counts is what was asked.
    logged = {**settings, "max_new_tokens": max_new_tokens}
    ask = _Asker(model, dataset, resolved, how, is_right, most)
    n = len(dataset)
    blocks = [list(range(start, min(start + batch, n))) for start in range(0, n, batch)]
    with Shards() as shards:
        origin = {"measures": "plans", "model": fingerprint(model)}
        process = shards.rank if shards.size > 1 else None
        before = {"max_new_tokens": most}
        records = Records(log, {**origin, **logged}, dataset, before=before, process=process)
        records.fill(blocks[shards.rank :: shards.size], ask, progress, "question")
        done, skipped = shards.joined(records.done), shards.joined(records.skipped)
    answered, left_out = finished(done, skipped, dataset)
    named: dict[str, str | None] = {UNPRUNED: None}
    named |= {name: str(plan) for name, plan in resolved.items()}
    return Comparison(
        rows=tabulate(answered, named),
        task=dataset.task,
        model_type=model.config.model_type,
        num_layers=model.config.get_text_config().num_hidden_layers,
        samples=len(answered),
        settings=settings,
        skipped=left_out,
    )


def match_of(match: str | Match) -> tuple[str, Match]:
    """What a log calls a way to compare answers, and the function."""
    if isinstance(match, str):
        return match, MATCHES[match]
    return f"{getattr(match, '__name__', 'a function')} {code_of(match)}", match


def checked(model: Any, dataset: Any, match: Any, **counts: int | None) -> Any:
    """The model that can be asked: the given one, or the one in a wrapper for training, such as
    DDP. Raises StateError and InputError, also for counts that are no int >= 1 (or None)."""
    if not hasattr(model, "generate"):
        model = inner_model(model)
    if is_patched(model):
        raise StateError("the model is patched; call vtfast.unpatch(model) first")
    if model.training:
        raise StateError("the model is in training mode; call model.eval() first")
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"the dataset is a {type(dataset).__name__}; pass a vtfast.information.Dataset, such "
            "as Dataset(processor, read_examples(file)[0])"
        )
    for name, value in counts.items():
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"{name}={value!r}: expected an int >= 1")
    if not callable(match) and (not isinstance(match, str) or match not in MATCHES):
        raise InputError(f"match={match!r}: pass {' or '.join(map(repr, MATCHES))}, or a function")
    return model


def longest_answer(dataset: Dataset) -> int:
    """One token more than the longest true answer has."""
    tokenizer = dataset.processor.tokenizer
    return 1 + max(len(answer_ids(tokenizer, e.answer)) for e in dataset.examples)


def resolve(
    model: Any,
    plans: Asked | Sequence[Asked] | Mapping[str, Asked],
    keep: float | Sequence[float] | None,
    horizon: Any,
    how: Mapping[str, Any],
) -> dict[str, Plan]:
    """Resolve every plan for this model, under a unique name; raises what `patch` raises."""
    named: list[tuple[str | None, Any]]
    if isinstance(plans, Mapping):
        named = list(plans.items())
    elif isinstance(plans, str | PathLike | Plan):
        named = [(None, plans)]
    elif not isinstance(plans, Sequence):
        raise InputError(
            f"plans={plans!r}: pass a preset, a Plan, a list of them, or a mapping from names"
        )
    else:
        one = plans and all(isinstance(p, Prune) for p in plans)
        named = [(None, plans)] if one else [(None, plan) for plan in plans]
    several = isinstance(keep, Sequence) and not isinstance(keep, str)
    budgets: list[Any] = list(keep) if several else [keep]  # type: ignore[arg-type]
    if not named or not budgets:
        raise InputError("there is nothing to compare; pass at least one plan and one keep")
    presets = [isinstance(asked, str) and not is_plan_file(asked) for _, asked in named]
    if not any(presets) and (keep is not None or horizon is not None):
        raise InputError("keep and horizon go with presets, and no plan is one; leave them out")
    files = [asked for _, asked in named if is_plan_file(asked)]
    nameless = [file for file in files if Plan.load(file).name == "custom"]
    nameless = nameless if len(nameless) > 1 else []  # one alone has always been called custom
    found: dict[str, Plan] = {}
    for (own, asked), preset in zip(named, presets, strict=True):
        for share in budgets if preset else [None]:
            given: dict[str, Any] = {} if share is None else {"keep": share}
            if preset and horizon is not None and _takes_horizon(asked, share):
                given["horizon"] = horizon
            with patch(model, asked, **given, **how) as handle:
                plan = handle.plan
            name = own or (Path(asked).stem if asked in nameless else plan.name)
            if preset and plan.keep is not None and (own is None or len(budgets) > 1):
                name += f" {plan.keep:.3g}"
            if name in found or name == UNPRUNED:
                raise InputError(
                    f"two rows would be called {name!r}; give one of the plans another name "
                    '(Plan(..., name=), or "name" in its file), or pass plans in a mapping'
                )
            found[name] = plan
    return found


def _written(plan: Plan, seed: int | None) -> list[str]:
    """The stages of a plan as a log tells them, and its own seed where that counts."""
    own = [f"seed {plan.seed}"] if plan.seed and seed is None else []
    return [*map(written, plan.stages), *own]


def _takes_horizon(preset: str, keep: float | None) -> bool:
    return needs_horizon(preset) or (preset == "vtw" and keep is None)


def named_plan(name: str) -> str | Plan:
    """The plan of a command-line name: a preset, a plan file, or a released setting
    `paper:NAME:TOKENS`."""
    kind, _, setting = name.partition(":")
    if kind != "paper":
        return name
    preset, _, tokens = setting.partition(":")
    if not tokens.isdecimal():
        raise InputError(f"plan {name}: expected one such as paper:divprune+random:192")
    return Plan.paper(preset, int(tokens))


class _Asker:
    """Runs one model under some plans on blocks of questions, and returns their records."""

    def __init__(
        self,
        model: Any,
        dataset: Dataset,
        plans: Mapping[str, Plan],
        how: Mapping[str, Any],
        match: Any,
        max_new_tokens: int,
    ) -> None:
        self._model, self._dataset, self._match = model, dataset, match
        self._ask = partial(answers, model, dataset.processor, how, max_new_tokens)
        self._plans: dict[str, Plan | None] = {UNPRUNED: None, **plans}
        self._warm, self._backwards = False, False

    @torch.no_grad()
    def __call__(self, block: list[int]) -> list[dict[str, Any]]:
        """Records of the questions `block`, in its order; see `tabulate`."""
        inputs = self._dataset.batch(block, self._model.device).inputs
        if not self._warm:  # kernels compile and buffers are allocated
            for plan in self._plans.values():
                self._ask(inputs, plan)
            self._warm = True
        order = list(self._plans.items())[:: -1 if self._backwards else 1]
        self._backwards = not self._backwards
        runs = {name: self._ask(inputs, plan) for name, plan in order}
        records = []
        for row, question in enumerate(block):
            answer = self._dataset.examples[question].answer
            own = {name: run[row] for name, run in runs.items()}
            for run in own.values():
                run["right"] = bool(self._match(run["said"], answer))
            ordered = {name: own[name] for name in self._plans}
            records.append({"together": len(block), "runs": ordered})
        return records


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(string.punctuation + " ")
