"""Imports follow the layers and are light; vtfast shadows no top-level package `kernels`."""

import ast
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from importlib.util import find_spec, module_from_spec
from pathlib import Path

import pytest
from layers import circles, violations
from repository import ROOT, repository_files

import vtfast

FILES = repository_files()
PYTHON_FILES = [f for f in FILES if f.endswith(".py") and not (ROOT / f).is_symlink()]


def run(code: str, *options: str, cwd: Path = ROOT) -> list[str]:
    """What `code` prints in a fresh interpreter, by lines."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=cwd,
        env=clean | {"PYTHONPATH": str(ROOT)} if "-P" in options else clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("path", PYTHON_FILES)
def test_imports_follow_the_layers(path: str) -> None:
    assert violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/gather.py", "from vtfast.errors import PlanError"),
        ("kernels/gather.py", "from vtfast.kernels.ragged import Ragged"),
        ("kernels/gather.py", "from ..errors import PlanError"),
        ("kernels/gather.py", "import transformers"),
        ("kernels/gather.py", "def f():\n    from transformers import Cache"),
        ("kernels/gather.py", "import kernels.ragged"),
        ("kernels/reference.py", "import triton"),
        ("kernels/reference.py", "import triton.language as tl"),
        ("vtfast/errors.py", "import vtfast.plan"),
        ("vtfast/plan.py", "from vtfast.methods import select"),
        ("vtfast/plan.py", "from transformers import PreTrainedConfig"),
        ("vtfast/methods.py", "from vtfast.runtime.layout import Layout"),
        ("vtfast/runtime/layout.py", "from vtfast.patching import patch"),
        ("vtfast/runtime/layout.py", "from ..patching import patch"),
        ("vtfast/runtime/layout.py", "from .. import patching"),
        ("vtfast/runtime/layout.py", "from vtfast import patch"),
        ("vtfast/runtime/layout.py", "from vtfast.models import llava"),
        ("vtfast/runtime/layout.py", "import importlib\nimportlib.import_module('vtfast.models')"),
        ("vtfast/runtime/layout.py", "from transformers import LlavaForConditionalGeneration"),
        ("vtfast/runtime/layout.py", "from transformers.models.llava import modeling_llava"),
        ("vtfast/runtime/layout.py", "import transformers\ntransformers.LlavaModel"),
        ("vtfast/runtime/layout.py", "import triton"),
        ("vtfast/runtime/layout.py", "if config.model_type == 'llava': pass"),
        ("vtfast/runtime/layout.py", "if family in ('llava', 'qwen'): pass"),
        ("vtfast/runtime/layout.py", "if type(model).__name__ == 'LlavaModel': pass"),
        ("vtfast/runtime/layout.py", "match config.model_type:\n    case 'llava': pass"),
        ("vtfast/patching.py", "if getattr(config, 'model_type', None) != 'llava': pass"),
        ("vtfast/patching.py", "from transformers import LlavaForConditionalGeneration"),
        ("vtfast/patching.py", "from vtfast.toy import load"),
        ("vtfast/models/llava.py", "from vtfast.patching import Handle"),
        ("vtfast/models/llava.py", "from vtfast.models.qwen_vl import FAMILIES"),
        ("vtfast/models/llava.py", "from . import qwen2_5_vl"),
        ("vtfast/toy/model.py", "from vtfast.cli import app"),
        ("vtfast/cli/__init__.py", "import bench.harness"),
        ("vtfast/cli/__init__.py", "import triton"),
        ("vtfast/unheard_of.py", ""),
        ("tests/helpers/oracles.py", "from vtfast.kernels import reference"),
        ("tests/kernels/test_gather.py", "from kernels.gather import gather_rows"),
        ("bench/bench_gather.py", "import kernels.gather"),
        ("tests/hub/test_hub.py", "import kernels"),
        ("tests/hub/files/tests/test_ops.py", "import vtfast.ops"),
        ("tests/hub/files/tests/test_ops.py", "import transformers"),
    ],
)
def test_the_check_sees_a_forbidden_import(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/gather.py", "import torch\nimport triton\nfrom .reference import gather_rows"),
        ("vtfast/methods.py", "from vtfast.kernels.random_select import random_select"),
        ("vtfast/runtime/layout.py", "import transformers\nprint(transformers.__version__)"),
        ("vtfast/runtime/layout.py", "from transformers.masking_utils import sdpa_mask"),
        ("vtfast/runtime/__init__.py", "from . import layout\nfrom .layout import Layout"),
        ("vtfast/runtime/layout.py", "if FAMILIES.get(config.model_type) is None: pass"),
        ("vtfast/models/llava.py", "from transformers.models.llava import modeling_llava"),
        ("vtfast/models/llava.py", "from ..runtime.layout import Layout"),
        ("vtfast/models/llava.py", "from vtfast.models.base import Family"),
        ("vtfast/models/__init__.py", "from vtfast.models import llava, qwen2_5_vl"),
        ("vtfast/models/__init__.py", "if config.model_type == 'llava': pass"),
        ("vtfast/patching.py", "from vtfast.models import family_of"),
        ("tests/hub/files/tests/test_ops.py", "import kernels\nimport torch"),
        (
            "vtfast/cli/__init__.py",
            "import vtfast.toy\nif __name__ == '__main__': vtfast.cli.main()",
        ),
        (
            "bench/bench_gather.py",
            "import triton\nimport vtfast\nfrom vtfast.kernels import gather",
        ),
    ],
)
def test_the_check_accepts_allowed_imports(path: str, source: str) -> None:
    assert violations(path, source) == []


# Files that import lazily what imports them; nothing may be added.
IMPORT_LAZILY = ("vtfast/__init__.py", "vtfast/ops.py")


def test_no_imports_are_circular() -> None:
    """Imports inside functions and for types count too."""
    ours = [f for f in PYTHON_FILES if f.startswith(("vtfast/", "kernels/"))]
    sources = {f: (ROOT / f).read_text() for f in ours if f not in IMPORT_LAZILY}
    assert circles(sources) == []
    planted = {"vtfast/errors.py": "if TYPE_CHECKING:\n    from vtfast.prune import Prune"}
    assert ["vtfast.errors", "vtfast.prune"] in circles({**sources, **planted})
    lazy = {"vtfast/a.py": "def f():\n    from . import b", "vtfast/b.py": "import vtfast.a"}
    assert circles(lazy) == [["vtfast.a", "vtfast.b"]]


def test_kernels_is_no_regular_package() -> None:
    """With an `__init__.py` it would shadow the Hugging Face package `kernels`."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_vtfast_kernels_is_a_link() -> None:
    assert os.readlink(ROOT / "vtfast" / "kernels") == "../kernels"


def lines_of_code(source: str) -> int:
    """Lines with code on them: blank lines, comments and docstrings do not count."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    prose = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in (*silent, tokenize.ENDMARKER)
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(lines - prose)


def test_lines_of_code_are_counted_without_prose() -> None:
    assert (
        lines_of_code('"""Doc."""\n\n# why\nx = [\n    1,\n]\ndef f():\n    """Doc."""\n    x\n')
        == 5
    )


def sizes_of(*parts: str) -> dict[str, int]:
    """Lines of code of the files under these paths."""
    return {f: lines_of_code((ROOT / f).read_text()) for f in PYTHON_FILES if f.startswith(parts)}


def test_every_test_that_only_runs_executed_as_ptx_is_named_in_the_makefile() -> None:
    """A plain run of pytest does not collect these files."""
    files = {p.stem for p in (ROOT / "tests/kernels").glob("test_*.py")}
    apart = {
        name.removeprefix("test_") for name in files if "_compiled_" in name or "_ptx_" in name
    }
    named = set(re.findall(r"(?:compiled|ptx)_\w+", (ROOT / "Makefile").read_text()))
    assert len(apart) > 5
    assert apart - named == {"compiled_7b"}  # in `make ptx-full`, by its ending


def test_the_executor_of_ptx_has_at_most_1100_lines_with_its_docs() -> None:
    files = [path for path in (ROOT / "tests/kernels/ptx").iterdir() if path.is_file()]
    assert {path.suffix for path in files} == {".cpp", ".md", ".py"}
    assert 900 < sum(len(path.read_text().splitlines()) for path in files) <= 1100


def test_patching_and_the_runtime_have_under_2000_lines_of_code() -> None:
    sizes = sizes_of("vtfast/patching.py", "vtfast/runtime/")
    assert 1000 < sum(sizes.values()) < 2000, sizes


def test_a_file_of_the_models_has_under_200_lines_of_code() -> None:
    sizes = sizes_of("vtfast/models/")
    assert sizes.pop("vtfast/models/self_check.py")
    assert len(sizes) > 3
    assert max(sizes.values()) < 200, sizes


def test_the_bench_is_at_most_20_files_and_3500_lines() -> None:
    """Without the comparisons with other projects, which have a folder and a limit of their own."""
    sizes, peers = (
        [len((ROOT / f).read_text().splitlines()) for f in PYTHON_FILES if f.startswith(folder)]
        for folder in ("bench/", "bench/peers/")
    )
    assert 10 < len(sizes) - len(peers) <= 20
    assert sum(sizes) - sum(peers) <= 3500
    assert 0 < sum(peers) <= 300


def test_importing_vtfast_loads_no_framework() -> None:
    code = "import sys, vtfast\nprint(*{'torch', 'triton', 'transformers'} & set(sys.modules))"
    assert run(code, "-P") == [""]


def test_importing_a_kernel_does_not_load_transformers() -> None:
    code = "import sys, vtfast.kernels.gather\nprint('transformers' in sys.modules)"
    assert run(code, "-P") == ["False"]


def test_kernels_import_without_triton() -> None:
    names = [f"vtfast.kernels.{path.stem}" for path in (ROOT / "kernels").glob("*.py")]
    run(f"import sys\nsys.modules['triton'] = None\nimport {', '.join(names)}", "-P")


@pytest.mark.parametrize("name", vtfast.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(vtfast, name) is not None
    assert name in dir(vtfast)


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse((ROOT / "vtfast" / "__init__.py").read_text())
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = (node for node in guarded.body if isinstance(node, ast.ImportFrom))
    names = {alias.name for node in imports for alias in node.names}
    assert names == set(vtfast.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prune_everything'"):
        vtfast.prune_everything  # noqa: B018 (looking it up is the test)


def test_kernels_from_the_root_is_at_most_a_namespace() -> None:
    """A namespace package has no loader, and Python prefers any regular package to it."""
    code = (
        "from importlib.util import find_spec\n"
        "spec = find_spec('kernels')\n"
        f"print(not (spec and spec.loader and spec.origin.startswith({str(ROOT)!r})))"
    )
    assert run(code) == ["True"]


def test_a_regular_kernels_package_is_preferred_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("OWNER = 'somebody else'")
    code = f"import sys\nsys.path.append({str(tmp_path)!r})\nimport kernels\nprint(kernels.OWNER)"
    assert run(code) == ["somebody else"]


def test_transformers_sees_no_kernels_package_from_the_root(tmp_path: Path) -> None:
    code = (
        "from transformers.utils import is_kernels_available\n"
        "from transformers import LlavaForConditionalGeneration\n"
        "print(is_kernels_available())"
    )
    assert run(code) == run(code, "-P", cwd=tmp_path)


def test_no_folder_here_shadows_the_hugging_face_kernels() -> None:
    """In a pytest run neither the top-level folder nor `tests/kernels` is found as `kernels`."""
    import transformers

    assert transformers.LlavaForConditionalGeneration
    spec = find_spec("kernels")
    if spec is not None:  # Hugging Face's own
        assert spec.origin is not None
        assert spec.loader is not None
        spec.loader.exec_module(module := module_from_spec(spec))
        assert module.get_kernel
    assert [str(init) for init in (ROOT / "tests").rglob("__init__.py")] == []


# Folders at the root in which users keep files; /usr, /proc, /dev and the like are everywhere.
HOMES = "data|home|lustre|media|mnt|nfs|opt|private|root|scratch|srv|tmp|Users|var|Volumes|work"


def machine_paths(text: str) -> list[str]:
    """Paths in `text` that mean something on one machine only, on Windows too.

    A path that follows a letter, a dot or a bracket is part of a URL, a longer path or a template.
    """
    here = "|".join(re.escape(str(path)) + r"\b" for path in (ROOT, Path(sys.prefix)))
    kinds = (here, rf"/(?:{HOMES})\w*/\w+", "file:/{3}", r"\b[A-Za-z]:(?:\\{1,2}|/)(?=\w)\w+")
    return re.findall(rf"(?<![\w.~/}}\])-])(?:{'|'.join(kinds)})", text)


@pytest.mark.parametrize("root", ["home", "opt", "tmp", "mnt", "srv", "data", "var", "workspace"])
def test_paths_of_one_machine_are_recognised(root: str) -> None:
    path = Path("/", root, "somebody")
    assert machine_paths(f"in {path}/x or --json={path}.json: {path}") == [str(path)] * 3


def test_paths_of_this_checkout_and_of_drives_are_recognised() -> None:
    drive = "C:" + "\\Users"
    assert machine_paths(f"in {ROOT}/x and {drive}\\y") == [str(ROOT), drive]
    assert machine_paths("E:" + "/runs") == ["E:" + "/runs"]
    assert machine_paths(json.dumps(drive)) == [json.dumps(drive)[1:-1]]


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/page",
        "a/srv/b and ~/data/x and {folder}/tmp/x and ../opt/x",
        "/usr/bin/env, /dev/null and /proc/cpuinfo",
        "{'a': 1, 'b:c': 2} if x:y",
    ],
)
def test_paths_that_mean_the_same_everywhere_are_not(text: str) -> None:
    assert machine_paths(text) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    found = {}
    for name in FILES:
        data = b"" if (ROOT / name).is_symlink() else (ROOT / name).read_bytes()
        if b"\0" not in data:  # text
            found[name] = machine_paths(data.decode())
    assert {name: paths for name, paths in found.items() if paths} == {}
