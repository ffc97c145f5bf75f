"""`vtfast score`: how much of an answer each visual token carries, layer by layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vtfast.cli import _options as options
from vtfast.cli import _values as values
from vtfast.cli._terminal import consoles, deliver, loading_libraries, print_table
from vtfast.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from vtfast.information import Dataset, Example, InformationMap


def score(
    model: options.Model,
    image: options.Images = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="The question.")] = None,
    answer: Annotated[str | None, typer.Option(metavar="TEXT", help="The true answer.")] = None,
    task: options.Task = None,
    data: options.Data = None,
    image_folder: options.ImageFolder = None,
    skip_bad: options.SkipBad = False,
    sample: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Which scenes or usable lines, such as 0,4,8-11, counted from 0; all: every one.",
        ),
    ] = "0",
    seed: options.SceneSeed = 0,
    layers: options.Layers = None,
    window: options.Window = None,
    per: options.Per = "mean_token",
    log: options.Log = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
    device: options.Device = "auto",
    dtype: options.DType = "auto",
) -> None:
    """Score how much of an answer each visual token still carries, layer by layer.

    The information score of a token at a layer is the probability of the true
    answer with this token alone from the layer on, minus the probability without
    any. Ask about your own picture (--image, --prompt and --answer), bundled
    scenes (--task), or lines of a data file (--data). With --out the scores are
    drawn over the image.

    \b
    Examples:
      vtfast score --model toy-llava --task code --out heat.png
      vtfast score --model llava-hf/llava-1.5-7b-hf --image cat.jpg \\
        --prompt "What animal is this?" --answer cat --layers 0,8,16,24
      vtfast score --model ./checkpoint --data mine.jsonl --sample all \\
        --log scores.jsonl --skip-bad --json

    \b
    In the JSON object: layers, per, p_full, p_without (by layer), and pictures,
    each with scores (by layer and unit), grid, and columns of its units; and
    skipped, with the name of each sample left out and the reason.
    """
    own = (image, prompt, answer)
    if any(own) and not all(own):
        raise InputError("--image, --prompt and --answer go together; pass all three")
    if any(own) and (task or data or image_folder):
        raise InputError("pass exactly one of --task, --data, and --image")
    source = None if any(own) else values.source_of_questions(task, data, image_folder)
    chosen = values.layer_numbers(layers)
    stdout, stderr = consoles()
    with loading_libraries(stderr):
        from vtfast import information
        from vtfast.cli._checkpoints import find
        from vtfast.cli._questions import as_dataset, measured, protect, questions, report_skipped
        from vtfast.inputs.data import Example
        from vtfast.inputs.pictures import open_picture

    checkpoint = find(model, stderr)
    numbers = None if sample == "all" else values.numbers("--sample", sample, 9)
    if source is not None:
        most = None if task or numbers is None else max(numbers) + 1
        known = questions(checkpoint, source, most, seed, skip_bad, stderr, image_folder)
    else:
        for path in image or ():
            open_picture(path)
        example = Example(tuple(image or ()), str(prompt), str(answer), "--image")
        known = as_dataset(checkpoint.processor, [example], "your question", stderr)
    protect(known, out, data, log, *(image or ()))
    wanted = numbers or range(len(known))
    if max(wanted) >= len(known):
        raise InputError(f"--sample {sample}: expected a number from 0 to {len(known) - 1}")
    examples = [known.examples[i] for i in wanted]
    asked = as_dataset(checkpoint.processor, examples, known.task, None, skip_bad)
    asked.skipped += known.skipped
    with measured(checkpoint, asked, device, dtype, stderr) as (network, tick):
        found = information.score(
            network, asked, layers=chosen, window=window, per=per, log=log, progress=tick
        )
    report_skipped(found.skipped, stderr)
    scored = [asked.examples[i] for i in found.numbers]
    about: dict[str, Any] = {"model": model}
    about |= {"question": scored[0].question, "answer": scored[0].answer}
    if len(scored) > 1:
        about = {"model": model, "questions": [example.question for example in scored]}
        about["answers"] = [example.answer for example in scored]
    deliver(
        {**about, **found.record()},
        lambda path: found.draw(path, _pictures(asked, found)),
        lambda: _show(stdout, model, scored, found),
        out,
        as_json,
    )


def _pictures(asked: "Dataset", found: "InformationMap") -> list["Image"]:
    """The pictures, or tiles of them, of a map, in its order."""
    from vtfast.inputs.grids import as_seen

    shown = []
    for sample, number in enumerate(found.numbers):
        mine = [p for p in found.pictures if p.sample == sample]
        inputs, pictures = asked.batch([number]).inputs, asked.pictures(number)
        tiled = any(p.part for p in mine)
        for tile, picture in enumerate(mine):
            seen = as_seen(asked.processor, inputs, tile) if tiled else None
            shown.append(seen or pictures[picture.number])
    return shown


def _show(
    stdout: Console, model: str, scored: Sequence["Example"], found: "InformationMap"
) -> None:
    head = ("layer", "p without", "best unit", "mean", "units above 0.01")
    for number, example in enumerate(scored):
        title = f"{model}, {example.question!r}, answer {example.answer!r}"
        stdout.print(title, style="bold")
        rows = []
        for i, layer in enumerate(found.layers):
            scores = found.of(number)[i]
            cells = (found.p_without[i, number], scores.max(), scores.mean())
            row = [str(layer), *(f"{round(x, 3) + 0.0:.3f}" for x in cells)]
            rows.append([*row, f"{(scores > 0.01).sum()} of {len(scores)}"])
        print_table(stdout, head, rows, wraps=())
        stdout.print(f"p of the answer with every visual token: {found.p_full[number]:.3f}")
