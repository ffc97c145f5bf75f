"""The command `vtfast`: each of its commands is the file of that name beside this one.

Bad input ends any command with exit code 2 and one line on stderr. Importing a command, and so
`vtfast --help`, loads neither torch nor transformers: a command imports them once its options are
checked. What several commands share is in the files whose names start with an underscore.
"""

import sys
import traceback
from typing import Annotated, Any

try:
    import rich  # noqa: F401 (every command shows tables)
    import typer
except ModuleNotFoundError as missing:  # here and not in main(): the decorators need typer
    print(f"error: vtfast needs {missing.name}; pip install 'vtfast[cli]'", file=sys.stderr)
    raise SystemExit(2) from None

from typer.core import TyperGroup

import vtfast
from vtfast.cli import demo, doctor, evaluate, horizon, run, score, sweep, tune
from vtfast.errors import VTFastError

_UsageError: type[Any] = typer.BadParameter.__mro__[1]  # typer re-exports only its child


class _OneLineErrors(TyperGroup):
    """Turns a mistake of the user into one line on stderr and exit code 2."""

    def main(self, *args: Any, **extra: Any) -> Any:
        if not extra.get("standalone_mode", True):
            return super().main(*args, **extra)
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except _UsageError as error:
            message = f"{error.format_message()} (try --help)"
        except VTFastError as error:
            message = "; ".join([str(error), *getattr(error, "__notes__", ())])
        except typer.Abort:
            sys.exit(130)
        except Exception as error:
            from vtfast.methods.own import was_raised_in_a_method

            if not was_raised_in_a_method(error):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
            message = "; ".join([said, *error.__notes__])
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
    """Fewer visual tokens in stock Hugging Face vision-language models.

    Start with `vtfast demo`; `vtfast COMMAND --help` shows examples of a command.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command()(demo.demo)
app.command()(run.run)
app.command()(score.score)
app.command()(horizon.horizon)
app.command()(sweep.sweep)
app.command()(evaluate.evaluate)
app.command()(tune.tune)
app.command()(doctor.doctor)


def main() -> None:
    """The console script."""
    app(prog_name="vtfast")
