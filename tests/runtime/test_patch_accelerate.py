"""Models that accelerate dispatched: weights on the host, on disk, or placed by a device map.

accelerate replaces the forward of every module, moves inputs, and loads weights as they are needed;
our hooks are not affected by that. On one CPU the arithmetic is the same, so results are compared
exactly.
"""

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_submodules
from model_runs import both_layouts, continuation, logits_of
from module_state import changes, module_state
from tiny_models import FAMILIES
from tiny_parts import text_name, text_of

import vtfast
from vtfast import Prune

# transformers before 5.23 warns that the offloaded model is on "meta".
pytestmark = pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")
CPU = torch.device("cpu")
PLAN = [Prune(0, "diversity", 0.7), Prune(3, "topk", 0.4), Prune(5, "diversity", 0.1)]


def offloaded(family):
    return accelerate.cpu_offload(family.build(), execution_device=CPU)


def results(family, model, inputs):
    return logits_of(family, model, inputs), continuation(model, inputs, steps=4)


def expected_results(family, path, inputs):
    model = family.build()
    with vtfast.patch(model, PLAN, path=path):
        return results(family, model, inputs)


def same(got, expected):
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def lasting(model):
    """Its state without the weights, which accelerate loads and unloads."""
    state = module_state(model)
    return {key: value for key, value in state.items() if key[1] not in ("_parameters", "_buffers")}


@both_layouts
def test_a_model_offloaded_before_patching_says_the_same(family, path):
    inputs, model = family.inputs("batch"), offloaded(family)
    assert next(text_of(model).layers.parameters()).device.type == "meta"
    with vtfast.patch(model, PLAN, path=path):
        assert same(results(family, model, inputs), expected_results(family, path, inputs))


@both_layouts
def test_a_model_offloaded_while_patched_says_the_same(family, path):
    inputs, model = family.inputs("batch"), family.build()
    with vtfast.patch(model, PLAN, path=path):
        accelerate.cpu_offload(model, execution_device=CPU)
        assert same(results(family, model, inputs), expected_results(family, path, inputs))


@both_layouts
def test_undo_leaves_an_offloaded_model_as_it_was(family, path):
    inputs, model = family.inputs("batch"), offloaded(family)
    expected, before = results(family, model, inputs), lasting(model)
    with vtfast.patch(model, PLAN, path=path):
        results(family, model, inputs)
        assert changes(before, lasting(model)) != []
    assert changes(before, lasting(model)) == []
    assert same(results(family, model, inputs), expected)


@both_layouts
def test_a_model_offloaded_while_patched_is_undone_and_brought_back(family, path):
    inputs, model = family.inputs("batch"), family.build()
    expected, before = results(family, model, inputs), lasting(model)
    with vtfast.patch(model, PLAN, path=path):
        accelerate.cpu_offload(model, execution_device=CPU)
        results(family, model, inputs)
    assert same(results(family, model, inputs), expected)
    remove_hook_from_submodules(model)
    left = {name for _, name in changes(before, lasting(model))}
    assert left <= {"forward", "_old_forward"}  # accelerate puts bound methods back


@both_layouts
def test_a_model_loaded_with_an_automatic_device_map_says_the_same(family, path, tmp_path):
    inputs, model = family.inputs("batch"), family.build()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, device_map="auto")
    with vtfast.patch(loaded, PLAN, path=path):
        assert same(results(family, loaded, inputs), expected_results(family, path, inputs))


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")
@both_layouts
def test_a_model_partly_on_disk_says_the_same(family, path, tmp_path):
    """A pruned layer, the one that scores for it and the tower are among the parts on disk."""
    inputs, model = family.inputs("batch"), family.build()
    model.save_pretrained(tmp_path / "checkpoint")
    places = {"lm_head": "cpu"}
    for name in [*dict(model.model.named_children()), *model.model._parameters]:
        places[f"model.{name}"] = "disk" if "vi" in name else "cpu"
    text = text_name(model)
    del places[text]
    for name, child in text_of(model).named_children():
        if name != "layers":
            places[f"{text}.{name}"] = "cpu"
        else:
            for i, _ in enumerate(child):
                places[f"{text}.layers.{i}"] = "disk" if i in (2, 3) else "cpu"
    loaded = type(model).from_pretrained(
        tmp_path / "checkpoint", device_map=places, offload_folder=tmp_path / "offload"
    )
    assert text_of(loaded).layers[3].self_attn.q_proj.weight.device.type == "meta"
    with vtfast.patch(loaded, PLAN, path=path):
        assert same(results(family, loaded, inputs), expected_results(family, path, inputs))


# Before 5.23 `generate` hands pixels to every forward; since then it encodes them first, and
# accelerate rebuilds the containers of the features on their way into the model.


@both_layouts
def test_random_picks_in_generate_follow_the_picture_on_an_offloaded_model_too(family, path):
    """The rebuilt containers had lost the image hash, so the number in the sample was used."""
    inputs, model = family.inputs("batch"), offloaded(family)
    with vtfast.patch(model, [Prune(0, "random", 0.5)], path=path, record=True) as handle:
        logits_of(family, model, inputs)
        forward = handle.report.kept[0]
        continuation(model, inputs, steps=1)
        assert same(handle.report.kept[0], forward)


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_budgets_per_frame_hold_in_generate_on_an_offloaded_model_too(path):
    """The rebuilt containers had lost the number of frames, so the plan was refused."""
    family = FAMILIES["qwen"]
    inputs, model = family.inputs("video"), offloaded(family)
    plan = [Prune(0, "diversity", 0.5, per="frame")]
    with vtfast.patch(model, plan, path=path, record=True) as handle:
        logits_of(family, model, inputs)
        forward = handle.report.kept[0]
        continuation(model, inputs, steps=1)
        assert same(handle.report.kept[0], forward)


@both_layouts
def test_beams_of_an_offloaded_model_keep_the_same_tokens_for_all_copies_of_a_picture(family, path):
    inputs, model = family.inputs("single"), offloaded(family)
    with vtfast.patch(model, [Prune(0, "random", 0.5)], path=path, record=True) as handle:
        logits_of(family, model, inputs)
        [forward] = handle.report.kept[0]
        continuation(model, inputs, steps=1, num_beams=2)
        assert same(handle.report.kept[0], [forward, forward])
