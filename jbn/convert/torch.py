"""PyTorch: `torch.nn.BatchNorm1d`, `2d`, `3d`, `SyncBatchNorm`, and the kernels before them."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Inexact

from jbn._schedules import cumulative
from jbn.convert.common import Converted, Options, Reader, as_array, check_layer
from jbn.types import BatchNormParams, BatchNormState

DEFAULT = Options(momentum=1 - 0.1, epsilon=1e-5, unbiased=True)
_KEYS = {
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "count": "num_batches_tracked",
}


def from_torch(
    source: Any,
    prefix: str = "",
    *,
    num_features: int | None = None,
    options: Options | None = None,
) -> Converted:
    """Convert a batch norm of PyTorch.

    A state_dict holds neither momentum nor eps: from one, they are `options`, or torch's defaults.
    A module has them: there `options` is what you expect, and anything else an error. torch's
    momentum is the weight of the *new* value, None the cumulative average; its running variance
    takes Bessel's factor.

    Args:
      source: a state_dict (values: tensors or arrays), or a module.
      prefix: name of the layer in it, such as "layer1.0.bn1", with or without a last dot.
      num_features: C, if it should be checked.
      options: see above.

    Returns: `(params, state, options)`; scale and bias None for `affine=False`. Arrays are copies.
      float64 needs `jax_enable_x64`, as everywhere in JAX.
    Raises: ConversionError: lists every missing key, wrong shape and unexpected option.

    Example:
      >>> import numpy as np, jbn
      >>> state_dict = {"bn.weight": np.ones(3), "bn.bias": np.zeros(3), "bn.running_mean":
      ...     np.zeros(3), "bn.running_var": np.ones(3), "bn.num_batches_tracked": np.array(7)}
      >>> params, state, options = jbn.convert.from_torch(state_dict, "bn")
      >>> int(state.count), options
      (7, Options(momentum=0.9, epsilon=1e-05, unbiased=True))

    References: https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html
    """
    name = prefix.removesuffix(".")
    dot = f"{name}." if name else ""
    own = None
    if not isinstance(source, Mapping):
        layer = source.get_submodule(name)
        own = None if not hasattr(layer, "eps") else _options(layer)
        source = source.state_dict()
    reader = Reader(
        f"torch layer {name!r}" if name else "torch layer",
        {field: dot + key for field, key in _KEYS.items()},
    )
    # Without affine both are missing; one alone is a damaged checkpoint.
    affine = any(reader.keys[field] in source for field in ("scale", "bias"))
    reader.read(source, "scale", "bias", required=affine)
    reader.read(source, "mean", "var", "count")
    if reader.problems and "mean" not in reader.arrays:
        end = "running_mean"
        norms = [key.removesuffix(end).rstrip(".") for key in source if key.endswith(end)]
        there = ", ".join(map(repr, norms)) or "none"
        reader.problems.append(f"{reader.where}: the source's layers with statistics are {there}.")
    return reader.finish(own, DEFAULT, options, num_features)


def _options(layer: Any) -> Options:
    momentum = cumulative if layer.momentum is None else 1 - layer.momentum
    return Options(momentum=momentum, epsilon=layer.eps, unbiased=True)


def to_torch(
    params: BatchNormParams, state: BatchNormState, prefix: str = "", *, tensors: bool = True
) -> dict[str, Any]:
    """Make the state_dict of a PyTorch batch norm; nothing is lost.

    Args:
      params, state: of a layer with one feature axis. torch has both scale and bias or neither:
        a missing one becomes ones, or zeros.
      prefix: name of the layer, put before each key.
      tensors: make tensors, which `load_state_dict` wants; False leaves NumPy arrays and does not
        import torch.

    Returns: dict of weight, bias, running_mean, running_var, and num_batches_tracked (int64).
      `layer_arguments(options, "torch")` has the momentum and eps for the layer.
    Raises: ConversionError: more than one feature axis, or shapes that differ.

    Example:
      >>> import jbn
      >>> state_dict = jbn.convert.to_torch(*jbn.init(3), "bn", tensors=False)
      >>> sorted(state_dict)[:3]
      ['bn.bias', 'bn.num_batches_tracked', 'bn.running_mean']
    """
    check_layer("to_torch", params, state)
    name = prefix.removesuffix(".")
    dot = f"{name}." if name else ""
    scale, bias = params
    if scale is None and bias is not None:
        scale = jnp.ones_like(bias)
    if bias is None and scale is not None:
        bias = jnp.zeros_like(scale)
    fields = {"scale": scale, "bias": bias, "mean": state.mean, "var": state.var}
    arrays = {
        dot + _KEYS[field]: np.array(array) for field, array in fields.items() if array is not None
    }
    arrays[dot + _KEYS["count"]] = np.array(state.count, np.int64)
    return {key: _tensor(array) for key, array in arrays.items()} if tensors else arrays


def _tensor(array: np.ndarray) -> Any:
    import torch

    if array.dtype == jnp.bfloat16:  # torch reads none from NumPy; float32 holds all its values.
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch_kernel(
    weight: Inexact[ArrayLike, "..."] | Any, *, transposed: bool = False
) -> Inexact[Array, "..."]:
    """Lay out a weight of PyTorch as Flax has it: output features last.

    Linear (out, in) -> (in, out). Conv1d, 2d, 3d (out, in, *space) -> (*space, in, out), with
    groups too: in is then in / groups, and `feature_group_count` the number of groups, so a
    depthwise kernel is (*space, 1, out). Transposed convolutions of torch are the gradient of a
    convolution: (in, out, *space) -> (*space, in, out) with space flipped, for
    `flax.linen.ConvTranspose(transpose_kernel=False)`. Equinox lays out as torch.

    torch's `padding=p` is `padding=((p, p), ...)` in Flax, and for a transposed convolution
    `((k - 1 - p, k - 1 - p + output_padding), ...)`, k the dilated kernel's size.

    Args:
      weight: of the layer, a tensor or array.
      transposed: it is that of a ConvTranspose with groups=1 (Flax has no others).

    Returns: the kernel, a copy, bit by bit.
    Raises: ValueError: fewer than 2 axes, or fewer than 3 if transposed.

    Example:
      >>> import numpy as np, jbn
      >>> jbn.convert.from_torch_kernel(np.zeros((8, 3, 5, 5))).shape
      (5, 5, 3, 8)
    """
    weight = as_array(weight)
    _check_rank("weight", weight.ndim, transposed)
    space = tuple(range(2, weight.ndim))
    if transposed:
        return jnp.flip(weight.transpose(*space, 0, 1), range(len(space)))
    return weight.transpose(*space, 1, 0)


def to_torch_kernel(
    kernel: Inexact[ArrayLike, "..."], *, transposed: bool = False, tensors: bool = True
) -> Any:
    """Undo `from_torch_kernel`, bit by bit.

    Args:
      kernel: `(in, out)`, or `(*space, in, out)`.
      transposed: it is that of a transposed convolution.
      tensors: make a tensor; False leaves a NumPy array and does not import torch.

    Returns: the weight of torch's layer.
    Raises: ValueError: fewer than 2 axes, or fewer than 3 if transposed.

    Example:
      >>> import numpy as np, jbn
      >>> jbn.convert.to_torch_kernel(np.zeros((5, 5, 3, 8)), tensors=False).shape
      (8, 3, 5, 5)
    """
    array = np.array(kernel)
    _check_rank("kernel", array.ndim, transposed)
    space = tuple(range(array.ndim - 2))
    if transposed:
        array = np.flip(array, space).transpose(-2, -1, *space)
    else:
        array = array.transpose(-1, -2, *space)
    array = np.ascontiguousarray(array)
    return _tensor(array) if tensors else array


def _check_rank(name: str, ndim: int, transposed: bool) -> None:
    least = 3 if transposed else 2
    if ndim < least:
        raise ValueError(
            f"Expected a {name} of at least {least} axes, got {ndim}. A vector is a bias or a "
            "batch norm's weight: it needs no new layout."
        )
