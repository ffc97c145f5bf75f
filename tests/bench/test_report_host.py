"""The tables of `bench_host.py`: a row for every case, patched as ratios to unpatched."""

import report_host


def test_a_case_is_a_row_of_both_tables_and_of_the_counts():
    row = {"op": "host", "case": "8 unlike", "texts": [16], "rounds": 30, "padding": 0.18}
    row["padding_flops"] = 42.4e6
    for name in ("unpatched", *report_host.PATCHED):
        row[f"{name} operators"], row[f"{name} layout"] = 190.5, "packed"
        for what in ("step", "prefill"):
            row[f"{name} {what}_ms"] = {"median": 9.0}
            row[f"{name} {what}"] = {"median": 1.04, "p20": 0.97, "p80": 1.1}
    run = dict.fromkeys(("device", "torch", "transformers", "commit", "note"), "x")
    tables = []
    report_host.host({"runs": [run], "rows": [row]}, lambda table: tables.append(table) or "")
    step, prefill, counted = (table[1] for table in tables)
    ratio = "1.040 (0.97-1.10)"
    assert step == ["8 unlike", "18%", "9.0", ratio, ratio, ratio, "1.040 (0.97-1.10, packed)"]
    assert prefill == [step[0], "18%, 42 MFLOP", *step[2:]]
    assert counted == ["8 unlike", *["190.5"] * 5]
