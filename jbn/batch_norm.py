"""init, batch_norm, normalize: the operation itself.

Everything that needs care with rounding or devices is in `centre`; here y = deviation * a + b, with
a = scale / sqrt(var + epsilon) and b = bias - remainder * a, vectors of length C.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Inexact

from jbn._center import wide_dtype
from jbn._schedules import Schedule
from jbn.collectives import AxisName
from jbn.moments import as_inexact, centre_features, feature_axes, to_features
from jbn.running import check_momentum, update
from jbn.types import BatchNormParams, BatchNormState, Moments


def init(
    num_features: int | Sequence[int],
    *,
    use_scale: bool = True,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> tuple[BatchNormParams, BatchNormState]:
    """Make the parameters and running statistics of one layer: scale 1, bias 0; mean 0, var 1.

    Args:
      num_features: C, or one size per feature axis, in the order of x's axes.
      use_scale: have a scale (gamma); else it is None.
      use_bias: have a bias (beta); else it is None.
      param_dtype: dtype of scale and bias. Statistics are float32 at least; complex parameters
        come with a complex mean.

    Returns:
      `(params, state)`: arrays of shape `(C,)`, and count 0 of shape `()` int32.

    Raises:
      TypeError: num_features not an int or ints; param_dtype neither floating nor complex.
      ValueError: num_features not positive.

    Example:
      >>> import jbn
      >>> params, state = jbn.init(64)
      >>> params.scale.shape, state.mean.shape, int(state.count)
      ((64,), (64,), 0)
    """
    shape = tuple(num_features) if isinstance(num_features, Sequence) else (num_features,)
    for size in shape:
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            raise TypeError(
                f"Expected `num_features` to be an int or a tuple of ints, got {num_features!r}. "
                "Pass the length of x's feature axis: x.shape[-1]."
            )
    if not shape or min(shape) < 1:
        raise ValueError(
            f"Expected `num_features` to be positive, got {num_features!r}. "
            "Pass the length of x's feature axis: x.shape[-1]."
        )
    if not jnp.issubdtype(param_dtype, jnp.inexact):
        raise TypeError(
            f"Expected a floating or complex `param_dtype`, got {param_dtype}. "
            "The usual one is jnp.float32."
        )
    stats_dtype = jnp.promote_types(param_dtype, jnp.float32)
    params = BatchNormParams(
        scale=jnp.ones(shape, param_dtype) if use_scale else None,
        bias=jnp.zeros(shape, param_dtype) if use_bias else None,
    )
    state = BatchNormState(
        mean=jnp.zeros(shape, stats_dtype),
        var=jnp.ones(shape, jnp.finfo(stats_dtype).dtype),
        count=jnp.zeros((), jnp.int32),
    )
    return params, state


def batch_norm(
    x: Inexact[ArrayLike, "..."],
    params: BatchNormParams,
    state: BatchNormState,
    *,
    training: bool,
    axis: int | Sequence[int] = -1,
    momentum: ArrayLike | Schedule = 0.99,
    epsilon: ArrayLike = 1e-5,
    unbiased: bool = True,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> tuple[Array, BatchNormState]:
    """Normalise x per feature, by the batch in training and by running statistics otherwise.

    y = scale * (x - mean) / sqrt(var + epsilon) + bias. In training, mean and biased var are those
    of the batch, over all mapped devices of `axis_name`, and the state moves towards them (see
    `update`). They are computed about a pivot and never cancel: the error of y stays near 1e-6 in
    float32 up to mean/std 1e5. Gradients pass through the statistics, in closed form.

    Args:
      x: the batch, floating or complex, any rank.
      params: scale and bias, `(C,)`, or None for either.
      state: running statistics, `(C,)`.
      training: static; False returns the state as it came and ignores mask and axis_name.
      axis: feature axis or axes; all others are reduced.
      momentum: weight of the *old* statistics, or a schedule of it (see `update`). May be traced.
      epsilon: added to var, positive. May be traced.
      unbiased: running var takes Bessel's factor n / (n - 1), as in the paper.
      mask: bool, or non-negative float weights, broadcastable to x: what is masked counts for
        nothing in statistics and state; y is still computed there. With no weight left, y uses the
        running statistics and the state comes back unchanged.
      axis_name: name, or tuple of names, of mapped axes (pmap, shard_map, vmap) to pool over. In
        jit over sharded arrays the batch is already global: leave it None.
      axis_index_groups: partition of the indices along `axis_name`; pools within each group. On
        more than 64 devices a 2-D mesh, with the name of one axis, sends less.

    Returns:
      `(y, state)`: y of x's shape and dtype, state of the shapes and dtypes it came with.

    Raises:
      TypeError: integer x; complex x with real statistics; a mask neither boolean nor floating.
      ValueError: features that do not fit params or state; one value per feature in training, where
        the variance would be 0; empty batch; mask, axis, momentum, epsilon or names out of range.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> params, state = jbn.init(2)
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> y, state = jbn.batch_norm(x, params, state, training=True)
      >>> [[round(float(v), 3) for v in row] for row in y]
      [[-1.0, -1.0], [1.0, 1.0]]

    References: Ioffe, Szegedy, "Batch Normalization", 2015, Algorithms 1 and 2, section 3.
    """
    x = as_inexact(x)
    features = feature_axes(axis, x.ndim)
    check_features(x, features, params, state.mean, state.var)
    check_epsilon(epsilon)
    if not callable(momentum):
        check_momentum(momentum)
    if not isinstance(training, bool):
        raise TypeError(
            f"Expected `training` to be True or False, got {training!r}. It decides what is "
            "compiled: pass it to jax.jit as a static argument."
        )
    if not training:
        y = normalize(x, state.mean, state.var, params, axis=axis, epsilon=epsilon)
        return y, state
    values = x.size // math.prod(x.shape[a] for a in features) if x.size else 0
    if values == 1 and mask is None and axis_name is None:
        raise ValueError(
            f"Expected more than one value per feature in training, got x.shape={x.shape} with "
            f"feature axis {axis}: the batch variance is 0 and y would be the bias alone. Use a "
            "larger batch, pool devices with axis_name, or normalise with training=False."
        )

    centred = centre_features(x, features, mask, axis_name, axis_index_groups)
    remainder, var = centred.remainder, centred.moments.var
    if mask is not None:  # Without any weight, the running statistics stand in.
        has = centred.moments.count > 0
        shape = centred.pivot.shape
        remainder = jnp.where(has, remainder, state.mean.reshape(shape) - centred.pivot)
        var = jnp.where(has, var, state.var.reshape(shape))
    y = centred.scale_and_shift(*factors(remainder, var, params, epsilon))
    batch = Moments(*(to_features(v, features) for v in centred.moments))
    return y.astype(x.dtype), update(state, batch, momentum=momentum, unbiased=unbiased)


def normalize(
    x: Inexact[ArrayLike, "..."],
    mean: Inexact[ArrayLike, "*C"],
    var: Float[ArrayLike, "*C"],
    params: BatchNormParams | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: ArrayLike = 1e-5,
) -> Array:
    """Normalise x by given statistics: y = scale * (x - mean) / sqrt(var + epsilon) + bias.

    Args:
      x: floating or complex, any rank.
      mean, var: statistics, `(C,)`.
      params: scale and bias, `(C,)`; None, or None for either, leaves them out.
      axis: feature axis or axes.
      epsilon: added to var, positive. May be traced.

    Returns: y, of x's shape and dtype; computed in float32 at least.
    Raises: TypeError: integer x. ValueError: shapes that do not fit; epsilon not positive.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> y = jbn.normalize(jnp.array([[3.0]]), jnp.array([1.0]), jnp.array([4.0]), epsilon=1e-9)
      >>> float(y[0, 0])
      1.0

    References: Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 2, line 11.
    """
    x = as_inexact(x)
    features = feature_axes(axis, x.ndim)
    params = BatchNormParams(None, None) if params is None else params
    mean, var = jnp.asarray(mean), jnp.asarray(var)
    check_features(x, features, params, mean, var)
    check_epsilon(epsilon)
    shape = [x.shape[a] if a in features else 1 for a in range(x.ndim)]
    deviation = x.astype(wide_dtype(x)) - mean.reshape(shape).astype(wide_dtype(x))
    a, b = factors(
        jnp.zeros_like(deviation, shape=(1,) * x.ndim), var.reshape(shape), params, epsilon
    )
    return (deviation * a + b).astype(x.dtype)


def factors(
    remainder: Array, var: Array, params: BatchNormParams, epsilon: ArrayLike
) -> tuple[Array, Array]:
    """Compute a and b of y = deviation * a + b."""
    dtype = remainder.dtype
    real = jnp.finfo(dtype).dtype
    a = jax.lax.rsqrt(var.astype(real) + jnp.asarray(epsilon, real)).astype(dtype)
    if params.scale is not None:
        a = a * params.scale.reshape(var.shape).astype(dtype)
    b = -remainder * a
    if params.bias is not None:
        b = b + params.bias.reshape(var.shape).astype(dtype)
    return a, b


def check_features(
    x: Array, features: tuple[int, ...], params: BatchNormParams, mean: Array, var: Array
) -> None:
    expected = tuple(x.shape[a] for a in features)
    given = {"scale": params.scale, "bias": params.bias, "mean": mean, "var": var}
    for name, value in given.items():
        if value is not None and jnp.shape(value) != expected:
            raise ValueError(
                f"Expected `{name}` of shape {expected} for x.shape={x.shape} with feature axes "
                f"{features}, got {jnp.shape(value)}. Check `axis`, or make params and state with "
                f"jbn.init({expected[0] if len(expected) == 1 else expected})."
            )
    if jnp.iscomplexobj(mean) != jnp.iscomplexobj(x):
        raise TypeError(
            f"Expected a mean complex if x is and real if not, got {mean.dtype} for x of {x.dtype}."
            " Make the state with jbn.init(..., param_dtype=x.dtype)."
        )
    if any(jnp.iscomplexobj(p) for p in params) and not jnp.iscomplexobj(x):
        raise TypeError(
            f"Expected real scale and bias for x of {x.dtype}, got complex ones: y could not have "
            "x's dtype. Make them with jbn.init(..., param_dtype=x.dtype)."
        )


def check_epsilon(epsilon: ArrayLike) -> None:
    """Reject an epsilon that is not positive, where its value is known at trace time."""
    if isinstance(epsilon, Real) and not epsilon > 0:
        raise ValueError(f"Expected a positive `epsilon`, got {epsilon}. The usual one is 1e-5.")
