"""The `image-text-to-text` pipeline over a patched model says what `generate` by hand says."""

import pytest
from transformers import pipeline

import vtfast
from vtfast import Prune

PLAN = [Prune(0, "diversity", 0.6), Prune(4, "random", 6)]
OPTIONS = {"max_new_tokens": 5, "do_sample": False}
TASKS = ("background", "code", "count")  # whose questions differ in length
paths = pytest.mark.parametrize("path", ["padded", "packed"])


@pytest.fixture(scope="module")
def toy():
    return vtfast.toy.load("llava-small")


@pytest.fixture(scope="module")
def asked(toy):
    """Pictures and prompts."""
    _, processor = toy
    scenes = [vtfast.toy.scenes(1, seed=0, task=task) for task in TASKS]
    return [
        (picture, vtfast.toy.prompt(processor, question)) for [picture], [question], _ in scenes
    ]


def by_hand(toy, picture, prompt):
    model, processor = toy
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    tokens = model.generate(**inputs, **OPTIONS)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def through(toy, **options):
    model, processor = toy
    pipe = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    out = pipe(return_full_text=False, generate_kwargs=OPTIONS, **options)
    return [
        one["generated_text"].strip() for [one] in ([o] if isinstance(o, dict) else o for o in out)
    ]


@paths
def test_one_picture_at_a_time(toy, asked, path):
    with vtfast.patch(toy[0], PLAN, path=path) as handle:
        for picture, prompt in asked:
            said = through(toy, images=picture, text=prompt)
            assert handle.report.average < 64
            assert said == [by_hand(toy, picture, prompt)]


@paths
def test_a_batch_of_prompts_of_different_lengths(toy, asked, path):
    pictures, prompts = zip(*asked, strict=True)
    with vtfast.patch(toy[0], PLAN, path=path) as handle:
        said = through(
            toy, images=[[p] for p in pictures], text=list(prompts), batch_size=len(asked)
        )
        assert len(handle.report.tokens) == len(asked)
        assert said == [by_hand(toy, *one) for one in asked]


@paths
def test_chat_messages(toy, asked, path):
    picture, _ = asked[1]
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "read the code ."}]
    with vtfast.patch(toy[0], PLAN, path=path):
        said = through(toy, text=[[{"role": "user", "content": content}]])
        assert said == [by_hand(toy, *asked[1])]


def test_a_pipeline_made_before_patching_is_pruned_too(toy, asked):
    model, processor = toy
    picture, prompt = asked[1]
    pipe = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    plan = [Prune(0, "drop", 0)]  # so that the answer must change
    before = pipe(images=picture, text=prompt, generate_kwargs=OPTIONS)
    with vtfast.patch(model, plan):
        pruned = pipe(images=picture, text=prompt, generate_kwargs=OPTIONS)
    assert pruned != before
    assert pipe(images=picture, text=prompt, generate_kwargs=OPTIONS) == before
