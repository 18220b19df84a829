"""A batch about its pivot, from which all functions compute y and moments."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jbn._center._arithmetic import as_pivot, is_nonzero, near_rstd, power_of_two
from jbn._center._derivative import with_derivative
from jbn._center._merge import as_moments
from jbn._center._residual import from_pivot, scale_and_shift, within_range
from jbn._center._values import values_of
from jbn._collectives import Pool
from jbn._dtypes import wide_dtype
from jbn._sharding import like
from jbn._types import Moments, WeightedMoments


class Centered(NamedTuple):
    """A batch about its pivot. Vectors keep x's rank, with length 1 along reduced axes.

    Deviations on a device are from its own pivot; `remainder` is the mean over all devices minus
    this pivot, so `deviation - remainder` is exact on each device, unlike x - mean. `residual`
    stands for the deviation times `per_unit`, see `deviation_of`. `near_rstd` is near
    1 / sqrt(var + epsilon) and not differentiated; y is computed from `relative_var` =
    var near_rstd^2 instead of var. `has_weight` is True where any value has weight; None means
    everywhere. NaN counts as weight, which makes the statistics NaN.
    """

    residual: Array
    pivot: Array
    per_unit: Array
    remainder: Array
    near_rstd: Array
    relative_var: Array
    mean: Array
    var: Array
    count: Array
    effective_count: Array | None
    has_weight: Array | None

    @property
    def moments(self) -> Moments | WeightedMoments:
        """Moments over all devices; mean, var and count are 0 where nothing has weight."""
        mean, var = self.mean, self.var
        if self.has_weight is not None:
            mean, var = (jnp.where(self.has_weight, v, 0) for v in (mean, var))
        return as_moments(mean, var, self.count, self.effective_count)

    def or_running(self, mean: Array, var: Array, epsilon: ArrayLike) -> "Centered":
        """Use running statistics, given as vectors, where nothing has weight."""
        if self.has_weight is None:
            return self
        dtype, has = self.pivot.dtype, self.has_weight
        var = like(var.astype(self.near_rstd.dtype), self.near_rstd)
        mean = like(mean.astype(dtype), self.pivot)
        residual, pivot = from_pivot(
            jax.lax.stop_gradient(as_pivot(mean)), ~has, self.residual, self.pivot, self.per_unit
        )
        rstd = jnp.where(
            has, self.near_rstd, jax.lax.stop_gradient(near_rstd(jnp.sqrt(var), epsilon))
        )
        residual = within_range(residual, pivot, self.per_unit, rstd)
        return self._replace(
            residual=residual,
            pivot=pivot,
            remainder=jnp.where(has, self.remainder, mean - pivot),
            near_rstd=rstd,
            relative_var=jnp.where(has, self.relative_var, var * rstd * rstd),
        )

    def affine_coefficients(
        self, scale: Array | None, bias: Array | None, epsilon: ArrayLike
    ) -> tuple[Array, Array]:
        """Compute a and b of y = (deviation * per_unit) * a + b, from vectors scale and bias."""
        dtype, rstd = self.pivot.dtype, self.near_rstd
        # Between .5 and 1.
        relative = self.relative_var + jnp.asarray(epsilon, rstd.dtype) * rstd * rstd
        gain = jax.lax.rsqrt(relative).astype(dtype)
        if scale is not None:
            gain = gain * scale.astype(dtype)
        b = -(self.remainder * rstd.astype(dtype)) * gain
        a = (rstd / self.per_unit).astype(dtype) * gain
        return a, b if bias is None else b + bias.astype(dtype)

    def scale_and_shift(self, a: Array, b: Array) -> Array:
        """Compute (deviation * per_unit) * a + b, keeping `residual` and vectors for backward."""
        return scale_and_shift(self.residual, self.pivot, self.per_unit, a, b)

    def normalize(self, scale: Array | None, bias: Array | None, epsilon: ArrayLike) -> Array:
        """Compute y = scale * (x - mean) / sqrt(var + epsilon) + bias, from vectors."""
        return self.scale_and_shift(*self.affine_coefficients(scale, bias, epsilon))


def center(
    x: Array,
    axes: tuple[int, ...],
    weights: Array | None,
    pool: Pool | None,
    epsilon: ArrayLike = 2.0**-40,
    guess: Array | None = None,
) -> Centered:
    """Center a batch about a pivot near its mean, and compute the moments over all devices.

    Args:
      x: floating or complex, not empty.
      axes: the axes to reduce.
      weights: None, or boolean or float of x's rank, broadcastable to x. Only the ratios of
        float weights matter, not their scale; negative weights count as 0.
      pool: the devices that share statistics.
      epsilon: added to var before its root is taken. For moments alone, any small value will do.
      guess: a guess of the mean, a vector of x's rank, such as the running mean; it may be wrong.
    """
    unit = None
    if weights is not None and weights.dtype != jnp.bool_:
        weights = weights.astype(jnp.finfo(wide_dtype(x.dtype)).dtype)
        weights = jnp.where(weights < 0, 0, weights)
        largest = jnp.max(weights, axes, keepdims=True)
        unit = jax.lax.stop_gradient(jnp.where(largest > 0, power_of_two(largest), 1))
        weights = weights / unit
    epsilon = jnp.asarray(epsilon, jnp.finfo(wide_dtype(x.dtype)).dtype)
    values = values_of(*jax.lax.stop_gradient((x, weights, unit, epsilon, guess)), axes, pool)
    out = with_derivative(x, weights, values, axes, pool)
    pivot, shared = values.pivot, values.shared
    return Centered(
        residual=out.residual,
        pivot=pivot,
        per_unit=values.per_unit,
        remainder=out.remainder if pool is None else (shared - pivot) + out.remainder,
        near_rstd=values.near_rstd,
        relative_var=out.relative_var,
        mean=shared + out.remainder,
        var=out.var,
        count=out.count,
        effective_count=out.effective_count,
        has_weight=None if weights is None else is_nonzero(values.count),
    )
