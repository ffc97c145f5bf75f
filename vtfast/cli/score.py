"""`vtfast score`: how much of an answer each visual token carries, layer by layer."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vtfast.cli import _options as options
from vtfast.cli._terminal import consoles, deliver, loading_libraries, table, working
from vtfast.errors import InputError

if TYPE_CHECKING:
    from vtfast.information import InformationMap


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
        int, typer.Option(min=0, metavar="INT", help="Which scene or usable line, from 0.")
    ] = 0,
    seed: options.SceneSeed = 0,
    layers: options.Layers = None,
    window: options.Window = None,
    per: options.Per = "mean_token",
    out: options.Out = None,
    as_json: options.AsJson = False,
    device: options.Device = "auto",
    dtype: options.DType = "auto",
) -> None:
    """Score how much of an answer each visual token still carries, layer by layer.

    The information score of a token at a layer is the probability of the true
    answer with this token alone from the layer on, minus the probability without
    any. Ask about your own picture (--image, --prompt and --answer), a bundled
    scene (--task), or a line of a data file (--data). With --out the scores are
    drawn over the image.

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
    own = (image, prompt, answer)
    if any(own) and not all(own):
        raise InputError("--image, --prompt and --answer go together; pass all three")
    if any(own) and (task or data or image_folder):
        raise InputError("pass exactly one of --task, --data, and --image")
    source = None if any(own) else options.source_of_questions(task, data, image_folder)
    chosen = options.layer_numbers(layers)
    stdout, stderr = consoles()
    with loading_libraries(stderr):
        from vtfast import information
        from vtfast.cli._checkpoints import find, loaded
        from vtfast.cli._questions import as_dataset, protect, questions
        from vtfast.inputs.data import Example
        from vtfast.inputs.pictures import open_picture

    checkpoint = find(model, stderr)
    if source is not None:
        most = None if task else sample + 1
        asked = questions(checkpoint, source, most, seed, skip_bad, stderr, image_folder)
    else:
        for path in image or ():
            open_picture(path)
        example = Example(tuple(image or ()), str(prompt), str(answer), "--image")
        asked = as_dataset(checkpoint.processor, [example], "your question", stderr)
    protect(asked, out, data, *(image or ()))
    if sample >= len(asked):
        raise InputError(f"--sample {sample}: expected a number from 0 to {len(asked) - 1}")
    with loaded(checkpoint, device, dtype, stderr) as network:
        batch = asked.batch([sample], network.device)
        num_layers = len(chosen or range(network.config.get_text_config().num_hidden_layers))
        with working(stderr, "scoring", num_layers) as tick:
            found = information.score(
                network,
                batch.inputs,
                batch.answers[0][: batch.lengths[0]],
                layers=chosen,
                window=window,
                per=per,
                progress=tick,
            )
    example = asked.examples[sample]
    seen = [asked.pictures(sample)[picture.number] for picture in found.pictures]
    about = {"model": model, "question": example.question, "answer": example.answer}
    title = f"{model}, {example.question!r}, answer {example.answer!r}"
    deliver(
        {**about, **found.record()},
        lambda path: found.draw(path, seen),
        lambda: _show(stdout, title, found),
        out,
        as_json,
    )


def _show(stdout: Console, title: str, found: "InformationMap") -> None:
    stdout.print(title, style="bold")
    shown = table("layer", "p without", "best unit", "mean", "units above 0.01", wraps=())
    for i, layer in enumerate(found.layers):
        scores = found.of(0)[i]
        cells = (found.p_without[i, 0], scores.max(), scores.mean())
        row = [str(layer), *(f"{round(x, 3) + 0.0:.3f}" for x in cells)]
        shown.add_row(*row, f"{(scores > 0.01).sum()} of {len(scores)}")
    stdout.print(shown)
    stdout.print(f"p of the answer with every visual token: {found.p_full[0]:.3f}")
