"""The normalizations and their derivatives in float64 NumPy, with what an error is relative to.

One formula serves all of them: every value of x has a label, the number of the statistic that
normalizes it, and a feature, the number of its scale and bias. Batch norm's labels are features,
layer norm's positions, group norm's pairs of example and group; devices that share statistics have
equal labels. Derivatives are written by hand.

The pairing with a cotangent is JAX's, Re(sum(cotangent * value)), so a gradient g of a complex z
says that the sum changes by Re(g dz).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

Values = np.ndarray[Any, np.dtype[Any]]
Axes = tuple[int, ...]

# A mean is held in two float32 numbers, a pivot of 21 bits and a remainder: about 2^-44 of it is
# lost. What is within 4e-6 of `LOST` times the mean is such a loss.
LOST = 2.0**-20

# A variance that float32 cannot hold: no more is asked of what goes through it than to be finite.
LARGEST_VAR = 3.4e38


class Known(NamedTuple):
    """A float64 value, and the size of the terms that it is the sum of."""

    value: Values
    size: Values

    def __add__(self, other: Any) -> "Known":
        return Known(self.value + other.value, self.size + other.size)

    def times(self, factor: Any) -> "Known":
        """Scale value and size; nothing of a size that is infinite is nothing."""
        size = np.where(np.asarray(factor) == 0, 0, self.size * np.abs(factor))
        return Known(self.value * factor, size)

    def at(self, index: Values) -> "Known":
        """Take the entries of these indices."""
        return Known(self.value[index], self.size[index])


def zero(count: int) -> Known:
    """Make a cotangent of nothing."""
    return Known(np.zeros(count), np.zeros(count))


def numbered(shape: tuple[int, ...], axes: Axes) -> Values:
    """Number the positions along `axes`, in ascending order of axes: an int for every value."""
    number = np.zeros((1,) * len(shape), int)
    for axis in sorted(axes):
        along = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        number = number * shape[axis] + along
    return np.broadcast_to(number, shape)


def total(values: Values, labels: Values) -> Values:
    """Sum the values of each label."""
    values, labels = np.broadcast_to(values, labels.shape).ravel(), labels.ravel()
    if np.iscomplexobj(values):
        return total(values.real, labels) + 1j * total(values.imag, labels)
    return np.bincount(labels, weights=values)


def summed(terms: Values, labels: Values) -> Known:
    """Sum terms; what they round to is relative to the root of their squares."""
    return Known(total(terms, labels), np.sqrt(total(np.abs(terms) ** 2, labels)))


def rms(values: Values, labels: Values) -> Values:
    """Take the root of the mean square of each label, at every value."""
    mean = total(np.abs(values) ** 2, labels) / total(np.ones(1), labels)
    return np.sqrt(mean)[labels]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Moments of labeled values with weights; what has none may be anything."""

    x: Values
    labels: Values
    weights: Values  # Of x's shape.
    counted: bool = True  # Weights are counts: Bessel's factor is n / (n - 1). Else `aweights`.

    @functools.cached_property
    def count(self) -> Values:
        """Total weight."""
        return total(self.weights, self.labels)

    @functools.cached_property
    def positive(self) -> Values:
        """Count, with 1 in place of 0."""
        return np.where(self.count > 0, self.count, 1)

    @functools.cached_property
    def mean(self) -> Values:
        """Weighted mean; 0 without weight."""
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
        """What makes the variance unbiased, as in numpy.cov; 1 for a single value."""
        return 1 / np.where(self.has_var, 1 - self.squares, 1)

    def known_mean(self) -> Known:
        """Mean; it rounds with the values that it is the mean of."""
        return Known(self.mean, np.abs(self.mean) + np.sqrt(self.var))

    def known_var(self) -> Known:
        """Biased variance."""
        size = self.var + (LOST * np.abs(self.mean)) ** 2
        return Known(self.var, np.where(self.fits, size, np.inf))

    @functools.cached_property
    def fits(self) -> Values:
        """Whether float32 holds the variance, the unbiased one too."""
        return self.var * self.bessel < LARGEST_VAR

    def pull(self, dmean: Known, dvar: Known) -> dict[str, Known]:
        """Pull cotangents of mean and variance back to x and the weights."""
        mean, var = dmean.at(self.labels), dvar.at(self.labels)
        n = self.positive[self.labels]
        size = np.abs(self.deviation) + LOST * np.abs(self.mean)[self.labels]
        inner = np.abs(self.inside) + LOST * np.abs(self.mean)[self.labels]
        spread = self.var[self.labels]
        # The mean is rounded with the deviations that it is the mean of.
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
        """Pull a cotangent of Bessel's factor back to the weights; counts have none."""
        if self.counted:
            return Known(np.zeros(self.x.shape), np.zeros(self.x.shape))
        n, squares = self.positive[self.labels], self.squares[self.labels]
        share = self.weights / n
        slope = np.where(self.has_var, self.bessel**2, 0)[self.labels] * 2 / n
        d = dfactor.at(self.labels)
        return Known(d.value * slope * (share - squares), d.size * slope * (share + squares))


@dataclasses.dataclass(frozen=True)
class Normalized:
    """y = scale * ((x - mean) * rstd * r + d) + bias by given statistics, one for each label."""

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
    lost: float = 0.0  # How much of the mean is lost; nothing of one that is given.

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
        """What scale multiplies."""
        xhat = self.deviation * self.rstd[self.labels]
        r = 1 if self.r is None else self.r[self.labels]
        return xhat * r + (0 if self.d is None else self.d[self.labels])

    @functools.cached_property
    def deviation_size(self) -> Values:
        """Size of the deviation: its own, or that of the usual one."""
        usual = np.sqrt(self.var) + self.lost * np.abs(self.mean)
        return np.maximum(np.abs(self.deviation), usual[self.labels])

    @functools.cached_property
    def corrected_size(self) -> Values:
        """Size of the terms of `corrected`, 1 at least: less is little beside scale and bias."""
        size = self.deviation_size * self.rstd[self.labels]
        if self.r is not None and self.d is not None:
            size = size * self.r[self.labels] + np.abs(self.d)[self.labels]
        return np.maximum(size, 1)

    @property
    def gain(self) -> Values:
        """Scale, of x's shape."""
        return self.scale[self.features]

    def y(self) -> Known:
        """Compute y."""
        bias = self.bias[self.features]
        return Known(
            self.gain * self.corrected + bias,
            np.abs(self.gain) * self.corrected_size + np.abs(bias),
        )

    def pull(self, dy: Values) -> dict[str, Known]:
        """Pull a cotangent of y back to everything; x without its way through the statistics."""
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


# ---- What the library's functions compute --------------------------------------------------------


class Truth(NamedTuple):
    """Outputs and gradients by name."""

    values: dict[str, Known]
    gradients: dict[str, Known]


def moments(batch: Batch, dmean: Values, dvar: Values) -> Truth:
    """`jbn.moments`: mean, var and counts of each label."""
    effective = np.where(batch.count > 0, 1 / np.where(batch.count > 0, batch.squares, 1), 0)
    values = {
        "mean": batch.known_mean(),
        "var": batch.known_var(),
        "count": Known(batch.count, batch.count),
        "effective_count": Known(effective, effective),  # Kish's, of float weights.
    }
    has = batch.count > 0  # Else both are 0, whatever x and the weights.
    return Truth(
        values, batch.pull(_where(has, cotangent(dmean)), _where(has, of_var(batch, dvar)))
    )


def normalize(normalized: Normalized, dy: Values) -> Truth:
    """`jbn.normalize`: the statistics are arguments."""
    return Truth({"y": normalized.y()}, normalized.pull(dy))


def standardize(batch: Batch, features: Values, array: dict[str, Values]) -> Truth:
    """Layer, group and instance norm: `array` has scale, bias, epsilon and dy."""
    normalized = _normalized(batch, features, array, batch.mean, batch.var)
    found = normalized.pull(array["dy"])
    x = found["x"] + batch.pull(found.pop("mean"), found.pop("var"))["x"]
    return Truth({"y": normalized.y()}, {**found, "x": x})


def train(
    batch: Batch, pooled: Batch, features: Values, state_features: Values, array: dict[str, Values]
) -> Truth:
    """Batch norm in training, and its variants.

    Args:
      batch: labels of the statistics that normalize.
      pooled: labels of those that the state moves by; `batch` itself but for ghost batches.
      features: of each value of x.
      state_features: of each label of `pooled`.
      array: scale, bias, mean, var, epsilon, momentum; dy, dmean and dvar, the latter two for each
        label of `pooled`; with r_max and d_max it is renorm.
    """
    mean, var, momentum = array["mean"], array["var"], array["momentum"]
    feature_of_label = np.zeros(batch.count.size, int)
    feature_of_label[batch.labels] = features
    has = batch.count > 0
    running_mean, running_var = mean[feature_of_label], var[feature_of_label]
    used_mean, used_var = (
        np.where(has, batch.mean, running_mean),
        np.where(has, batch.var, running_var),
    )
    correction = {}
    if "r_max" in array:
        sigma = np.sqrt(running_var + array["epsilon"])
        r = np.sqrt(used_var + array["epsilon"]) / sigma
        d = (used_mean - running_mean) / sigma
        correction = {
            "r": np.clip(r, 1 / array["r_max"], array["r_max"]),
            "d": np.clip(d, -array["d_max"], array["d_max"]),
        }
    normalized = _normalized(batch, features, array, used_mean, used_var, **correction)
    found = normalized.pull(array["dy"])

    # Through the statistics that normalize: the batch's, or the running ones where it has none.
    to_mean, to_var = found.pop("mean"), found.pop("var")
    through = batch.pull(_where(has, to_mean), _where(has, to_var))
    old_mean = _by_feature(_where(~has, to_mean), feature_of_label, mean.size)
    old_var = _by_feature(_where(~has, to_var), feature_of_label, mean.size)

    # Through the state, which has the moments of `pooled`.
    has = pooled.count > 0
    old, new = momentum, 1 - momentum
    running_mean, running_var = mean[state_features], var[state_features]
    dmean, dvar = cotangent(array["dmean"]), of_var(pooled, array["dvar"])
    mean_moves, var_moves = has, has & pooled.has_var
    condition = np.maximum(pooled.bessel, 1)
    # Of ghost batches, which are pooled by their variances.
    parts_fit = np.ones(pooled.count.size, bool)
    np.logical_and.at(parts_fit, pooled.labels, batch.fits[batch.labels])
    pooled_var = pooled.known_var()
    pooled_var = Known(pooled_var.value, np.where(parts_fit, pooled_var.size, np.inf))
    stays_mean, stays_var = np.where(mean_moves, old, 1), np.where(var_moves, old, 1)
    state = {
        "mean": Known(running_mean, np.abs(running_mean)).times(stays_mean)
        + _where(mean_moves, pooled.known_mean().times(new)),
        "var": Known(running_var, running_var).times(stays_var)
        + _where(var_moves, _widened(pooled_var.times(new * pooled.bessel), condition)),
    }
    moves = pooled.pull(
        _where(mean_moves, dmean.times(new)), _where(var_moves, dvar.times(new * pooled.bessel))
    )
    slope = pooled.pull_bessel(_where(var_moves, dvar.times(new * pooled.var)))
    by_mean = _where(mean_moves, dmean)
    by_var = _where(var_moves, dvar)
    change = (by_mean.value * (running_mean - pooled.mean)).real + by_var.value * (
        running_var - pooled.bessel * pooled.var
    )
    size = by_mean.size * (np.abs(running_mean) + pooled.known_mean().size) + by_var.size * (
        running_var + condition * pooled.bessel * pooled.known_var().size
    )
    gradients = {
        **found,
        "x": found["x"] + through["x"] + moves["x"],
        "mask": through["mask"] + moves["mask"] + slope,
        "mean": old_mean + _by_feature(dmean.times(stays_mean), state_features, mean.size),
        "var": old_var + _by_feature(dvar.times(stays_var), state_features, mean.size),
        "momentum": Known(change.sum()[None], np.sqrt((size**2).sum())[None]),
    }
    return Truth({"y": normalized.y(), **state}, gradients)


def weight_norm(kernel: Values, features: Values, scale: Values, dy: Values) -> Truth:
    """`jbn.weight_norm`: scale * v / ||v||, by features."""
    length = np.sqrt(total(np.abs(kernel) ** 2, features))[features]
    unit, gain = kernel / length, scale[features]
    along = summed(dy * gain * unit, features).at(features)
    gradient = Known(
        (dy * gain - np.conj(unit) * along.value.real) / length,
        (np.abs(dy * gain) + rms(dy * gain, features) + np.abs(unit) * along.size) / length,
    )
    values = {"y": Known(gain * unit, np.abs(gain * unit))}
    return Truth(values, {"x": gradient, "scale": summed(dy * unit, features)})


def whiten(x: Values, groups: int, epsilon: float, method: str) -> Truth:
    """`jbn.whiten` of x (values, C): y, whose error grows with the condition of the covariance."""
    centered = x - x.mean(0)
    centered -= centered.mean(0)
    parts = centered.reshape(len(x), groups, -1)
    y, size = np.empty(parts.shape), np.empty(parts.shape)
    for g in range(groups):
        rows = parts[:, g]
        covariance = rows.T @ rows / len(x)
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, 0) + epsilon
        if method == "zca":
            matrix = vectors / np.sqrt(values) @ vectors.T
        else:
            matrix = np.linalg.inv(np.linalg.cholesky(covariance + epsilon * np.eye(len(values))))
        y[:, g] = rows @ matrix.T
        largest = np.abs(y[:, g]).max()
        size[:, g] = largest * values.max() / values.min()
    return Truth({"y": Known(y.reshape(x.shape), size.reshape(x.shape))}, {})


# ---- Helpers -------------------------------------------------------------------------------------


def cotangent(value: Values) -> Known:
    """Take a cotangent as it comes: it is not rounded."""
    return Known(value, np.abs(value))


def of_var(batch: Batch, value: Values) -> Known:
    """Take the cotangent of a variance; of infinite size where it is nothing that float32 holds."""
    return Known(value, np.where(batch.fits | (value == 0), np.abs(value), np.inf))


def _normalized(
    batch: Batch, features: Values, array: dict[str, Values], mean: Values, var: Values, **more: Any
) -> Normalized:
    return Normalized(
        batch.x,
        batch.labels,
        features,
        mean,
        var,
        float(array["epsilon"]),
        array["scale"],
        array["bias"],
        lost=LOST,
        **more,
    )


def _where(condition: Values, known: Known) -> Known:
    return Known(np.where(condition, known.value, 0), np.where(condition, known.size, 0))


def _widened(known: Known, factor: Values) -> Known:
    return Known(known.value, known.size * factor)


def _by_feature(known: Known, features: Values, count: int) -> Known:
    size = np.bincount(features, weights=known.size, minlength=count)
    return Known(total(known.value, features), size)
