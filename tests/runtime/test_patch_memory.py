"""A packed KV cache holds what was kept and what was said, in buffers that stay where they are."""

import gc
import weakref

import pytest
import torch
from cache_name import cache_of
from model_runs import FOUR_STAGES, continuation
from tiny_models import FAMILIES
from tiny_parts import LAYERS, text_of

import vtfast
from vtfast import Plan, Prune
from vtfast.runtime.packed_kv_cache import ROOM, PackedKVLayer, PackedKVLayout

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
LATE = [Prune(2, "diversity", 0.5), Prune(4, "drop", 0)]
ALL_FIRST = [Prune(1, "diversity", 1.0), Prune(4, "random", 0.3)]
NEW = 7


def generated(family, name, plan):
    """Samples of a batch and the cache of a packed generation of NEW tokens."""
    samples = family.named(name)
    model, inputs = family.build(), family.inputs(name)
    with vtfast.patch(model, plan, path="packed"):
        out = model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True
        )
    return samples, cache_of(out)


def expected_tokens(family, plan, sample):
    """Tokens in each layer: text, new ones (the last one is never cached), visual ones kept."""
    sizes = [family.tokens_of(p) for p in sample.pictures]
    text = len(sample.ids) - sum(sizes)
    kept = [Plan(plan).tokens_per_layer(n, LAYERS) for n in sizes]
    return [text + NEW - 1 + sum(layers) for layers in zip(*kept, strict=True)]


CASES = [
    pytest.param("single", FOUR_STAGES, 0, id="single-four-stages"),
    pytest.param("single", LATE, 2, id="single-late"),
    pytest.param("batch", FOUR_STAGES, 0, id="batch-four-stages"),
    pytest.param("batch", LATE, 0, id="batch-late"),  # padding is never cached
    pytest.param("batch", ALL_FIRST, 0, id="batch-all-first"),
]


@pytest.mark.parametrize(("name", "plan", "first"), CASES)
@families
def test_a_cache_holds_the_plans_tokens_and_text_and_new_tokens(family, name, plan, first):
    samples, cache = generated(family, name, plan)
    for layer in range(first, LAYERS):
        held = cache.layers[layer]  # of one sample transformers' own
        lengths = held.layout.lengths if len(samples) > 1 else [held.keys.shape[2]]
        for sample, tokens in zip(samples, lengths, strict=True):
            if sample.pictures:
                assert tokens == expected_tokens(family, plan, sample)[layer]
            else:
                assert tokens == len(sample.ids) + NEW - 1


@pytest.mark.parametrize(("name", "plan"), [c.values[:2] for c in CASES if not c.values[2]])
@families
def test_no_mask_is_built_for_samples_without_padding(family, name, plan):
    """Nor is padding looked for: transformers returns a 4-D mask as it is."""
    model, inputs, shapes = family.build(), family.inputs(name), []
    with vtfast.patch(model, plan, path="packed"), torch.no_grad():
        hook = (
            text_of(model)
            .layers[0]
            .register_forward_pre_hook(
                lambda m, args, kwargs: shapes.append(kwargs["attention_mask"].shape),
                with_kwargs=True,
            )
        )
        model(**inputs)
        hook.remove()
    assert shapes == [(1, 1, 1, 1)]


@families
def test_buffers_hold_at_most_their_room_more_than_their_rows(family):
    _, cache = generated(family, "batch", FOUR_STAGES)
    for layer in cache.layers:
        spare = len(layer.keys) - sum(layer.layout.lengths)
        assert spare <= ROOM * len(layer.layout.lengths)
        assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * 4


@families
def test_generations_leave_nothing_behind(family):
    model, inputs = family.build(), family.inputs("single")

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    with vtfast.patch(model, FOUR_STAGES, path="packed"):
        for _ in range(3):
            continuation(model, inputs, steps=2)
        before = tensors()
        for _ in range(30):
            continuation(model, inputs, steps=2)
        assert tensors() <= before


@pytest.mark.parametrize("path", ["packed", "padded"])
@families
def test_memory_is_free_as_soon_as_the_cache_is_let_go(family, path):
    """Without the garbage collector, which may not run for a long time."""
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        out = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
        )
        gc.collect()
        gc.disable()
        try:
            layers = (x for x in cache_of(out).layers if hasattr(x, "keys"))  # not recurrent
            kept = [weakref.ref(layer.keys) for layer in layers]
            with torch.no_grad():
                kept.append(weakref.ref(model(**inputs).logits))
            del out
            assert not any(ref() is not None for ref in kept)
        finally:
            gc.enable()


def places(layout):
    """Lengths and starts of one more step, as the kernel is given them."""
    layout.extend([1, 1], [])
    decoder = layout.decoder()
    assert decoder._longest == max(layout.capacities)
    return decoder._ranges


def test_steps_write_in_place_while_room_remains():
    """What a captured CUDA graph holds stays true: same tensors, same addresses, new values."""
    layout = PackedKVLayout([0, 0], torch.device("cpu"))
    layout.extend([200, 130], [])
    addresses = [t.data_ptr() for t in (*places(layout), layout.where)]
    for step in range(2, ROOM):
        with torch.inference_mode(step % 2 == 0):
            now = places(layout)
        lengths, starts = (t.tolist() for t in now)
        assert [t.data_ptr() for t in (*now, layout.where)] == addresses
        assert (lengths, starts) == (layout.lengths, layout.starts)
        assert (lengths, starts) == ([200 + step, 130 + step], [0, 200 + ROOM])
        assert layout.where.tolist() == [199 + step, 200 + ROOM + 129 + step]


def test_short_samples_have_as_much_room_as_long_ones():
    """They once had only the rest of 128 and were copied after a few tokens."""
    layout = PackedKVLayout([0, 0, 0], torch.device("cpu"))
    layout.extend([120, 3, 40], [])
    assert layout.capacities == [120 + ROOM, 3 + ROOM, 40 + ROOM]


def test_tokens_all_cropped_off_make_room_for_more_than_before():
    layout = PackedKVLayout([0], torch.device("cpu"))
    layer = PackedKVLayer(layout)
    for length in (3, 3 + 2 * ROOM):
        new = torch.randn(1, 2, length, 4)
        layout.extend([length], [layer])
        layer.update(new, new)
        assert torch.equal(layer.keys[layout.starts[0] :][:length], new[0].transpose(0, 1))
        layout.crop(length)


def test_a_step_without_room_moves_everything_once():
    layout = PackedKVLayout([0, 0], torch.device("cpu"))
    layout.extend([200, 130], [])
    for _ in range(ROOM):
        layout.extend([1, 1], [])
    assert layout.starts == [0, 200 + ROOM]
    lengths, starts = (t.tolist() for t in places(layout))
    assert lengths == layout.lengths == [200 + ROOM + 1, 130 + ROOM + 1]
    assert starts == layout.starts == [0, 200 + ROOM + 1 + ROOM]
