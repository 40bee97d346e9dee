"""Output of experiments: exact text for tables and samples, and pictures that are not empty."""

import io
import itertools
import re
import struct

import numpy as np
import pytest
import rich.console

from experiments.support.run import plots, tables


def test_mean_and_spread_over_seeds():
    # The sample deviation of 1, 2, 3 is 1.
    assert tables.mean_spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00 (n=3)"
    assert tables.mean_spread(np.array([0.9341]), digits=3) == "0.934 (n=1)"
    with pytest.raises(ValueError, match="values is empty"):
        tables.mean_spread([])


def test_tables_align_numbers_right_and_words_left():
    rows = [("l1", 0.5, 120), ("group lasso", 12.3456, 7)]
    assert tables.table(rows, ("penalty", "loss", "steps")).splitlines() == [
        "penalty       loss  steps",
        "------------ ------ -----",
        "l1             0.5    120",
        "group lasso  12.35      7",
    ]


def test_tables_without_rows_show_their_headers():
    assert tables.table([], ("a", "bc")) == "a  bc\n-- --"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells for 1 headers"):
        tables.table([(1, 2)], ("a",))


def test_samples_stand_side_by_side():
    text = tables.side_by_side(["a long line", "x"], ["short\nnext", "y"], width=17)
    assert text.splitlines() == [
        "before  | after",
        "--------+--------",
        "a long  | short",
        "line    | next",
        "--------+--------",
        "x       | y",
    ]


def test_samples_must_come_in_pairs_and_fit():
    with pytest.raises(ValueError, match="before has 1 samples and after 2"):
        tables.side_by_side(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="width=4"):
        tables.side_by_side(["a"], ["b"], width=4)


def png_size(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


def panels(count):
    x = np.arange(50)
    series = {"adam": (x, np.exp(-x / 10)), "prox": (x, np.exp(-x / 5), np.full(50, 0.1))}
    return {f"loss {i}": series for i in range(count)}


@pytest.mark.slow
def test_curves_draw_a_panel_a_title(tmp_path):
    one = plots.save(plots.curves(panels(1)), tmp_path / "new" / "one")
    four = plots.save(plots.curves(panels(4), log_scale=("loss 0",)), tmp_path / "four")
    assert png_size(one) == (600, 420)
    assert png_size(four) == (1200, 840)
    assert one.stat().st_size > 5000
    assert four.stat().st_size > 3 * one.stat().st_size / 2


def test_curves_carry_their_own_xlabel_and_a_note():
    label = lambda **words: plots.curves(panels(1), **words).axes[0].get_xlabel()
    assert label() == "step"
    assert label(xlabel="epoch") == label(xlabel={"loss 0": "epoch"}) == "epoch"
    noted = plots.curves(panels(1), note="three seeds").get_supxlabel()
    assert noted == "three seeds; bands: ± a standard deviation"


def test_curves_of_another_form_are_refused():
    with pytest.raises(ValueError, match="drawings is empty"):
        plots.curves({})
    with pytest.raises(ValueError, match="'adam' has 1 parts"):
        plots.curves({"loss": {"adam": (np.ones(3),)}})


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_logged_curve_has_a_spread_where_there_are_seeds(seeds):
    rows = [{"step": 1, "x": [1.0, 3.0][:seeds]}, {"step": 2}, {"step": 3, "x": [2.0, 2.0][:seeds]}]
    steps, mean, *deviation = plots.logged(rows, "x")
    assert steps == [1, 3]
    np.testing.assert_allclose(mean, [[1.0, 2.0], [2.0, 2.0]][seeds - 1])
    np.testing.assert_allclose(deviation, [[], [[np.sqrt(2), 0.0]]][seeds - 1])


def watch(total, terminal, completed=0):
    console = rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with tables.progress(total, "ppo", completed=completed, console=console) as advance:
        for step in range(completed, total):
            advance(reward=step / total)
    return console.file.getvalue()


def test_progress_away_from_a_terminal_is_a_line_every_tenth():
    lines = watch(100, terminal=False).splitlines()
    assert [re.match(r"ppo (\d+)/100", line)[1] for line in lines] == [
        "1",
        "10",
        "20",
        "30",
        "40",
        "50",
        "60",
        "70",
        "80",
        "90",
        "100",
    ]
    assert lines[1].endswith("reward 0.09")


def test_progress_away_from_a_terminal_is_a_line_a_minute_with_what_is_left(monkeypatch):
    clock = itertools.count(0, 30)
    monkeypatch.setattr(tables.time, "monotonic", lambda: next(clock))
    lines = watch(1000, terminal=False).splitlines()
    assert [line.split()[1] for line in lines[:4]] == ["1/1000", "3/1000", "5/1000", "7/1000"]
    assert "3/1000  90 s, 29910 s left" in lines[1]


def test_progress_goes_on_from_where_a_resume_starts():
    lines = watch(100, terminal=False, completed=85).splitlines()
    assert [line.split()[1] for line in lines] == ["86/100", "90/100", "100/100"]


def test_progress_on_a_terminal_shows_the_last_numbers():
    text = watch(4, terminal=True)
    assert "4/4" in text
    assert "reward 0.75" in text


def test_bars_are_drawn_for_every_name_and_column():
    rows = {"one": {"bias": 0.1, "noise": float("inf")}, "two": {"bias": 0.2, "noise": 1.0}}
    figure = plots.bars(rows, ["bias", "noise"], "gradients")
    widths = [[bar.get_width() for bar in axis.patches] for axis in figure.axes]
    assert widths == [[0.1, 0.2], [0.0, 1.0]]
    with pytest.raises(ValueError, match="rows is empty"):
        plots.bars({}, ["bias"])
