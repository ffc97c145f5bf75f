"""The other ways to call a model work on a patched one as they do on a stock one."""

import threading

import pytest
import torch
from model_oracle import Oracle
from model_runs import ATOL, FOUR_STAGES, both_layouts, continuation, fed, gone, logits_of
from tiny_models import FAMILIES
from tiny_parts import IMAGE, text_of

import vtfast
from vtfast import Prune

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@both_layouts
def test_a_tuple_comes_back_where_one_was_asked_for(family, path):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path), torch.no_grad():
        expected = model(**fed(family, inputs)).logits
        assert torch.equal(model(**fed(family, inputs), return_dict=False)[0], expected)


@both_layouts
def test_the_last_tokens_logits_alone_are_those_of_the_whole(family, path):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path), torch.no_grad():
        whole = model(**fed(family, inputs)).logits
        last = model(**fed(family, inputs), logits_to_keep=1).logits
    torch.testing.assert_close(last, whole[:, -1:], rtol=0, atol=1e-5)


@both_layouts
def test_right_padding_gives_the_logits_of_left_padding(family, path):
    left, model = family.inputs("batch"), family.build()
    order = left["attention_mask"].argsort(dim=1, descending=True, stable=True)
    right = {k: v.gather(1, order) if v.shape == order.shape else v for k, v in left.items()}
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = logits_of(family, model, left)
        got = logits_of(family, model, right)
    # A stable sort by validity keeps the order of the tokens, so the logits correspond.
    for row, mask in enumerate(left["attention_mask"].bool()):
        torch.testing.assert_close(got[row, : mask.sum()], expected[row, mask], rtol=0, atol=ATOL)


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_embeddings_in_place_of_ids_say_the_same(path):
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("batch")
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    rest = {k: v for k, v in inputs.items() if k != "input_ids"}
    with vtfast.patch(model, FOUR_STAGES, path=path):
        got = model.generate(inputs_embeds=embeddings, **rest, max_new_tokens=6, do_sample=False)
        assert torch.equal(got, continuation(model, inputs, steps=6))


@both_layouts
def test_inference_mode_changes_nothing(family, path):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = continuation(model, inputs, steps=6)
        with torch.inference_mode():
            got = continuation(model, inputs, steps=6)
        assert torch.equal(got, expected)
        assert torch.equal(continuation(model, inputs, steps=6), expected)


@both_layouts
def test_autocast_works(family, path):
    """Under it some tensors of one attention call are bfloat16 and some are not."""
    model, inputs = family.build(), family.inputs("batch")
    plan = [Prune(0, "random", 0.5), Prune(3, "random", 0.2)]  # picks that rounding cannot change
    with vtfast.patch(model, plan, path=path), torch.no_grad():
        expected = logits_of(family, model, inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = logits_of(family, model, inputs)
            assert continuation(model, inputs, steps=3).shape == (3, 3)
    error = (logits[:, -1] - expected[:, -1]).abs().max()
    assert error < 0.1 * expected[:, -1].abs().max()


@both_layouts
def test_hidden_states_are_as_long_as_the_layers_ran(family, path):
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, FOUR_STAGES, path=path) as handle, torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    [tokens] = handle.report.tokens
    text = (inputs["input_ids"] != IMAGE).sum().item()
    # The first is what entered layer 0, the others are what every layer put out.
    lengths = [n + text for n in (tokens[0], *tokens)]
    assert [s.shape[1] for s in states[:-1]] == lengths[:-1]


@both_layouts
def test_the_last_hidden_state_is_the_last_of_the_hidden_states(family, path):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path), torch.no_grad():
        out = model.model(**inputs, output_hidden_states=True)
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)


@families
def test_gradients_are_those_of_the_oracle(family):
    """Selection is not differentiated; everything else is."""
    inputs, plan = family.inputs("batch"), [Prune(0, "random", 0.5), Prune(3, "random", 0.2)]
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    model, plain = family.build(), family.build(attention="eager")
    with vtfast.patch(model, plan, record=True) as handle:
        model(**fed(family, inputs), labels=labels).loss.backward()
    assert handle.report.path == "padded"

    oracle = Oracle(plain, inputs)
    with torch.enable_grad():
        logits = Oracle.logits.__wrapped__(oracle, gone(inputs, handle.report.kept))
    loss = torch.nn.functional.cross_entropy(
        logits[:, -4:-1].flatten(0, 1), labels[:, -3:].flatten()
    )
    loss.backward()
    for layer in range(6):
        got, expected = (
            text_of(m).layers[layer].self_attn.q_proj.weight.grad for m in (model, plain)
        )
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@both_layouts
def test_threads_share_a_patched_model(family, path):
    model, inputs = family.build(), [family.inputs("batch"), family.inputs("single", seed=3)]
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = [continuation(model, i, steps=8) for i in inputs]
        got: dict[int, torch.Tensor] = {}

        def talk(number: int) -> None:
            got[number] = continuation(model, inputs[number % 2], steps=8)

        threads = [threading.Thread(target=talk, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(got[n], expected[n % 2]) for n in range(4))
