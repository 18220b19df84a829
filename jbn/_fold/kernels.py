"""Kernel layouts of dense and convolutional layers, and folding a batch norm into a kernel."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from jbn._fold.layer import computation_dtype, fold, scale_by_rstd
from jbn._types import BatchNormParams, BatchNormState


class Kernel(NamedTuple):
    """The axes of a layer's kernel; those neither in `inputs` nor in `features` are spatial.

    If inputs or features span several axes, they are numbered in row-major order.
    """

    shape: tuple[int, ...]
    inputs: tuple[int, ...]  # Contracted with the last axes of the layer's input, in their order.
    features: tuple[int, ...]  # The last axes of the layer's output, in their order.
    groups: int = 1
    not_after: str | None = None  # Why a batch norm after the layer cannot be folded.
    not_before: str | None = None

    @property
    def input_size(self) -> int:
        """Number of the layer's inputs, over all groups."""
        return self.groups * math.prod(self.shape[a] for a in self.inputs)

    @property
    def output_size(self) -> int:
        """Number of the layer's features."""
        return math.prod(self.shape[a] for a in self.features)


# ---- Layers of linen and nnx: (layer, x, kernel shape, other positional arguments, keywords) -----


def dense(layer: Any, x: Array, shape: tuple[int, ...], rest: tuple, kwargs: Mapping) -> Kernel:
    """Describe the kernel of `Dense` and `Linear`."""
    return Kernel(shape, (0,), (1,))


def conv(layer: Any, x: Array, shape: tuple[int, ...], rest: tuple, kwargs: Mapping) -> Kernel:
    """Describe the kernel of `Conv`."""
    problem = None
    if layer.mask is not None:
        problem = "has a mask on its kernel."
    elif _pads_with_zeros(layer, x.shape, len(shape) - 2):
        problem = "pads its input with zeros, which the batch norm would shift. Use VALID padding."
    ndim, groups = len(shape), layer.feature_group_count
    return Kernel(shape, (ndim - 2,), (ndim - 1,), groups, not_before=problem)


def conv_transpose(
    layer: Any, x: Array, shape: tuple[int, ...], rest: tuple, kwargs: Mapping
) -> Kernel:
    """Describe the kernel of `ConvTranspose`."""
    inputs, features = len(shape) - 2, len(shape) - 1
    if layer.transpose_kernel:
        inputs, features = features, inputs
    problem = "is a transposed convolution: each output sees another part of the kernel."
    return Kernel(shape, (inputs,), (features,), not_before=problem)


def dense_general(
    layer: Any, x: Array, shape: tuple[int, ...], rest: tuple, kwargs: Mapping
) -> Kernel:
    """Describe the kernel of `DenseGeneral` and `LinearGeneral`."""
    # Flax sorts the axes, and orders the kernel's axes accordingly.
    axes = sorted(a % x.ndim for a in np.atleast_1d(layer.axis))
    count = len(axes)
    kernel = Kernel(shape, tuple(range(count)), tuple(range(count, len(shape))))
    # linen's may be the int 0, which is falsy; nnx's is a mapping.
    batch = getattr(layer, "batch_dims", ()), getattr(layer, "batch_axis", ())
    if any(dims == 0 or dims for dims in batch):
        problem = "has a kernel for each index of a batch axis."
        return kernel._replace(not_after=problem, not_before=problem)
    if axes != list(range(x.ndim - count, x.ndim)):
        return kernel._replace(not_before="does not sum over the last axes of its input.")
    return kernel


def einsum(layer: Any, x: Array, shape: tuple[int, ...], rest: tuple, kwargs: Mapping) -> Kernel:
    """Describe the kernel of `Einsum`."""
    equation = rest[0] if rest else kwargs.get("einsum_str")
    equation = (layer.einsum_str if equation is None else equation).replace(" ", "")
    operands, output = equation.split("->")
    left, right = operands.split(",")
    summed = [a for a in left if a in right and a not in output]
    features = [a for a in output if a in right and a not in left]
    kernel = Kernel(shape, tuple(map(right.find, summed)), tuple(map(right.find, features)))
    if "." in right or sorted(right) != sorted(summed + features):
        problem = f"is not a single contraction: {equation}."
        return kernel._replace(not_after=problem, not_before=problem)
    if output[-len(features) :] != "".join(features):
        kernel = kernel._replace(not_after=f"has other axes after its features: {equation}.")
    # An axis that only the input has is summed over, too, and would add the shift repeatedly.
    once = all(left.count(a) == 1 and a in right + output for a in left if a != ".")
    if left[-len(summed) :] != "".join(summed) or not once:
        problem = f"does not sum over the last axes of its input alone: {equation}."
        return kernel._replace(not_before=problem)
    return kernel


def own_arithmetic(layer: Any) -> str | None:
    """Report a layer's custom function, if it has one, since it may do more than Flax's."""
    for name in ("dot_general", "conv_general_dilated", "promote_dtype"):
        function = getattr(layer, name, None)
        while isinstance(function, functools.partial):
            function = function.func
        module = getattr(function, "__module__", None) or ""
        is_own = function is not None and module.split(".")[0] not in ("jax", "flax", "jbn")
        if is_own or getattr(layer, f"{name}_cls", None) is not None:
            return f"has a {name} of its own, which may do more. Fold the model without it."
    return None


def _pads_with_zeros(layer: Any, shape: tuple[int, ...], ndim: int) -> bool:
    """Tell whether a `Conv` puts zeros around or between its inputs."""

    def of_each(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, Sequence) else (value or 1,) * ndim

    if any(d != 1 for d in of_each(layer.input_dilation)):
        return True
    dilations = of_each(layer.kernel_dilation)
    window = [(k - 1) * d + 1 for k, d in zip(of_each(layer.kernel_size), dilations, strict=True)]
    padding: Any = layer.padding
    if not isinstance(padding, str):
        pairs = padding if isinstance(padding, Sequence) else (padding,)
        return any(p > 0 for pair in pairs for p in np.atleast_1d(pair))
    if padding in ("CIRCULAR", "REFLECT"):  # These pad with the input's own values.
        return False
    if padding == "CAUSAL":
        return window != [1]
    space = shape[-1 - ndim : -1]
    pairs = jax.lax.padtype_to_pads(space, window, of_each(layer.strides), padding)
    return any(p > 0 for pair in pairs for p in pair)


# ---- Folding -------------------------------------------------------------------------------------


def fold_after(
    layout: Kernel,
    kernel: Array,
    bias: Array | None,
    params: BatchNormParams,
    state: BatchNormState,
    *,
    epsilon: ArrayLike,
) -> tuple[Array, Array]:
    """Fold the batch norm after a layer, as `fold` does; return `(kernel, bias)`.

    The batch norm may have fewer features, C, than the layer: each then applies to every C-th one.
    """
    matrix = _to_matrix(kernel, layout)
    params, state = _repeated(params, state, layout.output_size)
    flat = None if bias is None else bias.reshape(-1)
    matrix, flat = fold(matrix, flat, params, state, epsilon=epsilon)
    return _from_matrix(matrix, layout), _like_bias(flat, bias, layout)


def fold_before(
    layout: Kernel,
    kernel: Array,
    bias: Array | None,
    params: BatchNormParams,
    state: BatchNormState,
    *,
    epsilon: ArrayLike,
) -> tuple[Array, Array]:
    """Fold the batch norm before a layer; return `(kernel, bias)`.

    With a = scale / sqrt(var + epsilon) and b = beta - mean * a of each input: kernel' = kernel *
    a, bias' = bias + the sum over window and inputs of kernel * b.
    """
    matrix = _to_matrix(kernel, layout)
    params, state = _repeated(params, state, layout.input_size)
    flat = None if bias is None else bias.reshape(-1)
    matrix, flat = _fold_before(
        matrix, flat, params, state.mean, state.var, epsilon, groups=layout.groups
    )
    return _from_matrix(matrix, layout), _like_bias(flat, bias, layout)


@functools.partial(jax.jit, static_argnames="groups")
def _fold_before(
    kernel: Array,
    bias: Array | None,
    params: BatchNormParams,
    mean: Array,
    var: Array,
    epsilon: ArrayLike,
    *,
    groups: int,
) -> tuple[Array, Array]:
    dtype = computation_dtype(kernel, var)
    a = scale_by_rstd(params.scale, var, epsilon, dtype)
    b = -mean.astype(dtype) * a
    if params.bias is not None:
        b = b + params.bias.astype(dtype)
    wide = kernel.astype(dtype)

    def of_kernel(v: Array) -> Array:
        """Reshape one value per input to `(inputs of a group, features)`."""
        return jnp.repeat(v.reshape(groups, -1).T, kernel.shape[-1] // groups, axis=1)

    shift = jnp.sum(wide * _lead(of_kernel(b), wide), axis=range(kernel.ndim - 1))
    if bias is not None:
        shift = shift + bias.astype(dtype)
    scaled = wide * _lead(of_kernel(a), wide)
    return scaled.astype(kernel.dtype), shift.astype(kernel.dtype)


def identity_variance(epsilon: float) -> tuple[float, float]:
    """Return the variance that makes a norm of mean 0 and scale 1 an identity, and a factor.

    With an epsilon above 1, there is no such variance: the norm divides by at least sqrt(epsilon),
    so the layer has to be scaled by that factor. Otherwise the factor is 1.
    """
    return max(1 - epsilon, 0.0), max(epsilon, 1.0) ** 0.5


def _lead(matrix: Array, like: Array) -> Array:
    return matrix.reshape((1,) * (like.ndim - 2) + matrix.shape)


def _repeated(
    params: BatchNormParams, state: BatchNormState, size: int
) -> tuple[BatchNormParams, BatchNormState]:
    """Repeat a batch norm's parameters and statistics up to `size` features."""
    count = size // state.mean.size
    if count == 1:
        return params, state
    scale, bias = (v if v is None else jnp.tile(v, count) for v in params)
    mean, var = (jnp.tile(v, count) for v in (state.mean, state.var))
    return BatchNormParams(scale, bias), state._replace(mean=mean, var=var)


def _order(layout: Kernel) -> tuple[int, ...]:
    ends = layout.inputs + layout.features
    return (*(a for a in range(len(layout.shape)) if a not in ends), *ends)


def _to_matrix(kernel: Array, layout: Kernel) -> Array:
    """Reshape a kernel to `(*window, inputs, features)`."""
    kernel = kernel.transpose(_order(layout))
    window = kernel.shape[: kernel.ndim - len(layout.inputs + layout.features)]
    return kernel.reshape(*window, layout.input_size // layout.groups, layout.output_size)


def _from_matrix(matrix: Array, layout: Kernel) -> Array:
    """Undo `_to_matrix`."""
    order = _order(layout)
    inverse = sorted(range(len(order)), key=lambda i: order[i])
    return matrix.reshape([layout.shape[a] for a in order]).transpose(inverse)


def _like_bias(flat: Array, bias: Array | None, layout: Kernel) -> Array:
    return flat.reshape([layout.shape[a] for a in layout.features] if bias is None else bias.shape)
