"""Exact results on where the sigmoid is flat or nearly linear, for Gaussian inputs."""

import numpy as np
from jaxtyping import ArrayLike, Float
from scipy import stats

ZONE = 1.96  # Where a note calls the sigmoid linear: 95 % of N(0, 1).
FLAT = 0.01  # A slope below this counts as saturated; the largest slope is 1/4.


def flat_from(slope: float) -> float:
    """Compute the |x| beyond which sigmoid'(x) = s (1 - s) is below `slope`."""
    root = np.sqrt(1 - 4 * slope)
    return float(np.log((1 + root) / (1 - root)))


def saturated_share(sd: ArrayLike) -> Float[np.ndarray, "..."]:
    """Compute the share of N(0, sd^2) where the sigmoid's slope is below `FLAT`."""
    return 2 * stats.norm.sf(flat_from(FLAT) / np.asarray(sd))


def best_line(zone: float) -> tuple[float, float]:
    """Fit a line to the sigmoid over N(0, 1) within +-zone by quadrature: its slope and R2."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    x = nodes * zone
    y = 1 / (1 + np.exp(-x)) - 0.5
    weights = weights * stats.norm.pdf(x)
    xx, xy, yy = (np.sum(weights * product) for product in (x * x, x * y, y * y))
    return float(xy / xx), float(xy**2 / (xx * yy))
