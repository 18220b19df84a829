"""The sigmoid over Gaussian inputs: where it is flat, where nearly linear; exactly."""

import numpy as np
from jaxtyping import ArrayLike, Float
from matplotlib.figure import Figure
from scipy import stats

from experiments import plotting
from experiments.plotting import METHODS
from experiments.stats import estimates

ZONE = 1.96  # Where a note calls the sigmoid linear: 95 % of N(0, 1).
FLAT = 0.01  # A slope below it counts as saturated; the largest is 1/4.


def flat_from(slope: float) -> float:
    """Compute |x| from which sigmoid'(x) = s (1 - s) lies below `slope`."""
    root = np.sqrt(1 - 4 * slope)
    return float(np.log((1 + root) / (1 - root)))


def saturated_share(sd: ArrayLike) -> Float[np.ndarray, "..."]:
    """Compute the share of N(0, sd^2) at which the sigmoid's slope is below `FLAT`."""
    return 2 * stats.norm.sf(flat_from(FLAT) / np.asarray(sd))


def best_line(zone: float) -> tuple[float, float]:
    """Fit a line to the sigmoid over N(0, 1) within +-zone: slope and R2, by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    x = nodes * zone
    y = 1 / (1 + np.exp(-x)) - 0.5
    weights = weights * stats.norm.pdf(x)
    xx, xy, yy = (np.sum(weights * product) for product in (x * x, x * y, y * y))
    return float(xy / xx), float(xy**2 / (xx * yy))


def draw() -> Figure:
    """Draw the sigmoid with its best line, the share saturated, and a shape that stays."""
    made = plotting.figure(3, width=4.4)
    zone, share, shape = made.axes
    x, color = np.linspace(-6, 6, 601), METHODS["sigmoid"].color
    near, flat = x[np.abs(x) <= ZONE], flat_from(FLAT)
    zone.fill_between(
        x, stats.norm.pdf(x), color=plotting.GRAY, alpha=0.25, label="N(0, 1) density"
    )
    zone.plot(x, 1 / (1 + np.exp(-x)), color=color, label="sigmoid")
    line = 0.5 + best_line(ZONE)[0] * near
    zone.plot(near, line, "--", color=plotting.BLACK, label="best line within 1.96")
    zone.axvspan(-6, -flat, color=plotting.SKY, alpha=0.3, label="slope below .01")
    zone.axvspan(flat, 6, color=plotting.SKY, alpha=0.3)
    zone.set(xlabel="input", ylabel="output, or density", xlim=(-6, 6), ylim=(0, 1.55))
    zone.legend(loc="upper left", fontsize=9)

    gamma, dots = np.linspace(0.5, 12, 200), np.array([1.0, 4.0, 10.0])
    share.plot(gamma, saturated_share(gamma), color=color)
    share.plot(dots, saturated_share(dots), "s", color=color)
    for at in dots:
        height = float(saturated_share(at))
        share.text(at + 0.3, height - 0.06, estimates.pretty(height))
    share.set(xlabel="gamma: standard deviation of the input", ylim=(-0.1, 1))
    share.set(ylabel="share with slope below .01")

    x = np.linspace(-3, 5, 801)
    shape.plot(x, stats.expon.pdf(x), "--", color=plotting.VERMILION, label="exponential")
    shape.plot(x, stats.expon.pdf(x + 1), color=plotting.BLUE, label="normalized")
    shape.plot(x, stats.norm.pdf(x), ":", color=plotting.BLACK, label="N(0, 1)")
    shape.set(xlabel="value", ylabel="density")
    shape.legend()
    return made
