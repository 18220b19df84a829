"""Estimates: a number, its confidence interval, and the runs it is computed from.

Intervals are 95 % confidence intervals: Student's t over seeds, t of the logarithms for ratios,
Wilson for shares of runs. If runs share seeds, pass their differences (or ratios) seed by seed: the
interval is then paired.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import ArrayLike

CONFIDENCE = 0.95

Kind = Literal["mean", "ratio", "share", "exact"]


class Estimate(NamedTuple):
    """A measured number.

    - value, low, high: the estimate and the ends of its interval; low = value = high where the
      number is exact.
    - runs: number of independent runs (seeds, folds, trials) it is based on; 0 if it is exact.
    - kind: name of the function below that made it.
    - values: results of the individual runs.
    """

    value: float
    low: float
    high: float
    runs: int
    kind: Kind
    values: tuple[float, ...] = ()


def mean(values: ArrayLike) -> Estimate:
    """Estimate a mean over runs, with Student's t interval.

    Example:
      >>> from experiments.stats import estimates
      >>> estimate = estimates.mean([1.0, 2.0, 3.0])
      >>> round(estimate.value, 3), round(estimate.low, 3), round(estimate.high, 3)
      (2.0, -0.484, 4.484)
    """
    x = _finite_runs(values)
    low, high = _t_interval(x)
    return Estimate(float(x.mean()), low, high, len(x), "mean", tuple(x.tolist()))


def ratio(values: ArrayLike) -> Estimate:
    """Estimate a geometric mean over runs, by t of the logarithms; for ratios and factors.

    Raises:
      ValueError: a value that is not positive.

    Example:
      >>> from experiments.stats import estimates
      >>> round(estimates.ratio([1.0, 4.0]).value, 3)
      2.0
    """
    x = _finite_runs(values)
    if np.any(x <= 0):
        raise ValueError(f"Expected positive values for a ratio, got {x.min()}. Use `mean`.")
    logs = np.log(x)
    low, high = _t_interval(logs)
    value = float(np.exp(logs.mean()))
    return Estimate(
        value, float(np.exp(low)), float(np.exp(high)), len(x), "ratio", tuple(x.tolist())
    )


def paired(ours: ArrayLike, theirs: ArrayLike) -> Estimate:
    """Estimate the mean of ours - theirs over runs that share their seeds pairwise.

    Example:
      >>> from experiments.stats import estimates
      >>> estimates.paired([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]).value
      1.0
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"Expected runs in pairs, got shapes {a.shape} and {b.shape}.")
    return mean(a - b)


def share(outcomes: ArrayLike) -> Estimate:
    """Estimate the share of runs in which something happens, with Wilson's interval.

    Args:
      outcomes: one truth value per run.

    Example:
      >>> from experiments.stats import estimates
      >>> estimate = estimates.share([True] * 9 + [False])
      >>> round(estimate.value, 3), round(estimate.low, 3), round(estimate.high, 3)
      (0.9, 0.596, 0.982)

    References:
      Wilson, "Probable inference, the law of succession, and statistical inference",
      1927.
    """
    x = np.asarray(outcomes, bool)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"Expected one outcome for each run, at least one, got shape {x.shape}.")
    from scipy import stats  # Takes a second to import and is seldom needed.

    test = stats.binomtest(int(x.sum()), len(x))
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(
        float(x.mean()),
        float(interval.low),
        float(interval.high),
        len(x),
        "share",
        tuple(x.astype(float).tolist()),
    )


def exact(value: Any) -> Estimate:
    """Make an estimate of a number without randomness: arithmetic, or the largest error of a test.

    Example:
      >>> from experiments.stats import estimates
      >>> estimates.exact(0.25).low
      0.25
    """
    x = float(value)
    return Estimate(x, x, x, 0, "exact", (x,))


def to_json(estimate: Estimate) -> dict[str, Any]:
    """Convert an estimate to JSON-serializable content."""
    return {**estimate._asdict(), "values": list(estimate.values)}


def from_json(content: dict[str, Any]) -> Estimate:
    """Convert the output of `to_json` back to an estimate."""
    return Estimate(**content)._replace(values=tuple(content["values"]))


def _finite_runs(values: ArrayLike) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"Expected one number for each run, at least one, got shape {x.shape}.")
    if not np.all(np.isfinite(x)):
        raise ValueError(
            f"Expected finite values, got {x.tolist()}. Choose a value for runs that diverged, or "
            "count them with `share`."
        )
    return x


def _t_interval(x: np.ndarray) -> tuple[float, float]:
    if len(x) < 2 or np.ptp(x) == 0:
        return float(x.mean()), float(x.mean())
    from scipy import special  # Takes 0.2 s to import.

    half = special.stdtrit(len(x) - 1, (1 + CONFIDENCE) / 2) * x.std(ddof=1) / math.sqrt(len(x))
    return float(x.mean() - half), float(x.mean() + half)


def pretty(number: float, digits: int = 3) -> str:
    """Write a number with the given number of significant digits, as briefly as possible.

    Example:
      >>> from experiments.stats.estimates import pretty
      >>> pretty(0.98765), pretty(12345.0), pretty(2.66e-5), pretty(0.0)
      ('0.988', '12,300', '2.66e-05', '0')
    """
    if number == 0:
        return "0"
    rounded = float(f"{number:.{digits}g}")
    if 1e3 <= abs(rounded) < 1e7:
        return f"{rounded:,.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"
    return f"{rounded:.{digits}g}"


def format_estimate(estimate: Estimate, bounds: Sequence[float] = ()) -> str:
    """Write an estimate with its interval, to the digits that are meaningful given the interval.

    Args:
      bounds: bounds of a rule; digits are added until one can see on which side of the bounds value
        and interval lie.

    Example:
      >>> from experiments.stats import estimates
      >>> estimate = estimates.mean([1.0, 2.0, 3.0])
      >>> estimates.format_estimate(estimate), estimates.format_estimate(estimate, [-0.5])
      ('2.0 (-0.5 to 4.5)', '2.00 (-0.48 to 4.48)')
      >>> estimates.format_estimate(estimates.exact(0.25))
      '0.25'
    """
    numbers = (estimate.value, estimate.low, estimate.high)
    texts: list[str] = []
    for more in range(6):
        texts = _format(numbers, more)
        written = [float(text.replace(",", "")) for text in texts]
        if all(
            np.sign(was - bound) == np.sign(now - bound)
            for was, now in zip(numbers, written, strict=True)
            for bound in bounds
        ):
            break
    value, low, high = texts
    if estimate.low < estimate.high:
        return f"{value} ({low} to {high})"
    # Equal runs give an interval of zero width, which does not mean certainty.
    return f"{value} (in all {estimate.runs} runs)" if estimate.runs > 1 else value


def _format(numbers: tuple[float, float, float], more: int) -> list[str]:
    """Write value and interval alike, with `more` digits than the interval makes meaningful."""
    _, low, high = numbers
    decimals = max(0, 2 + math.floor(-math.log10((high - low) / 2))) if high > low else math.inf
    if decimals > 6:
        return [pretty(x, 3 + more) for x in numbers]
    return [f"{x:,.{int(decimals) + more}f}" for x in numbers]
