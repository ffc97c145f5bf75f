"""The command `vtfast`.

Importing this module, and so `vtfast --help`, loads neither torch nor transformers: a command
imports what it runs. Bad input ends any command with exit code 2 and one line on stderr.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

try:
    import rich  # noqa: F401 (every command shows tables)
    import typer
except ModuleNotFoundError as missing:  # here and not in main(): the decorators need typer
    print(f"error: vtfast needs {missing.name}; pip install 'vtfast[cli]'", file=sys.stderr)
    raise SystemExit(2) from None

from typer.core import TyperGroup

import vtfast
from vtfast.errors import InputError, VTFastError
from vtfast.presets import PRESETS, check_name

_UsageError: type[Any] = typer.BadParameter.__mro__[1]  # typer re-exports only its child

# The first scene with the commonest outcome: 6, 6 and 5 of 6 answers right in full, at keep 0.75
# and at keep 0.5. 196 of the scenes 0 to 499 come out so; the averages are 5.99, 5.76 and 4.88.
DEFAULT_SCENE = 2


class _OneLineErrors(TyperGroup):
    """Ends with one line on stderr and exit code 2 where the user's input is at fault."""

    def main(self, *args: Any, **extra: Any) -> Any:
        if not extra.get("standalone_mode", True):
            return super().main(*args, **extra)
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except _UsageError as error:
            message = f"{error.format_message()} (try --help)"
        except VTFastError as error:
            message = str(error)
        except typer.Abort:
            sys.exit(130)
        else:
            sys.exit(code if isinstance(code, int) else 0)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


app = typer.Typer(
    cls=_OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"vtfast {vtfast.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _vtfast(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, metavar="", help="Print the version."
        ),
    ] = False,
) -> None:
    """Fewer visual tokens in stock Hugging Face vision-language models."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    plan: Annotated[
        str, typer.Option(metavar="NAME", help=f"What to prune by: {', '.join(PRESETS)}.")
    ] = "divprune+random",
    keep: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Visual tokens to keep, averaged over all layers: a number above 0, up to 1. "
            "Default: columns for 0.75 and 0.5, timings for 0.5 and 0.25.",
        ),
    ] = None,
    scene_seed: Annotated[
        int, typer.Option(min=0, metavar="INT", help="Which scene to draw.")
    ] = DEFAULT_SCENE,
    seed: Annotated[int, typer.Option(metavar="INT", help="Seed of the random stages.")] = 0,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="Where the picture goes.")] = Path(
        "vtfast-demo.png"
    ),
    as_json: Annotated[
        bool,
        typer.Option("--json", metavar="", help="One JSON object on stdout instead of tables."),
    ] = False,
    no_timing: Annotated[
        bool,
        typer.Option(
            "--no-timing", metavar="", help="Leave out the larger model, and be done sooner."
        ),
    ] = False,
    tiny_timing: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """A tiny LLaVA answers questions about a picture, full and pruned, side by side.

    First the bundled, trained LLaVA looks at a drawn scene and answers six
    questions, with all of its visual tokens and with fewer; wrong answers are
    marked. Then a larger LLaVA with random weights is timed, because only there
    do fewer tokens save time. A PNG shows which patches of the picture each stage
    of the plan kept. It runs on the CPU and needs no network.

    \b
    Examples:
      vtfast demo                          # the default plan at keep 0.75 and 0.5
      vtfast demo --scene-seed 7           # another picture
      vtfast demo --plan random --keep 0.25 --no-timing
      vtfast demo --plan divprune+vtw --keep 0.6 --out kept.png
      vtfast demo --json | jq .columns
    """
    check_name(plan)
    if keep is not None and not 0 < keep <= 1:
        raise InputError(f"--keep {keep:g}: expected a share above 0, up to 1, such as 0.5")
    _check_picture(out)
    from vtfast.demo import ROUNDS, Settings, run

    rounds = 0 if no_timing else ROUNDS
    run(Settings(plan, keep, scene_seed, seed, out, as_json, rounds, tiny_timing))


def _check_picture(path: Path) -> None:
    """Refuse now what would fail after the work is done."""
    if path.suffix.lower() != ".png":
        raise InputError(f"--out {path}: the picture is a PNG; pass a name that ends in .png")
    try:
        if not path.parent.is_dir():
            raise InputError(f"--out {path}: there is no folder {path.parent}; create it first")
        if path.is_dir():
            raise InputError(f"--out {path} is a folder; pass the name of a file")
    except OSError as error:
        raise InputError(f"--out {path}: {error.strerror}; pass another name") from None
    if find_spec("matplotlib") is None:
        raise InputError("the picture needs matplotlib; pip install 'vtfast[plot]'")


def main() -> None:
    """The console script."""
    app(prog_name="vtfast")
