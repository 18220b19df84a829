"""The derivative of a centered batch."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from jbn._center._arithmetic import abs_squared, finite, is_nonzero, product, weigh
from jbn._center._residual import deviation_of
from jbn._center._values import Values
from jbn._collectives import Pool


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def with_derivative(
    x: Array, weights: Array | None, values: Values, axes: tuple[int, ...], pool: Pool | None
) -> Values:
    """Return the values, with a derivative with respect to x and weights.

    It is the derivative of the moments, written about the pivot. Its transpose is the closed form
    dx = dy c1 + deviation c2 + c3 of the paper's section 3, so reverse mode keeps one array and
    vectors, and the same few lines give forward mode and second derivatives. The pivot, the units,
    and whatever is computed from them alone have no derivative.
    """
    return values


@functools.partial(with_derivative.defjvp, symbolic_zeros=True)
def _derivative(axes, pool, primals, tangents):
    x, weights, _ = primals
    dx, dweights, dout = tangents  # All of dout is a symbolic zero.
    out = with_derivative(*primals, axes, pool)
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
    dx: Array, dweights: Array | None, out: Values, weights: Array | None, axes: tuple[int, ...]
) -> list[Array]:
    """Compute this device's part of d mean and d relative_var, which are sums over all devices.

    d mean = sum(w dx) / n, d var = 2 sum(w dx (deviation - mean)) / n, with the mean taken out of
    the sum, since its factor is a vector. If weights are differentiated, also d n / n and
    sum(w dw) / n^2.
    """
    dtype = out.pivot.dtype
    per_unit, share = out.per_unit.astype(dtype), out.share.astype(dtype)
    unit, rate = (1 / out.per_unit).astype(dtype), (out.near_rstd / out.per_unit).astype(dtype)
    dx, mean = dx.astype(dtype) * per_unit, out.remainder * per_unit
    deviation = deviation_of(out.residual, out.pivot, out.per_unit)
    wdx, weighed = dx, deviation
    if weights is not None:
        wdx, weighed = weigh(dx, weights), jnp.where(is_nonzero(weights), deviation, 0)
    total = jnp.sum(wdx, axes, keepdims=True)
    products = jnp.sum(product(weighed, wdx), axes, keepdims=True) - product(mean, total)
    sums = [total * unit * share, 2 * (products * rate.real * share.real) * rate.real]
    if dweights is not None and weights is not None:
        dw, w = (jnp.broadcast_to(v, deviation.shape) for v in (dweights, weights))
        centered = jnp.where(jnp.isfinite(deviation), deviation, 0) - mean
        # Finite: a masked value may be so far off that 0 times its square would be NaN.
        spread = finite(abs_squared(centered * rate)) - out.relative_var
        first = jnp.sum(dw.astype(dtype) * centered, axes, keepdims=True)
        sums[0] += first * unit * share
        of_weights = [jnp.sum(v, axes, keepdims=True) for v in (dw * spread, dw, dw * w)]
        second, grown, squares = (v.astype(dtype) * share for v in of_weights)
        sums[1] += second
        sums += [grown, squares * share]
    return [s.astype(dtype) for s in sums]
