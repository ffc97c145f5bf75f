"""Figures show what was measured, with the horizon marked and the numbers beside."""

import json
from dataclasses import replace

import numpy as np
import pytest
from horizon_records import GOOD, summary
from PIL import Image

from vtfast.errors import InputError
from vtfast.information import InformationMap, PictureScores, Sweep
from vtfast.information.bootstrap import Estimate
from vtfast.information.horizons import CURVES
from vtfast.information.sweeps import Row


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_curves_are_drawn_by_layer_with_bands_and_the_horizon_marked():
    found = summary((30, "right", 1, False))
    information, losses = found.figure().axes
    drawn = lines(losses)
    loss = 100 * np.array(found.curves["accuracy_loss"].mean)
    assert drawn["accuracy"].get_ydata().tolist() == pytest.approx(loss.tolist())
    assert drawn["horizon, layer 2"].get_xdata() == [2, 2]
    assert drawn["tolerance"].get_ydata()[0] == pytest.approx(0.9)
    assert len(losses.collections) == 2  # a band for each curve
    mean = [100 * x for x in GOOD["i"]]
    assert lines(information)["mean"].get_ydata().tolist() == pytest.approx(mean)


def test_a_missing_horizon_is_named_in_the_heading_and_not_marked():
    figure = summary((300, "p", 3, 0.1)).figure()
    assert "no horizon" in figure.get_suptitle()
    assert not any("horizon" in label for ax in figure.axes for label in lines(ax))


@pytest.mark.parametrize("layers", [(7,), (0, 1)])
def test_layers_are_whole_numbers(layers):
    curve = {
        name: Estimate((0.1,) * len(layers), (0.0,) * len(layers), (0.2,) * len(layers))
        for name in CURVES
    }
    found = replace(
        summary(), layer=layers[0], layers=layers, curves=curve, spread=(0.1,) * len(layers)
    )
    for ax in found.figure().axes:
        ticks = [tick for tick in ax.get_xticks() if ax.get_xlim()[0] <= tick <= ax.get_xlim()[1]]
        assert ticks == list(layers)


def scores():
    values = np.arange(24.0).reshape(4, 6) / 100 - 0.1
    columns = tuple((i,) for i in range(6))
    picture = PictureScores(0, 0, values, (1, 2, 3), (1, 2, 3), columns)
    p = np.array([0.9])
    return InformationMap(
        (0, 2, 4, 6), 8, "first_token", (picture,), p, np.full((4, 1), 0.1), p > 0, p > 0, "llava"
    )


def test_heat_maps_lay_the_scores_of_a_layer_over_the_picture():
    picture = Image.new("RGB", (30, 20), "red")
    full, *panels, bar = scores().figure([picture], (2, 6)).axes
    assert np.asarray(full.images[0].get_array()).shape == (20, 30, 3)
    shown = [np.asarray(ax.images[1].get_array()) for ax in panels]
    assert np.array_equal(shown, scores().pictures[0].raster()[[1, 3], 0])
    assert [ax.get_title() for ax in panels] == [f"layer {i}\np without = 0.10" for i in (2, 6)]
    limits = {ax.images[1].get_clim() for ax in panels}
    assert limits == {(-0.13, 0.13)}  # one scale, symmetric
    assert bar.get_ylim() == (-0.13, 0.13)


def test_a_figure_of_scores_needs_one_picture_for_each():
    picture = Image.new("RGB", (30, 20))
    with pytest.raises(InputError, match="2 pictures for scores of 1; pass one for each"):
        scores().figure([picture, picture])


def swept(*methods, layers=(0, 3)):
    rows = [
        Row(method, layer, keep, 0.5 + layer / 10, 0.4, 0.9, seeds, 0.5, 0.2)
        for method, seeds in methods
        for layer in layers
        for keep in (0.25, 0.5)
    ]
    one, two = Estimate((1.0,), (1.0,), (1.0,)), Estimate((0.1, 0.9), (0.0, 0.8), (0.2, 1.0))
    about = ("code", "llava", 4, layers, 9, one, two, (1.0, 0.0), "mean_token", None, 0.95)
    return Sweep(tuple(rows), *about)


def test_no_method_is_left_out_of_the_figure():
    names = [f"method {i}" for i in range(10)]
    for ax in swept(*((name, (0.5,)) for name in names)).figure().axes:
        assert set(names) <= set(lines(ax))
        assert ax.get_xlabel() == "decoder layer"


def test_accuracies_are_a_line_for_every_method_and_a_panel_for_every_budget(tmp_path):
    found = swept(("random", (0.4, 0.5, 0.6)), ("topk", (0.5,)))
    first, second, below, _ = found.figure().axes
    assert lines(first)["random"].get_ydata().tolist() == pytest.approx([50, 80])
    (whiskers,) = first.containers  # of the one that ran with several seeds
    low, high = whiskers.lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((40, 60))
    assert lines(second)["none"].get_ydata().tolist() == pytest.approx([10, 90])
    assert lines(below)["topk"].get_ydata().tolist() == [0.2, 0.2]
    found.draw(tmp_path / "sweep.png")
    assert json.loads((tmp_path / "sweep.json").read_text())["rows"][0]["method"] == "random"
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
