"""`vtfast demo`: what it shows is what the models did. One run as a person would, the rest inside.

The demo runs here without its timings or with a tiny model timed: the numbers mean nothing then,
but every step is taken.
"""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from repository import ROOT
from typer.testing import CliRunner

import vtfast
from vtfast import cli, toy
from vtfast.errors import PlanError
from vtfast.interview import Interview, StageView
from vtfast.kernels.ragged import Ragged
from vtfast.picture import DPI, HEADER_INCHES, PANEL_INCHES, draw
from vtfast.prefill import TINY, MidSize, Race
from vtfast.presets import PRESETS
from vtfast.toy.scene import Scene

COLUMNS = ["full", "keep 0.75", "keep 0.5"]


def demo(*arguments: str, charset: str = "utf-8"):
    """`vtfast demo` in this process; its stdout is no terminal."""
    env = {"COLUMNS": "120", "NO_COLOR": "1"}
    runner = CliRunner(charset=charset)
    result = runner.invoke(cli.app, ["demo", *arguments], env=env, prog_name="vtfast")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are so small that a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def interview() -> Interview:
    return Interview.bundled(cli.DEFAULT_SCENE)


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`python -m vtfast demo --json` with stderr on a terminal and stdout in a pipe."""
    folder = tmp_path_factory.mktemp("person")
    terminal, stderr = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "vtfast", "demo", "--json", "--tiny-timing"],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    os.close(stderr)
    seen = b""
    try:
        while part := os.read(terminal, 4096):
            seen += part
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    stdout, _ = running.communicate()
    os.close(terminal)
    return SimpleNamespace(
        code=running.returncode, stdout=stdout, stderr=seen.decode(), folder=folder
    )


@pytest.fixture(scope="module")
def record(person: SimpleNamespace) -> dict:
    return json.loads(person.stdout)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The tables of the default demo, at 120 columns."""
    picture = tmp_path_factory.mktemp("shown") / "a[red]b.png"
    result = demo("--tiny-timing", "--out", str(picture))
    assert result.exit_code == 0
    return SimpleNamespace(text=result.stdout, stderr=result.stderr, picture=picture)


def cells(text: str, first: str) -> list[str]:
    """The cells of the table row that starts with `first`."""
    (line,) = (line for line in text.splitlines() if line.strip().startswith(first))
    return re.split(r"\s{2,}", line.strip())


# What is said: JSON


def test_json_is_one_object_and_nothing_else(person: SimpleNamespace) -> None:
    assert person.code == 0, person.stderr
    assert isinstance(json.loads(person.stdout), dict)


def test_progress_is_on_stderr(person: SimpleNamespace) -> None:
    for step in ("loading torch", "asking six questions", "timing 4 layers"):
        assert step in person.stderr
        assert step not in person.stdout


def test_no_progress_where_stderr_is_no_terminal(shown: SimpleNamespace) -> None:
    assert shown.stderr == ""


def test_json_has_a_column_per_way_to_run(record: dict) -> None:
    assert [column["name"] for column in record["columns"]] == COLUMNS
    assert [column["keep"] for column in record["columns"]] == [None, 0.75, 0.5]
    full, *pruned = record["columns"]
    assert (full["average_tokens"], full["flops_ratio"], full["stages"]) == (64, 1, [])
    for column in pruned:
        assert [stage["method"] for stage in column["stages"]] == ["diversity", "random"]
        assert abs(column["average_tokens"] - 64 * column["keep"]) <= 0.5
        assert column["flops_ratio"] == pytest.approx(column["keep"], abs=0.1)


def test_json_has_all_six_questions_with_their_true_answers(record: dict) -> None:
    scene = Scene.from_seed(record["scene_seed"])
    assert [question["task"] for question in record["questions"]] == list(toy.TASKS)
    for question in record["questions"]:
        assert scene.question(question["task"]) == (question["question"], question["truth"])
        assert list(question["answers"]) == COLUMNS


def test_json_counts_the_right_answers(record: dict) -> None:
    for column in record["columns"]:
        right = [q["answers"][column["name"]] == q["truth"] for q in record["questions"]]
        assert column["right"] == sum(right)


def test_the_default_scene_does_not_hide_that_pruning_costs_something(record: dict) -> None:
    full, *_, half = (column["right"] for column in record["columns"])
    assert half < full == 6


def test_json_times_every_variant_against_the_full_model(record: dict) -> None:
    timing = record["timing"]
    assert (timing["device"], timing["dtype"]) == ("cpu", "float32")
    assert timing["rounds"] >= 5
    variants = [(v["name"], v["keep"]) for v in timing["variants"]]
    pairs = [(name, keep) for keep in (0.5, 0.25) for name in ("pruned", "natively shorter")]
    assert variants == [("full", None), *pairs]
    assert timing["variants"][0]["share_of_full"] == {"median": 1, "p20": 1, "p80": 1}
    for variant in timing["variants"]:
        share = variant["share_of_full"]
        assert 0 < share["p20"] <= share["median"] <= share["p80"]
        assert variant["seconds"] > 0


def test_the_picture_goes_to_the_current_folder(person: SimpleNamespace, record: dict) -> None:
    assert record["picture"] == "vtfast-demo.png"
    assert [path.name for path in person.folder.iterdir()] == ["vtfast-demo.png"]


# What is said: tables


def test_the_table_has_the_answers_and_marks_exactly_the_wrong_ones(
    shown: SimpleNamespace, record: dict
) -> None:
    assert cells(shown.text, "question") == ["question", "truth", *COLUMNS]
    for question in record["questions"]:
        truth = question["truth"]
        said = [a if a == truth else f"{a} ✗" for a in question["answers"].values()]
        assert cells(shown.text, question["question"]) == [question["question"], truth, *said]


def test_the_table_ends_with_tokens_and_flops(shown: SimpleNamespace, record: dict) -> None:
    columns = record["columns"]
    averages = [f"{column['average_tokens']:.1f}" for column in columns]
    flops = [f"{100 * column['flops_ratio']:.0f} %" for column in columns]
    right = [f"{column['right']} of 6" for column in columns]
    assert cells(shown.text, "visual tokens")[1:] == averages
    assert cells(shown.text, "prefill FLOPs")[1:] == flops
    assert cells(shown.text, "right answers")[1:] == right


def test_the_tables_say_what_they_do_not_show(shown: SimpleNamespace) -> None:
    assert "64 visual tokens shows meaning, not speed" in shown.text
    assert "One scene" in shown.text
    assert "natively shorter: the same model, unpatched" in shown.text


def test_the_timings_are_ratios_with_their_spread(shown: SimpleNamespace) -> None:
    for keep in ("0.5", "0.25"):
        for name in ("pruned", "natively shorter"):
            share, spread, faster = cells(shown.text, f"keep {keep}, {name}")[3:]
            low, high = map(float, spread.split("-"))
            assert low <= float(share) <= high
            assert float(faster[:-1]) == pytest.approx(1 / float(share), abs=0.06, rel=0.02)


def test_the_marks_survive_a_terminal_without_unicode(tmp_path: Path) -> None:
    picture = tmp_path / "kept.png"
    result = demo("--no-timing", "--out", str(picture), charset="ascii")
    assert "x marks a wrong answer" in result.stdout
    assert cells(result.stdout.replace("|", "  "), "how many cells")[-1].endswith(" x")


def test_another_plan_and_keep_replace_the_columns(tmp_path: Path) -> None:
    arguments = ("--plan", "fastv", "--keep", "0.6", "--no-timing", "--json")
    result = demo(*arguments, "--out", str(tmp_path / "kept.png"))
    record = json.loads(result.stdout)
    assert [column["name"] for column in record["columns"]] == ["full", "keep 0.6"]
    assert (record["plan"], record["timing"]) == ("fastv", None)


def test_a_file_name_is_not_taken_for_markup(shown: SimpleNamespace) -> None:
    assert f"left of it: {shown.picture}\n" in shown.text
    assert shown.picture.exists()


# What is refused


def test_a_keep_out_of_the_plans_reach_is_refused_before_any_work(
    interview: Interview, tmp_path: Path
) -> None:
    """0.7 is in reach on the bundled model, but not on the one that is timed."""
    assert interview.pruned("divprune+vtw", 0.7, 0).keep == 0.7
    picture = tmp_path / "kept.png"
    result = demo("--plan", "divprune+vtw", "--keep", "0.7", "--out", str(picture))
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: keep=0.7: preset 'divprune+vtw'")
    assert "--no-timing" in line
    assert not picture.exists()


def test_a_picture_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "kept.png"
    link.symlink_to(tmp_path / "gone" / "kept.png")
    result = demo("--no-timing", "--out", str(link))
    assert (result.exit_code, result.stdout) == (2, "")
    assert (
        result.stderr
        == f"error: cannot write {link}: No such file or directory; pass another --out\n"
    )


# What was done


def test_answers_are_those_of_the_model_asked_one_question_at_a_time(interview: Interview) -> None:
    model, processor = interview.model, toy.load("llava")[1]
    column = interview.pruned("divprune+random", 0.5, 0)
    with vtfast.patch(model, keep=0.5):
        for question, answer in zip(interview.questions, column.answers, strict=True):
            text = toy.prompt(processor, question.text)
            inputs = processor(images=interview.picture, text=text, return_tensors="pt")
            row = model.generate(**inputs, do_sample=False, max_new_tokens=4)[0]
            said = processor.decode(row[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            assert said == answer


def test_the_horizon_is_the_checkpoints(interview: Interview) -> None:
    plan = interview.pruned("divprune+random", 0.5, 0).plan
    assert plan is not None
    assert plan.horizon == interview.model.config.vtfast_horizon
    assert plan.horizon_source == "from the checkpoint"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_shown(interview: Interview, preset: str) -> None:
    column = interview.pruned(preset, 0.6, 0)
    assert column.plan is not None
    assert len(column.stages) == len(column.plan.stages)
    assert column.average_tokens == pytest.approx(column.plan.average_tokens(64, 12))


def test_the_model_is_left_unpatched(interview: Interview) -> None:
    before = interview.full()
    interview.pruned("divprune+random", 0.5, 0)
    with pytest.raises(PlanError):
        interview.pruned("fastv", 0.01, 0)
    assert not vtfast.is_patched(interview.model)
    assert interview.full() == before


def test_stages_hold_the_patches_that_are_left(interview: Interview) -> None:
    column = interview.pruned("divprune+random", 0.5, 0)
    assert column.plan is not None
    assert tuple(len(stage.kept) for stage in column.stages) == column.plan.counts(64)
    first, second = (set(stage.kept) for stage in column.stages)
    assert second < first < set(range(64))


def test_the_patches_left_are_those_the_method_chose(interview: Interview) -> None:
    """Numbers of patches of the picture, not of columns of the padded batch."""
    processed = toy.load("llava")[1].image_processor(interview.picture, return_tensors="pt")
    (features,) = interview.model.get_image_features(**processed).pooler_output
    (stage,) = interview.pruned("divprune", 0.5, 0).stages
    chosen = vtfast.ops.diversity_select(features, Ragged.from_lengths([64], "cpu"), [32])
    assert stage.kept == tuple(chosen.tolist())


def test_stages_that_drop_nothing_and_everything_are_shown_as_such(interview: Interview) -> None:
    (stage,) = interview.pruned("divprune", 1.0, 0).stages
    assert stage.kept == tuple(range(64))
    (stage,) = interview.pruned("vtw", 0.5, 0).stages
    assert stage.kept == ()


def test_the_seed_chooses_the_random_picks_and_nothing_else(interview: Interview) -> None:
    one, again, other = (interview.pruned("divprune+random", 0.5, seed) for seed in (1, 1, 2))
    assert one == again
    assert one.stages[0] == other.stages[0]
    assert one.stages[1].kept != other.stages[1].kept


def test_the_scene_seed_chooses_the_scene() -> None:
    model, processor = toy.load("llava")
    one, again, other = (Interview(model, processor, seed) for seed in (1, 1, 2))
    assert one.picture.tobytes() == again.picture.tobytes() != other.picture.tobytes()
    assert one.questions == again.questions != other.questions


# What is timed


def test_every_variant_is_timed_as_often() -> None:
    race = Race(TINY, "divprune", (0.5,), seed=0, rounds=3)
    passes = []
    timings = race.run(lambda: passes.append(1))
    assert len(passes) == race.passes == (1 + 3) * 3
    assert [timing.variant for timing in timings] == race.variants


def test_each_variant_prefills_as_many_tokens_as_it_says() -> None:
    """The last layer sees text and visual tokens: all, the plan's, and natively the plan's too."""
    race = Race(TINY, "divprune", (0.5,), seed=0, rounds=1)
    lengths = []

    def look(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        lengths.append(args[0].shape[1])

    build = TINY.build

    class Watched(MidSize):
        def build(self):
            model = build()
            last = model.model.language_model.layers[-1]
            last.register_forward_pre_hook(look, with_kwargs=True)
            return model

    race.sizes = Watched(**vars(TINY))
    race.run()
    seen = [TINY.text_tokens + int(variant.visual_tokens) for variant in race.variants]
    assert seen == [16 + 36, 16 + 18, 16 + 18]
    assert lengths == [*reversed(seen), *seen]


def test_natively_shorter_is_the_average_of_a_plan_with_two_stages() -> None:
    race = Race(TINY, "divprune+random", (0.5,), seed=0, rounds=1)
    _, pruned, native = race.variants
    assert pruned.plan is not None
    assert pruned.visual_tokens == pruned.plan.average_tokens(36, TINY.layers)
    assert native.visual_tokens == round(pruned.visual_tokens)
    assert native.plan is None


def test_the_model_that_is_timed_by_default_is_mid_size() -> None:
    sizes = MidSize()
    assert (sizes.layers, sizes.width, sizes.visual_tokens) == (16, 1024, 576)


def test_the_timed_model_depends_on_its_seed_alone() -> None:
    one = TINY.build().state_dict()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    other = TINY.build().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.random.get_rng_state(), state)


# What is drawn


def test_the_picture_is_a_png_with_a_panel_per_stage(shown: SimpleNamespace) -> None:
    with Image.open(shown.picture) as picture:
        panels = 3  # the scene, diversity, random
        height = round((PANEL_INCHES + HEADER_INCHES) * DPI)
        assert (picture.format, picture.size) == (
            "PNG",
            (round(panels * PANEL_INCHES * DPI), height),
        )


@pytest.fixture(scope="module")
def figure():
    scene = Scene.from_seed(3).picture()
    stages = [StageView(0, "diversity", tuple(range(0, 64, 2))), StageView(10, "random", (5, 42))]
    return draw(scene, 64, stages, "a heading", "a caption"), scene, stages


def test_each_panel_says_layer_method_and_count(figure) -> None:
    titles = [axes.get_title() for axes in figure[0].axes]
    assert titles[0].endswith("64 visual tokens")
    assert titles[1] == "from layer 0 on: diversity\n32 of 64 kept"
    assert titles[2] == "from layer 10 on: random\n2 of 64 kept"


def test_kept_patches_are_as_in_the_scene_and_dropped_ones_dim(figure) -> None:
    figure, scene, stages = figure
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    pixels = np.asarray(scene).astype(int)
    for axes, stage in zip(figure.axes[1:], stages, strict=True):
        for patch in range(64):
            y, x = divmod(patch, 8)
            column, row = axes.transData.transform((x + 0.55, y + 0.55))
            there = drawn[drawn.shape[0] - 1 - int(row), int(column)]
            given = pixels[int((y + 0.55) * 12), int((x + 0.55) * 12)]
            if patch in stage.kept:
                assert abs(there - given).max() <= 2, (stage, patch)
            else:
                assert there.sum() < 0.2 * given.sum() + 120, (stage, patch)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_no_text_of_the_picture_is_clipped_or_overlaps(stages: int) -> None:
    views = [StageView(10 * i, "diversity", tuple(range(40 - i))) for i in range(stages)]
    heading = "divprune+random, keep 0.5: 32.0 of 64 visual tokens, averaged over the layers"
    caption = 'dark patches were dropped; the question was "which digit is in the yellow cell ?"'
    figure = draw(Scene.from_seed(3).picture(), 64, views, heading, caption)
    figure.canvas.draw()
    texts = [*figure.texts, *(axes.title for axes in figure.axes)]
    boxes = [text.get_window_extent() for text in texts]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
    overlapping = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert overlapping == []
