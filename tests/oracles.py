"""Batch normalization in plain float64 NumPy, and the tolerances with the reason for each.

Nothing here imports jax or jbn. `test_oracles.py` checks these functions against finite
differences and against torch.
"""

import dataclasses

import numpy as np

# Tolerances ------------------------------------------------------------------------------------

# A float32 rounding is 6e-8. A normalized value differs from float64 by a few of them, and the
# largest |xhat| in the tests is about 5.
F32_VALUE = 4e-6
# A gradient adds two more reductions and the product of scale, rstd and the cotangent, each O(1).
F32_GRADIENT = 2e-5
# Running statistics: the pooled mean and variance, relative to their size.
F32_STATISTICS = 2e-6
# Float64 rounds at 1e-16; sums over a few hundred values and divisions by small variances raise
# the error to 1e-11.
F64_VALUE = 1e-11
F64_GRADIENT = 1e-9
# Half a unit in the last place of the output dtype: y is rounded once, from float32.
HALF_ULP = {"bfloat16": 2.0**-8, "float16": 2.0**-11}

# Masked positions may hold garbage: NaN, inf, or any value of at least this size.
GARBAGE = 1e20


def output_tolerance(dtype: str) -> float:
    """Return the relative error allowed for y in `dtype`: its rounding plus float32's error."""
    if dtype in ("float64", "complex128"):
        return F64_VALUE
    return F32_VALUE + 1.01 * HALF_ULP.get(dtype, 0.0)


# The operation ---------------------------------------------------------------------------------


def feature_axes(ndim: int, axis) -> tuple[int, ...]:
    """Return the feature axes as sorted non-negative ints."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    return tuple(sorted(a % ndim for a in axes))


def exact(x) -> np.ndarray:
    """Return x as float64, or as complex128 if it is complex."""
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def rows(x, axis) -> np.ndarray:
    """Return x with shape (values per feature, features), features in the order of x's axes."""
    x = exact(x)
    features = feature_axes(x.ndim, axis)
    reduced = tuple(a for a in range(x.ndim) if a not in features)
    count = int(np.prod([x.shape[a] for a in reduced], dtype=int))
    width = int(np.prod([x.shape[a] for a in features], dtype=int))
    return x.transpose(reduced + features).reshape(count, width)


def unrows(table, shape, axis) -> np.ndarray:
    """Undo `rows`."""
    features = feature_axes(len(shape), axis)
    reduced = tuple(a for a in range(len(shape)) if a not in features)
    order = reduced + features
    return table.reshape([shape[a] for a in order]).transpose(np.argsort(order))


def feature_shape(shape, axis) -> tuple[int, ...]:
    """Return the shape of the statistics."""
    return tuple(shape[a] for a in feature_axes(len(shape), axis))


def weights(mask, shape) -> np.ndarray:
    """Return the mask as float64 weights of the full shape; None gives every value weight 1."""
    if mask is None:
        return np.ones(shape)
    return np.broadcast_to(np.asarray(mask, dtype=np.float64), shape)


def moments(x, *, axis=-1, mask=None):
    """Return (mean, biased variance, count), each of the features' shape; zero where count is 0."""
    shape = np.shape(x)
    w = rows(weights(mask, shape), axis)
    v = np.where(w > 0, rows(x, axis), 0)
    n = w.sum(0)
    safe = np.where(n > 0, n, 1)
    mean = (w * v).sum(0) / safe
    var = (w * np.abs(v - mean) ** 2).sum(0) / safe
    features = feature_shape(shape, axis)
    return mean.reshape(features), var.reshape(features), n.reshape(features)


def effective_count(shape, *, axis=-1, mask=None):
    """Return the n of Bessel's factor: the count, or (sum w)^2 / sum w^2 for float weights.

    The latter is the formula of numpy.cov for its aweights.
    """
    w = rows(weights(mask, shape), axis)
    n = w.sum(0)
    if mask is not None and np.asarray(mask).dtype != bool:
        squares = (w**2).sum(0)
        n = n**2 / np.where(squares > 0, squares, 1)
    return n.reshape(feature_shape(shape, axis))


def is_several(n) -> np.ndarray:
    """Return where n values have a variance; for one float weight, n is 1 up to rounding."""
    return np.asarray(n, dtype=np.float64) > 1 + 1e-9


def bessel(n) -> np.ndarray:
    """Return n / (n - 1) where n > 1, else 1."""
    n = np.asarray(n, dtype=np.float64)
    return np.where(is_several(n), n / np.where(is_several(n), n - 1, 1), 1.0)


def moved(mean, var, count, batch, *, momentum, unbiased=True, effective=None):
    """Return the running (mean, var, count) after an update with one batch's moments."""
    batch_mean, batch_var, n = batch
    effective = n if effective is None else effective
    mean, var = exact(mean), exact(var)
    has, several = n > 0, is_several(effective)
    new_var = batch_var * bessel(effective) if unbiased else batch_var
    return (
        np.where(has, momentum * mean + (1 - momentum) * batch_mean, mean),
        np.where(several, momentum * var + (1 - momentum) * new_var, var),
        int(count) + int(has.any()),
    )


@dataclasses.dataclass
class Problem:
    """One call of batch norm in training, with everything it depends on."""

    x: np.ndarray
    scale: np.ndarray | None
    bias: np.ndarray | None
    mean: np.ndarray
    var: np.ndarray
    count: int = 0
    axis: int | tuple[int, ...] = -1
    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    mask: np.ndarray | None = None

    def used(self):
        """Return the (mean, var) used to normalize: the batch's, or without values the running."""
        mean, var, n = moments(self.x, axis=self.axis, mask=self.mask)
        return np.where(n > 0, mean, exact(self.mean)), np.where(n > 0, var, exact(self.var))

    def forward(self):
        """Return y and the updated (mean, var, count)."""
        y = normalize(
            self.x, *self.used(), self.scale, self.bias, axis=self.axis, epsilon=self.epsilon
        )
        batch = moments(self.x, axis=self.axis, mask=self.mask)
        new = moved(
            self.mean,
            self.var,
            self.count,
            batch,
            momentum=self.momentum,
            unbiased=self.unbiased,
            effective=effective_count(np.shape(self.x), axis=self.axis, mask=self.mask),
        )
        return y, new

    def gradient(self, dy, dmean=0.0, dvar=0.0) -> dict[str, np.ndarray]:
        """Return the gradient of sum(dy y) + sum(dmean new mean) + sum(dvar new var).

        The paper's equations, with weights w that sum to n instead of ones that sum to m:
        dx = rstd (g - (w / n) (sum g + xhat sum(g xhat))), g = scale dy. The rest is derived by
        hand. Real x only. Positions with neither weight nor cotangent may hold garbage.
        """
        shape, axis = np.shape(self.x), self.axis
        features = feature_shape(shape, axis)
        w = rows(weights(self.mask, shape), axis)
        dy = rows(dy, axis)
        v = rows(self.x, axis)
        v = np.where((w == 0) & (dy == 0) & ~(np.abs(v) < GARBAGE), 0.0, v)
        n = w.sum(0)
        has = n > 0
        safe = np.where(has, n, 1)
        batch_mean, batch_var, _ = (
            m.reshape(-1) for m in moments(self.x, axis=axis, mask=self.mask)
        )
        mean, var = (m.reshape(-1) for m in self.used())
        scale = np.ones(mean.size) if self.scale is None else exact(self.scale).reshape(-1)
        dmean = np.broadcast_to(dmean, features).reshape(-1)
        dvar = np.broadcast_to(dvar, features).reshape(-1)

        rstd = 1 / np.sqrt(var + self.epsilon)
        xhat = (v - mean) * rstd
        g = scale * dy
        to_mean = -rstd * g.sum(0)  # through the mean used to normalize
        to_var = -0.5 * rstd**2 * (g * xhat).sum(0)
        effective = effective_count(shape, axis=axis, mask=self.mask).reshape(-1)
        several = is_several(effective)
        all_dvar, dvar = dvar, np.where(several, dvar, 0.0)
        factor = bessel(effective) if self.unbiased else np.ones_like(n)
        # The derivative of Bessel's factor by the effective count, and of that by each weight.
        slope = -1 / np.where(several, effective - 1, 1) ** 2 if self.unbiased else 0.0
        slope = slope * 2 * effective / safe * (1 - effective * w / safe)
        new = 1 - self.momentum
        all_mean = np.where(has, to_mean + new * dmean, 0.0)  # through the batch's mean
        all_var = np.where(has, to_var + new * factor * dvar, 0.0)
        old, old_var = (np.where(moves, self.momentum, 1.0) for moves in (has, several))

        centered = v - batch_mean
        dx = g * rstd + w / safe * (all_mean + 2 * centered * all_var)
        dw = (all_mean * centered + all_var * (centered**2 - batch_var)) / safe
        dw = dw + np.where(has, new * dvar * slope * batch_var, 0.0)
        run_mean, run_var = exact(self.mean).reshape(-1), exact(self.var).reshape(-1)
        dmomentum = np.where(
            has, dmean * (run_mean - batch_mean) + dvar * (run_var - factor * batch_var), 0.0
        )
        return {
            "x": unrows(dx, shape, axis),
            "scale": (dy * xhat).sum(0).reshape(features),
            "bias": dy.sum(0).reshape(features),
            "mean": (old * dmean + np.where(has, 0.0, to_mean)).reshape(features),
            "var": (old_var * all_dvar + np.where(has, 0.0, to_var)).reshape(features),
            "mask": unrows(np.where(has, dw, 0.0), shape, axis),
            "epsilon": to_var.sum(),
            "momentum": dmomentum.sum(),
        }


def normalize(x, mean, var, scale=None, bias=None, *, axis=-1, epsilon=1e-5) -> np.ndarray:
    """Return scale (x - mean) / sqrt(var + epsilon) + bias."""
    mean, var = exact(mean).reshape(-1), exact(var).reshape(-1)
    with np.errstate(invalid="ignore", over="ignore"):
        table = (rows(x, axis) - mean) / np.sqrt(var + epsilon)
        if scale is not None:
            table = table * exact(scale).reshape(-1)
        if bias is not None:
            table = table + exact(bias).reshape(-1)
    return unrows(table, np.shape(x), axis)


# Comparisons -----------------------------------------------------------------------------------


def error(got, want) -> float:
    """Return the largest error of `got`, relative to max(1, |want|)."""
    got, want = exact(got), exact(want)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    assert np.isfinite(want).all(), "an oracle that is not finite proves nothing"
    if got.size == 0:
        return 0.0
    return float(np.max(np.abs(got - want) / np.maximum(1, np.abs(want)), initial=0.0))


def assert_close(got, want, tolerance: float, what: str = "value") -> None:
    """Assert that `got` is within `tolerance` of `want`, relative to max(1, |want|); NaN fails."""
    worst = error(got, want)
    assert worst <= tolerance, f"{what}: error {worst:.3g} is above {tolerance:.3g}"
