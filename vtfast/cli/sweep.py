"""`vtfast sweep`: the accuracy that is left when a method prunes at one layer, for every layer."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vtfast.cli import _options as options
from vtfast.cli import _values as values
from vtfast.cli._terminal import consoles, deliver, loading_libraries, print_table
from vtfast.errors import InputError

if TYPE_CHECKING:
    from vtfast.information import Sweep


def sweep(
    model: options.Model,
    task: options.Task = None,
    data: options.Data = None,
    image_folder: options.ImageFolder = None,
    samples: options.Samples = None,
    skip_bad: options.SkipBad = False,
    seed: options.SceneSeed = 0,
    methods: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="random, uniform, diversity, cdpruner, scope, visionzip, vispruner, topk, dart, "
            "information (keep the most informative), and plan files, such as plan.json, for the "
            "method of their first stage with its options.",
        ),
    ] = "random,diversity,topk,information",
    keep: Annotated[
        str, typer.Option(metavar="LIST", help="Shares of the visual tokens to keep, such as 0.2.")
    ] = "0.2",
    seeds: Annotated[int, typer.Option(min=1, metavar="INT", help="Seeds to run random with.")] = 3,
    own_methods: options.Import = None,
    no_scores: Annotated[
        bool,
        typer.Option(
            "--no-scores",
            metavar="",
            help="Do not measure how informative the kept tokens are: much faster, but the method "
            "information needs it.",
        ),
    ] = False,
    layers: options.Layers = None,
    window: options.Window = None,
    per: options.Per = "mean_token",
    log: options.Log = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
    device: options.Device = "auto",
    dtype: options.DType = "auto",
) -> None:
    """Prune at every layer with every method, and see what accuracy is left.

    A cell of the table is the accuracy when a method keeps a share of the visual
    tokens from one layer on. From the horizon on random is as good as any method;
    before it the method matters. The method "information" knows the true answer:
    it is a bound to compare with.

    \b
    Examples:
      vtfast sweep --model toy-llava --task shape_colour --samples 20 \\
        --methods random,diversity --no-scores --out sweep.png
      vtfast sweep --model llava-hf/llava-1.5-7b-hf --data pope.jsonl \\
        --layers 0,4,8,12,16,20,24,28 --keep 0.1,0.25 --log sweep.jsonl
      vtfast sweep --model toy-qwen --task code --samples 10 --json

    \b
    In the JSON object: accuracy_full, without (all dropped, by layer), and rows,
    each with method, layer, keep, accuracy, low, high, seeds, p and retained;
    and skipped, with the name of each sample left out and the reason.
    """
    source = values.source_of_questions(task, data, image_folder)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if no_scores and "information" in names:
        raise InputError(
            "--no-scores excludes the method information, which keeps tokens by their scores; "
            "leave one of them out"
        )
    budgets, chosen = values.shares(keep), values.layer_numbers(layers)
    stdout, stderr = consoles()
    with loading_libraries(stderr):
        from vtfast import information
        from vtfast.cli._checkpoints import find
        from vtfast.cli._questions import measured, protect, questions, report_skipped

    checkpoint = find(model, stderr)
    asked = questions(checkpoint, source, samples, seed, skip_bad, stderr, image_folder)
    protect(asked, out, data, log, *values.plan_files(names))
    with measured(checkpoint, asked, device, dtype, stderr) as (network, tick):
        found = information.sweep(
            network,
            asked,
            names,
            keep=budgets,
            seeds=seeds,
            retained=not no_scores,
            layers=chosen,
            window=window,
            per=per,
            log=log,
            progress=tick,
        )
    report_skipped(found.skipped, stderr)
    record = {"model": model, **found.record()}
    deliver(record, found.draw, lambda: _show(stdout, model, found), out, as_json)


def _show(stdout: Console, model: str, found: "Sweep") -> None:
    stdout.print(f"{model} on {found.task}, {found.samples} samples: accuracy in %", style="bold")
    methods = list(dict.fromkeys(row.method for row in found.rows))
    for keep in dict.fromkeys(row.keep for row in found.rows):
        stdout.print(f"{100 * keep:g} % kept from the layer on:")
        rows = []
        for i, layer in enumerate(found.layers):
            cells = [f"{100 * found.without.mean[i]:.1f}"]
            for row in (found.of(method, keep)[i] for method in methods):
                spread = f" ±{100 * row.spread:.1f}" if len(row.seeds) > 1 else ""
                mean, low, high = (100 * x for x in (row.accuracy, row.low, row.high))
                cells.append(f"{mean:.1f}{spread}\n({low:.0f} to {high:.0f})")
            rows.append((str(layer), *cells))
        print_table(stdout, ("layer", "none", *methods), rows, wraps=(), keys=2)
    stdout.print(f"With every visual token: {100 * found.accuracy_full.mean[0]:.1f} %.")
    if any(len(row.seeds) > 1 for row in found.rows):
        stdout.print("±: standard deviation over the seeds; brackets: over the samples.")
