"""`vtfast doctor`: what it lists, which implementation an op really uses, and what is broken.

It runs in this process, where Triton interprets kernels on the CPU, except where torch has to be
missing.
"""

import importlib
import json
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from command import answered, call, python
from packaging.requirements import Requirement
from repository import ROOT
from table_words import breaks_no_word
from transformers.utils import import_utils

from vtfast import ops, toy
from vtfast.cli import _trial
from vtfast.cli.doctor import PACKAGES, _show, other_kernels_package
from vtfast.kernels import _launch, gather
from vtfast.models import SUPPORTED
from vtfast.models.self_check import TESTED
from vtfast.runtime import names


@pytest.fixture(scope="module")
def result():
    """The result of `vtfast doctor --json`, run once."""
    return answered("doctor", "--json")


@pytest.fixture(scope="module")
def record(result) -> dict:
    return json.loads(result.stdout)


def tried(name: str, advice: list[str] | None = None) -> dict[str, str]:
    """The result of one of doctor's checks."""
    return _trial.try_check(name, [] if advice is None else advice)


def with_one_check(name: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What `vtfast doctor --json` prints when this is its only check."""
    monkeypatch.setattr(_trial, "op_calls", dict)
    monkeypatch.setattr(_trial, "CHECKS", {name: _trial.CHECKS[name]})
    result = call("doctor", "--json")
    record = json.loads(result.stdout)
    assert result.exit_code == (0 if record["usable"] else 1)
    return record


CHECKS = _trial.CHECKS


def named(items: list[dict], name: str) -> dict:
    (item,) = (item for item in items if item["name"] == name)
    return item


# What is said


def test_json_is_one_object_and_nothing_else(record: dict) -> None:
    fields = {"system", "packages", "runtime", "devices", "ops", "checks", "advice", "usable"}
    assert set(record) == fields
    assert record["usable"] is True


def test_every_package_has_the_version_that_is_installed(record: dict) -> None:
    for name in ("torch", "transformers", "pillow"):
        package = named(record["packages"], name)
        assert (package["found"], package["status"]) == (version(name), "ok")


def test_the_ranges_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for line in (*project["dependencies"], *extras["cli"], *extras["plot"]):
        wanted = Requirement(line)
        supported, needed, _ = PACKAGES[wanted.name]
        assert Requirement(f"{wanted.name}{supported}").specifier == wanted.specifier
        assert needed or wanted.name in ("triton", "matplotlib")


def test_the_devices_are_those_of_torch(record: dict) -> None:
    cpu, *others = record["devices"]
    assert (cpu["name"], cpu["threads"]) == ("cpu", torch.get_num_threads())
    assert len(others) == torch.cuda.device_count()


def test_the_tables_say_the_same(record: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {**record, "advice": ["do this", "do that"]}
    monkeypatch.setattr("vtfast.cli.doctor.examine", lambda: record)
    shown = answered("doctor", columns=200).stdout
    for item in (*record["packages"], *record["ops"], *record["checks"]):
        assert item["name"] in shown
    for number, advice in enumerate(record["advice"], 1):
        assert f"{number}. {advice}" in shown
    assert shown.endswith("vtfast can be used here.\n")


def test_transformers_adds_nothing_to_stderr(result) -> None:
    assert result.stderr == ""


# Ops


def test_every_op_is_tried() -> None:
    assert set(_trial.op_calls()) == set(ops.__all__) - {"Ragged"}


def test_on_a_cpu_every_op_takes_its_pytorch_fallback_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_trial, "device_named", lambda name: torch.device("cpu"))
    monkeypatch.setattr(_launch, "INTERPRETED", False)
    for name in _trial.op_calls():
        op = _trial.try_op(name, [])
        assert (op["implementation"], op["status"]) == ("eager", "ok")
        assert op["reason"] == "its Triton kernel runs on CUDA tensors, got cpu"


def test_an_op_that_launches_its_kernel_is_reported_as_triton(
    monkeypatch: pytest.MonkeyPatch, strict_interpreter: None
) -> None:
    """What doctor says follows the dispatch of the ops: here one op is made to take its kernel."""
    monkeypatch.setattr(gather, "use_triton", lambda *args, **options: True)
    assert _trial.try_op("gather_rows", [])["implementation"] == "triton"
    other = _trial.try_op("topk_select", [])["implementation"]
    assert other == ("triton" if torch.cuda.is_available() else "eager")


def test_an_op_that_differs_from_its_reference_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = ops.topk_select, []

    def wrong(scores, segments, keep, impl="auto"):
        calls.append(impl)
        return right(scores if impl == "eager" else -scores, segments, keep, impl=impl)

    monkeypatch.setattr(ops, "topk_select", wrong)
    advice: list[str] = []
    assert _trial.try_op("topk_select", advice)["status"] == "broken"
    assert _trial.try_op("gather_rows", advice)["status"] == "ok"
    assert advice == ["the op topk_select fails here; report it with this output"]
    assert set(calls) >= {"auto", "eager"}


# What is tried, and what is wrong


def test_every_bundled_model_answers_and_a_patch_is_undone(record: dict) -> None:
    folders = (Path(toy.__file__).parent / "checkpoints").iterdir()
    for name in (folder.name for folder in folders if folder.is_dir()):
        check = named(record["checks"], f"toy-{name} answers")
        assert (check["status"], check["result"][-15:]) == ("ok", "as it should be")
    assert "nothing stays behind" in named(record["checks"], "patch and generate")["result"]


def test_a_bundled_model_that_answers_wrong_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, questions, _ = toy.scenes(1, 0, "background")
    monkeypatch.setattr("vtfast.toy.evaluate.scenes", lambda *_: (pictures, questions, ["no hue"]))
    record = with_one_check("toy-llava answers", monkeypatch)
    assert record["usable"] is False
    (check,) = record["checks"]
    assert check["status"] == "broken"
    assert check["result"] == "an easy question is answered wrong"


def test_a_patch_that_leaves_something_behind_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trial, "is_patched", lambda model: True)
    check = tried("patch and generate")
    assert (check["status"], check["result"]) == ("broken", "the patch leaves something behind")


def test_the_releases_vtfast_was_tested_with_are_listed(record: dict) -> None:
    result = named(record["checks"], "transformers")["result"]
    assert result.startswith(version("transformers"))
    assert all(release in result for release in TESTED)


def test_every_class_is_self_checked(record: dict) -> None:
    for name in SUPPORTED:
        check = named(record["checks"], f"self-check of {name}")
        where = "both layouts" if len(SUPPORTED[name].layouts) > 1 else "the padded layout"
        assert (check["status"], where in check["result"]) == ("ok", True)


def test_a_release_that_fails_the_self_check_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 5.24.0 an earlier doctor said that vtfast could be used, where answers were wrong."""
    monkeypatch.setattr(names, "handed_cache", lambda kwargs, layer: None)
    for name in SUPPORTED:
        record = with_one_check(f"self-check of {name}", monkeypatch)
        monkeypatch.setattr(_trial, "CHECKS", CHECKS)
        assert record["usable"] is False
        assert record["checks"][0]["status"] == "broken"
        assert f"pip install transformers=={TESTED[-1]}" in " ".join(record["advice"])


def test_another_attention_under_vtfasts_name_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_trial.ATTENTIONS._global_mapping, "vtfast", print)
    assert tried("attention registry")["status"] == "broken"


def test_an_unsupported_version_is_broken_with_the_command_that_corrects_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "vtfast.cli.doctor.version",
        lambda name: "4.57.1" if name == "transformers" else version(name),
    )
    result = call("doctor")
    assert result.exit_code == 1
    assert "transformers 4.57.1 is not supported: pip install 'transformers>=5.17,<6'" in " ".join(
        result.stdout.split()
    )
    assert result.stdout.endswith("vtfast cannot be used like this.\n")


def test_a_missing_optional_package_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    optional = {"torchvision", "num2words", "accelerate", "matplotlib", "triton"}

    def without(name: str) -> str:
        if name in optional:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("vtfast.cli.doctor.version", without)
    record = with_one_check("attention registry", monkeypatch)
    assert record["usable"]
    assert {p["name"] for p in record["packages"] if p["status"] == "missing"} == optional
    assert record["advice"] == []


def test_doctor_reports_without_torch() -> None:
    """Without transformers too, which takes long to import."""
    code = "for name in 'torch', 'transformers':\n    sys.modules[name] = None\n"
    done = python(f"{code}from vtfast.cli import main\nmain()", "doctor")
    assert done.returncode == 1
    assert "torch " in done.stdout
    assert "cannot be imported" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtfast.inputs.hub.os.access", lambda path, mode: False)
    advice: list[str] = []
    assert tried("hub cache", advice)["status"] == "warning"
    assert "set HF_HOME to a folder of yours" in advice[-1]


def test_no_word_is_broken_at_80_columns(record):
    assert breaks_no_word(lambda console: _show(console, record))


# A package with the name that transformers imports Hugging Face's kernels by


RAISES, LACKS_ALL = "raise RuntimeError('not for you')", "OWNER = 'somebody else'"


def beside(folder: Path, source: str, release: str = "", module: str = "kernels/__init__.py"):
    """Doctor in a process of its own that finds such a package first, and perhaps the metadata of
    a release of Hugging Face's. The trials of ops and models, which take long, are left out."""
    (folder / module).parent.mkdir(exist_ok=True)
    (folder / module).write_text(source)
    if release:
        info = folder / f"kernels-{release}.dist-info"
        info.mkdir()
        about = f"Metadata-Version: 2.1\nName: kernels\nVersion: {release}\n"
        (info / "METADATA").write_text(about)
    code = (
        f"sys.path.insert(1, {str(folder)!r})\n"
        "from vtfast.cli import doctor, main\n"
        "examine = doctor._package\n"
        "def package(name, advice):\n"
        "    found = examine(name, advice)\n"
        "    if name == 'transformers' and found['status'] == 'ok':\n"
        "        from vtfast.cli import _trial\n"
        "        _trial.CHECKS, _trial.op_calls = {}, dict\n"
        "    return found\n"
        "doctor._package = package\n"
        "main()"
    )
    done = python(code, "doctor", "--json", cwd=folder)
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("source", "release"),
    [(RAISES, ""), (LACKS_ALL, import_utils.KERNELS_MIN_VERSION)],
    ids=["it raises", "it lacks what transformers expects"],
)
def test_a_package_kernels_that_breaks_transformers_is_named(tmp_path, source, release) -> None:
    """Doctor once ended in a traceback that did not say where it came from."""
    record = beside(tmp_path, source, release)
    assert record["usable"] is False
    assert named(record["packages"], "transformers")["status"] == "broken"
    (advice,) = record["advice"]
    assert f"beside {tmp_path / 'kernels' / '__init__.py'}, which has the name" in advice


@pytest.mark.parametrize("module", ["kernels/__init__.py", "kernels.py"])
def test_a_package_kernels_that_harms_nothing_is_named_without_advice(tmp_path, module) -> None:
    record = beside(tmp_path, LACKS_ALL, module=module)
    check = named(record["checks"], "the name 'kernels'")
    assert (check["status"], check["result"]) == ("ok", f"is that of {tmp_path / module} here")
    assert (record["usable"], record["advice"]) == (True, [])


def test_a_package_that_hides_hugging_faces_kernels_is_a_warning(tmp_path) -> None:
    record = beside(tmp_path, LACKS_ALL, "0.1")
    assert named(record["checks"], "the name 'kernels'")["status"] == "warning"
    assert "hides Hugging Face's package 'kernels'" in record["advice"][0]


def test_hugging_faces_kernels_and_a_mere_folder_are_nothing_to_name(monkeypatch, tmp_path) -> None:
    (tmp_path / "kernels").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert other_kernels_package() is None
    (tmp_path / "kernels" / "__init__.py").write_text("from .utils import get_kernel")
    importlib.invalidate_caches()
    assert other_kernels_package() is None
