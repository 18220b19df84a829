"""The normalizations and their derivatives in float64 NumPy, with the size errors are relative to.

One formula serves all of them. Every value of x has a label, the index of the statistic that
normalizes it, and a feature, the index of its scale and bias. Labels are features in batch norm,
positions in layer norm, and pairs of example and group in group norm; devices that share statistics
have equal labels. Derivatives are written by hand.

Cotangents are paired with values as in JAX, by Re(sum(cotangent * value)), so a gradient g by a
complex z means that the sum changes by Re(g dz).
"""

from typing import Any, NamedTuple

import numpy as np

from benchmarks.exact_parts import LOST, Batch, Known, Normalized, Values, rms, summed, total

Axes = tuple[int, ...]


def numbered(shape: tuple[int, ...], axes: Axes) -> Values:
    """Number the positions along `axes`, row-major in ascending axes: an int for every value."""
    number = np.zeros((1,) * len(shape), int)
    for axis in sorted(axes):
        along = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        number = number * shape[axis] + along
    return np.broadcast_to(number, shape)


# ---- What the library's functions compute --------------------------------------------------------


class Truth(NamedTuple):
    """Outputs and gradients by name."""

    values: dict[str, Known]
    gradients: dict[str, Known]


def moments(batch: Batch, dmean: Values, dvar: Values) -> Truth:
    """Compute `jbn.moments`: mean, var and counts of each label."""
    effective = np.where(batch.count > 0, 1 / np.where(batch.count > 0, batch.squares, 1), 0)
    values = {
        "mean": batch.known_mean(),
        "var": batch.known_var(),
        "count": Known(batch.count, batch.count),
        "effective_count": Known(effective, effective),  # Kish's effective sample size.
    }
    has = batch.count > 0  # Without weight, both are 0, whatever x and the weights.
    return Truth(
        values, batch.pull(_where(has, cotangent(dmean)), _where(has, of_var(batch, dvar)))
    )


def normalize(normalized: Normalized, dy: Values) -> Truth:
    """Compute `jbn.normalize`, whose statistics are arguments."""
    return Truth({"y": normalized.y()}, normalized.pull(dy))


def standardize(batch: Batch, features: Values, array: dict[str, Values]) -> Truth:
    """Compute layer, group or instance norm; `array` has scale, bias, epsilon and dy."""
    normalized = _normalized(batch, features, array, batch.mean, batch.var)
    found = normalized.pull(array["dy"])
    x = found["x"] + batch.pull(found.pop("mean"), found.pop("var"))["x"]
    return Truth({"y": normalized.y()}, {**found, "x": x})


def train(
    batch: Batch, pooled: Batch, features: Values, state_features: Values, array: dict[str, Values]
) -> Truth:
    """Compute batch norm in training, and its variants.

    Args:
      batch: labeled by the statistics that normalize.
      pooled: labeled by the statistics that update the state; `batch` except for ghost batches.
      features: feature of each value of x.
      state_features: feature of each label of `pooled`.
      array: scale, bias, mean, var, epsilon, momentum, dy, and dmean and dvar for each label of
        `pooled`; r_max and d_max select renorm.
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

    # Through the statistics that normalize: the batch's, or the running ones if it has no weight.
    to_mean, to_var = found.pop("mean"), found.pop("var")
    through = batch.pull(_where(has, to_mean), _where(has, to_var))
    old_mean = _by_feature(_where(~has, to_mean), feature_of_label, mean.size)
    old_var = _by_feature(_where(~has, to_var), feature_of_label, mean.size)

    # Through the state, which is updated by the moments of `pooled`.
    has = pooled.count > 0
    old, new = momentum, 1 - momentum
    running_mean, running_var = mean[state_features], var[state_features]
    dmean, dvar = cotangent(array["dmean"]), of_var(pooled, array["dvar"])
    mean_moves, var_moves = has, has & pooled.has_var
    condition = np.maximum(pooled.bessel, 1)
    # Ghost batches are pooled by their variances, so float32 must hold the variance of each.
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
    """Compute `jbn.weight_norm`: scale * v / ||v|| per feature."""
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
    """Compute `jbn.whiten` of x (values, C); its error grows with the covariance's condition."""
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
    """Wrap a cotangent, which is exact."""
    return Known(value, np.abs(value))


def of_var(batch: Batch, value: Values) -> Known:
    """Wrap a variance's cotangent, with infinite size where float32 cannot hold the variance."""
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
