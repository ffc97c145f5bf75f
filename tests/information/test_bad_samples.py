"""One bad sample does not end a run: it is skipped if that is asked for, else named in one line."""

from dataclasses import replace

import pytest
import torch
from studies import STUDIES, essence, examples, study, with_picture
from toy_scores import bundled

import vtfast
from vtfast import toy
from vtfast.errors import InputError, StateError

kinds = pytest.mark.parametrize("kind", STUDIES)


def refused_picture(bad, folder):
    return with_picture(bad, folder, (3000, 1)), "absolute aspect ratio must be smaller than 200"


def missing_picture(bad, folder):
    return replace(bad, images=(folder / "gone.png",)), "gone.png: there is no such file"


def broken_picture(bad, folder):
    whole = (folder / "0.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    return replace(bad, images=(folder / "half.png",)), "cannot read this picture"


def no_picture(bad, folder):
    return replace(bad, images=()), "has no picture"


def empty_answer(bad, folder):
    return replace(bad, answer=""), "the answer '' has no token"


FAULTS = [
    refused_picture,
    missing_picture,
    broken_picture,
    no_picture,
    empty_answer,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
@kinds
def test_a_bad_sample_is_skipped_and_named_with_the_reason(kind, fault, tmp_path):
    model, processor = bundled("qwen")
    good = examples(tmp_path, 4)
    bad, reason = fault(good[1], tmp_path)
    found, _ = study(kind, model, processor, [good[0], bad, *good[2:]], skip_bad=True)
    (skipped,) = found.skipped
    assert skipped.name == "sample 1"
    assert reason in str(skipped)
    assert "\n" not in str(skipped)
    alone, _ = study(kind, model, processor, [good[0], *good[2:]])
    assert essence(found) == pytest.approx(essence(alone), abs=1e-4)
    assert type(found).of_record(found.record()).skipped == found.skipped


@kinds
def test_without_skipping_a_bad_sample_is_one_error_that_names_it(kind, tmp_path):
    model, processor = bundled("qwen")
    asked = examples(tmp_path, 4)
    for fault in (refused_picture, missing_picture):
        bad, _ = fault(asked[3], tmp_path)
        with pytest.raises(InputError, match=r"sample 3.*; correct it, or leave out") as told:
            study(kind, model, processor, [*asked[:3], bad])
        assert "\n" not in str(told.value)


@kinds
def test_an_answer_that_the_vocabulary_lacks_is_a_bad_sample(kind, tmp_path):
    model, processor = bundled("llava-small")
    asked = examples(tmp_path, 3)
    asked[0] = replace(asked[0], answer="zebra")
    found, _ = study(kind, model, processor, asked, skip_bad=True)
    (skipped,) = found.skipped
    assert "'zebra' is not in the tokenizer's vocabulary" in skipped.reason
    with pytest.raises(InputError, match=r"sample 0: the answer 'zebra' is not in"):
        study(kind, model, processor, asked)


@kinds
def test_a_prompt_that_the_processor_cuts_inside_the_picture_is_skipped(kind, tmp_path):
    model, processor = toy.load("llava-small")
    asked = examples(tmp_path, 3)
    asked[1] = replace(asked[1], images=asked[1].images * 2)  # 128 visual tokens
    processor.tokenizer.init_kwargs |= {"truncation": True, "max_length": 100}
    found, _ = study(kind, model, processor, asked, skip_bad=True)
    assert [bad.name for bad in found.skipped] == ["sample 1"]


@kinds
def test_a_batch_that_does_not_fit_in_memory_is_run_sample_by_sample(kind, tmp_path):
    """And a sample that does not fit alone is skipped."""
    model, processor = toy.load("llava-small")
    asked = examples(tmp_path, 3)
    asked[2] = replace(asked[2], images=asked[2].images * 2)

    def room(module, args, kwargs):
        if kwargs["input_ids"].numel() > 110:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    model.register_forward_pre_hook(room, with_kwargs=True)
    found, names = study(kind, model, processor, asked, skip_bad=True)
    assert [bad.name for bad in found.skipped] == ["sample 2"]
    assert names == ["sample 0", "sample 1", "sample 0", "sample 1", "sample 2"]


@kinds
def test_nothing_left_is_an_error_with_the_first_reason(kind, tmp_path):
    model, processor = bundled("qwen")
    bad, reason = refused_picture(examples(tmp_path, 1)[0], tmp_path)
    with pytest.raises(InputError, match=rf"colours: no sample can be measured; .*{reason}"):
        study(kind, model, processor, [bad, bad], skip_bad=True)


@pytest.mark.parametrize("kind", ["horizon", "sweep", "score"])
def test_what_is_no_fault_of_a_sample_ends_the_run(kind, tmp_path):
    model, processor = toy.load("llava-small")
    asked = examples(tmp_path, 2)
    with vtfast.patch(model), pytest.raises(StateError, match="the model is patched"):
        study(kind, model, processor, asked, skip_bad=True)
    model.forward = None
    with pytest.raises(TypeError, match="not callable"):
        study(kind, model, processor, asked, skip_bad=True)
