"""Run `vtfast run`: the answer as it comes, then a table; or one JSON object; and a picture.

Importing this module is light. torch and transformers come in `run`, after the pictures are read.
"""

import json
import sys
import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vtfast.cli._terminal import consoles, loading_libraries, working
from vtfast.errors import InputError
from vtfast.inputs.pictures import open_picture, read_clip

if TYPE_CHECKING:
    from vtfast.cli._ask import Answer
    from vtfast.cli._show import Outcome
    from vtfast.inputs.views import View


@dataclass(frozen=True)
class Settings:
    """What a run depends on; `patching` are the arguments of `vtfast.patch`."""

    model: str
    prompt: str
    images: tuple[Path, ...]
    video: tuple[Path, ...]
    patching: dict[str, Any]
    max_frames: int
    fps: float | None
    max_new_tokens: int
    device: str
    dtype: str
    compare: bool
    out: Path | None
    as_json: bool


def run(settings: Settings) -> None:
    """The whole command. Raises VTFastError for what the user can put right."""
    out, err = consoles()
    if hasattr(sys.stdout, "reconfigure"):  # a model may say what a terminal cannot show
        sys.stdout.reconfigure(errors="replace")
    images = [(path.name, open_picture(path)) for path in settings.images]
    clip = None
    if settings.video:
        clip = read_clip(settings.video, settings.max_frames, settings.fps)
    with loading_libraries(err):
        import torch

        from vtfast.cli._ask import alternate, ask, typical
        from vtfast.cli._show import Outcome, Run, record, show
        from vtfast.inputs.checkpoints import device_named, find, quiet
        from vtfast.inputs.prompts import Prompt
        from vtfast.patching import patch

    device = device_named(settings.device)
    with quiet(), working(err, f"looking at {settings.model}"):
        checkpoint = find(settings.model)
        checkpoint.check_plan(**settings.patching)
        prompt = Prompt(checkpoint, settings.prompt, images, clip)
    most = settings.max_new_tokens
    try:
        with quiet(bars=err.is_terminal):
            model = checkpoint.weights(device, settings.dtype)
        with quiet():
            with patch(model, **settings.patching, record=settings.out is not None) as handle:
                answer = _stream(settings, out, err, lambda **to: ask(model, prompt, most, **to))
            runs, rounds = [Run("pruned", answer, handle.plan, handle.report)], 0
            if settings.compare:
                with working(err, "the unpruned model answers", most) as tick:
                    runs.insert(0, Run("unpruned", ask(model, prompt, most, on_token=tick)))

                def pruned() -> "Answer":
                    with patch(model, **settings.patching):
                        return ask(model, prompt, most)

                ways = {"unpruned": lambda: ask(model, prompt, most), "pruned": pruned}
                with working(err, "timing both in turn") as tick:
                    times = alternate(ways, tick)
                runs = [run.timed(typical(times[run.name])) for run in runs]
                rounds = len(times["pruned"])
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(".")[0]
        raise InputError(
            f"--model {settings.model} does not fit: {reason}; pass --dtype bfloat16, a smaller "
            "picture or --device cpu"
        ) from None
    outcome = Outcome(settings, model, prompt, runs, rounds)
    if settings.out:
        _draw(settings.out, outcome, prompt.views(handle))
    if settings.as_json:
        print(json.dumps(record(outcome), indent=2))
    else:
        show(out, outcome)


def _stream(
    settings: Settings, out: Console, err: Console, answer: Callable[..., "Answer"]
) -> "Answer":
    """The answer, its words on stdout as they come; with --json a bar counts them instead."""
    if settings.as_json:
        with working(err, "the pruned model answers", settings.max_new_tokens) as tick:
            return answer(on_token=tick)
    from vtfast.cli._show import printable

    begun = False
    try:
        with ExitStack() as waiting:
            waiting.enter_context(working(err, "looking at the pictures"))

            def write(text: str) -> None:
                nonlocal begun
                begun = True
                waiting.close()
                out.file.write(printable(text))
                out.file.flush()

            return answer(write=write)
    finally:
        if begun:  # also where it was interrupted
            print()


def _draw(path: Path, outcome: "Outcome", views: "list[View]") -> None:
    """Save what each stage kept of each picture."""
    from vtfast.cli._picture import draw, save

    run, settings = outcome.runs[-1], outcome.settings
    most = 45 * (1 + len(views[0].stages))  # characters in a line above or below the panels
    heading = (
        f"{Path(settings.model).name}, {run.plan and run.plan.name}: {outcome.average(run):.1f} of "
        f"{outcome.visual_tokens} visual tokens, averaged over the layers"
    )
    caption = f'dark patches were dropped; the prompt was "{settings.prompt}"'
    lines = (textwrap.shorten(line, most, placeholder=" …") for line in (heading, caption))
    try:
        save(draw(views, *lines), path)
    except OSError as error:
        reason = f"cannot write {path}: {error.strerror}; pass another --out"
        raise InputError(reason) from None
