"""What all figures share: size, colors that the color-blind can tell apart, PNG and SVG.

Colors: Okabe, Ito, "Color universal design", 2008; also apart in gray, with the line styles.
"""

from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import ArrayLike, Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"
ORANGE, SKY, PURPLE, BLACK = "#E69F00", "#56B4E9", "#CC79A7", "#000000"


class LineStyle(NamedTuple):
    """How a method is drawn, everywhere: `axes.plot(x, y, **METHODS["batch"]._asdict())`."""

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
SEQUENTIAL, DIVERGING = "cividis", "PuOr"  # Color maps, for heat maps.

STYLE = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "svg.hashsalt": "jbn",  # The same figure gives the same file.
    "svg.fonttype": "none",
}


def figure(columns: int = 1, rows: int = 1, *, width: float = 5.0, height: float = 3.6) -> Figure:
    """Make a figure of panels, without any global state of pyplot."""
    made = Figure(figsize=(width * columns, height * rows), layout="constrained")
    made.subplots(rows, columns)
    return made


def band(axes: Axes, x: ArrayLike, runs: Float[ArrayLike, "X runs"], method: str) -> None:
    """Plot the mean over runs as a line and their range as a band, in the method's style."""
    style, y = METHODS[method], np.asarray(runs)
    axes.plot(x, y.mean(1), color=style.color, linestyle=style.linestyle, label=style.label)
    axes.fill_between(x, y.min(1), y.max(1), color=style.color, alpha=0.2, linewidth=0)


def save(made: Figure, path: Path) -> None:
    """Write a figure as `path`.png and `path`.svg."""
    with mpl.rc_context(STYLE):
        save_png(made, path, dpi=150)
        made.set_layout_engine("none")  # All stays in its place: the search takes half of the time.
        FigureCanvasSVG(made).print_svg(path.with_suffix(".svg"), metadata={"Date": None})


def save_png(made: Figure, path: Path, *, dpi: float = 110) -> None:
    """Write a figure as `path`.png, by default small enough for a page of many.

    The same file as by `savefig`, which first draws all once in vain.
    """
    made.set_dpi(dpi)
    FigureCanvasAgg(made).print_png(path.with_suffix(".png"))
