"""`vtfast doctor`: versions, devices, which implementation each op takes, a trial, and what to fix.

Importing this module loads neither torch nor transformers, so it can say what is wrong with them.
"""

import json
import platform
import textwrap
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from vtfast import __version__
from vtfast.cli import _options as options
from vtfast.cli._terminal import consoles, print_table, working

# Package: the versions supported (as in pyproject.toml), whether it is needed, what it is for.
PACKAGES = {
    "torch": (">=2.9", True, "everything"),
    "transformers": (">=5.17,<6", True, "the models"),
    "numpy": ("", True, "everything"),
    "pillow": (">=10.1", True, "pictures"),
    "triton": (">=3.6", False, "the kernels, on a GPU"),
    "rich": ("", True, "this command"),
    "typer": ("", True, "this command"),
    "matplotlib": ("", False, "--out and the demo: drawing what was kept"),
    "torchvision": ("", False, "stock processors; vtfast.processors has its own, for pictures"),
    "num2words": ("", False, "the processor of SmolVLM"),
    "accelerate": ("", False, "device_map and offloading of models you load yourself"),
}
# What is imported of a package, where its name says it wrongly or loads too little of it to fail.
_MODULES = {"pillow": "PIL", "transformers": "transformers.modeling_utils"}
_STYLES = {"ok": "green", "broken": "bold red", "warning": "yellow", "missing": "yellow"}


def doctor(as_json: options.AsJson = False) -> None:
    """Say what vtfast finds on this machine, and what to fix.

    Versions and whether they are supported, devices, which implementation each op
    takes here and why, and a short trial: the bundled models are loaded, one is
    patched and answers. The exit code is 1 if something is broken.

    \b
    Examples:
      vtfast doctor
      vtfast doctor --json | jq .ops
    """
    stdout, stderr = consoles()
    with working(stderr, "examining this machine"):
        found = examine()
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _show(stdout, found)
    raise typer.Exit(0 if found["usable"] else 1)


def examine() -> dict[str, Any]:
    """The object that --json prints. What fails is noted in it as broken, never raised."""
    system = f"vtfast {__version__}, Python {platform.python_version()}, {platform.platform()}"
    advice: list[str] = []
    packages = [_package(name, advice) for name in PACKAGES]
    found: dict[str, Any] = {"runtime": "", "devices": [], "ops": [], "checks": []}
    if all(x["status"] != "broken" for x in packages):  # else the rest fails for that alone
        from vtfast.cli import _trial

        found = _trial.run(advice)
        if other := other_kernels_package():
            found["checks"].append(_about_kernels_package(other, advice))
    usable = all(x["status"] != "broken" for x in (*packages, *found["ops"], *found["checks"]))
    return {"system": system, "packages": packages, **found, "advice": advice, "usable": usable}


def _package(name: str, advice: list[str]) -> dict[str, Any]:
    (supported, needed, purpose), found, fix = PACKAGES[name], None, ""
    try:
        from packaging.specifiers import SpecifierSet  # comes with transformers

        found = version(name)
        if SpecifierSet(supported).contains(found, prereleases=True):
            import_module(_MODULES.get(name, name))
        else:
            fix = f"{name} {found} is not supported: pip install '{name}{supported}'"
    except PackageNotFoundError:
        fix = f"{name} is missing: pip install '{name}{supported}'" if needed else ""
    except Exception as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" …")
        fix = f"{name} {found} cannot be imported ({reason}): install one that matches the others"
        if name == "transformers" and (other := other_kernels_package()):
            fix = (
                f"{name} {found} cannot be imported ({reason}) beside {other}, which has the name "
                "of Hugging Face's package 'kernels': rename that, or take its folder off sys.path "
                "(PYTHONPATH, the working directory)"
            )
    advice += [fix] if fix else []
    about = {"name": name, "found": found, "supported": supported, "purpose": purpose}
    return {**about, "status": "broken" if fix else "ok" if found else "missing"}


def other_kernels_package() -> Path | None:
    """A top-level package or module `kernels` that is not Hugging Face's, by its file, unimported.

    transformers imports what has this name. A folder without `__init__.py`, such as vtfast's own in
    its repository, is none: any real package comes before it, and transformers disregards it.
    """
    spec = find_spec("kernels")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    is_its_own = path.is_file() and "get_kernel" in path.read_text(errors="replace")
    return None if is_its_own else path


def _about_kernels_package(path: Path, advice: list[str]) -> dict[str, str]:
    """The check of a package `kernels` that transformers and vtfast work beside."""
    about = {"name": "the name 'kernels'", "result": f"is that of {path} here", "status": "ok"}
    try:
        version("kernels")
    except PackageNotFoundError:
        return about  # nobody asked for Hugging Face's
    advice.append(
        f"{path} hides Hugging Face's package 'kernels', so transformers loads no kernels from the "
        "Hub; rename that, or take its folder off sys.path if you want them"
    )
    return {**about, "status": "warning"}


def _show(stdout: Console, found: Mapping[str, Any]) -> None:
    stdout.print(found["system"], style="bold", soft_wrap=True)
    for items in filter(None, (found["packages"], found["ops"], found["checks"])):
        rows = [
            [Text(cell or "-", _STYLES.get(cell, "")) for cell in item.values()] for item in items
        ]
        print_table(stdout, list(items[0]), rows, wraps=range(len(items[0]) - 1))
    for device in found["devices"]:
        stdout.print(", ".join(f"{key} {value}" for key, value in device.items()), soft_wrap=True)
    stdout.print(found["runtime"])
    for number, advice in enumerate(found["advice"], 1):
        stdout.print(f"What to do, {number}. {advice}")
    verdict = "can be used here" if found["usable"] else "cannot be used like this"
    stdout.print(f"\nvtfast {verdict}.", style="bold")
