"""Write the kernels as a repository that Hugging Face's `kernels` loads, for `make hub`.

python tests/helpers/write_hub.py FOLDER [OWNER/NAME]    # the folder must not be there yet

`tests/hub/files` has what is written as it stands. The kernels are copied from `kernels/`: what the
ops in `vtfast/ops.py` need, without a change, except `_ops.py`, which names the namespace of the
ops in `torch.ops`. The kernel builder writes that file for every build; for the build variants,
which are what is loaded, it is written here, and so is their metadata. docs/hub.md has the layout.
"""

import ast
import base64
import hashlib
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES, KERNELS = ROOT / "tests" / "hub" / "files", ROOT / "kernels"
PLACEHOLDER = "OWNER/vtfast-kernels"
MODULE = "vtfast_kernels"

_INIT = '''"""Triton kernels that select, gather and attend to visual tokens in packed batches."""

{imports}

__all__ = [
{names}
]
'''
_OPS = '''"""The namespace of the ops of this build in `torch.ops`."""

import torch

ops = torch.ops.{name}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{name}::{{op_name}}"
'''


def write(folder: Path, repo_id: str = PLACEHOLDER) -> None:
    """Everything, below a folder that must not be there yet."""
    shutil.copytree(FILES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("build.toml", "CARD.md"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(PLACEHOLDER, repo_id))
    shutil.copy(ROOT / "LICENSE", folder)
    shutil.copy(ROOT / "tests" / "helpers" / "oracles.py", folder / "tests")
    sources = _sources()
    _write_all(folder / "torch-ext" / MODULE, sources)
    settings = tomllib.loads((folder / "build.toml").read_text())["general"]
    for backend in settings["backends"]:
        _write_variant(folder / "build" / f"torch-{backend}", backend, settings, sources)
    shutil.copy(folder / "CARD.md", folder / "build")  # what an upload shows as the README


def _sources() -> dict[str, str]:
    """The package by file names, without `_ops.py`."""
    listed = (ROOT / "vtfast" / "ops.py").read_text()
    public = re.findall(r"from \.kernels\.(\w+) import (\w+)", listed)
    imports = "\n".join(f"from .{module} import {name}" for module, name in public)
    names = "\n".join(f'    "{name}",' for name in sorted(name for _, name in public))
    found = {"__init__.py": _INIT.format(imports=imports, names=names)}
    missing = [module for module, _ in public]
    while missing:
        file = f"{missing.pop()}.py"
        if file not in found and file != "_ops.py":
            found[file] = (KERNELS / file).read_text()
            missing += _imported(found[file])
    return found


def _imported(source: str) -> list[str]:
    """The modules beside a file that it imports."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom))
    return [
        module
        for node in nodes
        if node.level == 1
        for module in ([node.module] if node.module else [alias.name for alias in node.names])
    ]


def _write_variant(
    folder: Path, backend: str, settings: dict[str, object], sources: dict[str, str]
) -> None:
    """A build variant: the package with a namespace that no other content has, and its metadata."""
    content = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()
    name = f"_{MODULE}_{backend}_{content[:10]}"
    sources = {**sources, "_ops.py": _OPS.format(name=name)}
    digests = {file: hashlib.sha256(text.encode()).digest() for file, text in sources.items()}
    metadata = {
        "name": settings["name"],
        "id": name,
        "version": settings["version"],
        "license": settings["license"],
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {
            "algorithm": "sha256",
            "files": {file: base64.b64encode(digests[file]).decode() for file in sorted(digests)},
        },
    }
    _write_all(folder, {**sources, "metadata.json": json.dumps(metadata, indent=2) + "\n"})


def _write_all(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]), *sys.argv[2:])
