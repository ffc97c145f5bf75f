"""Whole-model benches: true shapes, no time without parity, what is counted, what is said."""

import json
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import bench_model
import counts
import gpu_model
import model_figures
import model_report
import model_shapes
import models
import prefills
import pytest
import torch
from prefills import FLASH, NATIVE, PACKED, PADDED, UNPATCHED, Prompted
from stand_in_gpu import StandIn
from test_bench_runs import dry

from vtfast import Plan, Prune
from vtfast.runtime.forward import Pass

PLAN = Plan([Prune(0, "diversity", 0.5), Prune(5, "random", 0.1)])
LLAVA, QWEN = model_shapes.TINY
subjects = pytest.mark.parametrize("subject", model_shapes.TINY, ids=lambda s: s.name)


@pytest.fixture(scope="module")
def built():
    return {s.name: s.build("cpu", torch.float32) for s in model_shapes.TINY}


@pytest.fixture
def prompted(built, request):
    """A batch of two prompts of unequal length, pictures encoded, without gradients."""
    subject = getattr(request, "param", LLAVA)
    model = built[subject.name]
    inputs = model_shapes.inputs_of(model, 2, 16)
    with torch.no_grad(), models.encoded_once(model, inputs, model_shapes.made_up(model, 2, 16)):
        yield Prompted(model, inputs, 2)


both = pytest.mark.parametrize("prompted", model_shapes.TINY, ids=lambda s: s.name, indirect=True)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(model_shapes.llava_1_5_7b, 7_063_427_072), (model_shapes.qwen2_5_vl_7b, 8_292_166_656)],
    ids=["llava", "qwen"],
)
def test_the_true_shapes_have_as_many_parameters_as_the_checkpoints(config, parameters):
    model = model_shapes.build(config(), "meta", torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_the_shapes_are_those_transformers_gives_llava():
    """Its defaults are LLaVA-1.5's, but for the vocabulary, 64 longer."""
    ours, theirs = model_shapes.llava_1_5_7b(), type(model_shapes.llava_1_5_7b())()
    for part in ("text_config", "vision_config"):
        a, b = getattr(ours, part).to_dict(), getattr(theirs, part).to_dict()
        sizes = [k for k in b if k.endswith(("_size", "_layers", "_heads")) and k != "vocab_size"]
        assert {k: a[k] for k in sizes} == {k: b[k] for k in sizes}
    assert ours.text_config.vocab_size == theirs.text_config.vocab_size + 64


@both
def test_all_ways_agree(prompted):
    assert prefills.disagreements(prompted, PLAN) == {}


@both
def test_the_native_run_decodes_what_the_masked_model_does(prompted):
    """With two runs of layers of different length, against keeping the first tokens."""
    plan = Plan([Prune(s.layer, "bench-first", s.keep) for s in PLAN.stages])
    native, padded = prompted.native(plan), prompted.patched(plan, PADDED)
    expected, state = native.prefill()
    with padded.within():
        logits, cache = padded.prefill()
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        for t in range(2):
            here, there = padded.step(cache, t), native.step(state, t)
            torch.testing.assert_close(here, there, rtol=0, atol=1e-5)


def test_a_mask_of_ones_is_left_out_as_generate_does(built):
    inputs = model_shapes.inputs_of(built[LLAVA.name], 1, 16)
    prompted = Prompted(built[LLAVA.name], inputs)
    assert "attention_mask" not in prompted.called
    assert "attention_mask" not in prompted.next[0]


def _one_more(pass_, index, *tensors):
    return [t.roll(1, dims=-2) for t in _take(pass_, index, *tensors)]


_take = Pass._take


def test_wrong_rows_are_red_in_both_layouts(prompted, monkeypatch):
    monkeypatch.setattr(Pass, "_take", _one_more)
    wrong = prefills.disagreements(prompted, PLAN)
    assert {f"{PADDED}, first tokens", f"{PACKED}, first tokens"} <= set(wrong)
    assert "that roundings explain" in wrong[f"{PACKED}, first tokens"]


def test_other_picks_in_one_layout_are_red(prompted, monkeypatch):
    select = Pass._select

    def other(run, stage, hidden):
        if run.layout.is_packed and stage.prune.method == "random":
            run.settings.seed += 1
        return select(run, stage, hidden)

    monkeypatch.setattr(Pass, "_select", other)
    assert prefills.disagreements(prompted, PLAN) == {
        PACKED: "keeps other tokens than padded from layer 5 on"
    }


def test_logits_that_are_no_numbers_are_red():
    nothing, something = [torch.full((1, 4), torch.nan)], [torch.ones(1, 4)]
    assert "logits are nan off" in prefills._apart(nothing, something, 1.0)


def test_a_batch_in_lower_precision_may_be_as_far_apart_as_roundings_leave_it(built):
    """In bf16 the gate is wide enough for another attention and too narrow for other tokens."""
    model = LLAVA.build("cpu", torch.bfloat16)
    inputs = model_shapes.inputs_of(model, 2, 16)
    with torch.no_grad(), models.encoded_once(model, inputs, model_shapes.made_up(model, 2, 16)):
        prompted = Prompted(model, inputs)
        assert prefills.disagreements(prompted, PLAN) == {}
        stock = prefills._two_logits(prompted.stock(), prompted)
        with prefills.rounded_once_more(model):
            allowed = prefills.ROUNDINGS * prefills._off(
                prefills._two_logits(prompted.stock(), prompted), stock
            )
        eager = prompted.stock(lambda: prefills.attention(model, "eager"))
        fewer = prompted.patched(Plan([Prune(0, "bench-first", 0.5)]), PADDED)
        assert not prefills._apart(prefills._two_logits(eager, prompted), stock, allowed)
        assert prefills._apart(prefills._two_logits(fewer, prompted), stock, allowed)


@both
def test_attention_and_weights_are_as_they_were_after_all_ways(prompted):
    before = prompted.prefill()[0]
    prefills.disagreements(prompted, PLAN)
    assert torch.equal(prompted.prefill()[0], before)
    layers = prompted.model.model.language_model.layers
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_flash_attention_keeps_its_place_where_it_is_not_installed(prompted):
    ways = prompted.ways(PLAN)
    assert ways[FLASH] == "not installed"
    assert set(prefills.available(ways)) == {UNPATCHED, NATIVE, PADDED, PACKED}


def test_counts_are_of_one_prefill(prompted):
    """KV bytes are those of the tokens that each layer saw, and room in the packed layout."""
    stock, native = (counts.counts(way, "cpu") for way in (prompted.stock(), prompted.native(PLAN)))
    config = prompted.model.config.text_config
    row = 2 * 4 * config.num_key_value_heads * config.head_dim
    columns = prompted.inputs["input_ids"].shape[1]
    assert stock["kv_bytes"] == config.num_hidden_layers * 2 * columns * row
    shorter = 5 * (columns - 8) + 3 * (columns - 14)  # left-padded: all have the longest text
    assert native["kv_bytes"] == 2 * shorter * row
    assert stock["launches"] is None
    assert stock["peak_bytes"] >= stock["kv_bytes"]
    assert stock["allocations"] > 2 * config.num_hidden_layers


def test_host_reads_of_the_stock_model_are_seen_and_a_patch_adds_at_most_one(prompted):
    """A padded batch makes transformers look at its mask."""
    stock = counts.waits(prompted.prefill, "cpu")
    assert stock > 0
    for path in (PADDED, PACKED):
        way = prompted.patched(PLAN, path)
        with way.within():
            assert 1 <= counts.waits(way.prefill, "cpu") <= stock + 1


class _Event:
    """An event as torch.profiler gives it."""

    def __init__(self, name, device, annotation=False):
        self.name, self.device_type, self.is_user_annotation = name, device, annotation


def test_launches_are_kernels_alone():
    cuda, cpu = counts.DeviceType.CUDA, counts.DeviceType.CPU
    events = [
        _Event("ampere_gemm", cuda),
        _Event("_gather_rows_kernel", cuda),
        _Event("Memcpy HtoD (Pinned -> Device)", cuda),
        _Event("Memset (Device)", cuda),
        _Event("vtfast: Pass._take", cuda, annotation=True),
        _Event("aten::mm", cpu),
    ]
    assert sum(map(counts._is_kernel, events)) == 2


def test_memory_of_a_gpu_is_what_a_call_adds(monkeypatch):
    """Counters before and after, as PyTorch's memory pool keeps them."""
    names = ("allocation.all.allocated", "allocated_bytes.all.current", "allocated_bytes.all.peak")
    pool = dict(zip(names, (100, 5000, 5000), strict=True))
    StandIn().install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: dict(pool))
    after = dict(zip(names, (130, 6000, 8000), strict=True))
    assert counts._cuda_memory(lambda: pool.update(after)) == {
        "allocations": 30,
        "peak_bytes": 3000,
    }


def test_a_race_on_a_gpu_takes_ratios_within_rounds_and_holds_no_cache_of_another_way(
    prompted, monkeypatch
):
    """A packed cache goes when Python collects garbage, so that is done before every prefill."""
    StandIn().install(monkeypatch)
    held = []

    def watched(way):
        def prefill():
            assert not any(keys() is not None for keys in held)
            logits, cache = way.prefill()
            held.append(weakref.ref(cache.layers[-1].keys))
            return logits, cache

        return replace(way, prefill=prefill)

    ways = {p: watched(prompted.patched(PLAN, p)) for p in (PADDED, PACKED)}
    taken = prefills.race(ways, 3, "cuda", steps=2, decoded=1)
    assert [len(taken[path]["ttft"]) for path in ways] == [3, 3]
    assert [len(taken[path]["decode"]) for path in ways] == [1, 1]


def test_a_profile_names_hooks_and_operators(prompted):
    ways = prefills.available(prompted.ways(PLAN))
    found = counts.profiled({name: ways[name] for name in (PACKED, NATIVE)}, "cpu", repeats=2)
    assert found[PACKED]["vtfast: Pass._select"]["calls"] == 2
    assert not any(name.startswith("vtfast: ") for name in found[NATIVE])
    said = counts.contributors(found, PACKED, NATIVE)
    assert "vtfast: Session._text_pre" in said
    assert "aten::" in said


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.5, 1.2, 0.8, 0.5], 64.0),
        ([1.5, 0.9, 1.1, 0.9], 90.5),  # what wins once and then loses has not won yet
        ([0.9, 0.8, 0.7, 0.6], 16.0),
        ([1.5, 1.4, 1.3, 1.0], None),
    ],
    ids=["between", "last-loss", "never-lost", "never-won"],
)
def test_the_break_even_is_after_the_last_loss(ratios, expected):
    sizes = [16, 32, 128, 256] if expected == 64.0 else [16, 32, 64, 128]
    found = bench_model.break_even(list(zip(sizes, ratios, strict=True)))
    assert found == (expected if expected is None else pytest.approx(expected, rel=1e-3))


def test_the_core_grid_comes_first_and_both_models_take_turns():
    order = list(bench_model.cases(model_shapes.SUBJECTS["cuda"]))
    core = order[:16]
    assert {(c.preset, c.keep, c.batch) for c in core} == {
        (preset, keep, batch)
        for preset in ("divprune", "divprune+random")
        for keep in (0.5, 0.25)
        for batch in (1, 8)
    }
    assert [c.subject.name for c in core] == ["llava-1.5-7b", "qwen2.5-vl-7b"] * 8
    names = [case.name for case in order]
    assert len(set(names)) == len(names)
    assert {c.preset for c in order} == {"divprune", "divprune+random", "fastv", "random"}
    assert {c.tokens for c in order if c.subject.name == QWEN.name} >= {1024, 4096, 16384}
    assert {c.batch for c in order} == {1, 8, 32, None}
    assert {c.keep for c in order} == {0.5, 0.25, 0.1}


@pytest.fixture
def script(monkeypatch, tmp_path, capsys, built):
    """Run bench_model at tiny sizes on models built already: exit code, record, what it said."""

    def run(*options):
        path = tmp_path / "out.json"
        command = ["bench_model.py", "--device", "cpu", "--tiny", "--rounds", "1"]
        monkeypatch.setattr(sys, "argv", [*command, "--json", str(path), *options])
        monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
        monkeypatch.setattr(bench_model.Bench, "model", lambda bench, subject: built[subject.name])
        code = bench_model.main()
        said = capsys.readouterr()
        return code, json.loads(path.read_text()) if path.exists() else {}, said

    return run


CASE = "llava-1.5-7b: divprune+random 0.5, b8"


def test_without_parity_nothing_is_timed_and_the_exit_code_is_1(script, monkeypatch):
    monkeypatch.setattr(Pass, "_take", _one_more)
    code, record, said = script("--only", CASE)
    (row,) = record["rows"]
    assert code == 1
    assert row["red"]
    assert row["ways"] == {}
    assert "RED" in said.err
    assert " of unpatched, " not in said.err
    monkeypatch.undo()


def test_a_break_even_without_parity_is_none(script, monkeypatch):
    monkeypatch.setattr(Pass, "_take", _one_more)
    code, record, _ = script("--only", "llava-1.5-7b: divprune 0.25, break-even")
    (row,) = record["rows"]
    assert (code, row["points"]) == (1, [])
    assert "break_even" not in row


def test_a_model_that_cannot_be_run_is_red_and_one_too_large_is_not(script, monkeypatch):
    for error, code in ((RuntimeError("no kernel"), 1), (torch.OutOfMemoryError("40 GiB"), 0)):

        def fail(*args, error=error):
            raise error

        monkeypatch.setattr(bench_model, "disagreements", fail)
        found, record, said = script("--only", CASE)
        assert found == code
        assert str(error) in said.err
        assert record["rows"][0]["ways"] == {}
        Path(sys.argv[sys.argv.index("--json") + 1]).unlink()


def test_a_run_stops_at_its_limit_and_the_next_goes_on(script):
    code, record, said = script("--only", CASE, "--seconds", "0")
    assert (code, record["rows"]) == (0, [])
    assert record["left"] == {"model": [f"{CASE}, 576 tokens"]}
    assert "stopped at its limit" in said.err
    _, first, _ = script("--only", CASE)
    _, second, _ = script("--only", CASE)
    assert second["rows"] == first["rows"]
    assert second["left"] == {"model": []}
    assert [len(record["runs"]) for record in (first, second)] == [2, 3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    return dry("gpu_model.py", out), out


def test_the_dry_run_leaves_json_markdown_and_logs(whole):
    done, out = whole
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((out / "gpu_model.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {LLAVA.name, QWEN.name}
    timed = [row for row in rows if row["batch"]]
    for row in timed:
        for way in (UNPATCHED, NATIVE, PADDED, PACKED):
            assert {"ttft_ms", "decode_ms", "kv_bytes", "operators"} <= set(row["ways"][way])
        assert row["ways"][FLASH] == {"missing": "not installed"}
    searched = [row for row in rows if row["batch"] is None]
    assert searched
    assert all(len(row["points"]) == 2 for row in searched)
    text = (out / "gpu_model.md").read_text()
    assert "not installed" in text
    assert "worst: packed takes" in text
    assert (out / "logs" / "model.log").exists()
    assert timed[0]["ways"][UNPATCHED]["host_reads"] > 0


@pytest.mark.parametrize(("red", "code"), [({}, 0), ({"packed": "differs"}, 1)])
def test_a_run_goes_on_with_what_was_carried_over(whole, monkeypatch, tmp_path, red, code):
    """And what was red in it still is."""
    _, out = whole
    record = json.loads((out / "gpu_model.json").read_text())
    record["rows"][0]["red"] = red
    (tmp_path / "before.json").write_text(json.dumps(record))
    monkeypatch.setattr(gpu_model, "HERE", tmp_path)
    (tmp_path / "bench_model.py").touch()
    options = ["--resume", str(tmp_path / "before.json"), "--out", str(tmp_path / "new")]
    monkeypatch.setattr(sys, "argv", ["gpu_model.py", "--seconds", "50", *options])
    assert gpu_model.main() == code
    assert json.loads((tmp_path / "new" / "gpu_model.json").read_text()) == record


def test_a_script_that_breaks_is_red(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_model, "HERE", tmp_path)
    (tmp_path / "bench_model.py").write_text("1 / 0")
    monkeypatch.setattr(sys, "argv", ["gpu_model.py", "--dry", "--out", str(tmp_path)])
    assert gpu_model.main() == 1
    assert "BROKEN: bench_model.py" in capsys.readouterr().out


def a_row(case, of_native, of_unpatched=0.5):
    """A measured row with these ratios of the packed layout."""
    ms = {"median": 1.0, "p20": 1.0, "p80": 1.0}
    cost = dict.fromkeys(("launches", "operators", "host_reads", "allocations"), 1)
    ratios = {
        "of_native": {**ms, "median": of_native},
        "of_unpatched": {**ms, "median": of_unpatched},
    }
    way = {"ttft_ms": ms, "decode_ms": ms, "peak_bytes": 1, "kv_bytes": 1, **cost, **ratios}
    return {
        **{"op": "model", "case": case, "model": "m", "preset": "p", "keep": 0.5, "batch": 1},
        **{"tokens": 8, "average": 4.0, "encode_ms": 1.0, "red": {}, "run": 0},
        "ways": {PACKED: way},
    }


def test_the_case_that_is_farthest_beyond_native_is_profiled_if_beyond_5_percent():
    rows = [a_row("a", 1.06), a_row("b", 1.2), {**a_row("c", 9.0), "red": {"x": "wrong"}}]
    assert gpu_model.slowest(rows) == "b"
    assert gpu_model.slowest([a_row("a", 1.05)]) == ""


def test_the_last_lines_are_the_worst_cases():
    worst, native, slow = model_figures.last_lines([a_row("a", 1.0, 1.3), a_row("b", 1.1, 0.4)])
    assert "1.30 times an unpatched prefill (a)" in worst
    assert "1.10 times a native prefill (b)" in native
    assert slow.startswith("over 1.05 times native: b (")


def a_gpu_record(rows):
    run = {"device": "NVIDIA Z", "driver": "1", **dict.fromkeys(("torch", "triton", "commit"), "?")}
    return {"runs": [{**run, "transformers": "?"}], "rows": rows, "left": {}}


def gpu_row(case, of_unpatched, **facts):
    row = {**a_row(case, 1.02, of_unpatched), "batch": 8, **facts}
    other = {**row["ways"][PACKED], "ttft_ms": {"median": 2.0, "p20": 2.0, "p80": 2.0}}
    row["ways"] |= dict.fromkeys((UNPATCHED, NATIVE, PADDED), other)
    return row


def test_the_readme_shows_gpus_alone_and_says_so_where_there_is_none():
    cpu = a_gpu_record([gpu_row("a", 0.5)])
    cpu["runs"][0]["device"] = "Z (CPU)"
    assert model_report.readme_block({"model_cpu": cpu}).startswith("**No whole model has been")
    assert model_report.readme_block({}).startswith("**No whole model has been")
    assert model_report.docs_block({"model_cpu": cpu}).startswith("**No whole model has been")
    both = {"model_z": a_gpu_record([gpu_row("a", 0.5)]), "model_cpu": cpu}
    assert "Z (CPU)" not in model_report.readme_block(both)
    assert "No whole model" not in model_report.readme_block(both)


def test_the_readme_always_has_the_case_that_is_worst():
    """Also where it is not among the main ones; and what is red is said."""
    rows = [
        gpu_row("main", 0.5),
        gpu_row("worst", 1.25, keep=0.1, batch=1, preset="divprune"),
        {**gpu_row("red", 9.0), "red": {"packed": "wrong"}, "ways": {}},
    ]
    said = model_report.readme_block({"model_z": a_gpu_record(rows)})
    assert "random weights, true shapes" in said
    assert "| m | divprune 0.1 (worst of 2 cases) | 1 | 8 → 4 | 2 | 2 | 1 | 0.80 | 1.02 |" in said
    assert "| m | p 0.5 | 8 | 8 → 4 | 2 | 2 | 1 | 2.00 | 1.02 |" in said
    assert "RED: 1 cases" in said


def test_the_readme_says_where_a_plan_breaks_even():
    found = {"op": "model", "case": "m: p 0.5, break-even", "batch": None, "red": {},
             "points": [{"tokens": 16}, {"tokens": 32}]}  # fmt: skip
    for even, said in (
        (20.4, "packed wins from 20 visual tokens on"),
        (16.0, "packed wins from 16 visual tokens on, the fewest"),
        (None, "packed loses up to 32 visual tokens"),
    ):
        record = a_gpu_record([gpu_row("a", 0.5), {**found, "break_even": even}])
        assert said in model_report.readme_block({"model_z": record})


def test_plots_are_drawn_of_what_was_measured(whole, tmp_path):
    _, out = whole
    record = json.loads((out / "gpu_model.json").read_text())
    model_report.draw("model_x", record, tmp_path)
    for file in model_report.plots("model_x").values():
        assert (tmp_path / file).stat().st_size > 5000
