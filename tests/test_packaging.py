"""What is shipped, and that `vtfast.kernels` can be imported however vtfast was installed.

Everything is built from a copy of the repository's files, without isolation and without a
network; the environments installed into see this one's torch through a `.pth` file.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from repository import ROOT, repository_files

# Prints which file was imported, then whether a second, top-level copy was.
IMPORT = (
    "import sys, vtfast.kernels.gather as gather\n"
    "print(gather.__file__)\n"
    "print('kernels' in sys.modules)\n"
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The command's output; its errors are shown when it fails."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's files as a clone would have them, the link still a link."""
    copy = tmp_path_factory.mktemp("checkout")
    for path in repository_files():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, copy / path, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel built from the checkout, and the sdist."""
    source = tmp_path_factory.mktemp("source") / "vtfast"  # building leaves files in the source
    shutil.copytree(checkout, source, symlinks=True)
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist"]
    run(*build, "--outdir", out, source, cwd=out)
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


@pytest.fixture(scope="module")
def wheel(built: dict[str, Path]) -> dict[str, bytes]:
    """The wheel's files, by path."""
    with zipfile.ZipFile(built["wheel"]) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def sdist(built: dict[str, Path]) -> dict[str, tarfile.TarInfo]:
    """The sdist's entries, by path below its one top folder; folders left out."""
    with tarfile.open(built["sdist"]) as archive:
        return {m.name.partition("/")[2]: m for m in archive.getmembers() if not m.isdir()}


@pytest.fixture(scope="module")
def metadata(wheel: dict[str, bytes]) -> Message:
    (name,) = (name for name in wheel if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel[name].decode())


def package_files() -> set[str]:
    """What an installed vtfast consists of: vtfast/ with the link replaced by its files."""
    files = repository_files()
    own = {f for f in files if f.startswith("vtfast/") and f != "vtfast/kernels"}
    return own | {f"vtfast/{f}" for f in files if f.startswith("kernels/")}


def test_files_are_found_without_git(checkout: Path) -> None:
    """The copy has no `.git`, as a downloaded archive has none."""
    assert repository_files(checkout) == repository_files()


def test_wheel_holds_exactly_the_package(wheel: dict[str, bytes]) -> None:
    assert {name for name in wheel if ".dist-info/" not in name} == package_files()


def test_wheel_holds_the_kernels_as_real_files(wheel: dict[str, bytes]) -> None:
    for source in (ROOT / "kernels").glob("*.py"):
        assert wheel[f"vtfast/kernels/{source.name}"] == source.read_bytes()


def test_wheel_holds_the_toy_checkpoint(wheel: dict[str, bytes]) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert f"vtfast/toy/checkpoints/llava/{name}" in wheel


def test_wheel_holds_the_licence(wheel: dict[str, bytes]) -> None:
    (name,) = (name for name in wheel if name.endswith("/LICENSE"))
    assert wheel[name] == (ROOT / "LICENSE").read_bytes()


def test_sdist_holds_the_package_and_what_builds_it(sdist: dict[str, tarfile.TarInfo]) -> None:
    assert package_files() | {"pyproject.toml", "setup.py", "README.md", "LICENSE"} <= set(sdist)


def test_sdist_holds_no_links_and_no_top_level_kernels(sdist: dict[str, tarfile.TarInfo]) -> None:
    assert [name for name, entry in sdist.items() if not entry.isfile()] == []
    assert [name for name in sdist if name.startswith(("kernels/", "tests/", "bench/"))] == []


def test_the_command_is_installed(wheel: dict[str, bytes]) -> None:
    (name,) = (name for name in wheel if name.endswith(".dist-info/entry_points.txt"))
    assert "[console_scripts]\nvtfast = vtfast.cli:main" in wheel[name].decode()


def test_metadata_states_the_supported_versions(metadata: Message) -> None:
    assert metadata["Requires-Python"] == ">=3.11"
    required = {line.replace(" ", "") for line in metadata.get_all("Requires-Dist", [])}
    assert {
        "torch>=2.9",
        'triton>=3.6;sys_platform=="linux"',
        "transformers<6,>=5.17",
        "numpy",
        "pillow>=10.1",
    } <= required


def test_package_and_metadata_agree_on_the_version(metadata: Message) -> None:
    import vtfast

    assert metadata["Version"] == vtfast.__version__
    assert f"\nversion: {vtfast.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [project["dependencies"], *project["optional-dependencies"].values()]
    needed = [Requirement(line) for lines in asked for line in lines]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {one.name for one in needed} <= set(pins)
    assert [str(one) for one in needed if not one.specifier.contains(pins[one.name])] == []


def test_constraints_contain_no_path_or_url() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if pin.count("==") != 1 or set(pin) & set("/+@ ")] == []


class Installed(NamedTuple):
    """One kind of installation: its interpreter, the checkout, and where imports are found."""

    python: Path
    root: Path
    home: Path
    elsewhere: Path
    variables: dict[str, str]

    def says(self, code: str, cwd: Path) -> list[str]:
        return run(self.python, "-c", code, cwd=cwd, **self.variables).splitlines()


def environment(folder: Path) -> Path:
    """A new environment that sees this one's packages but not its vtfast; returns its Python.

    A folder named in a `.pth` file is searched after the environment's own, and the `.pth` files
    inside it (an editable install of vtfast would be one) are not read.
    """
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "outer.pth").write_text("".join(f"{path}\n" for path in sorted(outer)))
    return folder / "bin" / "python"


KINDS = ("plain checkout", "editable", "wheel", "sdist")


@pytest.fixture(scope="module", params=KINDS)
def installed(
    request: pytest.FixtureRequest,
    checkout: Path,
    built: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Installed:
    kind = request.param
    folder = tmp_path_factory.mktemp("installed")
    python = environment(folder / "venv")
    root = folder / "root"  # of its own: an editable install leaves metadata behind
    shutil.copytree(checkout, root, symlinks=True)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    if kind == "plain checkout":
        return Installed(python, root, root, elsewhere, {"PYTHONPATH": str(root)})
    # --ignore-installed: the outer environment may hold vtfast, which is not ours to remove.
    pip = [python, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation"]
    what = ["--editable", root] if kind == "editable" else [built[kind]]
    run(*pip, "--ignore-installed", "--disable-pip-version-check", *what, cwd=elsewhere)
    home = root if kind == "editable" else folder / "venv"
    return Installed(python, root, home, elsewhere, {})


@pytest.mark.parametrize("installed", ["wheel"], indirect=True)
def test_a_type_checker_reads_the_types_of_an_installed_vtfast(installed: Installed) -> None:
    """Without `py.typed` in the wheel mypy would refuse the import, or take all for `Any`."""
    folder = installed.elsewhere / "typed"
    folder.mkdir()
    skipped = ("torch", "transformers", "triton", "numpy", "matplotlib", "PIL")
    options = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in skipped)
    (folder / "mypy.ini").write_text(f"[mypy]\n{options}")
    (folder / "user.py").write_text("import vtfast\nreveal_type(vtfast.Plan.paper)\n")
    mypy = [sys.executable, "-m", "mypy", "--python-executable", installed.python, "user.py"]
    assert "-> vtfast.plan.Plan" in run(*mypy, cwd=folder)


def test_kernels_import_from_the_repository_root(installed: Installed) -> None:
    """From there the checkout is imported, whatever is installed."""
    (file, doubled) = installed.says(IMPORT, cwd=installed.root)
    assert Path(file).is_relative_to(installed.root)
    assert doubled == "False"


def test_kernels_import_from_elsewhere(installed: Installed) -> None:
    (file, doubled) = installed.says(IMPORT, cwd=installed.elsewhere)
    assert Path(file).is_relative_to(installed.home)
    assert doubled == "False"


@pytest.mark.parametrize("place", ["first", "last"])
def test_kernels_import_beside_another_package_of_that_name(
    installed: Installed, tmp_path: Path, place: str
) -> None:
    """Such as Hugging Face's: each is imported by its own name, from anywhere."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("OWNER = 'somebody else'")
    code = (
        f"import sys\nsys.path.insert({0 if place == 'first' else 'len(sys.path)'}, "
        f"{str(tmp_path)!r})\n{IMPORT}import kernels\nprint(kernels.OWNER)"
    )
    for cwd, home in ((installed.root, installed.root), (installed.elsewhere, installed.home)):
        file, doubled, owner = installed.says(code, cwd=cwd)
        assert Path(file).is_relative_to(home)
        assert (doubled, owner) == ("False", "somebody else")


@pytest.mark.parametrize("installed", KINDS[1:], indirect=True)
def test_an_install_adds_no_top_level_kernels(installed: Installed) -> None:
    """Not even the namespace package that the folder is from the repository root."""
    code = (
        "from importlib.util import find_spec\n"
        "spec = find_spec('kernels')\n"
        "print(*(spec.submodule_search_locations if spec else ()), sep='\\n')\n"
    )
    found = installed.says(code, cwd=installed.elsewhere)
    assert [place for place in found if str(installed.root.parent) in place] == []
