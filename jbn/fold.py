"""Fold batch normalization into the dense or convolutional layer before it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Inexact

from jbn.batch_norm import check_epsilon
from jbn.types import BatchNormParams, BatchNormState


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
      kernel: of a dense `(in, C)` or convolutional `(H, W, in, C)` layer: output features last.
      bias: the layer's own bias `(C,)`, or None.
      params: scale and bias, `(C,)`, or None for either.
      state: running statistics, `(C,)`.
      epsilon: as given to `batch_norm`.

    Returns: `(kernel, bias)` of the kernel's shape and `(C,)`, in the kernel's dtype; computed in
      float32 at least.
    Raises: ValueError: a kernel whose last axis is not C long, a bias of another shape, or an
      epsilon that is not positive.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> params, state = jbn.init(3)
      >>> kernel, bias = jbn.fold(jnp.ones((5, 3)), None, params, state, epsilon=1e-9)
      >>> kernel.shape, bias.shape
      ((5, 3), (3,))

    References: Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 2, line 11.
    """
    kernel = jnp.asarray(kernel)
    check_epsilon(epsilon)
    shape = jnp.shape(state.mean)
    if len(shape) != 1 or kernel.ndim < 2 or kernel.shape[-1:] != shape:
        raise ValueError(
            f"Expected a kernel whose last axis is the {shape} features of the state, got "
            f"kernel.shape={kernel.shape}. Transpose it: dense (in, C), convolution (H, W, in, C)."
        )
    if bias is not None and jnp.shape(bias) != shape:
        raise ValueError(
            f"Expected the layer's bias of shape {shape}, got {jnp.shape(bias)}. "
            "Pass one value per output feature, or None for a layer without bias."
        )
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    a = jax.lax.rsqrt(state.var + epsilon)
    if params.scale is not None:
        a = a * params.scale.astype(dtype)
    shift = -state.mean if bias is None else jnp.asarray(bias, dtype) - state.mean
    new_bias = shift * a
    if params.bias is not None:
        new_bias = new_bias + params.bias.astype(dtype)
    new_kernel = kernel.astype(dtype) * a.reshape((1,) * (kernel.ndim - 1) + shape)
    return new_kernel.astype(kernel.dtype), new_bias.astype(kernel.dtype)
