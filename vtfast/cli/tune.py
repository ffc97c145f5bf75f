"""`vtfast tune`: the cheapest plan that loses little enough on given questions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vtfast.cli import _options as options
from vtfast.cli import _values as values
from vtfast.cli._terminal import consoles, deliver, loading_libraries, print_table, remark
from vtfast.errors import InputError

if TYPE_CHECKING:
    from vtfast.tuning import Tuned


def _check_out(out: Path | None) -> Path | None:
    """Refuse now what could not be written after the work is done."""
    if out is not None and out.suffix != ".json":
        raise InputError(f"--out {out}: a plan is a JSON file; pass a name that ends in .json")
    if out is not None:
        values.check_writable("--out", out)
    return out


def _share(name: str, least: float) -> object:
    def check(value: float) -> float:
        if not least < value < 1:
            raise InputError(f"{name} {value:g}: expected a number in ({least:g}, 1)")
        return value

    return check


def tune(
    model: options.Model,
    task: options.Task = None,
    data: options.Data = None,
    image_folder: options.ImageFolder = None,
    max_loss: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            callback=_share("--max-loss", 0.0),
            help="Answers that may be lost against the unpruned model: 0.01 is one in a hundred.",
        ),
    ] = 0.01,
    confidence: Annotated[
        float,
        typer.Option(
            metavar="SHARE", callback=_share("--confidence", 0.5), help="That no more are lost."
        ),
    ] = 0.95,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Methods to try, such as diversity,topk, and plan files, such as plan.json, for "
            "the method of their first stage with its options. Default: diversity, scope, uniform, "
            "random, topk, dart, as far as the model can run them. Dropping all tokens at the "
            "horizon is always tried.",
        ),
    ] = None,
    own_methods: options.Import = None,
    objective: Annotated[
        str,
        options.one_of(
            "--objective",
            "What cheapest means: flops (of the prefill), time (of generate, of the finalists), "
            "cache (tokens in the KV cache).",
            *("flops", "time", "cache"),
        ),
    ] = "flops",
    engine: Annotated[
        str,
        options.one_of(
            "--engine",
            "What the plan is for: transformers, or vllm, which takes one stage before the "
            "language model (docs/serving.md); it is measured in transformers.",
            *("transformers", "vllm"),
        ),
    ] = "transformers",
    horizon: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="LAYER",
            help="Layer around which last stages are tried. Default: looked for with up to 64 of "
            "the questions.",
        ),
    ] = None,
    samples: options.Samples = None,
    skip_bad: options.SkipBad = False,
    scene_seed: options.SceneSeed = 0,
    seed: Annotated[
        int, typer.Option(metavar="INT", help="Seed of the split, and of the random stages.")
    ] = 0,
    match: options.Match = "exact",
    max_new_tokens: options.AnswerTokens = None,
    batch: options.Batch = 8,
    path: options.Layout = "auto",
    log: options.Log = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            callback=_check_out,
            help="Write the plan here, for --plan FILE.json and vtfast.patch(model, FILE.json).",
        ),
    ] = None,
    picture: options.Picture = None,
    as_json: options.AsJson = False,
    device: options.Device = "auto",
    dtype: options.DType = "auto",
) -> None:
    """Find the cheapest plan that loses at most a hundredth of the answers.

    Half of the questions are searched with: plans are tried from the cheapest on,
    on more and more questions, and are out as soon as they lose too much. The
    other half has the final word on the few that are left, so that trying many
    plans fakes no confidence. At least 600 questions are needed for the default
    tolerance; the fewer there are, the larger it has to be. "None" is an answer,
    with the nearest plan. With --log a run goes on where it was stopped. Tune
    once on the same questions: who tries tolerances and methods until a plan
    pleases has no confidence left. Processes started by torchrun or accelerate
    launch share the questions.

    \b
    Examples:
      vtfast tune --model toy-llava --task digit --max-loss 0.02 --out plan.json
      vtfast tune --model llava-hf/llava-1.5-7b-hf --data pope.jsonl \\
        --log run.jsonl --out plan.json --picture tuned.png
      vtfast run --model llava-hf/llava-1.5-7b-hf --image cat.jpg \\
        --prompt "What is this?" --plan plan.json

    \b
    In the JSON object: chosen (a number in finalists, or null), finalists and
    searched, each with name, stages, flops, cache, time, tokens, lost, right,
    gained, wrong, loss, low and high; horizon, samples, held_out, plans, answers.
    """
    source = values.source_of_questions(task, data, image_folder)
    names = None if methods is None else [name.strip() for name in methods.split(",")]
    stdout, stderr = consoles()
    with loading_libraries(stderr):
        from vtfast import tuning
        from vtfast.cli._checkpoints import find
        from vtfast.cli._questions import measured, protect, questions, report_skipped
        from vtfast.inputs.devices import own_gpu
        from vtfast.inputs.distributed import this_process

    here = this_process()
    checkpoint = find(model, stderr)
    samples = _SCENES if samples is None and task is not None else samples
    asked = questions(checkpoint, source, samples, scene_seed, skip_bad, stderr, image_folder)
    files = values.plan_files(names or ())
    protect(asked, picture, data, log, out, *files, option="--picture")
    protect(asked, out, data, log, *files)
    with measured(checkpoint, asked, own_gpu(device, here), dtype, stderr) as (network, tick):
        found = tuning.tune(
            network,
            asked,
            max_loss,
            confidence=confidence,
            methods=names,
            objective=objective,
            engine=engine,
            horizon=horizon,
            seed=seed,
            path=path,
            match=match,
            max_new_tokens=max_new_tokens,
            batch=batch,
            log=log,
            progress=tick if here.rank == 0 else False,
        )
    if here.rank == 0:
        report_skipped(found.skipped, stderr)
        if out is not None and found.plan is not None:
            found.plan.save(out)
        record = {"model": model, **found.record()}
        deliver(record, found.draw, lambda: _show(stdout, model, found, out), picture, as_json)


_SCENES = 800  # drawn unless --samples says otherwise


def _show(stdout: Console, model: str, found: "Tuned", out: Path | None) -> None:
    asked = f"{found.samples} questions of the search, {found.held_out} held out"
    stdout.print(f"{model} on {found.task}, {asked}", style="bold")
    if found.finalists:
        print_table(stdout, found.HEAD, found.rows(), wraps=(0, 1))
        stdout.print(
            "On the questions held out. Accuracy: 95 % interval. Loss: bounds, each at "
            f"{100 * found.confidence:g} %. Time: of generate. FLOPs, time and KV cache as shares "
            "of the unpruned model's.",
        )
    remark(stdout, found.verdict)
    if out is not None:
        saved = f"Saved as {out}." if found.plan else f"There is no plan to save as {out}."
        if not found.plan and out.exists():
            saved += " What it holds is from before."
        remark(stdout, saved)
    remark(stdout, f"{found.answers} answers, {found.plans} plans to choose from.")
