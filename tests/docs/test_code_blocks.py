"""Every block of Python on the pages runs, in order, in one namespace a page.

They run on the bundled models. A page is given what its text takes for granted (`GIVEN`), and where
that would take long, need a GPU or a download, a line is replaced (`REPLACED`). A page without an
entry runs as it stands, so a new one needs none.
"""

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import bundled
from pages import DOCS, blocks, prose, read
from repository import ROOT
from vllm_client import PROMPT_TOKENS, Client

import vtfast
from vtfast.models.base import Family
from vtfast.toy.evaluate import dataset

# Pages that a test of their own runs: it also checks what they print and write.
ELSEWHERE = {
    "docs/hub.md": "tests/hub/test_hub.py",  # needs Hugging Face's kernels
    "docs/reproduce.md": "tests/evaluation/test_reproduce.py",  # needs lmms-lab's datasets
    "docs/write-a-method.md": "tests/methods/test_write_a_method.py",
}


def _asked(task: str, n: int) -> dict[str, Any]:
    model, processor = bundled("llava-small")
    return {"model": model, "processor": processor, "dataset": dataset(processor, task, n, 5)}


def _files_of_data() -> dict[str, Any]:
    """The page's own examples of data, as the files that it goes on to read."""
    picture = vtfast.toy.scenes(1, 0, "digit")[0][0]
    one, conversations = (b.text for b in blocks(read("docs/data.md")) if b.language == "json")
    Path("llava_v1_5_mix665k.json").write_text(conversations)
    Path("one.jsonl").write_text(one)
    for name in ("cat.png", "playground/data/coco/train2017/000000033471.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(name)
    processor = copy.deepcopy(bundled("llava-small")[1])
    processor.tokenizer.add_tokens(["White", "and", "red", ".", "Yes", "cat"])
    return {"processor": processor}


GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/choosing.md": lambda: {"vtfast": vtfast, **_asked("digit", 4)},
    "docs/data.md": _files_of_data,
    "docs/serving.md": lambda: {"client": Client()},
    "docs/tuning.md": lambda: {"vtfast": vtfast, **_asked("background", 128)},
}
# What is replaced, by what; the text of a page says nothing that the replacement changes.
REPLACED = {
    # The first takes 600 questions.
    "docs/tuning.md": [("max_loss=0.01", 'max_loss=0.05, methods=["uniform"], horizon=3')],
}


def python(page: str) -> list[str]:
    return [block.text for block in blocks(read(page)) if block.language == "python"]


WITH_CODE = [page for page in DOCS if python(page)]


def run(page: str, codes: list[str], names: dict[str, Any]) -> None:
    """Run the blocks of a page with these names; what they define is in `names` then."""
    for number, code in enumerate(codes):
        exec(compile(code, f"{page}, block of Python {number}", "exec"), names)


@pytest.mark.filterwarnings("default")  # what a page warns of it also shows
@pytest.mark.parametrize("page", [page for page in WITH_CODE if page not in ELSEWHERE])
def test_every_block_runs(page: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    codes, names = python(page), GIVEN.get(page, dict)()
    for old, new in REPLACED.get(page, []):
        assert any(old in code for code in codes)
        codes = [code.replace(old, new) for code in codes]
    run(page, codes, names)
    AFTER.get(page, lambda names: None)(names)


def _a_family_is_overridden(names: dict[str, Any]) -> None:
    """Every method of the example is one of the base class, with the same arguments."""
    mine = names["Mine"]
    for name, method in vars(mine).items():
        if inspect.isfunction(method):
            assert inspect.signature(method).parameters.keys() == (
                inspect.signature(getattr(Family, name)).parameters.keys()
            )
    measure, wanted = mine().measured(
        _Config(), "image", {"image_sizes": torch.tensor([[28, 42]])}, None
    )
    pictures = measure(None, *(tensor.numpy() for tensor in wanted))
    assert (pictures.sizes, pictures.parts) == ([6], [((1, 2, 3),)])


class _Config:
    class config:
        class vision_config:
            patch_size = 14


def _data_is_read(names: dict[str, Any]) -> None:
    answers = [example.answer for example in names["examples"]]
    assert answers == ["White and red.", "Yes.", "cat"]
    assert names["bad"] == []
    one = json.loads(next(b.text for b in blocks(read("docs/data.md")) if b.language == "json"))
    assert one.keys() == {"image", "question", "answer"}


def _a_request_is_taken(names: dict[str, Any]) -> None:
    assert names["client"].keeps == [*PROMPT_TOKENS, 0.25]
    said = ", ".join(map(str, list(PROMPT_TOKENS.values())[:2])) + f" and {PROMPT_TOKENS[0.25]}:"
    assert f"# {said}" in read("docs/serving.md")


def _an_answer_is_longer(names: dict[str, Any]) -> None:
    assert names["out"].sequences.shape[1] > names["length"]


def _a_plan_is_patched(names: dict[str, Any]) -> None:
    assert vtfast.is_patched(names["model"])


AFTER: dict[str, Callable[[dict[str, Any]], None]] = {
    "docs/add-a-family.md": _a_family_is_overridden,
    "docs/data.md": _data_is_read,
    "docs/serving.md": _a_request_is_taken,
    "docs/training.md": _an_answer_is_longer,
    "docs/tuning.md": _a_plan_is_patched,
}


def test_a_page_that_runs_elsewhere_is_named_there() -> None:
    for page, test in ELSEWHERE.items():
        source = (ROOT / test).read_text()
        assert page.removeprefix("docs/") in source
        assert "```python" in source
    assert {*GIVEN, *REPLACED, *AFTER, *ELSEWHERE} <= set(WITH_CODE)


def test_a_wrong_name_in_a_later_block_is_seen() -> None:
    with pytest.raises(AttributeError, match="no_such"):
        run("docs/tuning.md", ["import vtfast", "vtfast.no_such()"], {})


@pytest.mark.parametrize("page", DOCS)
def test_blocks_are_of_a_language_that_is_checked(page: str) -> None:
    """Python runs here, JSON is read, all else is commands (test_commands.py)."""
    found = blocks(read(page))
    assert {block.language for block in found} <= {"python", "json", "bash"}
    for block in found:
        if block.language == "json":
            for line in block.text.splitlines() if block.text.startswith("{") else [block.text]:
                json.loads(line)
    assert "```" not in prose(read(page))
