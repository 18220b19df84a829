"""One layer of a network: affine map, normalization and nonlinearity, in either order."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array, ArrayLike, Float

from jbn import linen
from jbn._arguments import check_flag
from jbn._dtypes import wide_dtype
from jbn._inputs import as_array
from jbn.linen import BatchNorm
from jbn.models.attributes import check_choice, check_norm, did_you_mean

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
BATCH_NORMS = (BatchNorm, nn.BatchNorm)
# Norms that subtract a mean over axes along which a bias is constant, so that the bias cancels.
CANCEL_BIAS = (*BATCH_NORMS, linen.InstanceNorm, nn.InstanceNorm)


def make_norm(norm: Norm) -> Callable[..., nn.Module] | None:
    """Look up a normalization by its name; return None if no module follows the layer.

    Raises:
      ValueError: an unknown name.
      TypeError: neither a name nor a function that makes a layer of linen.
    """
    check_norm(norm)
    if norm is None or norm in ("none", WEIGHT):
        return None
    if not isinstance(norm, str):
        return norm
    if norm not in NORMS:
        names = ", ".join([*NORMS, WEIGHT, "none"])
        raise ValueError(
            f"Expected `norm` to be one of {names}, or a function, got {norm!r}."
            f"{did_you_mean(norm, [*NORMS, WEIGHT])}"
        )
    return NORMS[norm]


def is_norm_of(norm: Norm, classes: tuple[type, ...]) -> bool:
    """Tell whether the normalization is a layer of one of these classes, or a partial of one."""
    make = make_norm(norm)
    while isinstance(make, functools.partial):
        make = make.func
    return isinstance(make, type) and issubclass(make, classes)


def cancels_bias(norm: Norm) -> bool:
    """Tell whether the normalization subtracts whatever a bias before it would add."""
    return is_norm_of(norm, CANCEL_BIAS)


LAYOUTS = {
    "N F": "Flatten images: x.reshape(len(x), -1). Give one example its axis: x[None].",
    "N T F": "Give one sequence its axis: x[None]. Give a single feature its axis: x[..., None].",
    "N H W C": "Give one image its axis: x[None]. Give gray images theirs: x[..., None].",
}


def check_call(x: Any, layout: str, *, training: Any, mask: Any) -> tuple[Array, Array | None]:
    """Check the arguments of a model's call; return x and mask as arrays.

    Args:
      x: the batch.
      layout: a key of `LAYOUTS`, one letter per axis.
      training: a bool that is not traced.
      mask: None, or one value per example.

    Raises:
      TypeError: not an array; `training` traced or not a bool.
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
    use_bias: bool | None = None,
    zero_scale: bool = False,
    dtype: Any = None,
    param_dtype: Any = None,
) -> Array:
    """Apply activation(norm(layer(x))), or norm(activation(layer(x))); within a compact method.

    Args:
      layer: makes the affine map, such as a partial `nn.Dense`; called with `use_bias` and `name`,
        and with `dtype` and `param_dtype` if these are given.
      x: input.
      training: whether to normalize by batch statistics.
      name, norm_name: names of the two modules.
      norm: a key of `NORMS`, "weight" (weight normalization of the kernel), "none" or None, or a
        function called as `norm(use_running_average=..., name=...)`, and with `dtype` if one is
        given; see `normalize`.
      activation: the nonlinearity; None for none.
      placement: normalize "before" the nonlinearity, as in the paper's section 3.2, or "after".
      mask: for the normalization, broadcastable to the layer's output.
      sow: called with the input of the nonlinearity.
      use_bias: give the layer a bias; None gives it one unless the normalization comes next and
        cancels it.
      zero_scale: initialize the normalization's scale to 0 instead of 1.
      dtype: dtype of the computation and the output; None promotes as Flax does. Normalizations
        compute their statistics in at least float32.
      param_dtype: dtype of the layer's parameters; None leaves it to the layer. Parameters and
        statistics of normalizations stay float32.

    Returns:
      The output.

    Raises:
      ValueError: an unknown norm or placement; `zero_scale` with a norm without a scale.
    """
    check_choice("placement", placement, ("before", "after"))
    if use_bias is None:
        use_bias = not (placement == "before" and cancels_bias(norm))
    given = {"dtype": dtype, "param_dtype": param_dtype}
    given = {key: value for key, value in given.items() if value is not None}
    module = layer(use_bias=use_bias, name=name, **given)
    if norm == WEIGHT:
        # WeightNorm has no dtype, so the kernel is float32 until the layer casts it: rounded once.
        module = nn.WeightNorm(module, name=norm_name)

    def normalized(x: Array) -> Array:
        return normalize(
            x,
            norm,
            training=training,
            name=norm_name,
            mask=mask,
            zero_scale=zero_scale,
            dtype=dtype,
        )

    x = module(x)
    if placement == "before":
        x = normalized(x)
    sow(x)
    x = x if activation is None else activation(x)
    return normalized(x) if placement == "after" else x


def normalize(
    x: Array,
    norm: Norm,
    *,
    training: bool,
    name: str,
    mask: ArrayLike | None = None,
    zero_scale: bool = False,
    dtype: Any = None,
) -> Array:
    """Apply the normalization; within a compact method.

    A function given as `norm` is passed the model's `dtype` if it accepts one and is not a partial
    that sets its own. If it does not accept one, its output is cast.

    Args:
      x: input.
      norm, training, mask, zero_scale, dtype: see `unit`.
      name: name of the module.

    Returns:
      The output; x itself if there is no normalization, or if the kernel is normalized instead.

    Raises:
      ValueError: an unknown norm; `zero_scale` with a norm without a scale.
    """
    make = make_norm(norm)
    options: dict[str, Any] = {}
    if zero_scale:
        # Flax's weight norm has a scale, but stores the kernel already scaled: it would stay 0.
        if make is None or not _takes(make, "scale_init"):
            raise ValueError(_no_scale(norm))
        options["scale_init"] = nn.initializers.zeros
    if make is None:
        return x
    own_dtype = dtype is None or _has_keyword(make, "dtype")
    if not own_dtype and _takes(make, "dtype"):
        options["dtype"] = dtype
    module = make(use_running_average=not training, name=name, **options)
    if zero_scale and not getattr(module, "use_scale", True):
        raise ValueError(_no_scale(norm))
    y = module(x, **({} if mask is None else {"mask": mask}))
    return y if own_dtype else y.astype(dtype)


def logits(
    x: Float[Array, "N F"],
    outputs: int,
    *,
    kernel_init: Initializer,
    dtype: Any,
    param_dtype: Any,
) -> Float[Array, "N outputs"]:
    """Apply the last dense layer in at least float32; within a compact method.

    Rounded to bfloat16, a logit of 20 is off by up to 1/16, and float16 ends at 65,504. So neither
    the features nor the products are rounded here. This costs little: the layer is one matrix
    product, 1/2000 of a ResNet-50's work.

    Args:
      x: the features.
      outputs: number of outputs.
      kernel_init: initializer of the kernel.
      dtype: dtype of the model's computation; None promotes as Flax does.
      param_dtype: dtype of kernel and bias.

    Returns:
      The outputs, in at least float32.
    """
    dense = nn.Dense(
        outputs,
        dtype=None if dtype is None else wide_dtype(dtype),
        param_dtype=param_dtype,
        kernel_init=kernel_init,
        name="output",
    )
    return dense(x.astype(wide_dtype(x.dtype)))


def _takes(make: Callable[..., Any], keyword: str) -> bool:
    parameters = inspect.signature(make).parameters
    return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _has_keyword(make: Callable[..., Any], keyword: str) -> bool:
    """Tell whether a partial sets the keyword."""
    while isinstance(make, functools.partial):
        if keyword in make.keywords:
            return True
        make = make.func
    return False


def _no_scale(norm: Norm) -> str:
    return (
        f"Expected a `norm` after the layer with a scale, which is to start at 0, got {norm!r}. "
        'Pass norm="batch", or leave out zero_init_last.'
    )
