"""Fold batch normalization into the dense or convolutional layer before it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Inexact

from jbn._arguments import as_scalar, check_epsilon
from jbn._dtypes import promote_types, wide_dtype
from jbn._inputs import as_array
from jbn._layer_trees import as_arrays, as_params, as_state
from jbn._types import BatchNormParams, BatchNormState


def fold(
    kernel: Inexact[ArrayLike, "... C"],
    bias: Inexact[ArrayLike, "C"] | None,
    params: BatchNormParams,
    state: BatchNormState,
    *,
    epsilon: ArrayLike = 1e-5,
) -> tuple[Inexact[Array, "... C"], Inexact[Array, "C"]]:
    """Fold inference-mode batch normalization into the layer before it.

    With a = scale / sqrt(var + epsilon): kernel' = kernel * a, bias' = (bias - mean) * a + beta.
    Then layer'(u) = batch_norm(layer(u)), at the cost of the layer alone.

    Args:
      kernel: kernel of a dense `(in, C)` or convolutional `(H, W, in, C)` layer, output features
        last. Floating or complex; quantize after folding.
      bias: the layer's own bias `(C,)`, or None.
      params: scale and bias, `(C,)`, or None for either; or a mapping of them, as in a checkpoint
        restored without a target.
      state: running statistics, `(C,)`, or a mapping with mean and var.
      epsilon: as passed to `batch_norm`.

    Returns:
      `(kernel, bias)` of the kernel's shape and `(C,)`, in the kernel's dtype; computed in at least
      float32.

    Raises:
      ValueError: a kernel whose last axis is not of length C; a bias, scale, shift or var whose
        shape is not `(C,)`; an epsilon that is not positive.
      TypeError: an integer kernel; complex statistics or parameters with a real kernel; params or
        state of another type.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> params, state = jbn.init(3)
      >>> kernel, bias = jbn.fold(jnp.ones((5, 3)), None, params, state, epsilon=1e-9)
      >>> kernel.shape, bias.shape
      ((5, 3), (3,))

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 2, line 11.
    """
    kernel = _as_kernel(kernel)
    if bias is not None:
        bias = as_array("bias", bias, "Pass the layer's own bias, or None.")
    params, state = as_arrays(as_params(params), as_state(state))
    check_epsilon(epsilon)
    _check_shapes(kernel, bias, params, state)
    vectors = {"bias": bias, "params.scale": params.scale, "params.bias": params.bias}
    vectors |= {"state.mean": state.mean}
    if not np.iscomplexobj(kernel):
        for name, vector in vectors.items():
            if vector is not None and np.iscomplexobj(vector):
                raise TypeError(
                    f"Expected real numbers with a kernel of {kernel.dtype}, got a complex {name}. "
                    "Make the kernel complex: the folded layer's output is."
                )
    return _fold(kernel, bias, params, state.mean, state.var, as_scalar(epsilon, kernel))


@jax.jit
def _fold(
    kernel: Array,
    bias: Array | None,
    params: BatchNormParams,
    mean: Array,
    var: Array,
    epsilon: ArrayLike,
) -> tuple[Array, Array]:
    dtype = computation_dtype(kernel, var)
    a = scale_by_rstd(params.scale, var, epsilon, dtype)
    shift = -mean.astype(dtype)
    if bias is not None:
        shift = bias.astype(dtype) + shift
    new_bias = shift * a
    if params.bias is not None:
        new_bias = new_bias + params.bias.astype(dtype)
    new_kernel = kernel.astype(dtype) * a.reshape((1,) * (kernel.ndim - 1) + a.shape)
    return new_kernel.astype(kernel.dtype), new_bias.astype(kernel.dtype)


def computation_dtype(kernel: Array, var: Array) -> Any:
    """Return the dtype in which a kernel and statistics are folded: at least float32."""
    # Use NumPy's promotion, since JAX has none in strict mode; for floats they agree.
    dtype = wide_dtype(kernel.dtype)
    return promote_types(dtype, var.dtype) if jnp.issubdtype(var.dtype, jnp.floating) else dtype


def scale_by_rstd(scale: Array | None, var: Array, epsilon: ArrayLike, dtype: Any) -> Array:
    """Compute scale / sqrt(var + epsilon); a scale of None is 1."""
    real = jnp.finfo(dtype).dtype
    a = jax.lax.rsqrt(var.astype(real) + jnp.asarray(epsilon, real)).astype(dtype)
    return a if scale is None else a * scale.astype(dtype)


def _as_kernel(kernel: Any) -> Array:
    array = as_array("kernel", kernel, "Pass the layer's kernel, and its bias or None after it.")
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise TypeError(
            f"Expected a floating or complex kernel, got {array.dtype}, which cannot hold the "
            "scaled kernel. Fold before you quantize, or pass kernel.astype(jnp.float32)."
        )
    return array


def _check_shapes(kernel: Array, bias: Any, params: BatchNormParams, state: BatchNormState) -> None:
    """Reject shapes that would only fit by broadcasting."""
    shape = np.shape(state.mean)
    if len(shape) != 1 or kernel.ndim < 2 or kernel.shape[-1:] != shape:
        raise ValueError(
            f"Expected a kernel whose last axis is the {shape} features of the state, got "
            f"kernel.shape={kernel.shape}. Transpose it: dense (in, C), convolution (H, W, in, C)."
        )
    if bias is not None and np.shape(bias) != shape:
        raise ValueError(
            f"Expected the layer's bias of shape {shape}, got {np.shape(bias)}. "
            "Pass one value per output feature, or None for a layer without bias."
        )
    vectors = {"params.scale": params.scale, "params.bias": params.bias, "state.var": state.var}
    for name, vector in vectors.items():
        if vector is not None and np.shape(vector) != shape:
            raise ValueError(
                f"Expected `{name}` of shape {shape}, that of state.mean, got {np.shape(vector)}. "
                "Take params and state from the same layer, one value per feature."
            )
