"""What all pictures share: colours that everybody tells apart, and text that is seen whole."""

import json
from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text
from repository import ROOT

from vtfast.information import Horizon, Sweep, plotting
from vtfast.toy import tuned_plans

# Linear RGB as dichromats see it: Machado, Oliveira and Fernandes 2009, table 1, severity 1.0.
DICHROMACY = {
    "nobody": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
OLD_GREEN, OLD_RED = "#2e8b57", "#b5544b"
RESULTS = ROOT / "bench" / "results"


def lab(colour: str, blindness: str) -> np.ndarray:
    """CIELAB of "#rrggbb", as seen."""
    srgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(DICHROMACY[blindness] @ linear, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colours: tuple[str, ...], blindness: str) -> float:
    return min(
        float(np.linalg.norm(lab(a, blindness) - lab(b, blindness)))
        for a, b in combinations(colours, 2)
    )


@pytest.mark.parametrize("blindness", DICHROMACY)
def test_colours_of_lines_differ_for_everybody(blindness):
    assert nearest(plotting.COLOURS[:6], blindness) > 10


def test_the_check_of_colours_sees_green_and_red():
    """What the pictures had before."""
    assert nearest((OLD_GREEN, OLD_RED), "nobody") > 60
    assert nearest((OLD_GREEN, OLD_RED), "deutan") < 20


def figures():
    evidence = json.loads((RESULTS / "evidence.json").read_text())
    yield "horizon", Horizon.of_record(evidence["horizons"]["llava"]["code"]).figure()
    yield "sweep", Sweep.of_record(evidence["sweeps"]["code"]).figure()
    rows = json.loads((RESULTS / "tuned_plans.json").read_text())["rows"]
    yield "tuned plans", tuned_plans.figure(rows)


@pytest.mark.parametrize("name", ["horizon", "sweep", "tuned plans"])
def test_no_text_of_a_picture_is_cut_off_or_small(name):
    figure = dict(figures())[name]
    figure.canvas.draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert 0 <= box.x0 < box.x1 <= width
    assert 0 <= box.y0 < box.y1 <= height
    texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
    assert len(texts) > 15
    assert {text.get_text() for text in texts if text.get_fontsize() < plotting.SMALL} == set()
