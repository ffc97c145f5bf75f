"""`vtfast run`: the answer it streams is the model's, and its table says what happened.

All runs are in this process; equal runs are made only once.
"""

import functools
import io
import json
import re
import sys
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from command import answered, checkpoint
from PIL import Image

import vtfast
from vtfast import cli, toy
from vtfast.cli import _answering
from vtfast.cli._answering import ask
from vtfast.inputs.prompts import Prompt
from vtfast.toy.scene import Scene

QUESTION = "read the code ."
FIELDS = (
    "name answer new_tokens finished visual_tokens_per_layer visual_tokens_average flops_ratio "
    "seconds_to_first_token ms_per_further_token kv_cache_bytes path path_reason"
)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A scene whose code the model reads at the default keep too."""
    return Scene.from_seed(2)


@pytest.fixture(scope="module")
def picture(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    scene.picture().save(path)
    return path


@pytest.fixture(scope="module")
def run(picture: Path):
    """`vtfast run --json` of the bundled LLaVA on the scene, with more options: the object."""

    @functools.cache
    def run(*options: object, question: str = QUESTION) -> dict:
        ask = ("run", "--model", "toy-llava", "--image", picture, "--prompt", question)
        with mock.patch.object(_answering, "ROUNDS", 2):
            result = answered(*ask, "--json", *options)
        assert result.stderr == ""
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="module")
def shown(picture: Path) -> str:
    """What `vtfast run --compare` prints."""
    ask = ("run", "--model", "toy-llava", "--image", picture, "--prompt", QUESTION)
    return answered(*ask, "--compare").stdout


@pytest.fixture(scope="module")
def user(picture: Path) -> SimpleNamespace:
    """`vtfast run` on a terminal of 80 columns: stdout and stderr, as they follow one another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(picture.parent)
        ask = ("run", "--model", "toy-llava", "--image", picture, "--prompt", QUESTION)
        output = answered(*ask, "--out", "kept.png", terminal=True, columns=80).output
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    return SimpleNamespace(text=text, folder=picture.parent)


def row(text: str, first: str) -> list[str]:
    """The cells of the table row that starts with `first`."""
    (line,) = (line for line in text.splitlines() if line.strip().startswith(first))
    return re.split(r"\s{2,}", line.strip())


# As a user


def test_a_user_sees_progress_then_the_answer_then_the_table(
    user: SimpleNamespace, scene: Scene
) -> None:
    parts = ("loading torch and transformers", scene.question("code")[1], "Plan divprune+random")
    places = [user.text.index(part) for part in (*parts, "KV cache", "kept.png")]
    assert places == sorted(places)


def test_no_line_of_the_table_is_wider_than_the_terminal(user: SimpleNamespace) -> None:
    shown = user.text[user.text.index("Plan divprune") :].replace("\r", "")
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown


def test_a_user_gets_a_png_with_a_panel_per_stage(user: SimpleNamespace) -> None:
    with Image.open(user.folder / "kept.png") as kept:
        assert kept.format == "PNG"
        assert kept.width / kept.height == pytest.approx(3 * 3.2 / (3.2 + 1.04), abs=0.01)


# The answer


@pytest.mark.parametrize("task", toy.TASKS)
def test_the_bundled_model_answers_right_if_all_tokens_are_kept(
    run, scene: Scene, task: str
) -> None:
    question, truth = scene.question(task)
    record = run("--keep", "1", "--plan", "random", question=question)
    assert record["runs"][0]["answer"] == truth
    assert record["runs"][0]["finished"]


def test_the_answer_is_that_of_generate_under_patch(run, scene: Scene) -> None:
    model, processor = toy.load("llava")
    text = toy.prompt(processor, QUESTION)
    inputs = processor(images=[scene.picture()], text=[text], return_tensors="pt")
    with vtfast.patch(model, "divprune+vtw", keep=0.2, horizon=6, seed=3) as handle:
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=64)
    said = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    options = ("--plan", "divprune+vtw", "--keep", "0.2", "--horizon", "6", "--seed", "3")
    (pruned,) = run(*options)["runs"]
    assert said != scene.question("code")[1]  # else the plan made no difference
    assert pruned["answer"] == said
    assert tuple(pruned["visual_tokens_per_layer"]) == handle.report.tokens[0]


def test_words_are_written_while_later_ones_are_still_to_come(scene: Scene) -> None:
    found, happened = checkpoint("toy-llava"), []
    prompt = Prompt(found, QUESTION, [("scene", scene.picture())])
    model = found.weights(torch.device("cpu"), "auto")
    answer = ask(model, prompt, 64, write=happened.append, on_token=lambda: happened.append(None))
    words = [part for part in happened if part is not None]
    assert "".join(words) == answer.text == scene.question("code")[1]
    assert len(words) == 3
    assert happened.count(None) == answer.tokens == 4
    assert None in happened[happened.index(words[0]) :]


def test_the_command_flushes_every_word(
    picture: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []

    class Terminal(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", Terminal())
    ask = ["run", "--model", "toy-llava", "--image", str(picture), "--prompt", QUESTION]
    cli.app(ask, standalone_mode=False)
    first, second, third = scene.question("code")[1].split()
    words = [first, f"{first} {second}", f"{first} {second} {third}"]
    assert [text.rstrip() for text in flushed[:3]] == words  # a space comes with either word


def test_a_long_answer_is_truncated_and_a_note_says_so(run) -> None:
    record = run("--max-new-tokens", "2")
    (pruned,) = record["runs"]
    assert (pruned["new_tokens"], pruned["finished"]) == (2, False)
    assert len(pruned["answer"].split()) == 2
    assert "Cut short: --max-new-tokens 2." in record["notes"]


def test_words_the_model_does_not_know_are_named(run) -> None:
    record = run(question="What is the shape?")
    assert 'Not in the tokenizer\'s vocabulary: "What", "shape?".' in record["notes"]
    assert not any("vocabulary" in note for note in run()["notes"])


# JSON


def test_json_is_one_object_with_the_documented_fields(run) -> None:
    record = run()
    assert set(record) == {
        *("version", "model", "model_class", "device", "dtype", "layers", "prompt", "images"),
        *("video", "visual_tokens", "visual_tokens_per_picture", "text_tokens", "plan", "runs"),
        *("identical", "timed_rounds", "notes", "picture"),
    }
    assert set(record["plan"]) == {"name", "keep", "horizon", "horizon_source", "seed", "stages"}
    (pruned,) = record["runs"]
    assert list(pruned) == FIELDS.split()
    assert (record["identical"], record["timed_rounds"], record["picture"]) == (None, 0, None)
    assert record["model_class"] == "LlavaForConditionalGeneration"
    assert (record["visual_tokens"], record["text_tokens"], record["layers"]) == (64, 7, 12)


def test_json_has_the_plan_as_it_was_solved(run) -> None:
    plan = run()["plan"]
    config = toy.load("llava")[0].config
    assert (plan["keep"], plan["horizon"]) == (0.5, config.vtfast_horizon)
    assert plan["horizon_source"] == "from the checkpoint"
    assert [(stage["layer"], stage["method"]) for stage in plan["stages"]] == [
        (0, "diversity"),
        (config.vtfast_horizon, "random"),
    ]


@pytest.mark.parametrize("keep", [0.25, 0.75])
def test_keep_is_met_on_average_and_saves_as_much(run, keep: float) -> None:
    (pruned,) = run("--keep", keep)["runs"]
    assert pruned["visual_tokens_average"] == pytest.approx(64 * keep, abs=0.5)
    assert pruned["visual_tokens_average"] == sum(pruned["visual_tokens_per_layer"]) / 12
    assert pruned["flops_ratio"] == pytest.approx(keep, abs=0.1)


def test_the_kv_cache_holds_what_the_layers_saw(run) -> None:
    (pruned,) = run()["runs"]
    assert pruned["path"] == "padded"
    text = 7 + pruned["new_tokens"] - 1  # the last token is never read
    tokens = sum(pruned["visual_tokens_per_layer"]) + 12 * text
    assert pruned["kv_cache_bytes"] == tokens * 2 * 128 * 4  # keys and values, 128 wide, fp32


def test_path_and_dtype_are_passed_on(run) -> None:
    record = run("--path", "packed", "--dtype", "bfloat16")
    (pruned,) = record["runs"]
    assert record["dtype"] == "bfloat16"
    assert (pruned["path"], pruned["path_reason"]) == ("packed", "asked for")


# Compared


def test_compare_shows_both_answers_side_by_side(shown: str, scene: Scene) -> None:
    truth = scene.question("code")[1]
    lines = shown.splitlines()
    names = next(i for i, line in enumerate(lines) if line.split() == ["unpruned", "pruned"])
    assert re.split(r"\s{2,}", lines[names + 2].strip()) == [truth, truth]
    assert "The answers are the same." in shown


def test_compare_shows_ratios_of_what_was_measured(shown: str) -> None:
    for label in ("visual tokens, average", "prefill FLOPs", "time to first", "per further", "KV"):
        full, pruned, ratio = row(shown, label)[1:]
        full, pruned = (float(cell.split()[0]) for cell in (full, pruned))
        # Times are rounded to a tenth of a millisecond: of a few ms that is some per cent.
        assert float(ratio.removesuffix("x")) == pytest.approx(full / pruned, rel=0.05, abs=0.01)


def test_compare_times_both_warm_and_says_how(shown: str, run) -> None:
    assert re.search(r"Times: median of [1-5] rounds? in alternating order, after", shown)
    record = run("--compare")
    assert 1 <= record["timed_rounds"] <= 5
    assert "first run" in run()["notes"][0]


def test_compare_puts_the_unpruned_model_first(run) -> None:
    unpruned, pruned = run("--compare")["runs"]
    assert (unpruned["name"], pruned["name"]) == ("unpruned", "pruned")
    assert unpruned["visual_tokens_per_layer"] == [64] * 12
    assert (unpruned["flops_ratio"], unpruned["path"]) == (1, None)
    assert unpruned["kv_cache_bytes"] > pruned["kv_cache_bytes"]


def test_the_unpruned_answer_is_the_unpatched_models(run, scene: Scene) -> None:
    """At this keep the pruned one is wrong, so the two cannot be mixed up."""
    record = run("--compare", "--keep", "0.1", "--plan", "random")
    unpruned, pruned = record["runs"]
    assert unpruned["answer"] == scene.question("code")[1] != pruned["answer"]
    assert record["identical"] is False


def test_a_line_says_that_the_answers_differ(picture: Path) -> None:
    ask = ("run", "--model", "toy-llava", "--image", picture, "--prompt", QUESTION)
    result = answered(*ask, "--compare", "--keep", "0.1", "--plan", "random")
    assert "The answers differ." in result.stdout


def test_the_answers_are_identical_if_all_tokens_are_kept(run) -> None:
    record = run("--compare", "--keep", "1", "--plan", "random")
    assert record["identical"] is True


def test_what_is_timed_is_what_is_compared(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timed answers of both variants are recognised by the cache they leave."""
    timed: dict = {}
    alternate = _answering.alternate
    monkeypatch.setattr(
        _answering, "alternate", lambda *args: timed.update(alternate(*args)) or timed
    )
    for shown in run.__wrapped__("--compare")["runs"]:
        assert {answer.cache_bytes for answer in timed[shown["name"]]} == {shown["kv_cache_bytes"]}
        middle = median(answer.first_seconds for answer in timed[shown["name"]])
        assert shown["seconds_to_first_token"] == middle


def test_rounds_alternate_and_end_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    variants = {name: lambda name=name: order.append(name) for name in "ab"}
    _answering.alternate(variants)
    assert order == ["b", "a", "a", "b"] * 2 + ["b", "a"]
    order.clear()
    monkeypatch.setattr(_answering, "PATIENCE", -1.0)
    _answering.alternate(variants)
    assert order == ["b", "a"]
