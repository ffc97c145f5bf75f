"""The commands that measure information: `vtfast score`, `vtfast horizon`, `vtfast sweep`.

Their options, their help, and what can be refused right away; what they run is in
`vtfast/cli/_explore.py`. Importing this module is light.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtfast.cli._commands import AsJson, check_picture
from vtfast.errors import InputError
from vtfast.toy import TASKS

if TYPE_CHECKING:
    from vtfast.cli._explore import Source, Study

Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="A hub id (owner/name), a local checkpoint folder, or a bundled tiny model: "
        "toy-llava, toy-llava-small, toy-qwen.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"Ask about bundled scenes: {', '.join(TASKS)}."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.jsonl",
        help='Ask what is in a file, a JSON object a line: {"image": "a.png", "question": "…", '
        '"answer": "…"}; image may be a list, paths start at the file.',
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", metavar="", help="Leave out bad lines of --data, and say which."),
]
Samples = Annotated[
    int | None,
    typer.Option(min=1, metavar="INT", help="How many; the first ones. Default: 100, or all."),
]
Layers = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Layers such as 0,4,8-11, counted from 0. Default: all."),
]
Windows = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="INT",
        help="Tokens along a side of a unit. Default: 2 where a picture has 24 x 24 or more, else "
        "1.",
    ),
]
Per = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="mean_token: the mean over the answer's tokens; first_token: the paper's.",
    ),
]
Log = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.jsonl",
        help="Note finished samples here; the same command goes on after it was stopped.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE.png", help="Draw the result, with its JSON beside it."),
]
Seed = Annotated[int, typer.Option(min=0, metavar="INT", help="Of the bundled scenes.")]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="auto (a GPU if there is one), cpu, cuda, cuda:1.")
]
DType = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto (the checkpoint's on a GPU, float32 on a CPU), float32, bfloat16, float16.",
    ),
]


def score(
    model: Model,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A picture. Repeat it for more, in order."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="The question.")] = None,
    answer: Annotated[str | None, typer.Option(metavar="TEXT", help="The true answer.")] = None,
    task: Task = None,
    data: Data = None,
    skip_bad: SkipBad = False,
    sample: Annotated[
        int, typer.Option(min=0, metavar="INT", help="Which scene or good line, from 0.")
    ] = 0,
    seed: Seed = 0,
    layers: Layers = None,
    window: Windows = None,
    per: Per = "mean_token",
    out: Out = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Score how much of an answer each visual token still carries, layer by layer.

    The information score of a token at a layer is the probability of the true
    answer with this token alone from the layer on, minus the probability without
    any. Ask about your own picture, a bundled scene, or a line of a data file.
    The picture shows the scores over the image.

    \b
    Examples:
      vtfast score --model toy-llava --task code --out heat.png
      vtfast score --model llava-hf/llava-1.5-7b-hf --image cat.jpg \\
        --prompt "What animal is this?" --answer cat --layers 0,8,16,24
      vtfast score --model ./checkpoint --data mine.jsonl --sample 3 --json

    \b
    In the JSON object: layers, per, p_full, p_without (by layer), and pictures,
    each with scores (by layer and unit), grid, and columns of its units.
    """
    from vtfast.cli._explore import Source, run_score

    own = None
    if image or prompt or answer:
        if not (image and prompt and answer):
            raise InputError("--image, --prompt and --answer go together; pass all three")
        own = (tuple(image), prompt, answer)
    source = Source(task, data, None, seed, skip_bad, own)
    run_score(study_of(model, source, layers, window, per, out, as_json, device, dtype), sample)


def horizon(
    model: Model,
    task: Task = None,
    data: Data = None,
    samples: Samples = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    maps: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="INT",
            help="Samples whose every unit is scored, the first ones. 0: losses only, much faster.",
        ),
    ] = 64,
    tolerance: Annotated[
        float, typer.Option(metavar="SHARE", help="What may be lost, of the full model.")
    ] = 0.01,
    layers: Layers = None,
    window: Windows = None,
    per: Per = "mean_token",
    log: Log = None,
    out: Out = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Measure from which layer on a model needs no visual tokens for a task.

    The horizon is the first layer from which on single visual tokens carry
    nothing and dropping all of them costs nothing: mean absolute information,
    lost probability and lost accuracy all stay within the tolerance, at 95 %
    confidence. A task may have none. A plan such as divprune+random takes it
    (--horizon of vtfast run).

    \b
    Examples:
      vtfast horizon --model toy-llava --task background --samples 20 --maps 8
      vtfast horizon --model llava-hf/llava-1.5-7b-hf --data textvqa.jsonl \\
        --log horizon.jsonl --out horizon.png
      vtfast horizon --model toy-qwen --task code --maps 0 --json

    \b
    In the JSON object: layer, interval, layers, and curves (information,
    absolute, p_loss, accuracy_loss), each with mean, low and high by layer.
    """
    from vtfast.cli._explore import Source, run_horizon

    source = Source(task, data, samples, seed, skip_bad)
    study = study_of(model, source, layers, window, per, out, as_json, device, dtype, log)
    run_horizon(study, maps, tolerance)


def sweep(
    model: Model,
    task: Task = None,
    data: Data = None,
    samples: Samples = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    methods: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="random, diversity, topk, dart, uniform, and information (keep the most "
            "informative).",
        ),
    ] = "random,diversity,topk,information",
    keep: Annotated[
        str, typer.Option(metavar="LIST", help="Shares of the visual tokens to keep, such as 0.2.")
    ] = "0.2",
    seeds: Annotated[int, typer.Option(min=1, metavar="INT", help="How often random draws.")] = 3,
    no_scores: Annotated[
        bool,
        typer.Option(
            "--no-scores",
            metavar="",
            help="Leave out how informative the kept tokens are, and be done much sooner; not with "
            "information among the methods.",
        ),
    ] = False,
    layers: Layers = None,
    window: Windows = None,
    per: Per = "mean_token",
    log: Log = None,
    out: Out = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Prune at every layer with every method, and see what accuracy is left.

    Each cell keeps a share of the visual tokens from one layer on. Beyond the
    horizon random is as good as any; before it the method matters. "information"
    knows the answer: a bound, not a method.

    \b
    Examples:
      vtfast sweep --model toy-llava --task shape_colour --samples 20 \\
        --methods random,diversity --no-scores --out sweep.png
      vtfast sweep --model llava-hf/llava-1.5-7b-hf --data pope.jsonl \\
        --layers 0,4,8,12,16,20,24,28 --keep 0.1,0.25 --log sweep.jsonl
      vtfast sweep --model toy-qwen --task code --samples 10 --json

    \b
    In the JSON object: accuracy_full, without (all dropped, by layer), and rows,
    each with method, layer, keep, accuracy, low, high, seeds, p and retained.
    """
    from vtfast.cli._explore import Source, run_sweep

    names = [name.strip() for name in methods.split(",") if name.strip()]
    if no_scores and "information" in names:
        raise InputError("--no-scores leaves nothing to choose by for the method information")
    source = Source(task, data, samples, seed, skip_bad)
    study = study_of(model, source, layers, window, per, out, as_json, device, dtype, log)
    run_sweep(study, names, shares(keep), seeds, not no_scores)


def study_of(
    model: str,
    source: "Source",
    layers: str | None,
    window: int | None,
    per: str,
    out: Path | None,
    as_json: bool,
    device: str,
    dtype: str,
    log: Path | None = None,
) -> "Study":
    """What these and `vtfast evaluate` share, checked as far as that goes without the model."""
    given = [name for name in ("task", "data", "own") if getattr(source, name) is not None]
    if len(given) != 1:
        raise InputError("there is nothing to ask, or too much; pass one of --task and --data")
    if source.task is not None and source.task not in TASKS:
        raise InputError(f"--task {source.task}: pass one of {', '.join(TASKS)}")
    for option, value, known in (
        ("--per", per, ("mean_token", "first_token")),
        ("--dtype", dtype, ("auto", "float32", "bfloat16", "float16")),
    ):
        if value not in known:
            raise InputError(f"{option} {value}: pass one of {', '.join(known)}")
    if out:
        check_picture(out)
    from vtfast.cli._explore import Study

    numbers = None if layers is None else _numbers(layers)
    return Study(model, source, numbers, window, per, out, as_json, device, dtype, log)


def _numbers(text: str) -> tuple[int, ...]:
    """`0,4,8-11` as numbers."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isdecimal() and len(end) < 4 for end in ends) or int(ends[0]) > int(ends[1]):
            raise InputError(f"--layers {text}: expected numbers and ranges, such as 0,4,8-11")
        found += range(int(ends[0]), int(ends[1]) + 1)
    return tuple(found)


def shares(text: str) -> list[float]:
    """`0.1,0.25` as numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--keep {text}: expected shares such as 0.1,0.25") from None
