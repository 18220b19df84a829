"""The common style of all figures: size, colorblind-safe colors, PNG and SVG files.

Colors: Okabe, Ito, "Color universal design", 2008. Line styles and markers keep lines distinct in
gray, too. Legends are beside the data, never over it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike
from PIL import Image

from experiments.stats import estimates

BLUE, VERMILION, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"
ORANGE, SKY, PURPLE, BLACK = "#E69F00", "#56B4E9", "#CC79A7", "#000000"


class LineStyle(NamedTuple):
    """The style of a method in all figures: `axes.plot(x, y, **METHODS["batch"]._asdict())`."""

    color: str
    linestyle: str
    marker: str
    label: str


METHODS = {
    "none": LineStyle(VERMILION, "--", "s", "without BN"),
    "batch": LineStyle(BLUE, "-", "o", "with BN"),
    "ghost": LineStyle(SKY, "-.", "v", "ghost BN"),
    "renorm": LineStyle(GREEN, ":", "^", "batch renorm"),
    "layer": LineStyle(ORANGE, "-", "D", "layer norm"),
    "group": LineStyle(PURPLE, "--", "P", "group norm"),
    "weight": LineStyle(GRAY, "-.", "X", "weight norm"),
    "residual": LineStyle(GREEN, ":", "^", "residual"),
    "noisy": LineStyle(SKY, "-.", "v", "noisy BN"),
    "sigmoid": LineStyle(VERMILION, "--", "s", "sigmoid"),
    "tanh": LineStyle(ORANGE, "-.", "D", "tanh"),
    "relu": LineStyle(BLUE, "-", "o", "ReLU"),
    "leaky": LineStyle(GREEN, ":", "^", "leaky ReLU"),
    "rnn": LineStyle(VERMILION, "--", "s", "RNN"),
    "lstm": LineStyle(BLUE, "-", "o", "LSTM"),
    "gru": LineStyle(GREEN, ":", "^", "GRU"),
    "raw": LineStyle(VERMILION, "--", "s", "raw"),
    "standardized": LineStyle(BLUE, "-", "o", "standardized"),
    "whitened": LineStyle(GREEN, ":", "^", "whitened"),
}
SEQUENTIAL, DIVERGING = "cividis", "PuOr"  # Color maps for heat maps.

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,  # The grid is behind the data, including bands and bars.
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "svg.hashsalt": "jbn",  # Makes the files reproducible.
    "svg.fonttype": "none",
}
DPI = 200  # Resolution of saved PNGs.
FEW = 3  # With fewer runs than this, their range is shown in place of an interval.


# ---- Figures and legends -------------------------------------------------------------------------


def figure(columns: int = 1, rows: int = 1, *, width: float = 4.4, height: float = 3.0) -> Figure:
    """Make a figure of panels without pyplot's global state."""
    fig = Figure(figsize=(width * columns, height * rows), layout="constrained")
    fig.subplots(rows, columns)
    return fig


def share_legend(fig: Figure, *, columns: int = 4) -> None:
    """Add one legend for the lines of all panels, below them."""
    handles: dict[str, Any] = {}
    for axes in fig.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    widest = 0.55 + 0.065 * max(map(len, handles))  # Approximate, in inches.
    columns = max(1, min(columns, int(fig.get_figwidth() / widest)))
    fig.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def legend_below(axes: Axes, *, columns: int = 2, points: float = 34) -> None:
    """Add a legend for the lines of one panel, below it.

    Args:
      points: height of the x-axis labels, in points.
    """
    shift = ScaledTranslation(0, -points / 72, axes.get_figure().dpi_scale_trans)  # pyrefly: ignore
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=axes.transAxes + shift,
        ncols=columns,
        borderaxespad=0,
    )


# ---- Runs ----------------------------------------------------------------------------------------


def around(runs: ArrayLike, *, geometric: bool = False) -> Float[np.ndarray, "3 X"]:
    """Compute means over runs and the ends of their 95 % intervals, for plotting.

    With fewer than three runs the ends are the lowest and highest run: an interval would be as wide
    as the figure.

    Args:
      runs: (X, runs).
      geometric: take geometric means, for ratios and values that span powers of ten; 0 where a run
        is 0.

    Returns:
      means, low ends, high ends; NaN, which is not drawn, where a run is not finite.

    Example:
      >>> from experiments import plotting
      >>> plotting.around([[1.0, 2.0, 3.0]]).round(2).tolist()
      [[2.0], [-0.48], [4.48]]
      >>> plotting.around([[1.0, 4.0]], geometric=True).round(2).tolist()
      [[2.0], [1.0], [4.0]]
    """

    def one(row: np.ndarray) -> tuple[float, float, float]:
        if not np.isfinite(row).all():
            return np.nan, np.nan, np.nan
        if geometric and (row <= 0).any():
            return 0.0, 0.0, row.max()
        estimate = (estimates.ratio if geometric else estimates.mean)(row)
        return estimate[:3] if len(row) >= FEW else (estimate.value, row.min(), row.max())

    return np.array([one(row) for row in np.asarray(runs, np.float64)]).T


def band(
    axes: Axes,
    x: ArrayLike,
    runs: ArrayLike,
    method: str | LineStyle,
    *,
    geometric: bool = False,
) -> None:
    """Plot means over runs as a line and their intervals as a band, see `around`.

    Set a logarithmic x-axis before the call.

    Args:
      runs: (X, runs).
      method: key of `METHODS`, or a custom style.
    """
    style, at = _style(method), np.asarray(x)
    y, low, high = around(runs, geometric=geometric)
    axes.plot(at, y, **style._asdict(), markevery=_marked(axes, at, style))
    axes.fill_between(at, low, high, color=style.color, alpha=0.18, linewidth=0)


def bars(
    axes: Axes,
    at: ArrayLike,
    runs: ArrayLike,
    method: str | LineStyle,
    *,
    geometric: bool = False,
    horizontal: bool = False,
    joined: bool = False,
    **options: Any,
) -> None:
    """Plot means over runs as points and their intervals as bars, see `around`.

    Args:
      at, runs: (X,), (X, runs).
      method: key of `METHODS`, or a custom style.
      joined: whether to connect the points by a line.
      options: passed to `Axes.errorbar`.
    """
    center, low, high = around(runs, geometric=geometric)
    ends, style = np.maximum([center - low, high - center], 0), _style(method)._asdict()
    if not joined:
        style["linestyle"] = "none"
    shown: dict[str, Any] = {"capsize": 2.5, "elinewidth": 1.2, **style, **options}
    if horizontal:
        axes.errorbar(center, at, xerr=ends, **shown)
    else:
        axes.errorbar(at, center, yerr=ends, **shown)


def _marked(axes: Axes, at: np.ndarray, style: LineStyle) -> list[int] | None:
    """Choose the points of a line that get a marker: all of up to 12, else some.

    Lines may coincide, so each style has its own places. They are evenly spaced on the axis with
    its present scale.
    """
    if len(at) <= 12:
        return None
    places = np.log(np.maximum(at, at[at > 0].min())) if axes.get_xscale() == "log" else at
    shares = np.linspace(0, 0.88, 6) + 0.016 * (1 + "osD^vPX".find(style.marker))
    wanted = places[0] + shares * (places[-1] - places[0])
    return np.unique(np.searchsorted(places, wanted)).tolist()


def _style(method: str | LineStyle) -> LineStyle:
    return METHODS[method] if isinstance(method, str) else method


# ---- Axes ----------------------------------------------------------------------------------------


def log_scale(axes: Axes, which: Literal["x", "y"], *values: ArrayLike) -> None:
    """Make an axis logarithmic, with a place for 0 if one of the values is 0.

    Args:
      values: all values drawn along the axis.
    """
    flat = np.concatenate([np.ravel(np.asarray(some, np.float64)) for some in values])
    finite = flat[np.isfinite(flat)]
    if (finite > 0).all():
        axes.set(**{f"{which}scale": "log"})
        return
    positive = finite[finite > 0]
    least = 10 ** np.floor(np.log10(positive.min(initial=1)))
    axis = axes.xaxis if which == "x" else axes.yaxis
    scale = axes.set_xscale if which == "x" else axes.set_yscale
    scale("symlog", linthresh=least)
    axes.set(**{f"{which}lim": (-least / 2, 3 * positive.max(initial=least))})
    locator = SymmetricalLogLocator(base=10, linthresh=least)
    locator.set_params(numticks=8)
    axis.set_major_locator(locator)


# ---- Captions ------------------------------------------------------------------------------------

DATA = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "digits": "the small digits inside scikit-learn",
    "titanic": "Titanic",
}


def describe_data(name: str) -> str:
    """Return the display name of a data set; the user's own data keeps its name."""
    return DATA.get(name, name)


def describe_layers(hidden: Sequence[int], units: str = "units") -> str:
    """Write the widths of hidden layers.

    Example:
      >>> from experiments.plotting import describe_layers
      >>> describe_layers((100, 100, 100), "sigmoids"), describe_layers((9, 5))
      ('3 hidden layers of 100 sigmoids', 'hidden layers of 9, 5 units')
    """
    if len(set(hidden)) > 1:
        return f"hidden layers of {', '.join(map(str, hidden))} {units}"
    return f"{len(hidden)} hidden layer{'s' * (len(hidden) > 1)} of {hidden[0]} {units}"


def counted(count: int, what: str) -> str:
    """Write a count with its noun, which is given in the singular.

    Example:
      >>> from experiments.plotting import counted
      >>> counted(1, "round"), counted(10_000, "step")
      ('1 round', '10,000 steps')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


def describe_runs(
    count: int, what: str = "Lines", ends: str = "bands", *, of: str = "seed", mean: str = "means"
) -> str:
    """Say what lines and bands, or points and bars, show of a number of runs.

    Args:
      of: what a run is, in the singular.

    Example:
      >>> from experiments.plotting import describe_runs
      >>> describe_runs(5)
      'Lines: means over 5 seeds; bands: 95 % intervals.'
      >>> describe_runs(2, "Points", "bars")
      'Points: means over 2 seeds; bars: their range.'
    """
    if count == 1:
        return f"{what}: {counted(count, of)}."
    interval = "95 % intervals" if count >= FEW else "their range"
    return f"{what}: {mean} over {counted(count, of)}; {ends}: {interval}."


# ---- Files ---------------------------------------------------------------------------------------


def save(fig: Figure, path: Path) -> None:
    """Write a figure as `path`.png, with 256 colors, and `path`.svg.

    Figures hardly have more colors, and the file is a third of the size.
    """
    with mpl.rc_context(STYLE):
        fig.set_dpi(DPI)
        canvas = FigureCanvasAgg(fig)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        few = Image.fromarray(np.ascontiguousarray(pixels)).quantize(256)
        few.save(path.with_suffix(".png"), dpi=(DPI, DPI))
        fig.set_layout_engine("none")  # Keep the layout: computing it again takes half the time.
        FigureCanvasSVG(fig).print_svg(path.with_suffix(".svg"), metadata={"Date": None})
