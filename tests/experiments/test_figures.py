"""Figures: flaws that are not allowed, how runs are drawn, and what a study stores."""

import dataclasses

import matplotlib as mpl
import numpy as np
import pytest
from figure_flaws import flaws
from matplotlib.backends.backend_svg import FigureCanvasSVG
from PIL import Image

from experiments import plotting, run_dir
from experiments.studies.inference import figures as inference
from experiments.studies.placement import figures as placement
from experiments.studies.placement.config import Config as Placement
from experiments.studies.recurrent import figures as recurrent
from experiments.studies.recurrent.config import Config as Recurrent
from experiments.studies.whitening import figures as whitening
from experiments.study import Study


@dataclasses.dataclass(frozen=True)
class Config:
    seeds: int = 3


def svg_of(path, make):
    """Draw a figure in the common style; return the file."""
    with mpl.rc_context(plotting.STYLE):
        FigureCanvasSVG(make()).print_svg(path, metadata={"Date": None})
    return path


def good():
    """Make two panels without flaws."""
    made = plotting.figure(2)
    for axes, title in zip(made.axes, ("Left", "Right"), strict=True):
        plotting.band(axes, [1, 2, 3], np.ones((3, 3)) * [1, 2, 4], "batch")
        axes.set_title(title)
    plotting.share_legend(made)
    return made


def untitled(made):
    made.axes[1].set_title("")


def names_of_the_code(made):
    made.axes[0].set_xlabel("test_accuracy")


def grid_in_front(made):
    made.axes[0].set_axisbelow(False)


def legend_over_data(made):
    made.axes[0].legend(loc="center")


def legend_too_wide(made):
    made.legends[0].get_texts()[0].set_text("a hundred words " * 20)


def test_a_figure_as_it_should_be_has_no_flaw(tmp_path):
    assert flaws(svg_of(tmp_path / "good.svg", good)) == []


@pytest.mark.parametrize(
    ("spoil", "flaw"),
    [
        (untitled, "a panel without a title"),
        (names_of_the_code, "a name of the code: test_accuracy"),
        (grid_in_front, "a grid before the data"),
        (legend_over_data, "a legend over a panel: with BN"),
        (legend_too_wide, "a legend beyond the edge"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_flaw_is_found(tmp_path, spoil, flaw):
    def bad():
        made = good()
        spoil(made)
        return made

    found = flaws(svg_of(tmp_path / "bad.svg", bad))
    assert [text[: len(flaw)] for text in found] == [flaw]


def test_a_study_keeps_png_and_svg_and_a_caption(tmp_path):
    with run_dir.create(tmp_path, "gradients", Config()) as run:
        study = Study("gradients", run)
        study.figure("one", good, title="A title", alt="What it shows.", caption="On what data.")
        study.figure("two", plotting.figure, title="Of one part", alt="", listed=False)
    (kept,) = study.figures
    assert kept == {
        "file": "one.png",
        "title": "A title",
        "alt": "What it shows.",
        "caption": "On what data.",
    }
    assert {path.name for path in run.path.glob("*.svg")} == {"one.svg", "two.svg"}
    with Image.open(run.path / "one.png") as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert image.width == round(200 * 2 * 4.4)


def test_one_is_told_in_the_singular():
    assert plotting.describe_runs(1, "Points", "bars") == "Points: 1 seed."
    assert plotting.describe_runs(2, of="draw") == "Lines: means over 2 draws; bands: their range."


def test_few_runs_are_drawn_by_their_range_more_by_an_interval():
    two, three = plotting.around([[1.0, 3.0]]), plotting.around([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(two, [[2], [1], [3]])
    np.testing.assert_allclose(three, [[2], [2 - 2.4841], [2 + 2.4841]], atol=1e-4)
    assert np.isnan(plotting.around([[1.0, np.nan, 2.0]])).all()
    np.testing.assert_allclose(plotting.around([[0.0, 1.0, 9.0]], geometric=True), [[0], [0], [9]])


def test_a_logarithmic_axis_has_a_place_for_zero():
    made = plotting.figure(2)
    with_zero, without = made.axes
    plotting.log_scale(with_zero, "y", [0.0, 1e-9, 1e-3])
    plotting.log_scale(without, "y", [1e-9, 1e-3])
    (_, at_zero), (_, at_least) = with_zero.transData.transform([(0, 0), (0, 1e-9)])
    assert at_least - at_zero > 10  # Pixels.
    low, high = with_zero.get_ylim()
    assert low < 0 < 1e-3 < high
    assert without.get_yscale() == "log"


def test_runs_that_diverged_are_drawn_too(tmp_path):
    """Every run of the claims about divergence has a marker, finite or not."""
    last = {"unclipped": np.array([np.nan, np.inf, 2.0]), "clipped": np.array([0.2, 0.3, 9.0])}
    errors, shares = recurrent.plot_clipping(Recurrent(), last).axes
    drawn = np.concatenate([line.get_ydata() for line in errors.lines[:4]])
    assert len(drawn) == 6
    assert np.isfinite(drawn).all()
    assert [float(c.lines[0].get_ydata()[0]) for c in shares.containers] == [
        1.0,
        pytest.approx(1 / 3),
    ]

    losses = {"raw": np.array([np.inf, 1.0]), "standardized": np.array([0.1, 0.2])}
    made = whitening.plot_descent({"raw": np.ones((3, 5))}, 0.2, losses, 0.6)
    _, ends, shares = made.axes
    assert all(np.isfinite(line.get_ydata()).all() for line in ends.lines)
    assert [float(c.lines[0].get_ydata()[0]) for c in shares.containers] == [1.0, 0.0]


def drawn(panel):
    """Return the points of a panel that have an interval, from left to right."""
    return sorted(tuple(float(x[0]) for x in c.lines[0].get_data()) for c in panel.containers)


def test_what_a_claim_is_about_is_in_its_figure():
    kinds, seeds = list(inference.AVERAGES), np.zeros(3)
    by = {name: {"error": seeds + 1, "accuracy": seeds + 0.9} for name in ("population", *kinds)}
    examples = {name: 100.0 * (i + 1) for i, name in enumerate(kinds)}
    affine = {"last": seeds + 0.5, **dict.fromkeys(kinds, seeds + 0.5), "cumulative": seeds + 0.4}
    for_one_size = {"population_60": by["population"]}, {"population_60": 60.0}
    *_, averaged = inference.plot_statistics(
        by | for_one_size[0], examples | for_one_size[1], affine
    ).axes
    assert len(averaged.containers) == len(kinds)
    assert drawn(averaged)[-1] == (examples["cumulative"], pytest.approx(-10))  # Percentage points.

    batch = {"batch": seeds + 0.5, "population": seeds + 0.9}
    batches = {"alone": seeds, "mixed_2": batch, "sorted_2": batch}
    values = dict(zip(inference.DIFFERENCES, (seeds + 2, seeds, seeds + 1e-6), strict=True))
    _, outputs = inference.plot_test_batches(batches, [2], values).axes
    np.testing.assert_allclose(outputs.containers[0].lines[0].get_ydata(), [2, 0, 1e-6])

    names, config = ("sigmoid", "tanh", "relu"), Placement()
    runs = dict.fromkeys(names, np.ones((len(config.learning_rates), 3)))
    gains = {name: seeds + gain for name, gain in zip(names, (0.01, 0.02, 0.03), strict=True)}
    *_, bias = placement.plot_order(config, dict.fromkeys(("before", "after"), runs), gains).axes
    np.testing.assert_allclose(bias.containers[0].lines[0].get_ydata(), [1, 2, 3, 2])
