"""The options that commands share, each declared once: its name, its help, and its check.

A value is checked while the command line is parsed, so that nothing heavy is loaded for bad input
and no command checks it again. Importing this module loads no torch, transformers or Pillow.
"""

import os
import sys
import traceback
from contextlib import redirect_stdout
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Annotated, Any

import typer

from vtfast.cli._values import check_writable
from vtfast.errors import InputError
from vtfast.plan import Plan as PlanOrFile
from vtfast.plan_file import is_plan_file
from vtfast.presets import IN_WORDS, check_name
from vtfast.toy import TASKS


def one_of(option: str, help: str, *known: str) -> Any:
    """An option that takes one of the words `known`."""

    def check(value: str) -> str:
        if value not in known:
            raise InputError(f"{option} {value}: pass one of {', '.join(known)}")
        return value

    return typer.Option(metavar="NAME", help=help, callback=check)


def check_plan(plan: str) -> str:
    """Refuse what is neither a preset nor a plan file that can be read."""
    if is_plan_file(plan):
        PlanOrFile.load(plan)
        return plan
    return check_name(plan)


def _import(files: list[Path] | None) -> list[Path] | None:
    """Run Python files of the user's; what they print goes to stderr."""
    for file in files or ():
        if file.suffix != ".py" or not file.is_file():
            raise InputError(f"--import {file}: expected a Python file, such as mine.py")
        # Under a name of its own, and with its folder last: no file there hides a library.
        spec = spec_from_file_location(f"imported_by_vtfast_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        sys.path.append(str(file.resolve().parent))
        sys.modules[spec.name] = module = module_from_spec(spec)
        try:
            with redirect_stdout(sys.stderr):
                spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == spec.origin]
            where = f"line {lines[-1]}: " if lines else ""
            raise InputError(f"--import {file}: {where}{type(error).__name__}: {error}") from error
    return files


def _check_keep(keep: float | None) -> float | None:
    if keep is not None and not 0 < keep <= 1:
        raise InputError(f"--keep {keep:g}: expected a share above 0, up to 1, such as 0.5")
    return keep


def _check_task(task: str | None) -> str | None:
    if task is not None and task not in TASKS:
        raise InputError(f"--task {task}: pass one of {', '.join(TASKS)}")
    return task


def _check_folder(folder: Path | None) -> Path | None:
    if folder is not None and not os.path.isdir(folder):  # a method of Path fails on long names
        raise InputError(f"--image-folder {folder}: there is no such folder")
    return folder


def _picture(option: str, help: str = "Draw the result, with its JSON beside it.") -> Any:
    """An option for a PNG file, which refuses at once what would fail after the work is done."""

    def check(out: Path | None) -> Path | None:
        if out is None:
            return None
        if out.suffix.lower() != ".png":
            raise InputError(f"{option} {out}: the picture is a PNG; pass a name that ends in .png")
        check_writable(option, out)
        if find_spec("matplotlib") is None:
            raise InputError("the picture needs matplotlib; pip install 'vtfast[plot]'")
        return out

    return typer.Option(option, metavar="FILE.png", callback=check, help=help)


# The model

Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="A hub id (owner/name), a local checkpoint or PEFT adapter folder, or a bundled tiny "
        "model: toy-llava, toy-llava-small, toy-qwen, toy-qwen3.",
    ),
]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="auto (a GPU if there is one), cpu, cuda, cuda:1.")
]
DType = Annotated[
    str,
    one_of(
        "--dtype",
        "auto (the checkpoint's on a GPU, float32 on a CPU), float32, bfloat16, float16.",
        *("auto", "float32", "bfloat16", "float16"),
    ),
]

# Pruning

Import = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        metavar="FILE.py",
        is_eager=True,  # before the names that it registers are checked
        callback=_import,
        help="Run this file first, which registers methods of your own "
        "(vtfast.register_method); their names are then known. Repeat for several.",
    ),
]
Plan = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        callback=check_plan,
        help=f"How to prune: {IN_WORDS}; or a plan file, such as plan.json.",
    ),
]
Preset = Annotated[
    str,
    typer.Option("--plan", metavar="NAME", callback=check_name, help=f"How to prune: {IN_WORDS}."),
]
Keep = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        callback=_check_keep,
        help="Share of the visual tokens to keep, averaged over all layers: above 0, up to 1.",
    ),
]
HorizonLayer = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="LAYER",
        help="Layer of a plan's second stage. Default: the checkpoint's own, else the paper's "
        "share of the layers.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="INT", help="Seed of the random stages. Default: the plan file's own, else 0."
    ),
]
Layout = Annotated[
    str,
    one_of(
        "--path",
        "Layout of the pruned batch: auto, packed, padded.",
        *("auto", "packed", "padded"),
    ),
]

# Questions

Images = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="A picture. Repeat the option for several, in order."),
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        callback=_check_task,
        help=f"Ask about bundled scenes: {', '.join(TASKS)}.",
    ),
]
SceneSeed = Annotated[int, typer.Option(min=0, metavar="INT", help="Seed of the bundled scenes.")]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='Ask the questions of a file, a JSON object per line or one array of them: {"image": '
        '"a.png", "question": "…", "answer": "…"}, or as LLaVA is trained: {"image": "a.png", '
        '"conversations": […]}. image may be a list.',
    ),
]
ImageFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        callback=_check_folder,
        help="What paths of pictures in --data are relative to. Default: the file's own folder.",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="INT",
        help="Ask this many questions, the first ones. Default: 100 scenes, or the whole file.",
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        metavar="",
        help="Leave out what cannot be asked (a line of --data, a picture, an answer), and say at "
        "the end which and why.",
    ),
]

# Answers

Match = Annotated[
    str,
    one_of(
        "--match",
        "When an answer is right. exact: it equals the true answer but for case and "
        "punctuation; begins: it begins with the true answer.",
        *("exact", "begins"),
    ),
]
AnswerTokens = Annotated[
    int | None,
    typer.Option(min=1, metavar="INT", help="Default: one more than the longest true answer has."),
]
Batch = Annotated[int, typer.Option(min=1, metavar="INT", help="Questions asked together.")]
Positions = Annotated[
    str,
    one_of(
        "--positions",
        "keep the original positions, or renumber as the papers' code does.",
        *("keep", "renumber"),
    ),
]

# Measuring

Layers = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Layers such as 0,4,8-11, counted from 0. Default: all."),
]
Window = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="INT",
        help="Side, in tokens, of the square units that are scored. Default: 2 for pictures of 24 "
        "x 24 tokens or more, else 1.",
    ),
]
Per = Annotated[
    str,
    one_of(
        "--per",
        "mean_token: the mean over the answer's tokens; first_token: the first, as in the paper.",
        *("mean_token", "first_token"),
    ),
]

# Results

Log = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.jsonl",
        help="Write finished samples here. The same command goes on with those it finds, also if "
        "the data file was mended, extended, cut or reordered since.",
    ),
]
Kept = Annotated[Path | None, _picture("--out", "Draw what each stage kept of the pictures.")]
Out = Annotated[Path | None, _picture("--out")]
Picture = Annotated[Path | None, _picture("--picture")]
AsJson = Annotated[
    bool, typer.Option("--json", metavar="", help="One JSON object on stdout instead of tables.")
]
