"""Every break of `tests/mutations.py` can be applied to the code; `make mutants` tries them."""

import runpy
from types import SimpleNamespace

import pytest
from repository import ROOT

mutants = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "mutations.py")))
MUTATIONS = mutants.MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[m.what for m in MUTATIONS])
def test_a_break_can_be_applied_to_the_code(mutation) -> None:
    source = (ROOT / mutation.file).read_text()
    broken = mutants.apply(mutation, source)
    assert broken != source
    compile(broken, mutation.file, "exec")


def test_every_named_test_exists() -> None:
    for mutation in MUTATIONS:
        path, _, node = mutation.test.partition("::")
        assert f"\ndef {node.partition('[')[0]}(" in (ROOT / path).read_text(), mutation.test


def test_every_break_is_described_in_one_sentence() -> None:
    sentences = [m.what for m in MUTATIONS]
    assert len(set(sentences)) == len(sentences) > 40
    assert [s for s in sentences if ". " in s or not (s[0].isupper() and s.endswith("."))] == []


@pytest.mark.parametrize("source", ["", "x = 1\nx = 1\n"])
def test_code_that_does_not_occur_once_is_an_error(source) -> None:
    mutation = mutants.Mutation("What.", "file.py", "x = 1", "x = 2", "test")
    assert mutants.apply(mutation, "x = 1\n") == "x = 2\n"
    with pytest.raises(ValueError, match=r"occurs [02] times in file\.py, not once"):
        mutants.apply(mutation, source)


def test_a_file_is_restored(tmp_path) -> None:
    (tmp_path / "file.py").write_text("x = 1\n")
    mutation = mutants.Mutation("What.", "file.py", "x = 1", "x = 2", "test")

    def interrupted() -> None:
        with mutants.applied(mutation, tmp_path):
            assert (tmp_path / "file.py").read_text() == "x = 2\n"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "file.py").read_text() == "x = 1\n"


def test_only_a_failed_test_counts_as_red() -> None:
    """The other codes: interrupted (an import failed), internal error, usage, nothing to run."""
    assert [mutants.verdict(status) for status in range(-1, 6)] == (
        ["broken", "green", "red", "broken", "broken", "broken", "broken"]
    )


def test_what_is_not_red_is_reported_and_fails(capsys) -> None:
    red, green = (
        mutants.Outcome(MUTATIONS[i], verdict, "1 passed", 1.0)
        for i, verdict in enumerate(("red", "green"))
    )
    assert mutants._report([red]) == 0
    assert mutants._report([red, green]) == 1
    said = capsys.readouterr().out
    assert "1 of 2 breaks turned their test red." in said
    assert MUTATIONS[1].test in said
    assert MUTATIONS[0].test not in said
