"""Run `vtfast demo` and show it: two tables or one JSON object on stdout, and a picture.

Importing this module is light. torch and transformers come in `run`, behind a progress bar: they
take seconds.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from vtfast import __version__
from vtfast.cli._terminal import consoles, table, working, wrong_sign
from vtfast.errors import InputError

if TYPE_CHECKING:
    from vtfast.cli._interview import Column, Interview
    from vtfast.cli._prefill import Race, Timing

ANSWERED_KEEPS, TIMED_KEEPS = (0.75, 0.5), (0.5, 0.25)
ROUNDS = 5

_ONE_SCENE = (
    "One scene shows how it works, not how well: the README has accuracies over 1,000 scenes."
)
_NO_SPEED = (
    "A model with 64 visual tokens shows meaning, not speed: nothing here gets faster by pruning."
)
_NATIVE = (
    "natively shorter: the same model, unpatched, given the plan's average number of visual tokens "
    "from the start. About the same arithmetic, and nothing to select."
)


@dataclass(frozen=True)
class Settings:
    """What a demo depends on; `keep=None` shows the default columns, `rounds=0` times nothing."""

    plan: str
    keep: float | None
    scene_seed: int
    seed: int
    out: Path
    as_json: bool = False
    rounds: int = ROUNDS
    tiny: bool = False

    def keeps(self, default: tuple[float, ...]) -> tuple[float, ...]:
        """The keeps to show: the one asked for, or else `default`."""
        return default if self.keep is None else (self.keep,)


def run(settings: Settings) -> None:
    """The whole demo. Raises PlanError or InputError for settings that cannot be met."""
    out, err = consoles()
    with working(err, "loading torch, transformers and the bundled model"):
        from vtfast.cli._interview import Interview
        from vtfast.cli._picture import draw, save
        from vtfast.cli._prefill import TINY, MidSize, Race
        from vtfast.inputs.views import View

        race = None
        if settings.rounds:
            sizes = TINY if settings.tiny else MidSize()
            keeps = settings.keeps(TIMED_KEEPS)
            race = Race(sizes, settings.plan, keeps, seed=settings.seed, rounds=settings.rounds)
        interview = Interview.bundled(settings.scene_seed)
    keeps = settings.keeps(ANSWERED_KEEPS)
    with working(err, "asking six questions", 1 + len(keeps)) as tick:
        columns = [interview.full()]
        tick()
        for keep in keeps:
            columns.append(interview.pruned(settings.plan, keep, settings.seed))
            tick()
    last = columns[-1]
    heading = (
        f"{settings.plan}, {last.name}: {last.average_tokens:.1f} of {interview.visual_tokens} "
        "visual tokens, averaged over the layers"
    )
    caption = f'dark patches were dropped; the question was "{interview.questions[-1].text}"'
    side = round(interview.visual_tokens**0.5)
    figure = draw([View(interview.picture, (side, side), last.stages)], heading, caption)
    try:
        save(figure, settings.out)
    except OSError as error:
        reason = f"cannot write {settings.out}: {error.strerror}; pass another --out"
        raise InputError(reason) from None
    if not settings.as_json:
        _show_answers(out, interview, columns, settings)
    timings: list[Timing] = []
    if race:
        title = f"timing {race.sizes.layers} layers x {race.sizes.width}"
        with working(err, title, race.passes) as tick:
            timings = race.run(tick)
        if not settings.as_json:
            _show_timings(out, race, timings)
    if settings.as_json:
        record = _record(settings, interview, columns, race, timings)
        print(json.dumps(record, indent=2))


def _show_answers(
    out: Console, interview: "Interview", columns: "Sequence[Column]", settings: Settings
) -> None:
    n, layers = interview.visual_tokens, interview.num_layers
    plan = columns[-1].plan
    horizon = ""
    if plan and plan.horizon is not None:
        horizon = f", horizon {plan.horizon} ({plan.horizon_source})"
    out.print(
        f"Scene {settings.scene_seed}, shown to the bundled LLaVA: "
        f"{layers} layers, {n} visual tokens.\nPlan {settings.plan}{horizon}.",
        style="bold",
    )
    shown = table("question", "truth", *(column.name for column in columns))
    sign = wrong_sign(out)
    for row, question in enumerate(interview.questions):
        said = [
            Text(column.answers[row])
            if column.answers[row] == question.truth
            else Text(f"{column.answers[row]} {sign}", style="bold red")
            for column in columns
        ]
        shown.add_row(question.text, question.truth, *said)
    shown.add_section()
    asked = len(interview.questions)
    shown.add_row("right answers", "", *(f"{_right(interview, c)} of {asked}" for c in columns))
    steps = dict.fromkeys((s.layer, s.method) for column in columns for s in column.stages)
    for layer, method in sorted(steps):
        left = ({(s.layer, s.method): len(s.kept) for s in column.stages} for column in columns)
        counts_left = (str(counts.get((layer, method), "")) for counts in left)
        shown.add_row(f"tokens left by {method}, layer {layer}", "", *counts_left)
    averages = (f"{column.average_tokens:.1f}" for column in columns)
    shown.add_row("visual tokens, average of layers", "", *averages)
    shown.add_row(
        "prefill FLOPs, of full", "", *(f"{100 * column.flops_ratio:.0f} %" for column in columns)
    )
    out.print(shown)
    out.print(f"{sign} marks a wrong answer. {_ONE_SCENE}")
    out.print(_NO_SPEED)
    out.print(f"The picture and what {columns[-1].name} left of it: {settings.out}", soft_wrap=True)


def _show_timings(out: Console, race: "Race", timings: "Sequence[Timing]") -> None:
    sizes = race.sizes
    out.print(
        f"\nPrefill of a LLaVA with random weights: {sizes.layers} layers x {sizes.width}, "
        f"{sizes.visual_tokens} visual and {sizes.text_tokens} text tokens, fp32, "
        f"{race.threads} CPU thread{'s' * (race.threads != 1)}.",
        style="bold",
    )
    shown = table("prefill", "tokens", "time", "of full", "p20-p80", "speed-up")
    for timing in timings:
        variant = timing.variant
        name = variant.name if variant.keep is None else f"keep {variant.keep:g}, {variant.name}"
        cells = [name, f"{variant.visual_tokens:.1f}", f"{timing.seconds:.2f} s"]
        if variant.keep is not None:
            cells += [f"{timing.share:.2f}", f"{timing.p20:.2f}-{timing.p80:.2f}"]
            cells += [f"{1 / timing.share:.1f}x"]
        shown.add_row(*cells)
    out.print(shown)
    out.print(f"Median of {race.rounds} alternating rounds; every row encodes the picture too.")
    out.print(_NATIVE)


def _right(interview: "Interview", column: "Column") -> int:
    return sum(a == q.truth for a, q in zip(column.answers, interview.questions, strict=True))


def _record(
    settings: Settings,
    interview: "Interview",
    columns: "Sequence[Column]",
    race: "Race | None",
    timings: "Sequence[Timing]",
) -> dict[str, Any]:
    """What the tables show, for `--json`."""
    return {
        "version": __version__,
        "scene_seed": settings.scene_seed,
        "plan": settings.plan,
        "seed": settings.seed,
        "notes": [_ONE_SCENE, _NO_SPEED],
        "columns": [
            {
                "name": column.name,
                "keep": column.keep,
                "horizon": column.plan and column.plan.horizon,
                "horizon_source": column.plan and column.plan.horizon_source,
                "stages": [
                    {"layer": s.layer, "method": s.method, "tokens": len(s.kept)}
                    for s in column.stages
                ],
                "average_tokens": column.average_tokens,
                "flops_ratio": column.flops_ratio,
                "right": _right(interview, column),
            }
            for column in columns
        ],
        "questions": [
            {
                "task": question.task,
                "question": question.text,
                "truth": question.truth,
                "answers": {column.name: column.answers[row] for column in columns},
            }
            for row, question in enumerate(interview.questions)
        ],
        "timing": race and _timing_record(race, timings),
        "picture": str(settings.out),
    }


def _timing_record(race: "Race", timings: "Sequence[Timing]") -> dict[str, Any]:
    return {
        "model": asdict(race.sizes) | {"visual_tokens": race.sizes.visual_tokens},
        "device": "cpu",
        "dtype": "float32",
        "threads": race.threads,
        "rounds": race.rounds,
        "includes_image_encoding": True,
        "notes": [_NATIVE],
        "variants": [
            {
                "name": timing.variant.name,
                "keep": timing.variant.keep,
                "visual_tokens": timing.variant.visual_tokens,
                "seconds": timing.seconds,
                "share_of_full": {"median": timing.share, "p20": timing.p20, "p80": timing.p80},
            }
            for timing in timings
        ],
    }
