"""The command that compares plans, `vtfast evaluate`: its options, its help, and what it shows.

Importing this module is light; torch and transformers come once the options are known to be sound.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vtfast.cli._commands import AsJson
from vtfast.cli._commands import Seed as PatchSeed
from vtfast.cli._studies import (
    Data,
    Device,
    DType,
    Log,
    Model,
    Out,
    Samples,
    SkipBad,
    Task,
    shares,
    study_of,
)
from vtfast.distributed import this_process
from vtfast.errors import InputError
from vtfast.presets import PRESETS, check_name

if TYPE_CHECKING:
    from vtfast.cli._explore import Study
    from vtfast.evaluation import Comparison

# What a paper's table is compared with first: nothing learnt, nothing computed, and the default.
DEFAULT_PLANS = ("divprune+random", "divprune", "random", "uniform")


def evaluate(
    model: Model,
    plan: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"What to prune by: {', '.join(PRESETS)}; or a released setting, such as "
            f"paper:divprune+random:192. Repeat it. Default: {', '.join(DEFAULT_PLANS)}.",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Visual tokens to keep, averaged over all layers, such as 0.5,0.25: a row each. "
            "Default: 0.5 (pyramiddrop: as released).",
        ),
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="LAYER",
            help="Layer of second stages. Default: the checkpoint's own, else the paper's share of "
            "the layers.",
        ),
    ] = None,
    task: Task = None,
    data: Data = None,
    samples: Samples = None,
    skip_bad: SkipBad = False,
    scene_seed: Annotated[int, typer.Option(min=0, metavar="INT", help="Of bundled scenes.")] = 0,
    seed: PatchSeed = 0,
    match: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="exact: the answer and no more, but for case and punctuation; begins: it may go "
            "on after the answer.",
        ),
    ] = "exact",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="INT", help="Default: one more than the longest true answer has."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="INT", help="Questions together.")] = 8,
    positions: Annotated[
        str,
        typer.Option(metavar="NAME", help="keep, or renumber as the papers' code does."),
    ] = "keep",
    path: Annotated[
        str, typer.Option(metavar="NAME", help="Layout of pruned batches: auto, packed, padded.")
    ] = "auto",
    log: Log = None,
    out: Out = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Compare plans on questions with known answers, beside the unpruned model.

    A row for every plan and budget: accuracy with its 95 % interval, answers lost
    and gained against the unpruned model, average visual tokens, and what that
    saves in arithmetic, time and KV cache. The picture shows accuracy against
    tokens. Processes started by torchrun or accelerate launch share the questions.

    \b
    Examples:
      vtfast evaluate --model toy-llava --task digit --samples 40
      vtfast evaluate --model llava-hf/llava-1.5-7b-hf --data pope.jsonl \\
        --plan divprune+random --plan fastv --keep 0.33,0.11 --log run.jsonl
      torchrun --nproc-per-node 4 -m vtfast evaluate --model ./checkpoint \\
        --data mine.jsonl --batch 16 --out plans.png

    \b
    In the JSON object: settings, and rows, each with name, accuracy, low, high,
    lost, gained, average_tokens, flops_ratio, time_ratio, kv_bytes and pareto.
    """
    for option, value, known in (
        ("--match", match, ("exact", "begins")),
        ("--positions", positions, ("keep", "renumber")),
        ("--path", path, ("auto", "packed", "padded")),
    ):
        if value not in known:
            raise InputError(f"{option} {value}: pass one of {', '.join(known)}")
    names = plan or list(DEFAULT_PLANS)
    for name in names:
        if not name.startswith("paper:"):
            check_name(name)
    budgets = None if keep is None else shares(keep)
    for share in budgets or ():
        if not 0 < share <= 1:
            raise InputError(f"--keep {share:g}: expected shares above 0, up to 1, such as 0.5")
    from vtfast.cli._explore import Source

    source = Source(task, data, samples, scene_seed, skip_bad)
    per = "mean_token"  # of no effect here
    study = study_of(model, source, None, None, per, out, as_json, device, dtype, log)
    options = {"keep": budgets, "horizon": horizon, "match": match, "batch": batch}
    options |= {"max_new_tokens": max_new_tokens, "seed": seed, "positions": positions}
    run_evaluate(study, names, {**options, "path": path})


def run_evaluate(study: "Study", names: list[str], options: dict[str, Any]) -> None:
    """The whole of `vtfast evaluate`. Raises VTFastError for what the user can put right."""
    from vtfast.cli._explore import finish, prepared
    from vtfast.cli._terminal import working

    here = this_process()
    if here.size > 1 and study.device in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            study = replace(study, device=f"cuda:{here.local}")
    with prepared(study) as (model, data, out, err):
        from vtfast.evaluation import evaluate as compare
        from vtfast.evaluation import named_plan

        plans = [named_plan(name) for name in names]
        with working(err, data.task, len(data)) as tick:
            found = compare(
                model,
                data,
                plans,
                log=study.log,
                progress=tick if here.rank == 0 else False,
                **options,
            )
        if here.rank == 0:
            finish(study, out, found, _show)


def _show(out: Console, model: str, found: "Comparison") -> None:
    from vtfast.cli._terminal import table

    questions = "1 question" if found.samples == 1 else f"{found.samples} questions"
    out.print(f"{model} on {found.task}, {questions}", style="bold")
    shown = table(*found.HEAD)
    for row in found.rows:
        shown.add_row(*found.cells(row))
    out.print(shown)
    out.print(
        "FLOPs: of prefill. Time: of generate, the pictures' encoding included; median of the "
        "batches' ratios. Both as shares of the unpruned model's."
    )
    out.print(f"Beaten by no other in accuracy at as few tokens: {', '.join(found.pareto)}.")
