"""The statistics and the normalization in float64 NumPy, with the size errors are relative to.

Each has its derivatives, written by hand. `benchmarks/exact.py` builds jbn's functions from them
and explains labels, features and cotangents.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

Values = np.ndarray[Any, np.dtype[Any]]
# A mean is held in two float32 numbers, a pivot of 21 bits and a remainder, which loses about 2^-44
# of it. An error within 4e-6 of `LOST` times the mean is such a loss.
LOST = 2.0**-20
# Float32 cannot hold larger variances. Results that depend on one only have to be finite.
LARGEST_VAR = 3.4e38


class Known(NamedTuple):
    """A float64 value and the size of the terms that sum to it, which its error is relative to."""

    value: Values
    size: Values

    def __add__(self, other: Any) -> "Known":
        return Known(self.value + other.value, self.size + other.size)

    def times(self, factor: Any) -> "Known":
        """Scale value and size; 0 times an infinite size is 0."""
        size = np.where(np.asarray(factor) == 0, 0, self.size * np.abs(factor))
        return Known(self.value * factor, size)

    def at(self, index: Values) -> "Known":
        """Return the entries at these indices."""
        return Known(self.value[index], self.size[index])


def zero(count: int) -> Known:
    """Make a zero cotangent."""
    return Known(np.zeros(count), np.zeros(count))


def total(values: Values, labels: Values) -> Values:
    """Sum the values of each label."""
    values, labels = np.broadcast_to(values, labels.shape).ravel(), labels.ravel()
    if np.iscomplexobj(values):
        return total(values.real, labels) + 1j * total(values.imag, labels)
    return np.bincount(labels, weights=values)


def summed(terms: Values, labels: Values) -> Known:
    """Sum terms; the rounding error is relative to the root of their sum of squares."""
    return Known(total(terms, labels), np.sqrt(total(np.abs(terms) ** 2, labels)))


def rms(values: Values, labels: Values) -> Values:
    """Compute the root mean square of each label and return it at every value."""
    mean = total(np.abs(values) ** 2, labels) / total(np.ones(1), labels)
    return np.sqrt(mean)[labels]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Moments of labeled values with weights; values without weight may be anything."""

    x: Values
    labels: Values
    weights: Values  # In x's shape.
    counted: bool = True  # Weights are counts, with Bessel's factor n / (n - 1); else `aweights`.

    @functools.cached_property
    def count(self) -> Values:
        """Total weight of each label."""
        return total(self.weights, self.labels)

    @functools.cached_property
    def positive(self) -> Values:
        """The count, with 0 replaced by 1."""
        return np.where(self.count > 0, self.count, 1)

    @functools.cached_property
    def mean(self) -> Values:
        """Weighted mean, 0 where there is no weight."""
        has = self.weights > 0
        first = total(self.weights * np.where(has, self.x, 0), self.labels) / self.positive
        rest = np.where(has, self.x - first[self.labels], 0)
        return first + total(self.weights * rest, self.labels) / self.positive

    @functools.cached_property
    def deviation(self) -> Values:
        """Deviation from the mean, everywhere."""
        return self.x - self.mean[self.labels]

    @functools.cached_property
    def inside(self) -> Values:
        """Deviation where there is weight, else 0."""
        return np.where(self.weights > 0, self.deviation, 0)

    @functools.cached_property
    def var(self) -> Values:
        """Biased variance."""
        return total(self.weights * np.abs(self.inside) ** 2, self.labels) / self.positive

    @functools.cached_property
    def squares(self) -> Values:
        """sum(w^2) / sum(w)^2."""
        share = self.weights / self.positive[self.labels]
        return total(share**2, self.labels)

    @functools.cached_property
    def has_var(self) -> Values:
        """Whether more than one value has weight."""
        return total(self.weights > 0, self.labels) > 1

    @functools.cached_property
    def bessel(self) -> Values:
        """The factor that makes the variance unbiased, as in numpy.cov; 1 for a single value."""
        return 1 / np.where(self.has_var, 1 - self.squares, 1)

    def known_mean(self) -> Known:
        """The mean, which rounds relative to the values it averages."""
        return Known(self.mean, np.abs(self.mean) + np.sqrt(self.var))

    def known_var(self) -> Known:
        """The biased variance."""
        size = self.var + (LOST * np.abs(self.mean)) ** 2
        return Known(self.var, np.where(self.fits, size, np.inf))

    @functools.cached_property
    def fits(self) -> Values:
        """Whether float32 can hold the variance, both biased and unbiased."""
        return self.var * self.bessel < LARGEST_VAR

    def pull(self, dmean: Known, dvar: Known) -> dict[str, Known]:
        """Pull cotangents of mean and variance back to x and the weights."""
        mean, var = dmean.at(self.labels), dvar.at(self.labels)
        n = self.positive[self.labels]
        size = np.abs(self.deviation) + LOST * np.abs(self.mean)[self.labels]
        inner = np.abs(self.inside) + LOST * np.abs(self.mean)[self.labels]
        spread = self.var[self.labels]
        # The mean rounds relative to the deviations it averages.
        size = size + np.sqrt(spread)
        return {
            "x": Known(
                self.weights / n * (mean.value + 2 * np.conj(self.inside) * var.value),
                self.weights / n * (mean.size + 2 * inner * var.size),
            ),
            "mask": Known(
                (
                    (mean.value * self.deviation).real
                    + var.value * (np.abs(self.deviation) ** 2 - spread)
                )
                / n,
                (mean.size * size + var.size * (size**2 + spread)) / n,
            ),
        }

    def pull_bessel(self, dfactor: Known) -> Known:
        """Pull a cotangent of Bessel's factor back to the weights; counts have no gradient."""
        if self.counted:
            return Known(np.zeros(self.x.shape), np.zeros(self.x.shape))
        n, squares = self.positive[self.labels], self.squares[self.labels]
        share = self.weights / n
        slope = np.where(self.has_var, self.bessel**2, 0)[self.labels] * 2 / n
        d = dfactor.at(self.labels)
        return Known(d.value * slope * (share - squares), d.size * slope * (share + squares))


@dataclasses.dataclass(frozen=True)
class Normalized:
    """y = scale * ((x - mean) * rstd * r + d) + bias with given statistics, one per label."""

    x: Values
    labels: Values
    features: Values
    mean: Values
    var: Values
    epsilon: float
    scale: Values
    bias: Values
    r: Values | None = None
    d: Values | None = None
    lost: float = 0.0  # The part of the mean that is lost; none if the mean is an argument.

    @functools.cached_property
    def rstd(self) -> Values:
        """1 / sqrt(var + epsilon)."""
        return 1 / np.sqrt(self.var + self.epsilon)

    @functools.cached_property
    def deviation(self) -> Values:
        """Deviation from the mean."""
        return self.x - self.mean[self.labels]

    @functools.cached_property
    def corrected(self) -> Values:
        """The value that scale multiplies."""
        xhat = self.deviation * self.rstd[self.labels]
        r = 1 if self.r is None else self.r[self.labels]
        return xhat * r + (0 if self.d is None else self.d[self.labels])

    @functools.cached_property
    def deviation_size(self) -> Values:
        """Size of the deviation: its own or the typical one, whichever is larger."""
        usual = np.sqrt(self.var) + self.lost * np.abs(self.mean)
        return np.maximum(np.abs(self.deviation), usual[self.labels])

    @functools.cached_property
    def corrected_size(self) -> Values:
        """Size of the terms of `corrected`, at least 1: less is small next to scale and bias."""
        size = self.deviation_size * self.rstd[self.labels]
        if self.r is not None and self.d is not None:
            size = size * self.r[self.labels] + np.abs(self.d)[self.labels]
        return np.maximum(size, 1)

    @property
    def gain(self) -> Values:
        """The scale in x's shape."""
        return self.scale[self.features]

    def y(self) -> Known:
        """Compute y."""
        bias = self.bias[self.features]
        return Known(
            self.gain * self.corrected + bias,
            np.abs(self.gain) * self.corrected_size + np.abs(bias),
        )

    def pull(self, dy: Values) -> dict[str, Known]:
        """Pull a cotangent of y back to all inputs; x gets no part through the statistics."""
        rstd = self.rstd[self.labels]
        inner = dy * self.gain * (1 if self.r is None else self.r[self.labels])
        live = dy != 0  # Elsewhere x may be garbage.
        deviation = np.where(live, self.deviation, 0)
        size = np.where(live, np.maximum(self.deviation_size, 1 / rstd), 0)
        corrected = np.where(live, self.corrected, 0)
        to_var = total(inner * deviation, self.labels).real
        var_size = np.sqrt(total(np.abs(inner * size) ** 2, self.labels))
        var = Known(to_var, var_size).times(-0.5 * self.rstd**3)
        scale_size = np.abs(dy) * np.where(live, self.corrected_size, 0)
        return {
            "x": Known(inner * rstd, (np.abs(inner) + rms(inner, self.labels)) * rstd),
            "scale": Known(
                total(dy * corrected, self.features),
                np.sqrt(total(scale_size**2, self.features)),
            ),
            "bias": summed(dy, self.features),
            "mean": summed(inner, self.labels).times(-self.rstd),
            "var": var,
            "epsilon": Known(var.value.sum()[None], np.sqrt((var.size**2).sum())[None]),
        }
