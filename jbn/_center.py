"""A batch about its pivot: the sums over the batch, their derivative, their merge over devices.

E[x^2] - E[x]^2 cancels when the mean is large: at mean/std 1e4 in float32 it is NaN. Here sums are
taken of `deviation = x - pivot` with a pivot near the mean, and three rules keep that exact:
- pivot and remainder (the mean of the deviation) are not rounded into one number before x is
  normalized: (x - pivot) - remainder has an error of 1e-6 where x - (pivot + remainder) has 4e-3;
- devices exchange (pivot, remainder, std, count) and merge those, not sums about zero, unless all
  share a pivot;
- neither y nor a gradient goes by a square or a cube that float32 cannot hold: where x is that
  large, or that small, deviations are kept in a unit, a power of two for each feature, and what is
  differentiated is the variance relative to var + epsilon.

References: Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983: shifted
sums, merge of parts. Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 1 and section 3.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, ArrayLike

from jbn._collectives import Pool
from jbn._dtypes import wide_dtype
from jbn._sharding import (
    is_explicitly_sharded,
    like,
    like_reduced,
    varying_axes,
    varying_like,
)
from jbn._types import Moments, WeightedMoments

# A gather of all devices' moments is O(D*C). Beyond this D two sums of O(C) take its place.
GATHER_LIMIT = 64

# Up to this D a checksum in digits of 4 bits at least can be compared, see `_all_equal`.
CHECKSUM_LIMIT = 2**12

# Sums about 0 are kept while mean^2 <= 2 var: the error of the normalized output is then at most
# 3e-6; it is 4e-6 at mean = 2 std and grows with the square.
WELL_CONDITIONED = 2.0


# ---- What the callers get ------------------------------------------------------------------------


class Centered(NamedTuple):
    """A batch about its pivot. Vectors keep x's rank, with 1 where an axis was reduced.

    A device's deviation is from its own pivot; `remainder` is the mean of all devices minus that,
    so `deviation - remainder` is exact on each of them, unlike x - mean. `residual` stands for the
    deviation times `per_unit`, see `_deviation`. `rstd` is near 1 / sqrt(var + epsilon), a constant
    to the derivative; y goes by `relative_var` = var rstd^2 instead of var. `has_weight` is where
    any value counts, None where all do. NaN weights do: what they make of the statistics is NaN.
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
        """Moments of all devices; 0, 0 and count 0 where nothing has weight."""
        mean, var = self.mean, self.var
        if self.has_weight is not None:
            mean, var = (jnp.where(self.has_weight, v, 0) for v in (mean, var))
        return _moments(mean, var, self.count, self.effective_count)

    def or_running(self, mean: Array, var: Array, epsilon: ArrayLike) -> "Centered":
        """Put running statistics, vectors, where nothing has weight."""
        if self.has_weight is None:
            return self
        dtype, has = self.pivot.dtype, self.has_weight
        var = like(var.astype(self.near_rstd.dtype), self.near_rstd)
        mean = like(mean.astype(dtype), self.pivot)
        residual, pivot = _from_pivot(
            jax.lax.stop_gradient(_as_pivot(mean)), ~has, self.residual, self.pivot, self.per_unit
        )
        rstd = jnp.where(
            has, self.near_rstd, jax.lax.stop_gradient(_near_rstd(jnp.sqrt(var), epsilon))
        )
        residual = _within(residual, pivot, self.per_unit, rstd)
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
        # From .5 to 1.
        relative = self.relative_var + jnp.asarray(epsilon, rstd.dtype) * rstd * rstd
        gain = jax.lax.rsqrt(relative).astype(dtype)
        if scale is not None:
            gain = gain * scale.astype(dtype)
        b = -(self.remainder * rstd.astype(dtype)) * gain
        a = (rstd / self.per_unit).astype(dtype) * gain
        return a, b if bias is None else b + bias.astype(dtype)

    def scale_and_shift(self, a: Array, b: Array) -> Array:
        """Compute (deviation * per_unit) * a + b, keeping `residual` and vectors for backward."""
        return _scale_and_shift(self.residual, self.pivot, self.per_unit, a, b)

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
    """Center a batch about a pivot near its mean, with the moments of all devices.

    Args:
      x: floating or complex, not empty.
      axes: the axes to reduce.
      weights: None, or boolean or float of x's rank, broadcastable to x. Float weights count by
        their ratios, at any scale; a negative one counts as 0.
      pool: the devices that share statistics.
      epsilon: what is added to var before its root. It need only be small where var alone is asked.
      guess: of the mean, a vector of x's rank, such as the running mean; any value will do.
    """
    unit = None
    if weights is not None and weights.dtype != jnp.bool_:
        weights = weights.astype(jnp.finfo(wide_dtype(x.dtype)).dtype)
        weights = jnp.where(weights < 0, 0, weights)
        largest = jnp.max(weights, axes, keepdims=True)
        unit = jax.lax.stop_gradient(jnp.where(largest > 0, power_of_two(largest), 1))
        weights = weights / unit
    epsilon = jnp.asarray(epsilon, jnp.finfo(wide_dtype(x.dtype)).dtype)
    values = _values(*jax.lax.stop_gradient((x, weights, unit, epsilon, guess)), axes, pool)
    out = _with_derivative(x, weights, values, axes, pool)
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
        has_weight=None if weights is None else _has(values.count),
    )


def rstd(var: Array, epsilon: ArrayLike) -> Array:
    """Compute 1 / sqrt(var + epsilon), whose derivative is right wherever its value is.

    That of rsqrt is the cube of its value, which float32 cannot hold beyond 1e13.
    """
    value = jax.lax.stop_gradient(_near_rstd(jnp.sqrt(var), epsilon))
    relative = var * value * value + jnp.asarray(epsilon, var.dtype) * value * value
    return value * jax.lax.rsqrt(relative)


def _near_rstd(std: Array, epsilon: ArrayLike) -> Array:
    """Estimate 1 / sqrt(std^2 + epsilon), at most sqrt(2) too small, without a square."""
    return 1 / (std + jnp.sqrt(jnp.asarray(epsilon, std.dtype)))


def _deviation(residual: Array, pivot: Array, per_unit: Array) -> Array:
    """Deviation from the pivot, times per_unit: the residual, or, for x in half precision, made
    anew from x.

    The deviation of a float16 or bfloat16 x is float32 and would take twice x's memory.
    """
    if residual.dtype == pivot.dtype:
        return residual
    return (residual.astype(pivot.dtype) - pivot) * per_unit.astype(pivot.dtype)


def _from_pivot(
    pivot: Array, empty: Array, residual: Array, old_pivot: Array, per_unit: Array
) -> tuple[Array, Array]:
    """Take the residual from another pivot where nothing has weight, so that the old one is 0."""
    if residual.dtype == pivot.dtype:
        residual = jnp.where(empty, residual - pivot * per_unit.astype(pivot.dtype), residual)
    return residual, jnp.where(empty, pivot, old_pivot)


# Under `checkpoint` what is kept for the backward pass are the arguments, which are there anyway.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _within(residual: Array, pivot: Array, per_unit: Array, rstd: Array) -> Array:
    """Put the pivot in place of what is so far off, or NaN, that y is not finite.

    y is computed where x is masked, too, and the gradient of the vectors would be NaN.
    """
    deviation = _deviation(residual, pivot, per_unit)
    within = jnp.isfinite(deviation * (rstd / per_unit).astype(pivot.dtype))
    nearby = 0 if residual.dtype == pivot.dtype else pivot.astype(residual.dtype)
    return jnp.where(within, residual, nearby)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _scale_and_shift(residual: Array, pivot: Array, per_unit: Array, a: Array, b: Array) -> Array:
    return _deviation(residual, pivot, per_unit) * a + b


# ---- The batch and its derivative ----------------------------------------------------------------


class _Values(NamedTuple):
    """A batch centered. residual, pivot, per_unit, share are this device's, the rest of all.

    The mean of all is shared + remainder. `share` is what one unit of this device's weights has
    of the total weight: 1 / n where all weigh 1.
    """

    residual: Array
    pivot: Array
    per_unit: Array
    shared: Array
    remainder: Array
    near_rstd: Array
    relative_var: Array
    var: Array
    count: Array
    effective_count: Array | None
    share: Array


def _values(
    x: Array,
    weights: Array | None,
    unit: Array | None,
    epsilon: Array,
    guess: Array | None,
    axes: tuple[int, ...],
    pool: Pool | None,
) -> _Values:
    """Center a batch, by weights that are given in units of `unit` and are not above 2."""
    each = functools.partial(_of_parts, axes=axes, pool=pool)
    if pool is None or not _is_pivot_of_all(guess, x, weights, epsilon, pool):
        return each(x, weights, unit, epsilon, guess)
    return jax.lax.platform_dependent(
        x,
        weights,
        unit,
        epsilon,
        guess,
        tpu=functools.partial(_of_all, axes=axes, pool=pool),
        default=each,
    )


def _of_parts(
    x: Array,
    weights: Array | None,
    unit: Array | None,
    epsilon: Array,
    guess: Array | None,
    axes: tuple[int, ...],
    pool: Pool | None,
    local: "Callable[..., _Part] | None" = None,
) -> _Values:
    """Center each device's part about a pivot of its own, and merge what they know."""
    n = _count(weights, x, axes)
    part = (local or _local)(x, weights, n, epsilon, guess, axes)
    n = like(n, part.std)
    unit = jnp.asarray(1, n.dtype) if unit is None else like(unit, n)
    count, effective = finite(n * unit), None
    if weights is not None and weights.dtype != jnp.bool_:
        squares = like(_count(jnp.square(weights), x, axes), n)
        effective = n * n / jnp.where(_has(squares), squares, 1)
    if pool is None:
        whole = Pooled(part.pivot, part.remainder, part.std, part.var, unit, n, effective)
    else:
        parts = part.pivot, part.remainder, part.std, count, effective
        whole = pooled(pool, *parts, equal=weights is None)
    residual, pivot = part.residual, part.pivot
    if pool is not None and weights is not None:  # y is computed where all is masked, too.
        residual, pivot = _from_pivot(whole.pivot, ~_has(n), residual, pivot, part.per_unit)
    rstd = _near_rstd(whole.std, epsilon)
    total = whole.relative_count
    if weights is not None:
        total = jnp.where(_has(total), total, 1)
    return _Values(
        residual=residual,
        pivot=pivot,
        per_unit=part.per_unit,
        shared=whole.pivot,
        remainder=whole.remainder,
        near_rstd=rstd,
        relative_var=jnp.square(whole.std * rstd),
        var=whole.var,
        count=count if pool is None else whole.total,
        effective_count=whole.effective_count,
        share=unit / whole.count_unit / total,
    )


def _is_pivot_of_all(
    guess: Array | None, x: Array, weights: Array | None, epsilon: Array, pool: Pool
) -> bool:
    """Tell whether all devices should have the same guess, and will all branch, or none.

    Else those that branch might wait for others that do not.
    """
    if guess is None or pool.group_of is not None or pool.size > CHECKSUM_LIMIT:
        return False
    if weights is not None and weights.dtype != jnp.bool_:  # In a unit of each device's own.
        return False
    names = frozenset(pool.names)
    of_mask = frozenset() if weights is None else varying_axes(weights)
    uniform = not varying_axes(guess) | varying_axes(epsilon)
    return uniform and varying_axes(x) == names and of_mask <= names


def _of_all(
    x: Array,
    weights: Array | None,
    unit: Array | None,
    epsilon: Array,
    guess: Array,
    axes: tuple[int, ...],
    pool: Pool,
) -> _Values:
    """Take sums over all devices about a guess that they share: one collective of O(C).

    And again, part by part, if any feature would lose precision by it, or if the guesses differ:
    copies of a state may, whatever their type says. All devices do, or none.
    """
    pivot = _guessed_pivot(guess, x, axes)
    weighed = _weigh(x.astype(pivot.dtype) - pivot, weights)
    sums = [jnp.sum(v, axes, keepdims=True) for v in (weighed, _product(weighed, weighed))]
    n = like(_count(weights, x, axes), sums[1].real)
    sums += [] if weights is None else [n]
    stacked = jnp.stack([v.astype(pivot.dtype) for v in sums])
    digits = _digits(pivot, pool.size).astype(pivot.dtype)
    total = pool.sum(jnp.concatenate([stacked.reshape(-1), digits, digits * digits]))
    total, of_digits = jnp.split(total, [stacked.size])
    first, second, *counted = total.reshape(stacked.shape)
    count = counted[0].real if counted else n * pool.size
    if weights is not None:  # After the sums, as in `_about_guess`.
        pivot = jnp.where(_has(count), pivot, 0)
    some = jnp.where(_has(count), count, 1)
    mean = first / some.astype(first.dtype)
    var = jnp.maximum(second.real / some - abs_squared(mean), 0)
    rstd = _near_rstd(jnp.sqrt(var), epsilon)
    vectors = _Values(
        residual=x,
        pivot=varying_like(pivot, x),
        per_unit=varying_like(jnp.ones_like(pivot.real), x),
        shared=pivot,
        remainder=mean,
        near_rstd=rstd,
        relative_var=jnp.square(jnp.sqrt(var) * rstd),
        var=var,
        count=count,
        effective_count=None,
        share=1 / some,
    )[1:]

    def again(x: Array) -> tuple[Array | None, ...]:
        return _of_parts(x, weights, unit, epsilon, None, axes, pool, _about_guess)[1:]

    # Of the branches only vectors come back, so that x is not kept for them.
    exact = jnp.all(_is_exact(mean, var, epsilon)) & _all_equal(of_digits.real, pool.size)
    pivot, per_unit, *others = jax.lax.cond(_unvmap_any(~exact), again, lambda _: vectors, x)
    return _Values(_residual(x, pivot, per_unit), pivot, per_unit, *others)


def _digits(pivot: Array, devices: int) -> Array:
    """Make a checksum of a pivot, of 32 bits, in digits so small that `_all_equal` is exact."""
    power = math.ceil(math.log2(devices))
    size = min(16 - power, (24 - power) // 2)
    parts = [pivot.real, pivot.imag] if jnp.iscomplexobj(pivot) else [pivot]
    bits = jax.lax.bitcast_convert_type(jnp.stack(parts), jnp.uint32).reshape(-1)
    factors = np.random.default_rng(0).integers(2**32, size=bits.size, dtype=np.uint32) | 1
    checksum = jnp.sum(bits * factors, dtype=jnp.uint32)
    shifts = np.arange(0, 32, size, dtype=np.uint32)
    return (checksum >> shifts) & np.uint32(2**size - 1)


def _all_equal(sums: Array, devices: int) -> Array:
    """Tell by the sums of digits and of their squares whether all devices have the same ones.

    D sum(d^2) >= sum(d)^2, and they are equal only where all d are (Cauchy, Schwarz).
    """
    digits, squares = jnp.split(sums.astype(jnp.uint32), 2)
    return jnp.all(squares * np.uint32(devices) == digits * digits)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _with_derivative(
    x: Array, weights: Array | None, values: _Values, axes: tuple[int, ...], pool: Pool | None
) -> _Values:
    """Return the values, with a derivative by x and weights.

    It is that of the moments themselves, written about the pivot. Its transpose is the closed form
    dx = dy c1 + deviation c2 + c3 of the paper's section 3, so reverse mode keeps one array and
    vectors, and forward mode and second order come from the same few lines. Of the pivot, the
    units, and whatever is made of them alone, there is none.
    """
    return values


@functools.partial(_with_derivative.defjvp, symbolic_zeros=True)
def _derivative(axes, pool, primals, tangents):
    x, weights, _ = primals
    dx, dweights, dout = tangents  # All of dout is a symbolic zero.
    out = _with_derivative(*primals, axes, pool)
    dx = jnp.zeros_like(x) if isinstance(dx, SymbolicZero) else dx
    dweights = None if isinstance(dweights, SymbolicZero) else dweights
    mean = out.remainder if pool is None else (out.shared - out.pivot) + out.remainder
    sums = jax.checkpoint(_tangent_sums, prevent_cse=False, static_argnums=4)(
        dx, dweights, out._replace(remainder=mean), weights, axes
    )
    if pool is not None:
        sums = list(pool.sum(jnp.stack(sums)))
    dvar = sums[1].real * finite(jnp.square(1 / out.near_rstd))
    if out.residual.dtype == out.pivot.dtype:
        dx = dx * out.per_unit.astype(dx.dtype)
    dout = dout._replace(residual=dx, remainder=sums[0], relative_var=sums[1].real, var=dvar)
    if dweights is not None:
        grown, effective = sums[2].real, out.effective_count
        dout = dout._replace(
            count=out.count * grown,
            effective_count=2 * effective * (grown - effective * sums[3].real),
            share=-out.share * grown,
        )
    return out, dout


def _tangent_sums(
    dx: Array, dweights: Array | None, out: _Values, weights: Array | None, axes: tuple[int, ...]
) -> list[Array]:
    """Compute d mean and d relative_var as this device's part of the sums over all.

    d mean = sum(w dx) / n, d var = 2 sum(w dx (deviation - mean)) / n, with the mean taken out of
    the sum: its factor is a vector. Where weights are differentiated, d n / n and
    sum(w dw) / n^2 as well.
    """
    dtype = out.pivot.dtype
    per_unit, share = out.per_unit.astype(dtype), out.share.astype(dtype)
    unit, rate = (1 / out.per_unit).astype(dtype), (out.near_rstd / out.per_unit).astype(dtype)
    dx, mean = dx.astype(dtype) * per_unit, out.remainder * per_unit
    deviation = _deviation(out.residual, out.pivot, out.per_unit)
    wdx, weighed = dx, deviation
    if weights is not None:
        wdx, weighed = _weigh(dx, weights), jnp.where(_has(weights), deviation, 0)
    total = jnp.sum(wdx, axes, keepdims=True)
    products = jnp.sum(_product(weighed, wdx), axes, keepdims=True) - _product(mean, total)
    sums = [total * unit * share, 2 * (products * rate.real * share.real) * rate.real]
    if dweights is not None and weights is not None:
        dw, w = (jnp.broadcast_to(v, deviation.shape) for v in (dweights, weights))
        centered = jnp.where(jnp.isfinite(deviation), deviation, 0) - mean
        # Finite: what is masked may be so far off that 0 times its square would be NaN.
        spread = finite(abs_squared(centered * rate)) - out.relative_var
        first = jnp.sum(dw.astype(dtype) * centered, axes, keepdims=True)
        sums[0] += first * unit * share
        of_weights = [jnp.sum(v, axes, keepdims=True) for v in (dw * spread, dw, dw * w)]
        second, grown, squares = (v.astype(dtype) * share for v in of_weights)
        sums[1] += second
        sums += [grown, squares * share]
    return [s.astype(dtype) for s in sums]


# ---- Sums over this device's part ----------------------------------------------------------------


class _Part(NamedTuple):
    """Moments of this device's part, about its pivot, and the residual, see `_deviation`."""

    residual: Array
    pivot: Array
    per_unit: Array
    remainder: Array
    std: Array
    var: Array


def _local(
    x: Array,
    weights: Array | None,
    n: Array,
    epsilon: Array,
    guess: Array | None,
    axes: tuple[int, ...],
) -> _Part:
    """Compute the moments of this device's part, of n values or of weights whose sum is n.

    Three ways to read x once, since what is cheap differs:
    - CPU: sums about 0. XLA runs reductions of x itself as library kernels, 2 to 3 times as fast,
      but writes `x - pivot` to memory first. A branch on data is free.
    - TPU: sums about the guess. XLA computes them inside the convolution that makes x, as long as
      the pivot does not come from x. A branch is free.
    - GPU: sums about a median of a few rows of x. There a branch waits for the host, which takes
      longer than a second pass.
    """
    return jax.lax.platform_dependent(
        x,
        weights,
        n,
        epsilon,
        guess,
        cpu=functools.partial(_about_zero, axes=axes),
        tpu=functools.partial(_about_guess, axes=axes),
        default=functools.partial(_about_sample, axes=axes),
    )


def _pivot_and_unit(
    x: Array, weights: Array | None, n: Array, epsilon: Array, axes: tuple[int, ...]
) -> tuple[Array, Array | None]:
    """Take the mean for a pivot, and a unit in which no square overflows, None for 1."""
    wide = x.astype(wide_dtype(x.dtype))
    # Divided first, for the sum may overflow where the mean does not.
    part = 1 / n if weights is None else _inverse(n)
    mean = jnp.sum(_weigh(wide, weights) * part.astype(wide.dtype), axes, keepdims=True)
    unit = _unit(wide, weights, epsilon, axes) if _may_overflow(x) else None
    return _as_pivot(mean), unit


# Traced once for all the ways that fall back to it.
@functools.partial(jax.jit, static_argnames="axes", inline=True)
def _about_mean(
    x: Array, weights: Array | None, n: Array, epsilon: Array, axes: tuple[int, ...]
) -> _Part:
    """Take sums about the mean: two passes over x."""
    return _about(*_pivot_and_unit(x, weights, n, epsilon, axes), x, weights, n, axes)


def _about_zero(
    x: Array,
    weights: Array | None,
    n: Array,
    epsilon: Array,
    guess: Array | None,
    axes: tuple[int, ...],
) -> _Part:
    """Take sums about 0, and again about the mean if any feature would lose precision by it."""
    wide = x.astype(wide_dtype(x.dtype))
    mean, var = _mean_and_var(wide, weights, n, axes)
    in_range, calm = _trust(mean, var, epsilon)

    def in_range_again(x: Array) -> tuple[Array, Array | None]:
        return _pivot_and_unit(x, weights, n, epsilon, axes)

    def about_mean(x: Array, *_: Array) -> _Part:
        pivot, unit = _as_pivot(mean), None
        if _may_overflow(x):  # Of these branches only vectors come back: XLA would copy an array.
            shifts = _unvmap_any(jnp.any(~in_range))
            plain = pivot, jnp.ones_like(var)
            pivot, unit = jax.lax.cond(shifts, in_range_again, lambda _: plain, x)
        return _about(pivot, unit, x, weights, n, axes)

    # The other branch returns its arguments: for anything else XLA would copy x in it.
    about_zero = _Part(x, jnp.zeros_like(mean), jnp.ones_like(var), mean, jnp.sqrt(var), var)
    shifts = _unvmap_any(jnp.any(~(calm & in_range)))
    return jax.lax.cond(shifts, about_mean, lambda *part: _Part(*part), *about_zero)


def _about_guess(
    x: Array,
    weights: Array | None,
    n: Array,
    epsilon: Array,
    guess: Array | None,
    axes: tuple[int, ...],
) -> _Part:
    """Take sums about a guess, and again about the mean if any feature would lose precision by it.

    Of the branches only vectors come back, so that x is not kept for them.
    """
    if guess is None:
        return _about_mean(x, weights, n, epsilon, axes=axes)
    pivot = _guessed_pivot(guess, x, axes)
    near = _about(pivot, None, x, weights, n, axes)
    if weights is not None:  # After the sums, so that devices add them up together with n.
        near = near._replace(pivot=jnp.where(_has(n), pivot, 0))
    exact = _is_exact(near.remainder, near.var, epsilon)

    def again(x: Array) -> Array:
        return _stacked(_about_mean(x, weights, n, epsilon, axes=axes)[1:])

    def not_needed(x: Array) -> Array:
        vectors = _stacked(near[1:])
        return varying_like(jnp.zeros_like(vectors), vectors)

    # One array out of the branches, and what is there already chosen after them: on a TPU each
    # array that comes out of a branch is a kernel.
    shifts = _unvmap_any(jnp.any(~exact))
    others = jax.lax.cond(shifts, again, not_needed, x)
    pivot, per_unit, remainder, std, var = (
        jnp.where(shifts, other if jnp.iscomplexobj(vector) else other.real, vector)
        for other, vector in zip(others, near[1:], strict=True)
    )
    return _Part(_residual(x, pivot, per_unit), pivot, per_unit, remainder, std, var)


def _stacked(vectors: tuple[Array, ...]) -> Array:
    return jnp.stack([v.astype(vectors[0].dtype) for v in vectors])


def _guessed_pivot(guess: Array, x: Array, axes: tuple[int, ...]) -> Array:
    guess = guess.astype(wide_dtype(x.dtype))
    return like_reduced(_as_pivot(jnp.where(jnp.isfinite(guess), guess, 0)), x, axes)


def _residual(x: Array, pivot: Array, per_unit: Array) -> Array:
    """Make what stands for the deviation, see `_deviation`."""
    return (x - pivot) * per_unit.astype(pivot.dtype) if x.dtype == pivot.dtype else x


def _about_sample(
    x: Array,
    weights: Array | None,
    n: Array,
    epsilon: Array,
    guess: Array | None,
    axes: tuple[int, ...],
) -> _Part:
    """Take sums about Tukey's ninther, a median of nine values of each feature.

    Three outliers among the nine do not make it one. Were it one itself, at a distance d: four of
    the batch at least are as far, so d^2 / var is at most N / 4, and var is off by N / 4 roundings.

    References: Tukey, "The Ninther, a Technique for Low-Effort Robust (Resistant) Location in Large
    Samples", 1978.
    """
    sample = _sample(x, weights, axes)
    if sample is None:
        return _about_mean(x, weights, n, epsilon, axes=axes)
    three = _median(*jnp.split(sample, 3))
    pivot = _as_pivot(_median(*jnp.split(three, 3))[0])
    if weights is not None:  # What is masked may be NaN.
        pivot, sample = jnp.where(_has(n), pivot, 0), jnp.where(_has(n)[None], sample, 0)
    if not _may_overflow(x):
        return _about(pivot, None, x, weights, n, axes)
    unit = _unit(sample, None, epsilon, (0,))[0]
    # Others may be far from the nine. In this unit no square vanishes that counts beside those of
    # the nine, and none overflows up to 2^115 / N, some 1e27, times their largest deviation.
    # Where they are all equal it is as if they were sqrt(epsilon) apart.
    near = jnp.max(jnp.abs(sample - pivot[None]), 0)
    near = jnp.where(near > 0, near, jnp.sqrt(epsilon))
    size = math.prod(x.shape[a] for a in axes)
    sum_unit = power_of_two(near * (2.0**51 / math.sqrt(size)))
    return _about(pivot, unit, x, weights, n, axes, sum_unit)


# From this many values on, one read less is worth a small kernel more.
SAMPLE_FROM = 1024


def _sample(x: Array, weights: Array | None, axes: tuple[int, ...]) -> Array | None:
    """Take nine values of each feature from all over the batch, stacked.

    None if the batch is small, or its weights are not the same mask for all features: a value of
    little weight may be far from all others. By one gather, which costs one collective where x is
    sharded; a slice would cost several.
    """
    sizes = [x.shape[a] for a in axes]
    is_known = all(isinstance(size, int) for size in sizes)
    if not is_known or math.prod(sizes) < SAMPLE_FROM or is_explicitly_sharded(x, axes):
        return None
    # Spread by the golden ratio, so that they have no period in common with the batch.
    places = np.array([int((i + i * 0.618 % 1) / 9 * math.prod(sizes)) for i in range(9)])
    where = np.unravel_index(places, sizes)
    if weights is not None:
        features = [a for a in range(x.ndim) if a not in axes]
        if weights.dtype != jnp.bool_ or any(weights.shape[a] != 1 for a in features):
            return None
        where = jnp.unravel_index(_next(weights, places, sizes, features), sizes)
    index: list[Any] = [slice(None)] * x.ndim
    for axis, positions in zip(axes, where, strict=True):
        index[axis] = positions
    # NumPy's rule: the new axis stands where the old ones did, or first if they were apart.
    at = axes[0] if axes[-1] - axes[0] == len(axes) - 1 else 0
    sample = jnp.moveaxis(x[tuple(index)], at, 0).astype(wide_dtype(x.dtype))
    return jnp.expand_dims(sample, [a + 1 for a in axes])


def _next(mask: Array, places: np.ndarray, sizes: list[int], features: list[int]) -> Array:
    """Find, for each place, the next one that is not masked, or any if all are."""
    size = math.prod(sizes)
    mask = jnp.broadcast_to(jnp.squeeze(mask, features), sizes).reshape(size)
    ahead = (jnp.arange(size)[None] - places[:, None]) % size
    return (jnp.min(jnp.where(mask[None], ahead, size), 1) + places) % size


def _median(a: Array, b: Array, c: Array) -> Array:
    if jnp.iscomplexobj(a):
        parts = ([v.real for v in (a, b, c)], [v.imag for v in (a, b, c)])
        return jax.lax.complex(*(_median(*part) for part in parts))
    return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))


def _is_exact(mean: Array, var: Array, epsilon: Array) -> Array:
    """Tell whether sums about some pivot give var without cancellation, overflow or underflow."""
    in_range, calm = _trust(mean, var, epsilon)
    return in_range & calm


def _trust(mean: Array, var: Array, epsilon: Array) -> tuple[Array, Array]:
    """Tell of sums about some pivot whether squares are in range, and whether var is exact."""
    squared = abs_squared(mean)
    second = var + squared
    limits = jnp.finfo(second.dtype)
    # Where squares of x vanish nothing is known of its deviation.
    calm = squared <= WELL_CONDITIONED * var
    calm &= (second > limits.tiny * 2**24) | (mean == 0)
    # Else squares of x overflow, or vanish though epsilon is as small as they are.
    in_range = (second < limits.max**0.84) & (second + epsilon > limits.tiny**0.5)
    return in_range, calm


@jax.custom_batching.custom_vmap
def _unvmap_any(predicate: Array) -> Array:
    """Take a predicate for all of a vmapped batch at once, so that a branch on it stays one."""
    return predicate


@_unvmap_any.def_vmap
def _unvmap_any_batched(axis_size, in_batched, predicate):
    return _unvmap_any(jnp.any(predicate)), False


def _as_pivot(mean: Array) -> Array:
    """Round to three bits less than the dtype has, so that every use sees the same number.

    Else the compiler may contract x - total / n into one multiply-add, which subtracts an unrounded
    pivot; the rounded one that other devices see is then up to 4e-3 off at mean/std 1e5.
    """
    info = jnp.finfo(mean.dtype)
    bits = {"exponent_bits": info.nexp, "mantissa_bits": info.nmant - 3}
    if jnp.iscomplexobj(mean):
        parts = (jax.lax.reduce_precision(part, **bits) for part in (mean.real, mean.imag))
        return jax.lax.complex(*parts)
    return jax.lax.reduce_precision(mean, **bits)


def _may_overflow(x: Array) -> bool:
    """Tell whether squares of x, in the dtype of statistics, may overflow or vanish."""
    return jnp.finfo(x.dtype).nexp == jnp.finfo(wide_dtype(x.dtype)).nexp


def _unit(x: Array, weights: Array | None, epsilon: Array, axes: tuple[int, ...]) -> Array:
    """Choose a power of two in which squares of x are in range: 1 where they are so anyway."""
    present = jnp.abs(x) if weights is None else jnp.where(_has(weights), jnp.abs(x), 0)
    size = jnp.maximum(jnp.max(present, axes, keepdims=True), jnp.sqrt(epsilon))
    info = jnp.finfo(size.dtype)
    return power_of_two(size / jax.lax.clamp(info.tiny**0.25, size, info.max**0.25))


def power_of_two(x: Array) -> Array:
    """Round to a power of two, whose inverse is finite, too."""
    info = jnp.finfo(x.dtype)
    within = jax.lax.clamp(4 * info.tiny, x, info.max / 4)
    return jax.lax.reduce_precision(within, exponent_bits=info.nexp, mantissa_bits=0)


def _about(
    pivot: Array,
    unit: Array | None,
    x: Array,
    weights: Array | None,
    n: Array,
    axes: tuple[int, ...],
    sum_unit: Array | None = None,
) -> _Part:
    """Take the moments about a pivot, in a unit, None for 1. Sums may be in one of their own."""
    sum_unit = unit if sum_unit is None else sum_unit
    deviation = x.astype(pivot.dtype) - pivot
    per_unit = jnp.ones_like(pivot.real) if unit is None else 1 / unit
    residual = deviation if unit is None else deviation * per_unit.astype(pivot.dtype)
    summand = residual
    if sum_unit is not None and sum_unit is not unit:
        summand = deviation * (1 / sum_unit).astype(pivot.dtype)
    mean, var = _mean_and_var(summand, weights, n, axes)
    std = jnp.sqrt(var)
    if sum_unit is not None:
        mean, std = mean * sum_unit.astype(pivot.dtype), std * sum_unit
        var = finite(var * sum_unit * sum_unit)
        # In a unit above 1, less than the rounding of x is nothing: y would be of rounding alone.
        std = jnp.maximum(std, 2.0**-34 * jnp.abs(pivot) * (1 - per_unit))
    return _Part(
        residual=residual if x.dtype == pivot.dtype else x,
        pivot=pivot,
        per_unit=per_unit,
        remainder=mean,
        std=std,
        var=var,
    )


def _mean_and_var(
    x: Array, weights: Array | None, n: Array, axes: tuple[int, ...]
) -> tuple[Array, Array]:
    """Compute mean and var by sums about 0."""
    weighed = _weigh(x, weights)
    mean = _mean(weighed, weights, n, axes)
    # `where` before the product: what is masked may be NaN.
    present = x if weights is None else jnp.where(_has(weights), x, 0)
    second = _mean(_product(present, weighed), weights, n, axes)
    return mean, jnp.maximum(second - abs_squared(mean), 0)


def _mean(weighed: Array, weights: Array | None, n: Array, axes: tuple[int, ...]) -> Array:
    n = n if weights is None else jnp.where(_has(n), n, 1)
    return jnp.sum(weighed, axes, keepdims=True) / n.astype(weighed.dtype)


def _product(x: Array, y: Array) -> Array:
    """Re(conj(x) y), which is the product for real x and y."""
    return (jnp.conj(x) * y).real if jnp.iscomplexobj(x) else x * y


def _weigh(x: Array, weights: Array | None) -> Array:
    if weights is None:
        return x
    present = jnp.where(_has(weights), x, 0)
    return present if weights.dtype == jnp.bool_ else present * weights.astype(x.dtype)


def _has(weights: Array) -> Array:
    """Where a weight, or a count, is not 0; NaN is not 0 either."""
    return weights if weights.dtype == jnp.bool_ else ~(weights <= 0)


def _count(weights: Array | None, x: Array, axes: tuple[int, ...]) -> Array:
    """Total weight per feature, summed over what varies and multiplied by what does not."""
    dtype = jnp.finfo(wide_dtype(x.dtype)).dtype
    if weights is None:
        return jnp.asarray(math.prod(x.shape[a] for a in axes), dtype)
    repeated = math.prod(x.shape[a] for a in axes if weights.shape[a] == 1)
    # A float32 that counts one by one ends at 2^24. Else as floats, to share x's collective.
    many = not isinstance(x.size, int) or x.size > 2**24
    counted = jnp.int32 if many and weights.dtype == jnp.bool_ else dtype
    total = jnp.sum(weights, axes, keepdims=True, dtype=counted)
    return total.astype(dtype) * repeated


def abs_squared(x: Array) -> Array:
    """|x|^2, real."""
    return _product(x, x)


def finite(x: Array) -> Array:
    """Return the largest number of the dtype in place of infinity."""
    return jnp.minimum(x, jnp.finfo(x.dtype).max)


# ---- Parts put together --------------------------------------------------------------------------


class Pooled(NamedTuple):
    """Moments of several parts about one pivot. The total weight is count_unit * relative_count."""

    pivot: Array
    remainder: Array
    std: Array
    var: Array
    count_unit: Array
    relative_count: Array
    effective_count: Array | None

    @property
    def total(self) -> Array:
        """The total weight, at most the largest number of its dtype."""
        return finite(self.count_unit * self.relative_count)

    @property
    def moments(self) -> Moments | WeightedMoments:
        """Moments of the whole."""
        return _moments(self.pivot + self.remainder, self.var, self.total, self.effective_count)


def pooled(
    pool: Pool,
    pivot: Array,
    remainder: Array,
    std: Array,
    count: Array,
    effective_count: Array | None = None,
    *,
    equal: bool = False,
) -> Pooled:
    """Merge the parts of all devices, with the same result on each.

    `equal` says that counts are known to be the same everywhere, and need not travel;
    `effective_count` travels where weights are float.
    """
    together = _by_gather if pool.size <= GATHER_LIMIT else _by_sums
    return together(pool, pivot, remainder, std, count, effective_count, equal)


def _by_gather(pool, pivot, remainder, std, count, effective_count, equal) -> Pooled:
    parts = [pivot, remainder, std]
    parts += [] if equal else [count]
    parts += [] if effective_count is None else [effective_count]
    gathered = pool.gather(jnp.stack([part.astype(pivot.dtype) for part in parts]))
    gathered = [gathered[:, i] for i in range(len(parts))]
    pivots, remainders, stds = gathered[0], gathered[1], gathered[2].real
    counts = jnp.broadcast_to(count[None], stds.shape) if equal else gathered[3].real
    effectives = None if effective_count is None else gathered[-1].real
    members = pool.members()
    if members is not None:
        counts = jnp.where(members.reshape(-1, *(1,) * count.ndim), counts, 0)
    return merge(pivots, remainders, stds, counts, effectives, squared=False)


def _by_sums(pool, pivot, remainder, std, count, effective_count, equal) -> Pooled:
    """Two sums of O(C): a pivot that all share, near the mean of all, then moments about it."""
    real, dtype = std.dtype, pivot.dtype
    devices = 2.0 ** math.ceil(math.log2(pool.size))  # A power of two: what it divides is exact.
    has = _has(count).astype(real)
    size = jnp.abs(pivot) / devices + jnp.abs(remainder) / devices + std / devices
    near = (pivot + remainder) / devices
    rows = [has * near, has * size, has] + ([] if equal else [count / devices])
    near, size, present, *total = pool.sum(jnp.stack([row.astype(dtype) for row in rows]))
    present = jnp.maximum(present.real, 1)
    shared = _as_pivot(near * (devices / present).astype(dtype))
    unit = power_of_two(size.real * (devices / present))
    relative_count = total[0].real if total else count / devices * present
    share = (count / devices) / jnp.where(_has(relative_count), relative_count, 1)
    delta = ((pivot - shared) + remainder) / unit.astype(dtype)
    rows = [share * delta, share * (jnp.square(std / unit) + abs_squared(delta))]
    if effective_count is not None:
        rows += [share * share / jnp.where(_has(effective_count), effective_count, 1)]
    first, second, *squares = pool.sum(jnp.stack([row.astype(dtype) for row in rows]))
    var = jnp.maximum(second.real - abs_squared(first), 0)
    effective = _inverse(squares[0].real) if squares else None
    return Pooled(
        shared,
        first * unit.astype(dtype),
        root(var) * unit,
        finite(var * unit * unit),
        jnp.full_like(relative_count, devices),
        relative_count,
        effective,
    )


def merge(
    pivot: Array,
    remainder: Array,
    spread: Array,
    count: Array,
    effective_count: Array | None,
    *,
    squared: bool,
) -> Pooled:
    """Pool parts, stacked along the first axis, about the pivot of the first that is not empty.

    `spread` is their standard deviation, or, if `squared`, their variance, by which the result can
    be differentiated but which may be more than the dtype holds.
    """
    has = _has(count)
    size = jnp.abs(pivot) + jnp.abs(remainder) + (jnp.sqrt(spread) if squared else spread)
    # In which squares are taken; its own inverse square is finite, for 0 times it is to be 0.
    largest = jnp.maximum(jnp.max(jnp.where(has, size, 0), 0), jnp.finfo(spread.dtype).tiny ** 0.5)
    unit = jax.lax.stop_gradient(power_of_two(largest))
    var = spread / unit[None] / unit[None] if squared else jnp.square(spread / unit[None])
    wide = unit.astype(pivot.dtype)
    pivot, remainder = (jnp.where(has, v, 0) / wide[None] for v in (pivot, remainder))
    shared = _first(pivot, has)
    delta = jnp.where(has, (pivot - shared[None]) + remainder, 0)

    largest = jnp.max(count, axis=0)
    count_unit = jax.lax.stop_gradient(jnp.where(_has(largest), power_of_two(largest), 1))
    relative = jnp.where(has, count / count_unit[None], 0)
    total = jnp.sum(relative, axis=0)
    share = relative / jnp.where(_has(total), total, 1)[None]
    if effective_count is not None:
        squares = jnp.sum(share * share / jnp.where(has, effective_count, 1), axis=0)
        effective_count = _inverse(squares)

    mean = jnp.sum(share.astype(delta.dtype) * delta, axis=0)
    squares = jnp.where(has, var, 0) + abs_squared(delta - mean[None])
    merged = jnp.sum(share * squares, axis=0)
    return Pooled(
        shared * wide,
        mean * wide,
        root(merged) * unit,
        finite(merged * unit * unit),
        count_unit,
        total,
        effective_count,
    )


def _first(parts: Array, has: Array) -> Array:
    """Take each feature from the first part that is not empty, and 0 if all are."""
    earlier = jnp.cumsum(has.astype(jnp.int32), axis=0)
    return jnp.sum(jnp.where(has & (earlier == 1), parts, 0), axis=0)


def _moments(
    mean: Array, var: Array, count: Array, effective_count: Array | None
) -> Moments | WeightedMoments:
    if effective_count is None:
        return Moments(mean, var, count)
    return WeightedMoments(mean, var, count, effective_count)


def _inverse(x: Array) -> Array:
    """Compute 1 / x, and 0 where x is 0."""
    return jnp.where(_has(x), 1 / jnp.where(_has(x), x, 1), 0)


def root(x: Array) -> Array:
    """Compute the square root, with derivative 0 where x is 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)
