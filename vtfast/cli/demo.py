"""`vtfast demo`: what pruning does to a model's answers, and what it saves in prefill time."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from vtfast import __version__
from vtfast.cli import _options as options
from vtfast.cli._terminal import Row, consoles, loading_libraries, print_table, working, writing

if TYPE_CHECKING:
    from vtfast.cli._interview import Column, Interview
    from vtfast.cli._prefill_race import Race, Timing

# The first scene with the commonest outcome: 6, 6 and 5 of 6 answers right in full, at keep 0.75
# and at keep 0.5. 196 of the scenes 0 to 499 have it; the averages are 5.99, 5.76 and 4.88.
DEFAULT_SCENE = 2
ANSWERED_KEEPS, TIMED_KEEPS = (0.75, 0.5), (0.5, 0.25)
ROUNDS = 5

_ONE_SCENE = "One scene shows how it works, not how well: docs/accuracy.md has 1,000."
_NO_SPEED = (
    "A model with 64 visual tokens shows meaning, not speed: nothing here gets faster by pruning."
)
_NATIVE = (
    "natively shorter: the same model, unpatched, given the plan's average number of visual tokens "
    "from the start. About the same arithmetic, and nothing to select."
)


def demo(
    plan: options.Preset = "divprune+random",
    keep: options.Keep = None,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Who is asked: llava, llava-small, qwen, qwen3.")
    ] = "llava",
    scene_seed: options.SceneSeed = DEFAULT_SCENE,
    seed: Annotated[int, typer.Option(metavar="INT", help="Seed of the random stages.")] = 0,
    out: options.Kept = Path("vtfast-demo.png"),
    as_json: options.AsJson = False,
    no_timing: Annotated[
        bool,
        typer.Option("--no-timing", metavar="", help="Do not time the larger model: much faster."),
    ] = False,
    tiny_timing: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """A tiny model answers questions about a picture, full and pruned, side by side.

    First a bundled, trained model looks at a drawn scene and answers six
    questions, with all of its visual tokens and with fewer; wrong answers are
    marked. Then a larger LLaVA with random weights is timed, because only there
    do fewer tokens save time. A PNG shows which patches of the picture each stage
    of the plan kept. Without --keep, questions are asked at 0.75 and 0.5, and
    prefill is timed at 0.5 and 0.25. It runs on the CPU and needs no network.

    \b
    Examples:
      vtfast demo                          # the default plan at keep 0.75 and 0.5
      vtfast demo --scene-seed 7           # another picture
      vtfast demo --model qwen3            # Qwen3-VL's class in place of LLaVA
      vtfast demo --plan random --keep 0.25 --no-timing
      vtfast demo --plan divprune+vtw --keep 0.6 --out kept.png
      vtfast demo --json | jq .columns
    """
    assert out is not None  # it has a default
    stdout, stderr = consoles()
    with loading_libraries(stderr):
        from vtfast.cli._interview import Interview
        from vtfast.cli._prefill_race import TINY, MidSize, Race

        race = None
        if not no_timing:
            timed = TIMED_KEEPS if keep is None else (keep,)
            race = Race(TINY if tiny_timing else MidSize(), plan, timed, seed=seed, rounds=ROUNDS)
        interview = Interview.bundled(model, scene_seed)
    keeps = ANSWERED_KEEPS if keep is None else (keep,)
    with working(stderr, "asking six questions", 1 + len(keeps)) as tick:
        columns = [interview.full()]
        tick()
        for share in keeps:
            columns.append(interview.pruned(plan, share, seed))
            tick()
    _draw(out, interview, columns[-1], plan)
    record = {
        "version": __version__,
        "model": model,
        "scene_seed": scene_seed,
        "plan": plan,
        "seed": seed,
        "notes": [_ONE_SCENE, _NO_SPEED],
        "columns": [_column_record(column, interview) for column in columns],
        "questions": [
            {
                "task": question.task,
                "question": question.text,
                "truth": question.truth,
                "answers": {column.name: column.answers[number] for column in columns},
            }
            for number, question in enumerate(interview.questions)
        ],
        "timing": None,
        "picture": str(out),
    }
    if not as_json:
        _show_answers(stdout, record, interview.num_layers)
    if race:
        title = f"timing {race.sizes.layers} layers x {race.sizes.width}"
        with working(stderr, title, race.passes) as tick:
            timing = record["timing"] = _timing_record(race, race.run(tick))
        if not as_json:
            _show_timing(stdout, timing)
    if as_json:
        print(json.dumps(record, indent=2))


def _draw(out: Path, interview: "Interview", column: "Column", plan: str) -> None:
    """Save what each stage of a column's plan kept of the scene."""
    from vtfast.cli._kept_picture import draw, save
    from vtfast.cli._kept_views import View

    side = round(interview.visual_tokens**0.5)
    heading = (
        f"{plan}, {column.name}: {column.average_tokens:.1f} of {interview.visual_tokens} visual "
        "tokens, averaged over the layers"
    )
    caption = f'dark patches were dropped; the question was "{interview.questions[-1].text}"'
    with writing(out):
        save(draw([View(interview.picture, (side, side), column.stages)], heading, caption), out)


def _column_record(column: "Column", interview: "Interview") -> dict[str, Any]:
    truths = [question.truth for question in interview.questions]
    return {
        "name": column.name,
        "keep": column.keep,
        "horizon": column.plan and column.plan.horizon,
        "horizon_source": column.plan and column.plan.horizon_source,
        "stages": [
            {"layer": s.layer, "method": s.method, "tokens": len(s.kept)} for s in column.stages
        ],
        "average_tokens": column.average_tokens,
        "flops_ratio": column.flops_ratio,
        "right": sum(a == truth for a, truth in zip(column.answers, truths, strict=True)),
    }


def _timing_record(race: "Race", timings: "list[Timing]") -> dict[str, Any]:
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


def _show_answers(stdout: Console, record: Mapping[str, Any], num_layers: int) -> None:
    full, *_, last = columns = record["columns"]
    horizon = ""
    if last["horizon"] is not None:
        horizon = f", horizon {last['horizon']} ({last['horizon_source']})"
    stdout.print(
        f"Scene {record['scene_seed']}, shown to the bundled {record['model']}: "
        f"{num_layers} layers, {full['average_tokens']:.0f} visual tokens.\n"
        f"Plan {record['plan']}{horizon}.",
        style="bold",
    )
    sign = "✗" if stdout.encoding.startswith("utf") else "x"
    rows: list[Row] = []
    for asked in record["questions"]:
        said = [
            Text(answer) if answer == asked["truth"] else Text(f"{answer} {sign}", "bold red")
            for answer in asked["answers"].values()
        ]
        rows.append((asked["question"], asked["truth"], *said))
    rows.append(None)
    number = len(record["questions"])
    rows.append(("right answers", "", *(f"{c['right']} of {number}" for c in columns)))
    left = [{(s["layer"], s["method"]): s["tokens"] for s in c["stages"]} for c in columns]
    for stage in sorted({stage for counts in left for stage in counts}):
        tokens = (str(counts.get(stage, "")) for counts in left)
        rows.append((f"tokens left by {stage[1]}, layer {stage[0]}", "", *tokens))
    averages = (f"{column['average_tokens']:.1f}" for column in columns)
    rows.append(("visual tokens, average of layers", "", *averages))
    flops = (f"{100 * column['flops_ratio']:.0f} %" for column in columns)
    rows.append(("prefill FLOPs, of full", "", *flops))
    print_table(stdout, ("question", "truth", *(column["name"] for column in columns)), rows)
    stdout.print(f"{sign} marks a wrong answer. {_ONE_SCENE}")
    stdout.print(_NO_SPEED)
    stdout.print(
        f"The picture and what {last['name']} left of it: {record['picture']}", soft_wrap=True
    )


def _show_timing(stdout: Console, timing: Mapping[str, Any]) -> None:
    model, threads = timing["model"], timing["threads"]
    stdout.print(
        f"\nPrefill of a LLaVA with random weights: {model['layers']} layers x {model['width']}, "
        f"{model['visual_tokens']} visual and {model['text_tokens']} text tokens, fp32, "
        f"{threads} CPU thread{'s' * (threads != 1)}.",
        style="bold",
    )
    rows: list[Row] = []
    for variant in timing["variants"]:
        name, keep, share = variant["name"], variant["keep"], variant["share_of_full"]
        cells = [f"{variant['visual_tokens']:.1f}", f"{variant['seconds']:.2f} s"]
        if keep is not None:
            name = f"keep {keep:g}, {name}"
            cells += [f"{share['median']:.2f}", f"{share['p20']:.2f}-{share['p80']:.2f}"]
            cells += [f"{1 / share['median']:.1f}x"]
        rows.append((name, *cells, *[""] * (5 - len(cells))))
    print_table(stdout, ("prefill", "tokens", "time", "of full", "p20-p80", "speed-up"), rows)
    stdout.print(
        f"Medians of {timing['rounds']} alternating rounds, of shares within a round; all encode "
        "the picture too."
    )
    stdout.print(_NATIVE)
