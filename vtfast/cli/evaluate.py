"""`vtfast evaluate`: accuracy and savings of several plans, beside the unpruned model."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vtfast.cli import _options as options
from vtfast.cli import _values as values
from vtfast.cli._terminal import consoles, deliver, loading_libraries, print_table
from vtfast.presets import IN_WORDS

if TYPE_CHECKING:
    from vtfast.evaluation import Comparison

# The baselines of the papers' tables (random, uniform), DivPrune alone, and the default.
DEFAULT_PLANS = ("divprune+random", "divprune", "random", "uniform")


def _check_plans(plans: list[str] | None) -> list[str] | None:
    for name in plans or ():
        if not name.startswith("paper:"):
            options.check_plan(name)
    return plans


def evaluate(
    model: options.Model,
    plan: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            callback=_check_plans,
            help=f"How to prune: {IN_WORDS}; a plan file, such as plan.json; or a released "
            "setting, such as paper:divprune+random:192. Repeat for several. Default: "
            f"{', '.join(DEFAULT_PLANS)}.",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Shares of the visual tokens to keep, averaged over all layers, such as 0.5,0.25: "
            "a row each. Default: 0.5 (pyramiddrop: as released).",
        ),
    ] = None,
    horizon: options.HorizonLayer = None,
    own_methods: options.Import = None,
    task: options.Task = None,
    data: options.Data = None,
    image_folder: options.ImageFolder = None,
    samples: options.Samples = None,
    skip_bad: options.SkipBad = False,
    scene_seed: options.SceneSeed = 0,
    seed: options.Seed = None,
    match: options.Match = "exact",
    max_new_tokens: options.AnswerTokens = None,
    batch: options.Batch = 8,
    positions: options.Positions = "keep",
    path: options.Layout = "auto",
    log: options.Log = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
    device: options.Device = "auto",
    dtype: options.DType = "auto",
) -> None:
    """Compare plans on questions with known answers, beside the unpruned model.

    There is a row for every plan and budget: accuracy with its 95 % interval,
    answers lost and gained against the unpruned model, average visual tokens, and
    what that saves in arithmetic, time and KV cache. With --out accuracy is drawn
    against tokens. Processes started by torchrun or accelerate launch share the
    questions.

    \b
    Examples:
      vtfast evaluate --model toy-llava --task digit --samples 40
      vtfast evaluate --model llava-hf/llava-1.5-7b-hf --data pope.jsonl \\
        --plan divprune+random --plan fastv --keep 0.33,0.11 --log run.jsonl
      torchrun --nproc-per-node 4 -m vtfast evaluate --model ./checkpoint \\
        --data mine.jsonl --batch 16 --out plans.png

    \b
    In the JSON object: settings, and rows, each with name, accuracy, low, high,
    lost, gained, average_tokens, flops_ratio, time_ratio, kv_bytes and pareto;
    and skipped, with the name of each question left out and the reason.
    """
    source = values.source_of_questions(task, data, image_folder)
    budgets = None if keep is None else values.shares(keep)
    stdout, stderr = consoles()
    with loading_libraries(stderr):
        from vtfast import evaluation
        from vtfast.cli._checkpoints import find
        from vtfast.cli._questions import measured, protect, questions, report_skipped
        from vtfast.inputs.devices import own_gpu
        from vtfast.inputs.distributed import this_process

    plans = [evaluation.named_plan(name) for name in plan or DEFAULT_PLANS]
    here = this_process()
    checkpoint = find(model, stderr)
    asked = questions(checkpoint, source, samples, scene_seed, skip_bad, stderr, image_folder)
    protect(asked, out, data, log, *values.plan_files(plan or ()))
    with measured(checkpoint, asked, own_gpu(device, here), dtype, stderr) as (network, tick):
        found = evaluation.evaluate(
            network,
            asked,
            plans,
            keep=budgets,
            horizon=horizon,
            seed=seed,
            positions=positions,
            path=path,
            match=match,
            max_new_tokens=max_new_tokens,
            batch=batch,
            log=log,
            progress=tick if here.rank == 0 else False,
        )
    if here.rank == 0:
        report_skipped(found.skipped, stderr)
        record = {"model": model, **found.record()}
        deliver(record, found.draw, lambda: _show(stdout, model, found), out, as_json)


def _show(stdout: Console, model: str, found: "Comparison") -> None:
    questions = "1 question" if found.samples == 1 else f"{found.samples} questions"
    stdout.print(f"{model} on {found.task}, {questions}", style="bold")
    print_table(stdout, found.HEAD, [found.cells(row) for row in found.rows], wraps=(0, 1))
    stdout.print(
        "FLOPs: of prefill. Time: of generate, the pictures' encoding included; median over the "
        "questions. Both as shares of the unpruned model's."
    )
    stdout.print(f"Pareto-optimal (accuracy against tokens): {', '.join(found.pareto)}.")
