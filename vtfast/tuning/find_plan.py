"""`vtfast.tune`: find the cheapest plan that loses little enough on given questions."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from vtfast.errors import InputError, PlanError, UnsupportedModelError, VTFastError
from vtfast.evaluation.compare import Match, checked
from vtfast.flops import text_config
from vtfast.information.checks import check_share
from vtfast.information.horizons import Horizon
from vtfast.information.progress import steps
from vtfast.information.shares import samples_to_rule_out
from vtfast.inputs.data import Dataset
from vtfast.inputs.distributed import Shards
from vtfast.patching import patch
from vtfast.plan import Plan
from vtfast.plan_file import check_seed, stage_record
from vtfast.prune import Prune
from vtfast.tuning.answers import Answers
from vtfast.tuning.results import Tried, Tuned
from vtfast.tuning.search import Counts, bounds_of, horizon_of, search
from vtfast.tuning.space import ENGINES, OBJECTIVES, Costs, space, stages_to_try

# What a search begins with; those that a model cannot run are left out.
METHODS = ("diversity", "scope", "uniform", "random", "topk", "dart")
_VLLM_METHODS = ("diversity", "uniform", "random")  # that vtfast.vllm takes
_FOR_HORIZON = 64  # questions that the horizon is looked for with
_ROUNDS = 5  # in which finalists are timed
_LEAST_LOSS = 1e-6


def tune(
    model: Any,
    dataset: Dataset,
    max_loss: float = 0.01,
    *,
    confidence: float = 0.95,
    methods: Sequence[str] | None = None,
    objective: str = "flops",
    engine: str = "transformers",
    horizon: int | Horizon | None = None,
    seed: int = 0,
    path: str = "auto",
    impl: str = "auto",
    match: str | Match = "exact",
    max_new_tokens: int | None = None,
    batch: int = 8,
    log: Path | str | None = None,
    progress: bool | Callable[[], object] = True,
) -> Tuned:
    """Find the cheapest plan that loses at most `max_loss` of the answers to these questions.

    Half of the questions, drawn at random, are for the search and half for the final word;
    `vtfast.tuning.search` has the rule, and what is guaranteed. A question that is there twice
    counts once. What is found holds for questions like these, and only if the final word was asked
    for once: who tunes again on the same questions until a plan pleases has no confidence left.
    Decoding is greedy.

    Args:
        model: an unpatched one in eval mode.
        dataset: a `vtfast.information.Dataset`; all its questions are used.
        max_loss: in (0, 1), of the answers, against the unpruned model's: 0.01 is one in a hundred.
        confidence: in (0.5, 1).
        methods: of the stages; a plan file stands for the method of its first stage with its
            options. Default: `METHODS`, as far as the model can run them. Dropping all tokens at
            the horizon is always tried.
        objective: what "cheapest" means: "flops" (of the prefill), "cache" (tokens that the KV
            cache holds), or "time" (of `generate`, measured for the finalists alone; the search
            goes by flops).
        engine: what the plan is for. "vllm" takes one stage before the language model alone, of
            `diversity`, `uniform` or `random` ([Serving](docs/serving.md)); it is measured in
            transformers.
        horizon: a layer, or a measured horizon, around which last stages are tried; default: it is
            looked for with up to 64 questions.
        seed: of the split, and of the random stages; the plan keeps it.
        path, impl: as in `vtfast.patch`.
        match, max_new_tokens, batch: as in `vtfast.evaluate`.
        log: a file for answers (JSON lines); a run that finds one asks only for what it lacks, also
            under another tolerance or other methods (but see above) and with more questions.
            Processes started by torchrun or `accelerate launch` share the questions, as in
            `vtfast.evaluate`.
        progress: True for a bar after two seconds, or a function to call after every answer.

    Raises InputError and PlanError for what cannot be tuned, before anything runs; so it does where
    too few questions are held out to rule out `max_loss` even if none were lost.

    Example:
        >>> found = vtfast.tune(model, dataset, max_loss=0.01)
        >>> found.plan.save("plan.json")
    """
    model = checked(model, dataset, match, batch=batch, max_new_tokens=max_new_tokens)
    check_share("max_loss", max_loss, 0.0)
    check_share("confidence", confidence, 0.5)
    if objective not in OBJECTIVES:
        raise InputError(f"objective={objective!r}: pass one of {', '.join(OBJECTIVES)}")
    if engine not in ENGINES:
        raise InputError(f"engine={engine!r}: pass one of {', '.join(ENGINES)}")
    if engine == "vllm" and horizon is not None:
        raise InputError("horizon: vLLM has no stages inside the language model; leave it out")
    seed, keys = check_seed(seed) or 0, dataset.keys()
    single = [n for n, key in enumerate(keys) if "." not in key]  # a repetition has one in its key
    _check_number(len(single), max_loss, confidence)
    how = {"seed": seed, "path": path, "impl": impl}
    refused = _Refused(model, how)
    if engine == "vllm":
        methods = _for_vllm(methods)
    names = _methods(model, methods, refused, engine)
    num_layers, model_type = text_config(model.config).num_hidden_layers, model.config.model_type
    layer = _given_horizon(horizon, num_layers, model_type)
    with Shards() as shards, steps(progress, "tuning", None, "answer") as tick:
        asked = match, max_new_tokens, batch, log, shards, tick
        answers = Answers(model, dataset, how, *asked)
        questions = _answered(answers, single, max_loss, confidence)
        # At random, and mostly the same if questions are added.
        questions.sort(key=lambda n: sha256(f"{seed} {keys[n]}".encode()).digest())
        half = len(questions) // 2
        for_search, held_out = questions[:half], questions[half:]
        if horizon is None and engine != "vllm":
            layer = _horizon(answers, num_layers, for_search[:_FOR_HORIZON], max_loss)
        costs = Costs(model.config, Counter(answers.sizes(questions)))
        cost = costs.cache if objective == "cache" else costs.flops
        plans = [
            p for p in space(num_layers, layer, names, engine=engine) if refused.why(p) is None
        ]
        plans.sort(key=lambda plan: (cost(plan), plan.name))

        def ask(number: int, some: Sequence[int]) -> Counts:
            return answers.counts(plans[number], some)

        found = search(list(map(cost, plans)), ask, for_search, held_out, max_loss, confidence)
        tested = [plans[number] for number in found.tested]
        times = answers.times(tested, held_out, _ROUNDS)
        made = answers.made()

    def tried(number: int, counts: Counts, time: float | None = None) -> Tried:
        plan = plans[number]
        costing = costs.flops(plan), costs.cache(plan), time, costs.tokens(plan)
        return Tried(plan.name, tuple(map(stage_record, plan.stages)), *costing, *counts)

    finalists = [tried(*one, time) for one, time in zip(found.tested.items(), times, strict=True)]
    by_time = objective == "time"
    passed = range(len(found.passed))
    best = min(
        passed, key=lambda i: ((times[i] or 1) if by_time else 0, found.passed[i]), default=None
    )
    others = found.tried.keys() - found.tested.keys()
    return Tuned(
        chosen=best,
        finalists=tuple(finalists),
        searched=tuple(tried(number, found.tried[number]) for number in sorted(others)),
        task=dataset.task,
        model_type=model_type,
        num_layers=num_layers,
        max_loss=max_loss,
        confidence=confidence,
        objective=objective,
        seed=seed,
        horizon=layer,
        samples=len(for_search),
        held_out=len(held_out),
        plans=len(plans),
        answers=made,
        skipped=answers.skipped,
    )


def _given_horizon(horizon: Any, num_layers: int, model_type: str) -> int | None:
    """The layer of a horizon as it was given; None without one, or where there is none."""
    if horizon is None or getattr(horizon, "layer", 1) is None:
        return None
    if isinstance(horizon, int) and not 0 < horizon < num_layers:
        raise PlanError(f"horizon={horizon}: pass a layer, 1 to {num_layers - 1}")
    return Plan.resolve(
        "vtw", num_layers=num_layers, horizon=horizon, model_type=model_type
    ).horizon


def _answered(
    answers: Answers, questions: Sequence[int], max_loss: float, confidence: float
) -> list[int]:
    """The questions that the unpruned model could be asked; refused if they cannot show a loss."""
    found = answers.full(questions)
    _check_number(len(found), max_loss, confidence)
    if not answers.right(found):
        raise InputError(
            f"the unpruned model answers none of the {len(found)} questions right, so nothing can "
            'be lost; see what it says with vtfast.evaluate, or pass match="begins"'
        )
    return found


def _check_number(questions: int, max_loss: float, confidence: float) -> None:
    """Refuse so few questions that no plan could pass."""
    if max_loss < _LEAST_LOSS:
        raise InputError(f"max_loss={max_loss:g}: expected {_LEAST_LOSS:g} or more")
    needed, held_out = samples_to_rule_out(max_loss, confidence), questions - questions // 2
    if held_out < needed or questions < 2:
        least = bounds_of((0, max(1, held_out), 0, 0), confidence)[1]
        raise InputError(
            f"of {questions} questions {held_out} are held out, and to show with confidence "
            f"{confidence:g} that a plan loses at most {max_loss:g} takes {needed}, none of them "
            f"lost; pass {2 * needed} different questions or more, or a max_loss above {least:.3g}"
        )


def _for_vllm(methods: Sequence[str] | None) -> Sequence[str]:
    """The methods that vLLM takes. Raises InputError."""
    given = _VLLM_METHODS if methods is None else methods
    for stage in stages_to_try(given):
        if stage.method not in _VLLM_METHODS or stage.options["per"] != "image":
            raise InputError(
                f"vLLM does not take {stage!r} from a plugin; pass {', '.join(_VLLM_METHODS)}, "
                "with a budget for each picture"
            )
    return given


def _methods(
    model: Any, methods: Sequence[str] | None, refused: "_Refused", engine: str
) -> tuple[str, ...]:
    """The methods to try: those given, each of which the model has to take, or the default ones
    that it takes."""
    names, good = METHODS if methods is None else methods, []
    stages_to_try(names)  # raises for what is no method
    num_layers = text_config(model.config).num_hidden_layers
    for name in dict.fromkeys(names):
        whys = [refused.why(plan) for plan in space(num_layers, None, [name], engine=engine)]
        if None in whys:
            good.append(name)
        elif methods is not None and whys[0] is not None:
            raise whys[0]
    return tuple(good)


class _Refused:
    """Which plans `patch` refuses for a model; each method is tried once at each layer."""

    def __init__(self, model: Any, how: Mapping[str, Any]) -> None:
        self._model, self._how = model, how
        self._known: dict[Prune, VTFastError | None] = {}

    def why(self, plan: Plan) -> VTFastError | None:
        """The error for the first stage that cannot run; None if all can."""
        return next(filter(None, map(self._of_stage, plan.stages)), None)

    def _of_stage(self, stage: Prune) -> VTFastError | None:
        key = Prune(stage.layer, stage.method, float(stage.keep > 0), **stage.chosen)
        if key not in self._known:
            self._known[key] = None
            try:
                patch(self._model, [stage], **self._how).remove()
            except (PlanError, InputError, UnsupportedModelError) as error:
                self._known[key] = error
        return self._known[key]


def _horizon(
    answers: Answers, num_layers: int, questions: Sequence[int], max_loss: float
) -> int | None:
    layers = range(1, num_layers)
    plans = [Plan((Prune(layer, "drop", 0),)) for layer in layers]
    return horizon_of(layers, lambda i, some: answers.counts(plans[i], some), questions, max_loss)
