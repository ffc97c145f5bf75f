"""`vtfast horizon`: from which layer on a model needs no visual tokens for a task."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vtfast.cli import _options as options
from vtfast.cli import _values as values
from vtfast.cli._terminal import consoles, deliver, loading_libraries, print_table

if TYPE_CHECKING:
    from vtfast.information import Horizon


def horizon(
    model: options.Model,
    task: options.Task = None,
    data: options.Data = None,
    image_folder: options.ImageFolder = None,
    samples: options.Samples = None,
    skip_bad: options.SkipBad = False,
    seed: options.SceneSeed = 0,
    maps: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="INT",
            help="Score all units of this many samples. 0: losses only, much faster.",
        ),
    ] = 64,
    tolerance: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Loss allowed, as a share of the full model's."),
    ] = 0.01,
    layers: options.Layers = None,
    window: options.Window = None,
    per: options.Per = "mean_token",
    log: options.Log = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
    device: options.Device = "auto",
    dtype: options.DType = "auto",
) -> None:
    """Measure from which layer on a model needs no visual tokens for a task.

    The horizon is the first layer from which on single visual tokens carry
    nothing and dropping all of them costs nothing: mean absolute information,
    lost probability and lost accuracy all stay within the tolerance, at 95 %
    confidence. A task may have none; and few samples may show neither, which is
    said, with the number that would: 300 right answers rule out a loss of 1 %.
    A plan such as divprune+random takes the layer (--horizon of vtfast run).

    \b
    Examples:
      vtfast horizon --model toy-llava --task background --samples 20 --maps 8
      vtfast horizon --model llava-hf/llava-1.5-7b-hf --data textvqa.jsonl \\
        --log horizon.jsonl --out horizon.png
      vtfast horizon --model toy-qwen --task code --maps 0 --json

    \b
    In the JSON object: layer, shown, interval, layers, and curves (information,
    absolute, p_loss, accuracy_loss), each with mean, low and high by layer; and
    skipped, with the name of each sample left out and the reason.
    """
    source = values.source_of_questions(task, data, image_folder)
    chosen = values.layer_numbers(layers)
    stdout, stderr = consoles()
    with loading_libraries(stderr):
        from vtfast import information
        from vtfast.cli._checkpoints import find
        from vtfast.cli._questions import measured, protect, questions, report_skipped

    checkpoint = find(model, stderr)
    asked = questions(checkpoint, source, samples, seed, skip_bad, stderr, image_folder)
    protect(asked, out, data, log)
    with measured(checkpoint, asked, device, dtype, stderr) as (network, tick):
        found = information.horizon(
            network,
            asked,
            layers=chosen,
            window=window,
            per=per,
            maps=maps,
            tolerance=tolerance,
            log=log,
            progress=tick,
        )
    report_skipped(found.skipped, stderr)
    record = {"model": model, **found.record()}
    deliver(record, found.draw, lambda: _show(stdout, model, found), out, as_json)


def _show(stdout: Console, model: str, found: "Horizon") -> None:
    low, high = ("none" if end is None else end for end in found.interval)
    stdout.print(f"{model} on {found.task}: {found.verdict}", style="bold")
    stdout.print(
        f"{found.samples} samples, {found.maps} with scores; in {100 * found.confidence:g} % of "
        f"resampled data between {low} and {high}. Scores of units and losses, in points:"
    )
    names = {"information": "mean", "absolute": "mean |score|"}
    names |= {"p_loss": "p lost", "accuracy_loss": "accuracy lost"}
    columns = [name for name in names if name in found.curves]
    wraps = range(1, 1 + len(columns))
    rows = []
    for i, layer in enumerate(found.layers):
        cells = []
        for name in columns:
            curve = found.curves[name]
            points = (round(100 * part[i], 1) + 0.0 for part in (curve.mean, curve.low, curve.high))
            mean, low_, high_ = (f"{x:.1f}" for x in points)
            cells.append(mean if name == "information" else f"{mean} [{low_}, {high_}]")
        rows.append((str(layer), *cells))
    print_table(stdout, ("layer", *(names[name] for name in columns)), rows, wraps)
    full, p = found.accuracy_full.mean[0], found.p_full.mean[0]
    stdout.print(f"With every visual token: accuracy {100 * full:.1f} %, p {100 * p:.1f} %.")
    for note in found.notes:
        stdout.print(note)
