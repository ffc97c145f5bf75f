"""When and where an untested release of transformers is checked, and that nothing is left behind.

What it refuses is in `test_changed_releases.py`.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from module_state import changes, module_state
from refused_release import PLAN, refused, registered
from repository import ROOT
from tiny_models import FAMILIES, build_llava
from tiny_parts import TEXT
from transformers import MistralConfig, Qwen2Config, SiglipVisionConfig

import vtfast
from vtfast import InputError, UnsupportedVersionError
from vtfast.models import self_check, self_check_trial

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


# -- when ------------------------------------------------------------------------------------------


def test_the_releases_pinned_are_tested_ones():
    for name in ("constraints.txt", "constraints-oldest.txt"):
        lines = (ROOT / name).read_text().splitlines()
        (pinned,) = (line.partition("==")[2] for line in lines if line.startswith("transformers=="))
        assert pinned in self_check.TESTED


@families
def test_a_tested_release_is_trusted(family, monkeypatch):
    monkeypatch.setattr(self_check, "TESTED", (transformers.__version__,))
    monkeypatch.setattr(self_check, "self_check", None)
    vtfast.patch(family.build(), PLAN)


@families
def test_another_release_is_checked_once_for_a_kind_of_model(family, untested, caplog):
    caplog.set_level(logging.INFO, logger="vtfast")
    for _ in range(2):
        vtfast.patch(family.build(), PLAN)
    (record,) = (r for r in caplog.records if r.name == "vtfast")
    assert record.levelname == "INFO"
    assert record.getMessage().startswith(
        f"self-check of {type(family.build()).__name__} on transformers {transformers.__version__}"
    )


def test_another_text_model_in_the_same_class_is_another_kind(untested, caplog):
    caplog.set_level(logging.INFO, logger="vtfast")
    for config in (None, MistralConfig(**TEXT, sliding_window=None), Qwen2Config(**TEXT)):
        vtfast.patch(build_llava(text_config=config), PLAN)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    tower |= {"num_attention_heads": 4, "image_size": 48, "patch_size": 8}
    vtfast.patch(build_llava(vision_config=SiglipVisionConfig(**tower)), PLAN)
    assert len(caplog.records) == 4


def test_always_checks_a_tested_release_too(monkeypatch):
    monkeypatch.setenv(self_check.VARIABLE, "always")
    monkeypatch.setattr(self_check, "TESTED", (transformers.__version__,))
    checked = []
    monkeypatch.setattr(self_check, "self_check", lambda *args: checked.append(args))
    vtfast.patch(build_llava(), PLAN)
    assert len(checked) == 1


def test_never_checks_nothing(monkeypatch, untested):
    monkeypatch.setenv(self_check.VARIABLE, "never")
    monkeypatch.setattr(self_check, "self_check", None)
    vtfast.patch(build_llava(), PLAN)


def test_any_other_value_is_refused(monkeypatch):
    monkeypatch.setenv(self_check.VARIABLE, "sometimes")
    with pytest.raises(InputError, match="'sometimes'; set it to 'always', 'auto' or 'never'"):
        vtfast.patch(build_llava(), PLAN)


@families
def test_every_kind_of_run_is_tried_in_both_layouts(family, untested, monkeypatch):
    tried, runs = [], self_check.runs

    def noted(batch, alone, path):
        for name, run in runs(batch, alone, path):
            tried.append((path, name))
            yield name, run

    monkeypatch.setattr(self_check, "runs", noted)
    vtfast.patch(family.build(), PLAN)
    kinds = ("with a KV cache and scores", "with a KV cache", "without a KV cache")
    kinds += ("plain calls without padding", "beams", "drafts")
    assert tried == [(path, kind) for path in ("padded", "packed") for kind in kinds]


def test_every_generation_has_the_cache_its_name_says(untested, monkeypatch):
    model, seen = build_llava(), []
    generate = self_check_trial.generate

    def noted(tiny, inputs, new, **how):
        seen.append((how.get("use_cache", True), how.get("num_beams", 1)))
        return generate(tiny, inputs, new, **how)

    monkeypatch.setattr(self_check_trial, "generate", noted)
    vtfast.patch(model, PLAN)
    assert {(False, 1), (True, 1), (True, 2), (False, 2)} <= set(seen)


def test_eager_attention_is_a_kind_of_its_own_and_is_run(untested, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="vtfast")
    used, generate = set(), self_check_trial.generate

    def noted(tiny, *args, **how):
        used.add(tiny.model.language_model.config._attn_implementation)
        return generate(tiny, *args, **how)

    monkeypatch.setattr(self_check_trial, "generate", noted)
    vtfast.patch(build_llava(attention="eager"), PLAN)
    assert "eager" in used
    vtfast.patch(build_llava(), PLAN)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_a_text_model_never_tested_with_is_tried_packed_only_where_it_would_run_so(
    path, untested, monkeypatch
):
    monkeypatch.setattr(self_check, "TESTED_TEXT_MODELS", ("qwen2",))
    tried, runs = [], self_check.runs
    monkeypatch.setattr(
        self_check,
        "runs",
        lambda batch, alone, path: tried.append(path) or runs(batch, alone, path),
    )
    vtfast.patch(build_llava(), PLAN, path=path)
    assert tried == (["padded", "packed"] if path == "packed" else ["padded"])


def test_where_the_tiny_model_cannot_run_it_says_how_to_go_on(untested, monkeypatch):
    def fails(*args):
        raise ImportError("no such thing here")

    model = build_llava()
    monkeypatch.setattr(self_check, "tiny_model", fails)
    message = refused(model, match="could not be checked here.*no such thing here")
    assert "VTFAST_SELF_CHECK=never" in message


def test_information_is_measured_on_a_checked_release_only(untested, monkeypatch):
    def fails(*args):
        raise UnsupportedVersionError("checked")

    monkeypatch.setattr(self_check, "self_check", fails)
    family = FAMILIES["llava"]
    with pytest.raises(UnsupportedVersionError, match="checked"):
        vtfast.information.score(family.build(), family.inputs("single"), [5], progress=False)


# -- where -----------------------------------------------------------------------------------------

PLACES = {
    "bfloat16-by-default": lambda: _default_dtype(torch.bfloat16),
    "meta-by-default": lambda: torch.device("meta"),
    "inference-mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "gradients": torch.enable_grad,
}


class _default_dtype:
    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_):
        assert torch.get_default_dtype() == self.dtype
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@families
def test_it_works_anywhere_and_leaves_no_trace(family, place, untested):
    model = family.build()
    before, registries = module_state(model), registered()
    torch.manual_seed(7)
    np.random.seed(7)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    with place():
        flags = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        device = torch.empty(0).device
        vtfast.patch(model, PLAN, path="padded").remove()
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == flags
        assert torch.empty(0).device == device
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert changes(before, module_state(model)) == []
    assert registered() == registries
    assert len(self_check._passed) == 1


def test_other_processes_of_a_job_need_not_take_part(tmp_path: Path):
    """One process of two checks, while the other only waits for it to be done."""
    code = f"""
import datetime, sys, torch.distributed as dist
sys.path.insert(0, {str(ROOT / "tests" / "helpers")!r})
import vtfast
from tiny_models import FAMILIES
rank = int(sys.argv[1])
store = "file://{tmp_path}/store"
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=300))
if rank == 0:
    for family in FAMILIES.values():
        vtfast.patch(family.build(), "divprune", keep=0.5)
dist.barrier()
print("done")
"""
    environment = {**os.environ, self_check.VARIABLE: "always", "PYTHONPATH": str(ROOT)}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert [job.communicate(timeout=300)[0] for job in jobs] == ["done\n"] * 2
    finally:
        for job in jobs:
            job.kill()


def test_a_packed_model_keeps_its_attention_when_another_is_checked(untested):
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, PLAN, path="packed"):
        expected = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        vtfast.patch(FAMILIES["qwen"].build(), PLAN, path="padded")
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), expected)
