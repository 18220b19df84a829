"""The norms that batch normalization is compared with: layer, group, instance and weight norm.

Statistics come from `_center`, so these norms are as precise as `batch_norm`: in float32, the error
of y stays near 1e-6 up to mean/std 1e5.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact

from jbn._arguments import as_scalar, check_epsilon, check_params, check_size
from jbn._axes import along_features, as_inexact, feature_axes
from jbn._center import Centered, abs_squared, center
from jbn._dtypes import wide_dtype
from jbn._inputs import as_array
from jbn._moments import moments
from jbn._types import BatchNormParams


def layer_norm(
    x: Inexact[ArrayLike, "..."],
    params: BatchNormParams | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: ArrayLike = 1e-5,
) -> Array:
    """Normalize over the feature axes, separately at every other position.

    y = scale * (x - mean) / sqrt(var + epsilon) + bias, with mean and biased var over `axis`. There
    are no running statistics: training and inference are the same, at any batch size.

    Args:
      x: floating or complex, any rank.
      params: scale and bias of x's shape along `axis`; None, or None for either, omits them.
      axis: axes to normalize over: -1 for the features of one token, (1, 2, 3) for a whole image.
      epsilon: added to var, positive. May be traced.

    Returns:
      y, of x's shape and dtype; computed in at least float32.

    Raises:
      TypeError: integer x.
      ValueError: fewer than two values along `axis`; params of another shape; epsilon not positive.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> y = jbn.layer_norm(jnp.array([[1.0, 3.0], [10.0, 30.0]]))
      >>> [[round(float(v), 3) for v in row] for row in y]
      [[-1.0, 1.0], [-1.0, 1.0]]

    References:
      Ba, Kiros, Hinton, "Layer Normalization", 2016, section 3.
    """
    x = as_inexact(x)
    over = feature_axes(axis, x.ndim)
    kept = tuple(a for a in range(x.ndim) if a not in over)
    return _standardize(x, x.shape, kept, params, over, epsilon)


def group_norm(
    x: Inexact[ArrayLike, "N ..."],
    params: BatchNormParams | None = None,
    *,
    groups: int,
    axis: int = -1,
    epsilon: ArrayLike = 1e-5,
) -> Array:
    """Normalize each example over its positions and over each group of consecutive features.

    With groups=1 this is layer norm over a whole example, with groups=C instance norm.

    Args:
      x: floating or complex, examples along the first axis.
      params: scale and bias, `(C,)`; None, or None for either, omits them.
      groups: number of groups, a divisor of C.
      axis: the feature axis, not the first.
      epsilon: added to var, positive. May be traced.

    Returns:
      y, of x's shape and dtype; computed in at least float32.

    Raises:
      TypeError: integer x.
      ValueError: groups that do not divide C; fewer than two values per example and group; params
        of another shape; epsilon not positive.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> y = jbn.group_norm(jnp.array([[1.0, 3.0, 10.0, 30.0]]), groups=2)
      >>> [round(float(v), 3) for v in y[0]]
      [-1.0, 1.0, -1.0, 1.0]

    References:
      Wu, He, "Group Normalization", 2018, section 3.1.
    """
    x = as_inexact(x)
    feature = one_feature_axis(x, axis)
    if feature == 0:
        raise ValueError(
            f"Expected examples along the first axis, got the feature axis {axis}, which is the "
            "first. Move it: jnp.moveaxis(x, 0, -1)."
        )
    groups, width = split_features(x.shape[feature], groups)
    split = (*x.shape[:feature], groups, width, *x.shape[feature + 1 :])
    return _standardize(x, split, (0, feature), params, (feature,), epsilon)


def instance_norm(
    x: Inexact[ArrayLike, "N ..."],
    params: BatchNormParams | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: ArrayLike = 1e-5,
) -> Array:
    """Normalize each feature of each example over its positions.

    Args:
      x: floating or complex, examples along the first axis.
      params: scale and bias, `(C,)`; None, or None for either, omits them.
      axis: feature axis or axes, not the first.
      epsilon: added to var, positive. May be traced.

    Returns:
      y, of x's shape and dtype; computed in at least float32.

    Raises:
      TypeError: integer x.
      ValueError: one position per example, or none; params of another shape; epsilon not positive.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> y = jbn.instance_norm(jnp.array([[[1.0, 10.0], [3.0, 30.0]]]))
      >>> [[round(float(v), 3) for v in row] for row in y[0]]
      [[-1.0, -1.0], [1.0, 1.0]]

    References:
      Ulyanov, Vedaldi, Lempitsky, "Instance Normalization", 2016, section 2.
    """
    x = as_inexact(x)
    features = feature_axes(axis, x.ndim)
    if 0 in features:
        raise ValueError(
            f"Expected examples along the first axis, got the feature axis {axis}, which is the "
            "first. Move it: jnp.moveaxis(x, 0, -1)."
        )
    return _standardize(x, x.shape, (0, *features), params, features, epsilon)


def weight_norm(
    kernel: Inexact[ArrayLike, "..."],
    scale: Inexact[ArrayLike, "*C"] | None,
    *,
    axis: int | Sequence[int] = -1,
) -> Array:
    """Set the length of each output feature's kernel separately: w = scale * v / ||v||.

    Length and direction are learned separately, as with batch norm, but without batch statistics.
    ||v|| is computed from v / max |v|, so that squares neither overflow nor underflow.

    Args:
      kernel: v, of a dense `(in, C)` or convolutional `(H, W, in, C)` layer.
      scale: g, `(C,)`; None for length 1.
      axis: output feature axis or axes of the kernel; ||v|| is taken over all others.

    Returns:
      w, of the kernel's shape and dtype; computed in at least float32. Where v is 0 and has no
      direction, w and its gradient are 0.

    Raises:
      TypeError: integer kernel.
      ValueError: a scale of another shape; no axis to sum over.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> w = jbn.weight_norm(jnp.array([[3.0], [4.0]]), jnp.array([10.0]))
      >>> [round(float(v), 3) for v in w[:, 0]]
      [6.0, 8.0]

    References:
      Salimans, Kingma, "Weight Normalization", 2016, section 2.
    """
    kernel = as_inexact(kernel, "kernel")
    features = feature_axes(axis, kernel.ndim)
    scale = None if scale is None else as_array("scale", scale, "Pass (C,), or None.")
    _check_params(kernel, BatchNormParams(scale, None), features)
    _check_inputs(kernel, features)
    return _weight_norm(kernel, scale, features=features)


@functools.partial(jax.jit, static_argnames="features")
def _weight_norm(kernel: Array, scale: Array | None, *, features: tuple[int, ...]) -> Array:
    unit, _ = _direction(kernel, features)
    if scale is not None:
        unit = unit * along_features(scale, unit, features).astype(unit.dtype)
    return unit.astype(kernel.dtype)


def weight_norm_init(
    kernel: Inexact[ArrayLike, "..."],
    pre_activations: Inexact[ArrayLike, "..."],
    *,
    axis: int | Sequence[int] = -1,
    feature_axis: int | Sequence[int] = -1,
    epsilon: ArrayLike = 1e-5,
) -> BatchNormParams:
    """Initialize scale and bias of a weight-normalized layer from one batch of data.

    scale = 1 / std[t], bias = -mean[t] / std[t] with t = v . x / ||v||, so that the layer's first
    outputs on this batch have mean 0 and variance 1 per feature, as with batch norm.

    Args:
      kernel: v, as for `weight_norm`.
      pre_activations: v . x, the layer's output for the batch with kernel v and no bias.
      axis: output feature axis or axes of the kernel.
      feature_axis: feature axis or axes of the pre-activations, as many as in `axis`.
      epsilon: added to var[t], positive, so that a constant feature gets a finite scale.

    Returns:
      BatchNormParams of scale and bias, `(C,)`, at least float32.

    Raises:
      TypeError: integer arrays.
      ValueError: different numbers of features; fewer than two values per feature; epsilon not
        positive.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> x, v = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[3.0], [4.0]])
      >>> scale, bias = jbn.weight_norm_init(v, x @ v)
      >>> y = x @ jbn.weight_norm(v, scale) + bias[None]
      >>> [round(float(value), 2) for value in y[:, 0]]
      [-1.0, 1.0]

    References:
      Salimans, Kingma, "Weight Normalization", 2016, section 3.
    """
    kernel = as_inexact(kernel, "kernel")
    pre = as_inexact(pre_activations, "pre_activations")
    check_epsilon(epsilon)
    features, outputs = feature_axes(axis, kernel.ndim), feature_axes(feature_axis, pre.ndim)
    shape, output = tuple(kernel.shape[a] for a in features), tuple(pre.shape[a] for a in outputs)
    if shape != output:
        raise ValueError(
            f"Expected `pre_activations` of the kernel's {shape} features, got {output}. "
            "Check `axis` of the kernel and `feature_axis` of the pre-activations."
        )
    check_values(pre, outputs)
    _check_inputs(kernel, features)
    epsilon = as_scalar(epsilon, pre)
    return _weight_norm_init(kernel, pre, epsilon, features=features, outputs=outputs)


@functools.partial(jax.jit, static_argnames=("features", "outputs"))
def _weight_norm_init(
    kernel: Array,
    pre_activations: Array,
    epsilon: ArrayLike,
    *,
    features: tuple[int, ...],
    outputs: tuple[int, ...],
) -> BatchNormParams:
    m = moments(pre_activations, axis=outputs)
    length = _direction(kernel, features)[1].reshape(m.var.shape).astype(m.var.dtype)
    # Moments of t = pre / ||v||, without dividing by 0. Where v is 0, so are its direction and t.
    root = jnp.sqrt(jnp.asarray(epsilon).astype(length.dtype))
    spread = jnp.hypot(jnp.sqrt(m.var), root * length)
    scale = jnp.where(length > 0, length / jnp.where(spread > 0, spread, 1), 1 / root)
    bias = jnp.where(spread > 0, -m.mean / jnp.where(spread > 0, spread, 1).astype(m.mean.dtype), 0)
    return BatchNormParams(scale=scale, bias=bias)


# Layer, group and instance norm ------------------------------------------------------------------


def _standardize(
    x: Array,
    split: tuple[int, ...],
    kept: tuple[int, ...],
    params: BatchNormParams | None,
    features: tuple[int, ...],
    epsilon: ArrayLike,
) -> Array:
    """Normalize x, reshaped to `split`, at each position along the axes `kept`."""
    params = check_params(BatchNormParams(None, None) if params is None else params)
    _check_params(x, params, features)
    check_epsilon(epsilon)
    check_values(jax.ShapeDtypeStruct(split, x.dtype), kept)
    if x.size == 0:
        return x
    epsilon = as_scalar(epsilon, x)
    return _standardized(x, params, epsilon, split=split, kept=kept, features=features)


@functools.partial(jax.jit, static_argnames=("split", "kept", "features"))
def _standardized(
    x: Array,
    params: BatchNormParams,
    epsilon: ArrayLike,
    *,
    split: tuple[int, ...],
    kept: tuple[int, ...],
    features: tuple[int, ...],
) -> Array:
    over = tuple(a for a in range(len(split)) if a not in kept)
    centered = center(x.reshape(split), over, None, None, epsilon)
    scale, bias = (
        None if p is None else along_features(p, x, features).astype(centered.pivot.dtype)
        for p in params
    )
    return _affine(centered, epsilon, scale, bias, x.shape).astype(x.dtype)


# Under `checkpoint`, the product with scale saves no extra array for the backward pass.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=4)
def _affine(
    centered: Centered, epsilon: ArrayLike, scale: Array | None, bias: Array | None, shape
) -> Array:
    y = centered.normalize(None, None, epsilon).reshape(shape)
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


# Weight norm -------------------------------------------------------------------------------------


def _direction(kernel: Array, features: tuple[int, ...]) -> tuple[Array, Array]:
    """Compute v / ||v|| and ||v||; the latter keeps v's rank."""
    axes = tuple(a for a in range(kernel.ndim) if a not in features)
    kernel = kernel.astype(wide_dtype(kernel.dtype))
    # Not differentiated: the direction does not depend on it, and it cancels in ||v||.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(kernel), axes, keepdims=True))
    shrunk = kernel / jnp.where(largest > 0, largest, 1).astype(kernel.dtype)
    squares = jnp.sum(abs_squared(shrunk), axes, keepdims=True)
    safe = jnp.where(squares > 0, squares, 1)
    return shrunk * jax.lax.rsqrt(safe).astype(shrunk.dtype), largest * jnp.sqrt(safe)


# Checks ------------------------------------------------------------------------------------------


def _check_inputs(kernel: Array, features: tuple[int, ...]) -> None:
    if len(features) == kernel.ndim or kernel.size == 0:
        raise ValueError(
            f"Expected a kernel with inputs to sum over, got shape {kernel.shape} with output "
            f"axes {features}. Check `axis`."
        )


def _check_params(x: Array, params: BatchNormParams, features: tuple[int, ...]) -> None:
    expected = tuple(x.shape[a] for a in features)
    for name, value in params._asdict().items():
        if value is None:
            continue
        if jnp.shape(value) != expected:
            raise ValueError(
                f"Expected `{name}` of shape {expected} for shape {x.shape} with feature axes "
                f"{features}, got {jnp.shape(value)}. Check `axis`."
            )
        if jnp.iscomplexobj(value) and not jnp.iscomplexobj(x):
            raise TypeError(
                f"Expected a real `{name}` for {x.dtype}, got a complex one: the result could not "
                "have that dtype. Convert one of them."
            )


def check_values(x: Array | jax.ShapeDtypeStruct, kept: tuple[int, ...]) -> int:
    """Count the values that each mean is taken over; there must be at least two."""
    values = math.prod(size for a, size in enumerate(x.shape) if a not in kept)
    if isinstance(values, int) and values < 2:  # Else it is symbolic, in jax.export.
        raise ValueError(
            f"Expected more than one value to normalize over, got {values} for shape {x.shape} "
            f"with one variance for each position along axes {kept}: it would be 0. Check `axis` "
            "and `groups`; without spatial axes, an example has one value per feature."
        )
    return values


def one_feature_axis(x: Array, axis: int) -> int:
    """Turn `axis`, which must be a single axis, into a non-negative int."""
    axes = feature_axes(axis, x.ndim)
    if len(axes) != 1:
        raise ValueError(f"Expected one feature axis, got {axis}. Reshape x to merge them.")
    return axes[0]


def split_features(features: int, groups: int) -> tuple[int, int]:
    """Divide features into groups; return the number of groups, and of features in each."""
    groups = check_size("groups", groups, "Pass 1 for a single group.")
    if features % groups:
        raise ValueError(
            f"Expected `groups` to divide the {features} features, got {groups}. "
            "Choose a divisor, or pad the features."
        )
    return groups, features // groups
