"""The bundled LLaVA asked six questions: answers, seeds, and which patches each stage left."""

import pytest

import vtfast
from vtfast import toy
from vtfast.cli._interview import Interview
from vtfast.cli.demo import DEFAULT_SCENE
from vtfast.errors import PlanError
from vtfast.kernels.ragged import Ragged
from vtfast.presets import PRESETS


@pytest.fixture(scope="module")
def interview() -> Interview:
    return Interview.bundled("llava", DEFAULT_SCENE)


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
