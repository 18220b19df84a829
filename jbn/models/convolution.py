"""Convolutions of the networks: XLA's, except for 1x1 kernels on a CPU."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax import lax
from jaxtyping import Array, Float


def convolve(
    x: Float[Array, "N H W in"],
    kernel: Float[Array, "h w in out"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int],
    feature_group_count: int,
    precision: lax.PrecisionLike,
    **options: Any,
) -> Float[Array, "N H2 W2 out"]:
    """Convolve, with the signature that `nn.Conv` expects; 1x1 kernels may use a matrix product."""
    size, strides, pads = kernel.shape[:2], tuple(strides), padding
    if isinstance(pads, str):
        pads = lax.padtype_to_pads(x.shape[1:3], size, strides, pads)
    zeros = any(map(any, pads)) or any(dilation > 1 for dilation in lhs_dilation)
    if size == (1, 1) and feature_group_count == 1 and not zeros:
        return _pointwise(x, kernel, strides, precision)
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        lhs_dilation=lhs_dilation,
        feature_group_count=feature_group_count,
        precision=precision,
        **options,
    )


@functools.partial(jax.jit, static_argnames=("strides", "precision"))
def _pointwise(
    x: Array, kernel: Array, strides: tuple[int, int], precision: lax.PrecisionLike
) -> Array:
    """Multiply every pixel by the matrix of a 1x1 kernel.

    On CPU, XLA computes the kernel's gradient by a convolution, for which it transposes both
    arrays. With few features, this takes 1.2 to 2.3 times the time of the product.
    """

    def product(x: Array, kernel: Array) -> Array:
        x = x[:, :: strides[0], :: strides[1]]
        return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())), precision=precision)

    def convolution(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision,
        )

    return lax.platform_dependent(x, kernel, cpu=product, default=convolution)


Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)
