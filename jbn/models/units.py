"""One layer of a network: the affine map, its normalization, its nonlinearity, in either order."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array, ArrayLike

from jbn import linen
from jbn._arguments import check_flag
from jbn._inputs import as_array
from jbn.linen import BatchNorm

Activation = Callable[[Array], Array]
Initializer = Callable[..., Array]
Norm = str | Callable[..., nn.Module] | None
Placement = Literal["before", "after"]

NORMS: dict[str, Callable[..., nn.Module]] = {
    "batch": BatchNorm,
    "ghost": linen.GhostBatchNorm,
    "renorm": linen.BatchRenorm,
    "layer": linen.LayerNorm,
    "group": linen.GroupNorm,
    "instance": linen.InstanceNorm,
}
WEIGHT = "weight"
# Those that subtract a mean over what a bias is constant over, so that the bias cancels.
CANCEL_BIAS = (BatchNorm, nn.BatchNorm, linen.InstanceNorm, nn.InstanceNorm)


def make_norm(norm: Norm) -> Callable[..., nn.Module] | None:
    """Look a normalization up by its name; None where no module follows the layer.

    Raises:
      ValueError: a name that there is not.
    """
    if norm is None or norm in ("none", WEIGHT):
        return None
    if not isinstance(norm, str):
        return norm
    if norm not in NORMS:
        names = ", ".join([*NORMS, WEIGHT, "none"])
        raise ValueError(f"Expected `norm` to be one of {names}, or a function, got {norm!r}.")
    return NORMS[norm]


def cancels_bias(norm: Norm) -> bool:
    """Tell whether the normalization subtracts whatever a bias before it would add."""
    make = make_norm(norm)
    while isinstance(make, functools.partial):
        make = make.func
    return isinstance(make, type) and issubclass(make, CANCEL_BIAS)


LAYOUTS = {
    "N F": "Flatten images: x.reshape(len(x), -1). Give one example its axis: x[None].",
    "N T F": "Give one sequence its axis: x[None]. Give a single feature its axis: x[..., None].",
    "N H W C": "Give one image its axis: x[None]. Give gray images theirs: x[..., None].",
}


def check_call(x: Any, layout: str, *, training: Any, mask: Any) -> tuple[Array, Array | None]:
    """Check what a model is called with; return x and mask as arrays.

    Args:
      x: the batch.
      layout: a key of `LAYOUTS`, one letter per axis.
      training: has to be known when the call is traced.
      mask: None, or one value per example.

    Raises:
      TypeError: no array; `training` traced or no bool.
      ValueError: x of another rank; a mask that is not of shape `(N,)`.
    """
    check_flag("training", training)
    x = as_array("x", x)
    axes = layout.split()
    if x.ndim != len(axes):
        raise ValueError(
            f"Expected x of shape ({', '.join(axes)}), got shape {x.shape}. {LAYOUTS[layout]}"
        )
    if mask is None:
        return x, None
    mask = as_array("mask", mask)
    if mask.shape != x.shape[:1]:
        raise ValueError(
            f"Expected `mask` of shape {x.shape[:1]}, one value per example of x.shape={x.shape}, "
            f"got {mask.shape}. Write which examples count for the statistics."
        )
    return x, mask


def unit(
    layer: Callable[..., nn.Module],
    x: Array,
    *,
    training: bool,
    name: str,
    norm: Norm = None,
    norm_name: str,
    activation: Activation | None = None,
    placement: Placement = "before",
    mask: ArrayLike | None = None,
    sow: Callable[[Array], Any] = lambda x: None,
) -> Array:
    """Apply activation(norm(layer(x))), or norm(activation(layer(x))); within a compact method.

    Args:
      layer: makes the affine map, called with `use_bias` and `name`: a partial `nn.Dense`.
      x: input.
      training: normalize by the batch.
      name, norm_name: of the two modules.
      norm: a key of `NORMS`, "weight" (direction and length of the kernel are apart), "none" or
        None, or a function called as `norm(use_running_average=..., name=...)`.
      activation: the nonlinearity; None for none.
      placement: normalize "before" the nonlinearity, as in the paper's section 3.2, or "after".
      mask: for the normalization, broadcastable to the layer's output.
      sow: called with what enters the nonlinearity.

    Returns:
      the output. The layer has a bias unless the normalization comes next and cancels it.

    Raises:
      ValueError: a norm or placement that there is not.
    """
    if placement not in ("before", "after"):
        raise ValueError(f"Expected `placement` 'before' or 'after', got {placement!r}.")
    make = make_norm(norm)
    module = layer(use_bias=not (placement == "before" and cancels_bias(norm)), name=name)
    if norm == WEIGHT:
        module = nn.WeightNorm(module, name=norm_name)

    def normalized(x: Array) -> Array:
        if make is None:
            return x
        masked = {} if mask is None else {"mask": mask}
        return make(use_running_average=not training, name=norm_name)(x, **masked)

    x = module(x)
    if placement == "before":
        x = normalized(x)
    sow(x)
    x = x if activation is None else activation(x)
    return normalized(x) if placement == "after" else x
