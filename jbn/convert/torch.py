"""PyTorch: `torch.nn.BatchNorm1d`, `2d`, `3d`, `SyncBatchNorm`, and the kernels before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Inexact

from jbn._inputs import describe
from jbn._schedules import cumulative
from jbn._types import BatchNormParams, BatchNormState
from jbn.convert._arrays import as_array
from jbn.convert.common import (
    ConversionError,
    Converted,
    Options,
    Reader,
    check_layer,
    check_name,
    layers_there,
)

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
    count: int | None = None,
) -> Converted:
    """Convert a batch norm of PyTorch.

    A state_dict holds neither momentum nor eps, so these come from `options` or are torch's
    defaults. A module holds them; then `options` are those you expect, and a difference is an
    error. torch's momentum is the weight of the *new* value, or None for the cumulative average;
    its running variance has Bessel's correction.

    Frozen layers, such as torchvision's `FrozenBatchNorm2d`, and old or stripped checkpoints have
    no `num_batches_tracked`; pass `count` instead. An `InstanceNorm` with running statistics has
    the same keys, so it is not recognized in a state_dict; as a module it is an error.

    Args:
      source: a state_dict (of tensors or arrays), or a module.
      prefix: name of the layer in it, such as "layer1.0.bn1", with or without a final dot. With
        `DataParallel` or a compiled model it begins with "module." or "_orig_mod.".
      num_features: C, checked if given.
      options: options of the layer; see above.
      count: number of batches absorbed, if the source has none. None means 0, and is an error if a
        schedule would use it.

    Returns:
      `(params, state, options)`; scale and bias are None for `affine=False`. Arrays are copies.
      float64 needs `jax_enable_x64`, as everywhere in JAX. A count above int32's maximum is clipped
      to it.

    Raises:
      ConversionError: lists every missing key, wrong shape and unexpected option, and says what was
        found if it is not a batch norm: another kind of layer, a network, a whole checkpoint.

    Example:
      >>> import numpy as np, jbn
      >>> state_dict = {"bn.weight": np.ones(3), "bn.bias": np.zeros(3), "bn.running_mean":
      ...     np.zeros(3), "bn.running_var": np.ones(3), "bn.num_batches_tracked": np.array(7)}
      >>> params, state, options = jbn.convert.from_torch(state_dict, "bn")
      >>> int(state.count), options
      (7, Options(momentum=0.9, epsilon=1e-05, unbiased=True))

    References:
      https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html
    """
    name = check_name("torch layer", "prefix", prefix).removesuffix(".")
    where = f"torch layer {name!r}" if name else "torch layer"
    dot = f"{name}." if name else ""
    own, kind = None, ""
    if not isinstance(source, Mapping):
        layer = _layer(where, source, name)
        kind = f"It is a {type(layer).__name__}, expected a batch norm with running statistics; "
        own = _options(layer, options or DEFAULT) if hasattr(layer, "eps") else None
        source = source.state_dict()
    keys = {field: dot + key for field, key in _KEYS.items()}
    reader = Reader(where, keys, kind + _found(source, name))
    # With affine=False both are missing; if only one is, the checkpoint is damaged.
    affine = any(reader.keys[field] in source for field in ("scale", "bias"))
    reader.read(source, "scale", "bias", required=affine)
    reader.read(source, "mean", "var")
    reader.read(source, "count", required=False)
    return reader.finish(own, DEFAULT, options, num_features, count)


def _layer(where: str, source: Any, name: str) -> Any:
    """Return the module of that name; raise an error if there is none, or it is an InstanceNorm."""
    if isinstance(source, type) or not hasattr(source, "get_submodule"):
        raise ConversionError(
            [f"{where}: the source is {describe(source)}, expected a torch module or state_dict."]
        )
    try:
        layer = source.get_submodule(name)
    except AttributeError:
        there = _found(source.state_dict(), name)
        raise ConversionError(
            [f"{where}: no such module, expected a batch norm; {there}"]
        ) from None
    if any("InstanceNorm" in kind.__name__ for kind in type(layer).__mro__):
        raise ConversionError(
            [
                f"{where}: is a {type(layer).__name__}, expected a BatchNorm or SyncBatchNorm. Its "
                "training normalizes each example by itself: use jbn.instance_norm."
            ]
        )
    return layer


def _found(source: Mapping[str, Any], name: str) -> str:
    """Say what a state_dict holds instead of the layer, and what to pass."""
    end = "running_mean"
    nested = [
        key
        for key, value in source.items()
        if isinstance(value, Mapping) or hasattr(value, "state_dict")
    ]
    if nested:
        return f"The source holds mappings below {', '.join(map(repr, nested))}: pass one of them."
    norms = [key.removesuffix(end).rstrip(".") for key in source if str(key).endswith(end)]
    keys = list(map(repr, source))
    more = f" and {len(keys) - 10} more" if len(keys) > 10 else ""
    return layers_there(
        norms,
        "Pass one of them as `prefix`.",
        f"Its keys are {', '.join(keys[:10]) or 'none'}{more}. Pass a batch norm that has "
        "track_running_stats=True, or a state_dict with running_mean and running_var.",
        name,
    )


def _options(layer: Any, default: Options) -> Options:
    """Return a module's options; frozen layers have no momentum."""
    if not hasattr(layer, "momentum"):
        momentum = default.momentum
    else:
        momentum = cumulative if layer.momentum is None else 1 - layer.momentum
    return Options(momentum=momentum, epsilon=layer.eps, unbiased=True)


def to_torch(
    params: BatchNormParams, state: BatchNormState, prefix: str = "", *, tensors: bool = True
) -> dict[str, Any]:
    """Make the state_dict of a PyTorch batch norm; nothing is lost.

    Args:
      params, state: params and state of a layer with one feature axis, or mappings of them as in a
        restored checkpoint. torch has either both scale and bias or neither: a missing scale
        becomes ones, a missing bias zeros.
      prefix: name of the layer, prepended to each key.
      tensors: return tensors, which `load_state_dict` needs; False returns NumPy arrays and does
        not import torch.

    Returns:
      Dict of weight, bias, running_mean, running_var, and num_batches_tracked (int64).
      `framework_kwargs(options, "torch")` gives the momentum and eps for the layer.

    Raises:
      ConversionError: more than one feature axis; different shapes; a count that is not a whole
        number, as after averaging states.
      TypeError: params or state of another type.

    Example:
      >>> import jbn
      >>> state_dict = jbn.convert.to_torch(*jbn.init(3), "bn", tensors=False)
      >>> sorted(state_dict)[:3]
      ['bn.bias', 'bn.num_batches_tracked', 'bn.running_mean']
    """
    params, state = check_layer("to_torch", params, state, with_count=True)
    name = check_name("to_torch", "prefix", prefix).removesuffix(".")
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

    if array.dtype == jnp.bfloat16:  # torch cannot read it from NumPy; float32 holds its values.
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch_kernel(
    weight: Inexact[ArrayLike, "..."] | Any, *, transposed: bool = False
) -> Inexact[Array, "..."]:
    """Convert a weight of PyTorch to Flax's layout, with output features last.

    Linear: (out, in) -> (in, out). Conv1d, 2d, 3d: (out, in, *space) -> (*space, in, out). With
    groups, `in` stands for in / groups, and `feature_group_count` is the number of groups, so a
    depthwise kernel is (*space, 1, out). torch's transposed convolutions are the gradient of a
    convolution: (in, out, *space) -> (*space, in, out) with space flipped, for
    `flax.linen.ConvTranspose(transpose_kernel=False)`. Equinox has the same layout as torch.

    torch's `padding=p` is `padding=((p, p), ...)` in Flax, and for a transposed convolution
    `((k - 1 - p, k - 1 - p + output_padding), ...)`, where k is the size of the dilated kernel.

    Args:
      weight: weight of the layer, a tensor or array.
      transposed: whether it belongs to a ConvTranspose with groups=1 (Flax has no others).

    Returns:
      The kernel, an exact copy.

    Raises:
      ValueError: fewer than 2 axes, or fewer than 3 if transposed.
      TypeError: not an array.

    Example:
      >>> import numpy as np, jbn
      >>> jbn.convert.from_torch_kernel(np.zeros((8, 3, 5, 5))).shape
      (5, 5, 3, 8)
    """
    try:
        weight = as_array(weight)
    except (TypeError, ValueError, RuntimeError):  # The last from parameters without values.
        raise TypeError(
            f"Expected a tensor or array as weight, got {type(weight).__name__}. Pass layer.weight."
        ) from None
    _check_rank("weight", weight.ndim, transposed)
    space = tuple(range(2, weight.ndim))
    if transposed:
        return jnp.flip(weight.transpose(*space, 0, 1), range(len(space)))
    return weight.transpose(*space, 1, 0)


def to_torch_kernel(
    kernel: Inexact[ArrayLike, "..."], *, transposed: bool = False, tensors: bool = True
) -> Any:
    """Invert `from_torch_kernel`, bit for bit.

    Args:
      kernel: `(in, out)`, or `(*space, in, out)`.
      transposed: whether it belongs to a transposed convolution.
      tensors: return a tensor; False returns a NumPy array and does not import torch.

    Returns:
      The weight of torch's layer.

    Raises:
      ValueError: fewer than 2 axes, or fewer than 3 if transposed.
      TypeError: not an array.

    Example:
      >>> import numpy as np, jbn
      >>> jbn.convert.to_torch_kernel(np.zeros((5, 5, 3, 8)), tensors=False).shape
      (8, 3, 5, 5)
    """
    try:
        array = np.array(kernel)
    except ValueError:  # Nested lists of different lengths.
        array = np.array(None)
    if array.dtype == object:
        raise TypeError(f"Expected an array as kernel, got {describe(kernel)}. Pass its kernel.")
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
            "batch norm's weight, which needs no conversion."
        )
