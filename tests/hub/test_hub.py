"""What `make hub` writes: nothing but what is needed, and Hugging Face's `kernels` loads it.

`make test` installs that package beside the environment, since transformers behaves differently
where it finds it; so what needs it runs in processes of its own, and is skipped where it is not
(with CI=true it fails).
"""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import write_hub
from repository import ROOT

from vtfast import ops

HF_KERNELS = Path(sys.prefix, "hf-kernels")
PAGE = ROOT / "docs" / "hub.md"
CPU = Path("build", "torch-cpu")

# Loads the folder beside vtfast, runs the example of the docs and, small, every workload of the
# benchmark, and prints what the tests below look at.
LOAD = """
import json, sys
from pathlib import Path
import kernels, torch
from kernels import _rust

sys.path.append(str(Path("build", "hub", "benchmarks")))
import benchmark_vtfast_kernels as benchmark
vars(benchmark).update(PICTURES=2, TOKENS=9, KEEP=4, WIDTH=16, HEADS=2)

def workloads(case):
    case.kernel = hub
    case.setup()
    for name in (n.removeprefix("benchmark_") for n in dir(case) if n.startswith("benchmark_")):
        getattr(case, f"benchmark_{name}")()
        verify = getattr(case, f"verify_{name}", None)
        yield name, verify and torch.allclose(case.out, verify(), atol=1e-2)

folder = Path("build", "hub")
hub = kernels.get_local_kernel(folder)
files = [Path(getattr(module, "__file__", None) or "") for module in sys.modules.values()]
alone = not {"vtfast", "transformers"} & set(sys.modules)

from vtfast import ops
scores = torch.tensor([1.0, 3.0, 2.0])
picks = [o.topk_select(scores, o.Ragged.from_lengths([3], "cpu"), [2]).tolist() for o in (hub, ops)]
variant = Path(hub.__file__).parent  # torch-cuda where torch is of CUDA
metadata = _rust.Metadata.read_from_file(variant / "metadata.json")
metadata.digest.validate(_rust.Digest.hash_variant(_rust.DigestAlgorithm.SHA256, variant))
_rust.Build.open(folder)  # reads build.toml, and refuses what it does not know
exec(sys.argv[1], example := {})
print(json.dumps({
    "files": sorted({file.name for file in files if file.parent == variant}),
    "alone": alone,
    "picks": picks,
    "id": metadata.id,
    "example": list(example["kept"].shape),
    "registered": [hasattr(torch.ops.vtfast, "topk_select"),
                   hasattr(getattr(torch.ops, hub.__name__), "topk_select")],
    "documented": {name: bool(getattr(hub, name).__doc__) for name in hub.__all__},
    "name": [str(metadata.name), metadata.name.python_name, metadata.version, hub.__name__],
    "workloads": {name: agrees for case in (benchmark.Selection(), benchmark.Attention())
                  for name, agrees in workloads(case)},
}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "build" / "hub"
    folder.parent.mkdir()
    write_hub.write(folder, "somebody/vtfast-kernels")
    return folder


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """With Hugging Face's `kernels`, and nothing of this repository unless it is imported."""
    if not HF_KERNELS.is_dir():
        missing = "Hugging Face's kernels is not installed: make hf-kernels"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    path = os.pathsep.join(map(str, (HF_KERNELS, ROOT)))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "TRITON_"))}
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=clean | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )


def own_tests(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The tests in the folder; the settings of this repository are not theirs."""
    pytest_alone = [sys.executable, "-P", "-m", "pytest", "-c", os.devnull, "--rootdir", folder]
    return run(*pytest_alone, "-p", "no:cacheprovider", *options, folder / "tests", cwd=folder)


@pytest.fixture(scope="module")
def loaded(hub: Path) -> dict[str, Any]:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    done = run(sys.executable, "-c", LOAD, example, cwd=hub.parents[1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_folder_holds_what_the_builder_reads_and_no_more(hub: Path) -> None:
    top = {"CARD.md", "LICENSE", "benchmarks", "build", "build.toml", "flake.nix", "tests"}
    assert names(hub) == top | {"torch-ext"}
    assert names(hub / "build") == {"CARD.md", "torch-cpu", "torch-cuda"}
    assert names(hub / "tests") == {"conftest.py", "oracles.py", "test_vtfast_kernels.py"}
    assert names(hub / "benchmarks") == {"benchmark_vtfast_kernels.py"}
    package = names(hub / "torch-ext" / "vtfast_kernels")
    for variant in ("torch-cpu", "torch-cuda"):
        assert names(hub / "build" / variant) == package | {"_ops.py", "metadata.json"}


def test_the_kernels_are_copied_as_they_are(hub: Path) -> None:
    for folder in ("torch-ext/vtfast_kernels", "build/torch-cpu", "build/torch-cuda"):
        copied = set((hub / folder).glob("*.py")) - {
            hub / folder / name for name in ("__init__.py", "_ops.py")
        }
        assert len(copied) > 25
        for path in copied:
            assert path.read_bytes() == (ROOT / "kernels" / path.name).read_bytes()


def test_the_package_imports_itself_torch_and_triton(hub: Path) -> None:
    """NumPy too, where it is installed."""
    found = set()
    for path in (hub / CPU).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add((path.name, str(node.module).partition(".")[0]))
            if isinstance(node, ast.Import):
                found |= {(path.name, alias.name.partition(".")[0]) for alias in node.names}
    others = {(file, name) for file, name in found if name not in sys.stdlib_module_names}
    assert {name for _, name in others} == {"torch", "triton", "numpy"}
    assert {file for file, name in others if name == "numpy"} == {"_numpy.py"}


def test_a_repository_is_named_where_one_is_given(hub: Path) -> None:
    for name in ("build.toml", "CARD.md", "build/CARD.md"):
        text = (hub / name).read_text()
        assert "somebody/vtfast-kernels" in text
        assert write_hub.PLACEHOLDER not in text


def test_every_file_is_needed_to_load_the_ops(hub: Path, loaded: dict[str, Any]) -> None:
    """Loading imports each, and nothing of vtfast or transformers."""
    assert set(loaded["files"]) == names(hub / CPU) - {"metadata.json"}
    assert loaded["alone"]


def test_the_ops_are_those_of_vtfast(loaded: dict[str, Any]) -> None:
    assert loaded["documented"] == dict.fromkeys(ops.__all__, True)


def test_ops_do_not_collide_with_those_of_vtfast(loaded: dict[str, Any]) -> None:
    """Torch refuses a second definition of an op; both stay as they are in one process."""
    assert loaded["registered"] == [True, True]
    assert loaded["picks"] == [[1, 2], [1, 2]]


def test_kernels_reads_the_metadata(loaded: dict[str, Any]) -> None:
    """And the digest of every file, and `build.toml`, before it prints anything."""
    assert loaded["name"] == ["vtfast-kernels", "vtfast_kernels", 0, loaded["id"]]


def test_the_example_of_the_docs_runs(loaded: dict[str, Any]) -> None:
    assert loaded["example"] == [288 + 512, 64]


def test_an_id_belongs_to_one_content(hub: Path, tmp_path: Path, monkeypatch) -> None:
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    for path in (ROOT / "kernels").glob("*.py"):
        (kernels / path.name).write_text(path.read_text() + "# changed\n")
    monkeypatch.setattr(write_hub, "KERNELS", kernels)
    write_hub.write(tmp_path / "changed")
    ids = [
        json.loads((folder / CPU / "metadata.json").read_text())["id"]
        for folder in (hub, tmp_path / "changed")
    ]
    assert ids[0] != ids[1]


def test_the_tests_of_the_folder_pass(hub: Path) -> None:
    """Every op in PyTorch and in Triton's interpreter, against plain loops."""
    done = own_tests(hub)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_the_benchmark_agrees_with_what_it_is_compared_with(loaded: dict[str, Any]) -> None:
    picks = dict.fromkeys(("gather_rows", "random_select", "topk_select"), True)
    others = {"ragged_attention": True, "diversity_select": None}
    assert loaded["workloads"] == picks | others
