"""Panels that are drawn, what they hold, and what they refuse."""

import matplotlib.figure
import numpy as np
import pytest

from experiments.support.run import plot_panels, plots


def drawn(draw):
    axis = matplotlib.figure.Figure().subplots()
    draw(axis)
    return axis


def test_all_kinds_of_panel_fit_into_one_png(tmp_path):
    rng, grid = np.random.default_rng(0), np.linspace(-1, 1, 5)
    way = {"way": grid[:, None] * np.ones((1, 2))}
    figure = plots.panels(
        {
            "lines": plot_panels.lines({"a": (grid, grid)}, log="y", marks={"goal": 0.5}),
            "histogram": plot_panels.histogram({"a": rng.normal(size=9)}, "value", marks={"0": 0.0}),
            "surface": plot_panels.surface(grid, grid, np.outer(grid, grid), "x", "y", way),
            "image": plot_panels.image(np.eye(3), "x", "y", limits=(0, 1)),
            "heatmap": plot_panels.heatmap(np.eye(2), "ab", "cd", np.array([["w", "x"], ["y", "z"]])),
            "points": plot_panels.points({"a": rng.normal(size=(9, 2))}, "x", "y", {"b": (grid, grid)}),
        },
        note="below",
    )
    path = plots.save(figure, tmp_path / "new" / "all")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_histogram_counts_what_is_finite_in_bins_that_all_share():
    samples = {"a": [1.0, 2.0, np.inf, np.nan], "b": [3.0, 3.0, 3.0]}
    axis = drawn(plot_panels.histogram(samples, "value", bins=2))
    assert [stairs.get_data().values.tolist() for stairs in axis.patches] == [[1, 1], [0, 3]]
    assert all(stairs.get_data().edges.tolist() == [1.0, 2.0, 3.0] for stairs in axis.patches)


def test_a_logarithmic_histogram_leaves_out_what_has_no_logarithm():
    axis = drawn(plot_panels.histogram({"a": [-1.0, 0.0, 1.0, 100.0]}, "value", bins=2, log=True))
    assert axis.patches[0].get_data().values.tolist() == [1, 1]
    (stairs,) = drawn(plot_panels.histogram({"a": [3.0, 3.0]}, "value")).patches
    assert stairs.get_data().values.sum() == 2


def test_borders_do_not_widen_the_view_of_the_points():
    group = {"a": np.array([[0.0, 0.0], [1.0, 1.0]])}
    far = {"b": (np.array([-50.0, 50.0]), np.array([-50.0, 50.0]))}
    view = drawn(plot_panels.points(group, "x", "y")).get_xlim()
    assert drawn(plot_panels.points(group, "x", "y", far)).get_xlim() == view


def test_ticks_are_integers_where_the_values_are_and_logarithms_where_asked():
    steps, halves = np.arange(4), np.arange(4) / 2
    axis = drawn(plot_panels.lines({"a": (steps, halves)}))
    assert np.all(np.mod(axis.get_xticks(), 1) == 0)
    assert np.any(np.mod(axis.get_yticks(), 1) != 0)
    axis = drawn(plot_panels.lines({"a": (steps + 1, halves + 1)}, log="xy"))
    assert axis.get_xscale() == axis.get_yscale() == "log"


def test_curves_that_lie_on_each_other_are_all_seen():
    x = np.arange(20.0)
    series = {name: (x, y) for name, y in {"a": x, "b": 1.01 * x, "c": 2 * x, "d": x}.items()}
    (axis,) = plots.curves({"loss": series}).axes
    patterns = [line.get_linestyle() for line in axis.get_lines()]
    dashes = [line._dash_pattern[1] for line in axis.get_lines()]
    assert patterns == ["-", "--", "-", "--"] and dashes[1] != dashes[3]


def test_bands_do_not_mix_their_colours():
    x = np.arange(20.0)
    (axis,) = plots.curves({"loss": {name: (x, x, x) for name in "ab"}}).axes
    assert len(axis.collections) == 2 and all(band.get_alpha() is None for band in axis.collections)
    assert len({tuple(band.get_facecolor()[0]) for band in axis.collections}) == 2


def test_a_figure_is_saved_twice_with_its_title_and_the_mark_of_a_smoke_run(tmp_path):
    draw = lambda: plots.curves({"loss": {"": (np.arange(3), np.arange(3))}})
    plots.save(draw(), tmp_path / "a", "lasso, seed 0, commit 1234567")
    plots.save(draw(), tmp_path / "b", smoke=True)
    one, other = ((tmp_path / f"{name}.svg").read_text() for name in "ab")
    assert "lasso, seed 0, commit 1234567" in one and "SMOKE" not in one
    assert "SMOKE" in other
    assert (tmp_path / "b.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.panels({}), "drawings is empty"),
        (lambda: plots.panels({"a": print}, columns=0), "columns=0"),
        (lambda: plot_panels.histogram({"a": [np.nan]}, ""), "no finite value"),
        (lambda: plot_panels.image(np.zeros(3), "", ""), r"shape \(3,\): expected a matrix"),
        (
            lambda: plot_panels.surface([1, 2, 3], [1, 2], np.zeros((3, 2)), "", ""),
            r"shape \(3, 2\): expected \(2, 3\)",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
