"""What all figures share: size, colours that the colour-blind can tell apart, PNG and SVG.

Colours: Okabe, Ito, "Color universal design", 2008; also apart in grey, with the line styles.
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"

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


def figure(columns: int = 1, *, width: float = 5.0, height: float = 3.6) -> Figure:
    """Make a figure of panels side by side, without any global state of pyplot."""
    made = Figure(figsize=(width * columns, height), layout="constrained")
    made.subplots(1, columns)
    return made


def save(made: Figure, path: Path) -> None:
    """Write a figure as `path`.png and `path`.svg."""
    with mpl.rc_context(STYLE):
        made.savefig(path.with_suffix(".png"), dpi=150)
        made.savefig(path.with_suffix(".svg"), metadata={"Date": None})
