"""`vtfast run`: ask a model about pictures with fewer visual tokens, and see what that saves."""

import json
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from vtfast import __version__
from vtfast.cli import _options as options
from vtfast.cli import _values as values
from vtfast.cli._terminal import (
    consoles,
    in_bytes,
    in_ms,
    loading_libraries,
    print_table,
    remark,
    working,
    writing,
)
from vtfast.errors import InputError

if TYPE_CHECKING:
    from vtfast.cli._answering import Answer
    from vtfast.inputs.prompts import Prompt
    from vtfast.patching import Handle


def run(
    model: options.Model,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The question.")],
    image: options.Images = None,
    video: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="A folder of frames, an animated GIF, or, repeated, frame files in order. For "
            "models that take video (Qwen's, GLM-4V).",
        ),
    ] = None,
    plan: options.Plan = "divprune+random",
    keep: options.Keep = None,
    horizon: options.HorizonLayer = None,
    own_methods: options.Import = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", metavar="", help="Ask the unpruned model too, and time both when warm."
        ),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="INT", help="Longest answer, in tokens.")
    ] = 64,
    out: options.Kept = None,
    as_json: options.AsJson = False,
    max_frames: Annotated[
        int,
        typer.Option(min=1, metavar="INT", help="Use at most this many frames, evenly spaced."),
    ] = 16,
    fps: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Frames per second. Default: the GIF's own, else 2."),
    ] = None,
    device: options.Device = "auto",
    dtype: options.DType = "auto",
    seed: options.Seed = None,
    path: options.Layout = "auto",
    impl: Annotated[
        str,
        options.one_of(
            "--impl",
            "Implementation of the ops: auto, eager, triton.",
            *("auto", "eager", "triton"),
        ),
    ] = "auto",
) -> None:
    """Ask a model about your pictures with fewer visual tokens.

    The answer is streamed. Then a table says how many visual tokens each stage
    of the plan left, what that saves, and how long it took. Without --keep half
    of the visual tokens are kept. With --compare the unpruned model answers too,
    and both are timed when warm. With --out a picture shows what each stage kept.
    README, "Models", lists what is supported. Decoding is greedy.

    \b
    Examples:
      vtfast run --model toy-llava --image scene.png --prompt "read the code ."
      vtfast run --model llava-hf/llava-1.5-7b-hf --image cat.jpg \\
        --prompt "What is this?" --keep 0.25 --compare --out kept.png
      vtfast run --model Qwen/Qwen2.5-VL-7B-Instruct --video frames/ \\
        --prompt "What happens here?" --plan divprune --max-new-tokens 200
      vtfast run --model ./checkpoint --image old.png --image new.png \\
        --prompt "What has changed?" --json

    \b
    In the JSON object: visual_tokens, text_tokens, layers, plan (stages, horizon
    and where it came from), and runs, one for each variant of the model: answer,
    visual_tokens_per_layer, flops_ratio, seconds_to_first_token,
    ms_per_further_token, kv_cache_bytes, path. With --compare also identical and
    timed_rounds.
    """
    if not image and not video:
        raise InputError("there is nothing to look at; pass --image or --video")
    if fps is not None and not 0 < fps < 1000:
        raise InputError(f"--fps {fps:g}: expected a number above 0, such as 2")
    read = [*(image or ()), *(video or ())]
    inside = (file for path in read if os.path.isdir(path) for file in path.iterdir())
    values.check_not_read(out, [*read, *inside, *values.plan_files([plan])])
    stdout, stderr = consoles()
    from vtfast.inputs.pictures import first_frames, open_picture, read_clip

    images = [(file.name, open_picture(file)) for file in image or ()]
    clip = read_clip(video, max_frames, fps) if video else None
    with loading_libraries(stderr):
        from vtfast.cli._answering import alternate, ask, ask_on_terminal, with_median_times
        from vtfast.cli._checkpoints import find, loaded
        from vtfast.inputs.checkpoints import quiet
        from vtfast.inputs.prompts import Prompt
        from vtfast.patching import patch

    given = {"keep": keep, "horizon": horizon}
    how: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    how |= {"plan": plan, "seed": seed, "path": path, "impl": impl}
    checkpoint = find(model, stderr)
    if note := first_frames(image or ()):
        remark(stderr, note + "; --video takes them all" * checkpoint.takes_video)
    with quiet(), working(stderr, "checking the plan and the prompt"):
        checkpoint.check_plan(**how)
        asked = Prompt(checkpoint, prompt, images, clip)
    with loaded(checkpoint, device, dtype, stderr) as network:
        answer_of = partial(ask, network, asked, max_new_tokens)
        with patch(network, **how, record=out is not None) as handle:
            if as_json:
                with working(stderr, "the pruned model answers", max_new_tokens) as tick:
                    answer = answer_of(on_token=tick)
            else:
                answer = ask_on_terminal(network, asked, max_new_tokens, stdout, stderr)
        answers, rounds = {"pruned": answer}, 0
        if compare:
            with working(stderr, "the unpruned model answers", max_new_tokens) as tick:
                answers = {"unpruned": answer_of(on_token=tick), **answers}

            def pruned() -> "Answer":
                with patch(network, **how):
                    return answer_of()

            with working(stderr, "timing both in turn") as tick:
                timed = alternate({"unpruned": answer_of, "pruned": pruned}, tick)
            rounds = len(timed["pruned"])
            answers = {name: with_median_times(answers[name], timed[name]) for name in answers}
    num_layers: int = network.config.get_text_config().num_hidden_layers
    assert handle.report is not None
    seen = {"unpruned": [len(asked.columns)] * num_layers, "pruned": [*handle.report.tokens[0]]}
    flops = handle.plan.flops_ratio(network.config, asked.pictures, asked.text_tokens)
    fields = ("name", "keep", "horizon", "horizon_source")
    record = {
        "version": __version__,
        "model": model,
        "model_class": type(network).__name__,
        "device": str(network.device),
        "dtype": str(network.dtype).removeprefix("torch."),
        "layers": num_layers,
        "prompt": prompt,
        "images": [str(file) for file in image or ()],
        "video": [str(file) for file in video or ()],
        "visual_tokens": len(asked.columns),
        "visual_tokens_per_picture": asked.pictures,
        "text_tokens": asked.text_tokens,
        "plan": {
            **{name: getattr(handle.plan, name) for name in fields},
            "seed": next((s for s in (seed, handle.plan.seed) if s is not None), 0),
            "stages": [
                {"layer": s.layer, "method": s.method, "keep": s.keep, **s.chosen}
                for s in handle.plan.stages
            ],
        },
        "runs": [
            {
                "name": name,
                "answer": answer.text,
                "new_tokens": answer.tokens,
                "finished": answer.finished,
                "visual_tokens_per_layer": seen[name],
                "visual_tokens_average": sum(seen[name]) / num_layers,
                "flops_ratio": flops if name == "pruned" else 1.0,
                "seconds_to_first_token": answer.first_seconds,
                "ms_per_further_token": answer.token_ms,
                "kv_cache_bytes": answer.cache_bytes,
                "path": handle.report.path if name == "pruned" else None,
                "path_reason": handle.report.path_reason if name == "pruned" else None,
            }
            for name, answer in answers.items()
        ],
        "identical": len({a.text for a in answers.values()}) == 1 if compare else None,
        "timed_rounds": rounds,
        "picture": out and str(out),
    }
    record["notes"] = _notes(
        record, asked.unknown_words(), max_new_tokens, toy=checkpoint.model is not None
    )
    if out:
        _draw(out, record, asked, handle)
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        _show(stdout, record, str(handle.plan).partition("\n")[0])


def _notes(record: Mapping[str, Any], unknown: Sequence[str], most: int, toy: bool) -> list[str]:
    """Remarks on how the numbers were measured, and on the answer."""
    rounds, pruned = record["timed_rounds"], record["runs"][-1]
    if rounds:
        times = f"Times: median of {rounds} round{'s' * (rounds != 1)} in alternating order, "
        times += "after a warm-up."
    else:
        times = "Times: of a first run, set-up included; --compare warms up and takes medians."
    notes = [f"{times} Time to first token includes encoding the pictures."]
    notes.append(f"Layout: {pruned['path']} ({pruned['path_reason']}).")
    if not all(run["finished"] for run in record["runs"]):
        notes.append(f"Cut short: --max-new-tokens {most}.")
    if unknown:
        words = ", ".join(f'"{word}"' for word in unknown)
        notes.append(f"Not in the tokenizer's vocabulary: {words}.")
    if toy:
        notes.append("A toy shows what pruning does to meaning; it is too small to get faster.")
    return notes


def _draw(out: Path, record: Mapping[str, Any], asked: "Prompt", handle: "Handle") -> None:
    """Save what each stage kept of each picture."""
    from vtfast.cli._kept_picture import draw, save
    from vtfast.cli._kept_views import kept_views

    views = kept_views(asked, handle)
    most = 45 * (1 + len(views[0].stages))  # characters in a line above or below the panels
    average = record["runs"][-1]["visual_tokens_average"]
    heading = (
        f"{Path(record['model']).name}, {handle.plan.name}: {average:.1f} of "
        f"{record['visual_tokens']} visual tokens, averaged over the layers"
    )
    caption = f'dark patches were dropped; the prompt was "{record["prompt"]}"'
    lines = (textwrap.shorten(line, most, placeholder=" …") for line in (heading, caption))
    with writing(out):
        save(draw(views, *lines), out)


def _show(stdout: Console, record: Mapping[str, Any], plan: str) -> None:
    from vtfast.cli._answering import printable

    runs, where = record["runs"], record["device"]
    if where == "cpu":
        import torch

        where = f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() != 1)}"
    stdout.print(
        f"\n{record['model']}: {record['layers']} layers, {record['visual_tokens']} visual and "
        f"{record['text_tokens']} text tokens; {record['dtype']}, {where}\nPlan {plan}",
        style="bold",
    )
    names = [run["name"] for run in runs]
    if compared := len(runs) > 1:
        answers = [Text(printable(run["answer"])) for run in runs]
        print_table(stdout, names, [answers], wraps=(0, 1), keys=0)
        if record["identical"]:
            stdout.print("The answers are the same.")
        else:
            stdout.print("The answers differ.", style="bold red")
        names.append(" / ".join(names))
    rows = []
    for stage in record["plan"]["stages"]:
        left = [str(run["visual_tokens_per_layer"][stage["layer"]]) for run in runs]
        rows.append([f"tokens from layer {stage['layer']}, {stage['method']}", *left])
    for label, field, cell in _ROWS:
        values = [run[field] for run in runs]
        cells = ["" if value is None else cell(value) for value in values]
        if compared and all(values) and field != "new_tokens":
            cells.append(f"{values[0] / values[-1]:.2f}x")
        rows.append([label, *cells])
    full = [[*row, *[""] * (1 + len(names) - len(row))] for row in rows]
    print_table(stdout, ["", *names], full)
    for note in record["notes"]:
        stdout.print(note)
    if record["picture"]:
        stdout.print(f"What was kept of the pictures: {record['picture']}", soft_wrap=True)


# Rows of the table: label, field of the record, and how its value is written.
_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("visual tokens, average of layers", "visual_tokens_average", "{:.1f}".format),
    ("prefill FLOPs, of unpruned", "flops_ratio", lambda share: f"{100 * share:.0f} %"),
    ("time to first token", "seconds_to_first_token", lambda seconds: in_ms(1000 * seconds)),
    ("per further token", "ms_per_further_token", in_ms),
    ("KV cache", "kv_cache_bytes", in_bytes),
    ("new tokens", "new_tokens", str),
)
