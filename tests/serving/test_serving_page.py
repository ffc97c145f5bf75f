"""docs/serving.md says what the committed runs found."""

import json

from repository import ROOT

PAGE = (ROOT / "docs/serving.md").read_text()


def test_the_page_has_the_ratios():
    found = json.loads((ROOT / "bench/results/vllm_cpu.json").read_text())
    for what, name in (
        ("time to first token", "time to first token"),
        ("time of four at once", "time of four requests at once"),
    ):
        cells = [f"{one['share']:.2f} ({one['worst']:.2f})" for one in found[what].values()]
        assert f"| {name} | {' | '.join(cells)} |" in PAGE


def test_the_page_has_the_number_of_answers_that_were_compared():
    found = json.loads((ROOT / "bench/results/vllm_tests.json").read_text())
    assert found["failed"] == 0
    assert found["answers_equal"] >= 1000
    assert f"compared {found['answers_equal']:,} answers" in PAGE
    assert f"in {found['seconds'] / 60:.0f} minutes. With" in PAGE
