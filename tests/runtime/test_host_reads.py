"""vtfast reads back from the device at most once in a prefill and never in decoding."""

import pytest
import torch
from cache_name import CACHE, cache_of
from host_reads import HostReads
from model_oracle import Oracle
from model_runs import (
    BY_TEXT_AND_TOWER,
    FOUR_STAGES,
    both_layouts,
    continuation,
    fed,
    first_rows,
    probing,
)
from packaging.version import Version
from packed_samples import alone, in_one_row
from tiny_models import FAMILIES
from tiny_parts import Picture

import vtfast
from vtfast import Prune

# -- the counter sees what it should ---------------------------------------------------------------

X = torch.arange(6)
MASK = X > 2
READS = {
    "item": lambda: X[0].item(),
    "tolist": lambda: X.tolist(),
    "int": lambda: int(X[1]),
    "float": lambda: float(X[1]),
    "bool": lambda: bool(X[1]),
    "if": lambda: 1 if X[1] else 0,
    "any-in-an-if": lambda: 1 if (X > 2).any() else 0,
    "as-an-index": lambda: [0, 1, 2][X[1]],
    "as-a-range": lambda: range(X[1]),
    "as-a-length": lambda: X[: X[1]],
    "cpu": lambda: X.cpu(),
    "equal": lambda: torch.equal(X, X),
    "repr": lambda: repr(X),
    "nonzero": lambda: X.nonzero(),
    "where": lambda: torch.where(MASK),
    "masked-select": lambda: X.masked_select(MASK),
    "boolean-index": lambda: X[MASK],
    "boolean-assignment": lambda: X.clone().__setitem__(MASK, torch.arange(3)),
    "unique": lambda: X.unique(),
    "unique-consecutive": lambda: X.unique_consecutive(),
    "repeat-interleave": lambda: X.repeat_interleave(X),
    "bincount": lambda: X.bincount(),
}
if Version(torch.__version__) < Version("2.15"):  # since then torch fills on the device
    READS["a-number-at-rows"] = lambda: X.clone().__setitem__(X, 0)
NO_READS = {
    "arithmetic": lambda: (X + 1).cumsum(0).sort().values,
    "gather": lambda: X[X],
    "shape": lambda: X.new_zeros(X.shape[0]),
    "static-nonzero": lambda: torch.nonzero_static(MASK, size=3),
    "sized-repeat-interleave": lambda: X.repeat_interleave(X, output_size=15),
    "masked-fill": lambda: X.masked_fill(MASK, 0),
    "one-value-under-a-mask": lambda: X.clone().__setitem__(MASK, 0),
    "fill-of-rows": lambda: X.clone().index_fill_(0, X, 0),
    "assignment-of-rows": lambda: X.clone().__setitem__(X, X),
    "where-with-values": lambda: torch.where(MASK, X, 0),
    "from-the-host": lambda: torch.tensor([1, 2, 3]),
}


@pytest.fixture(params=[torch.no_grad, torch.inference_mode])
def mode(request):
    with request.param():
        yield


@pytest.mark.parametrize("call", READS.values(), ids=READS)
def test_the_counter_sees_a_read(call, mode):
    with HostReads() as reads:
        call()
    assert reads.count >= 1


@pytest.mark.parametrize("call", NO_READS.values(), ids=NO_READS)
def test_the_counter_sees_no_read_where_there_is_none(call, mode):
    with HostReads() as reads:
        call()
    assert reads.calls == []


# -- vtfast ----------------------------------------------------------------------------------------


@torch.no_grad()
def reads_of(family, model, inputs, steps=3):
    """Host reads of a prefill and of each decoding step after it."""
    rows, done = inputs["input_ids"].shape
    mask = inputs.get("attention_mask")
    full = {**inputs, "attention_mask": torch.ones(rows, done) if mask is None else mask}
    positions = Oracle(family.build(), full).position_ids(0, done + steps)
    with HostReads() as prefill:
        out = model(**inputs, position_ids=positions[..., :done], use_cache=True)
    decode = []
    for step in range(done, done + steps):
        token = out.logits[:, -1:].argmax(-1)
        if mask is not None:
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        with HostReads() as reads:
            out = model(
                input_ids=token,
                attention_mask=mask,
                position_ids=positions[..., step : step + 1],
                **{CACHE: cache_of(out)},
            )
        decode.append(reads.count)
    return prefill.count, decode


def unmasked(inputs):
    return {name: value for name, value in inputs.items() if name != "attention_mask"}


PLANS = [
    pytest.param(FOUR_STAGES, id="four-stages"),
    pytest.param(BY_TEXT_AND_TOWER, id="by-text-and-tower"),
    pytest.param([Prune(2, "topk", 0.5), Prune(4, "drop", 0)], id="scores-then-drop-all"),
    pytest.param([Prune(0, "drop", 0)], id="drop-all-at-once"),
    pytest.param([Prune(0, "test-probe", 0.5), Prune(3, "test-probe", 0.2)], id="own-method"),
]


def extra_reads(family, path, plan, inputs, **options):
    model = family.build()
    plain_prefill, plain_steps = reads_of(family, model, inputs)
    with vtfast.patch(model, plan, path=path, **options), probing(first_rows):
        prefill, steps = reads_of(family, model, inputs)
    return prefill - plain_prefill, [a - b for a, b in zip(steps, plain_steps, strict=True)]


@pytest.mark.parametrize("plan", PLANS)
@both_layouts
def test_a_padded_batch_costs_one_read_in_prefill_and_none_in_decoding(family, path, plan):
    prefill, steps = extra_reads(family, path, plan, family.inputs("batch"))
    assert prefill <= 1
    assert max(steps) <= 0


@both_layouts
def test_a_single_sample_costs_one_read_in_prefill_and_none_in_decoding(family, path):
    prefill, steps = extra_reads(family, path, FOUR_STAGES, family.inputs("single"))
    assert prefill <= 1
    assert max(steps) <= 0


@both_layouts
def test_a_single_sample_without_a_mask_costs_one_read(family, path):
    inputs = unmasked(family.inputs("single"))
    prefill, steps = extra_reads(family, path, FOUR_STAGES, inputs)
    assert prefill <= 1
    assert max(steps) <= 0


@pytest.mark.parametrize("tells", ["labels", "prompt_length", "logits_to_keep"])
@both_layouts
@torch.no_grad()
def test_labels_masks_and_the_end_of_the_prompt_share_the_one_read(family, path, tells):
    model, inputs = family.build(), family.inputs("batch")
    length = inputs["input_ids"].shape[1]
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    told = {"labels": labels, "prompt_length": torch.tensor([length - 3]), "logits_to_keep": 4}
    call = {**fed(family, inputs), tells: told[tells]}
    with HostReads() as patched, vtfast.patch(model, FOUR_STAGES, path=path):
        model(**call)
    call.pop("prompt_length", None)
    with HostReads() as plain:
        model(**call)
    assert patched.count - plain.count <= 1


@both_layouts
@torch.no_grad()
def test_samples_packed_into_a_row_share_the_one_read(family, path):
    model = family.build()
    parts = [alone(family, model, sample) for sample in family.named("batch")]
    row = {**in_one_row(parts), "use_cache": False}
    answers = [part["input_ids"].clone() for part in parts]
    for answer in answers:
        answer[:, :-3] = -100
    row["labels"] = torch.cat(answers, 1)
    with HostReads() as plain:
        model(**row)
    with HostReads() as patched, vtfast.patch(model, FOUR_STAGES, path=path):
        model(**row)
    assert patched.count - plain.count <= 1


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_a_video_costs_one_read_in_prefill_and_none_in_decoding(path):
    family = FAMILIES["qwen"]
    prefill, steps = extra_reads(family, path, FOUR_STAGES, family.inputs("video"))
    assert prefill <= 1
    assert max(steps) <= 0


@both_layouts
def test_recording_costs_no_read_before_the_report_is_opened(family, path):
    prefill, steps = extra_reads(family, path, FOUR_STAGES, family.inputs("batch"), record=True)
    assert prefill <= 1
    assert max(steps) <= 0


@both_layouts
def test_generating_twenty_tokens_costs_one_read_in_all(family, path):
    model, inputs, counts = family.build(), family.inputs("batch"), []

    def generate():
        with HostReads() as reads:
            model.generate(**inputs, max_new_tokens=20, do_sample=False)
        counts.append(reads.count)

    generate()
    with vtfast.patch(model, FOUR_STAGES, path=path):
        generate()
    assert counts[1] - counts[0] <= 1


@both_layouts
def test_a_read_in_a_method_is_counted(family, path):
    """The counter counts inside our hooks, so these tests can fail."""

    def nosy(context):
        context.features.sum().item()
        return first_rows(context)

    model, inputs = family.build(), family.inputs("batch")
    counts = []
    with vtfast.patch(model, [Prune(0, "test-probe", 0.5)], path=path):
        for select in (first_rows, nosy):
            with probing(select), HostReads() as reads, torch.no_grad():
                model(**fed(family, inputs))
            counts.append(reads.count)
    assert counts[1] == counts[0] + 1


@both_layouts
def test_beams_of_unequal_prompts_are_reordered_without_a_read(family, path):
    """Beams change places among copies of one prompt, which are equally long."""
    samples = family.samples([9], [3, Picture(seed=2), 5], [2, Picture(seed=3), 9])
    inputs, model = family.batch(samples), family.build()
    beams = {"num_beams": 3, "steps": 6}
    with HostReads() as plain:
        continuation(model, inputs, **beams)
    with vtfast.patch(model, FOUR_STAGES, path=path), HostReads() as pruned:
        continuation(model, inputs, **beams)
    assert pruned.count - plain.count <= 1
