"""Features that were encoded before the call, and what is known of their pictures."""

import pytest
import torch
from model_readings import evenly_spaced
from model_runs import logits_of
from tiny_models import FAMILIES, image_columns
from tiny_parts import Picture, encoded

import vtfast
from vtfast import Prune


@torch.no_grad()
def test_features_that_were_joined_since_are_not_taken_for_copies():
    """Each picture then has its own size, but no grid is known."""
    family = FAMILIES["mistral3"]
    shapes, model = [(1, 12, 4), (1, 4, 12), (1, 12, 8)], family.build()
    pictures = [Picture(shape, seed) for seed, shape in enumerate(shapes)]
    inputs = family.batch(family.samples(*[[2, p, 3] for p in pictures]))
    text = {k: v for k, v in inputs.items() if k not in ("pixel_values", "image_sizes")}
    with vtfast.patch(model, [Prune(2, "uniform", 4)], record=True) as handle:
        one, *others = (
            encoded(model, "image", family.batch(family.samples([p]))) for p in pictures
        )
        one.pooler_output = [f for o in (one, *others) for f in o.pooler_output]
        model(**text, mm_encoder_outputs={"image": one})
    expected = [evenly_spaced(n, 4, (1, 1, n)) for n in (12, 12, 24)]
    places = image_columns(family, family.samples(*[[2, p, 3] for p in pictures]), inputs)
    for row, ([columns], ranks) in enumerate(zip(places, expected, strict=True)):
        kept = handle.report.kept[2][row]
        assert kept[torch.isin(kept, columns)].tolist() == columns[ranks].tolist()


@torch.no_grad()
def test_features_encoded_under_a_patch_can_be_saved_and_lose_what_is_known_of_them(tmp_path):
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("single")
    text = {k: v for k, v in inputs.items() if k != "pixel_values"}
    with vtfast.patch(model, [Prune(2, "diversity", 4)]):
        features = encoded(model, "image", inputs)
        expected = model(**text, mm_encoder_outputs={"image": features}).logits
        torch.save(features, tmp_path / "features.pt")
        again = torch.load(tmp_path / "features.pt", weights_only=False)
        assert torch.equal(model(**text, mm_encoder_outputs={"image": again}).logits, expected)


@torch.no_grad()
def test_a_method_that_somebody_has_wrapped_is_pruned_too():
    family = FAMILIES["smolvlm"]
    model, inputs = family.build(), family.inputs("single")
    encode = model.model.get_image_features
    model.model.get_image_features = lambda *args, **kwargs: encode(*args, **kwargs)
    with vtfast.patch(model, [Prune(2, "random", 3)]) as handle:
        logits_of(family, model, inputs)
    assert handle.report.tokens[0][-1] == 3


@torch.no_grad()
def test_pixels_without_their_sizes_are_transformers_to_refuse():
    """Our hooks once failed first, with a KeyError of their own."""
    family = FAMILIES["qwen"]
    model, inputs = family.build(), family.inputs("single")
    del inputs["image_grid_thw"]
    said = []
    for patched in (False, True):
        if patched:
            vtfast.patch(model, [Prune(2, "random", 3)])
        with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever it raises
            model(**inputs)
        said.append(str(caught.value))
    assert said[0] == said[1]
