"""Hand-made records of samples that a horizon is computed from, equal but for some changes."""

from vtfast.information.horizons import summarize


def record(p_without, right_without, absolute, p_full=0.9):
    return {
        "p_full": p_full,
        "right_full": True,
        "p_without": p_without,
        "right_without": right_without,
        "information": absolute,
        "absolute": absolute,
        "spread": absolute,
    }


ABOUT = {
    "num_layers": 4,
    "model_type": "llava",
    "task": "reading",
    "per": "mean_token",
    "window": None,
    "tolerance": 0.01,
    "confidence": 0.95,
    "seed": 0,
}
GOOD = {"p": [0.1, 0.9, 0.9, 0.9], "right": [False, True, True, True], "i": [0.3, 0.0, 0.0, 0.0]}


def summary(*changes, n=300, **about):
    """Summarize n samples like `GOOD`; each change is (how many samples, curve, layer, value)."""
    rows = [{name: list(values) for name, values in GOOD.items()} for _ in range(n)]
    for count, curve, layer, value in changes:
        for row in rows[:count]:
            row[curve][layer] = value
    records = [record(row["p"], row["right"], row["i"]) for row in rows]
    return summarize(records, layers=(0, 1, 2, 3), **{**ABOUT, **about})
