"""Gradients: their norms, their shift, and the loss along them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jbn._dtypes import wide_dtype
from jbn._inputs import describe
from jbn.diagnostics._checks import (
    as_inexact,
    check_loss,
    check_number,
)
from jbn.diagnostics._statistics import _name

Loss = Callable[[Any], Float[Array, ""]]


def gradient_norms(gradient: Any, *, depth: int = 1) -> dict[str, Float[Array, ""]]:
    """Compute the L2 norm of each layer's gradient.

    Args:
      gradient: pytree with the structure of the parameters.
      depth: number of path keys that name a layer: 1 for `params["dense_0"]`, more to go deeper.

    Returns:
      Dict from name to norm, at least float32.

    Raises:
      ValueError: no arrays, or a depth below 1.
      TypeError: leaves that are not gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> norms = diagnostics.gradient_norms({"a": {"w": jnp.array([3.0]), "b": jnp.array([4.0])}})
      >>> float(norms["a"])
      5.0
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ValueError(
            f"Expected `depth` as an int of at least 1, got {describe(depth)}. It is the number of "
            "keys that name a layer: 1 for gradient['dense_0']."
        )
    layers: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        array = as_inexact(f"gradient of {_name(path)}", leaf, "Pass what jax.grad returned.")
        wide = array.astype(wide_dtype(array.dtype))
        layers.setdefault(_name(path[:depth]), []).append(wide)
    if not layers:
        raise ValueError(
            f"Expected a pytree of gradients, got {describe(gradient)} without arrays. Pass what "
            "jax.grad returned."
        )
    return {name: _norm(leaves) for name, leaves in layers.items()}


@jax.jit
def _norm(leaves: list[Array]) -> Array:
    """Compute the L2 norm of all leaves, scaled because the square of 1e-25 is 0 in float32."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]))
    unit = jnp.where(largest > 0, largest, 1)
    return unit * jnp.sqrt(sum(jnp.sum(jnp.abs(leaf / unit) ** 2) for leaf in leaves))


class GradientShift(NamedTuple):
    """Change of a layer's gradient when the layers before it take their step.

    - distance: ||G - G'||.
    - relative: ||G - G'|| / ||G||.
    - cosine: cosine of the angle between G and G', 1 if the earlier layers change nothing.
    """

    distance: Float[Array, ""]
    relative: Float[Array, ""]
    cosine: Float[Array, ""]


def gradient_shift(
    loss: Loss, params: Mapping[str, Any], moved: Mapping[str, Any], layers: Sequence[str]
) -> dict[str, GradientShift]:
    """Measure internal covariate shift as Santurkar et al. define it, layer by layer.

    G is the gradient of the loss with respect to layer i; G' is the same gradient after the layers
    before it have been updated. Their difference is the change that layer i cannot anticipate.

    Args:
      loss: function from params to the loss on one batch.
      params: parameters before the step, a dict by layer.
      moved: parameters after the step, of the same structure.
      layers: names of layers, from input to output.

    Returns:
      Dict from name to GradientShift; for the first layer it is 0, 0 and 1.

    Raises:
      ValueError: a name that is not in params; a layer of another structure in `moved`.
      TypeError: a loss that is not a function from params to one number; params that are not a
        dict; `layers` given as one string.

    References:
      Santurkar, Tsipras, Ilyas, Madry, "How Does Batch Normalization Help
      Optimization?", 2018, Definition 2.1.
    """
    for what, tree in (("params", params), ("moved", moved)):
        if not isinstance(tree, Mapping):
            raise TypeError(
                f"Expected `{what}` to be a dict by layer, got {describe(tree)}. The arguments "
                "are loss, params, moved, layers."
            )
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        name = layers if isinstance(layers, str) else "dense_0"
        raise TypeError(
            f"Expected `layers` to be a list of names, got {describe(layers)}. Pass "
            f"layers=[{name!r}]."
        )
    for tree in (params, moved):
        missing = [name for name in layers if name not in tree]
        if missing:
            raise ValueError(
                f"Expected layers among {sorted(tree)}, got {missing}. Use the names in params "
                "and moved."
            )
    for name in layers:
        if _shapes(params[name]) != _shapes(moved[name]):
            raise ValueError(
                f"Expected `moved` with the arrays of params in layer {name!r}, got "
                f"{_shapes(moved[name])} for {_shapes(params[name])}. Take both from one model."
            )
    check_loss(loss, dict(params))
    here = jax.grad(loss)(dict(params))
    shifts = {}
    for i, name in enumerate(layers):
        ahead = {**params, **{before: moved[before] for before in layers[:i]}}

        def of_layer(own: Any, ahead: Any = ahead, name: str = name) -> Array:
            return loss({**ahead, name: own})

        g, g_ahead = jax.tree.leaves(here[name]), jax.tree.leaves(jax.grad(of_layer)(params[name]))
        size, size_ahead = _norm(g), _norm(g_ahead)
        distance = _norm([a - b for a, b in zip(g, g_ahead, strict=True)])
        tiny = jnp.finfo(size.dtype).tiny
        products = [
            jnp.sum((a / jnp.maximum(size, tiny)) * (b / jnp.maximum(size_ahead, tiny)))
            for a, b in zip(g, g_ahead, strict=True)
        ]
        cosine = jnp.sum(jnp.stack(products))
        shifts[name] = GradientShift(distance, distance / jnp.maximum(size, tiny), cosine)
    return shifts


def _shapes(tree: Any) -> Any:
    return jax.tree.map(np.shape, tree)


class Landscape(NamedTuple):
    """The loss along the gradient: `(S,)` for S step sizes, and the effective smoothness, `()`.

    - loss: loss at params - size * gradient.
    - gradient_change: norm of the difference between the gradient there and at params.
    - smoothness: largest gradient_change / distance, a Lipschitz constant along the step.
    """

    loss: Float[Array, "S"]
    gradient_change: Float[Array, "S"]
    smoothness: Float[Array, ""]


def landscape(loss: Loss, params: Any, sizes: Float[ArrayLike, "S"]) -> Landscape:
    """Measure how the loss and its gradient vary along the gradient, for several step sizes.

    Args:
      loss: function from params to the loss on one batch.
      params: pytree.
      sizes: step sizes, positive.

    Returns:
      Landscape; smoothness is NaN if the gradient is 0.

    Raises:
      ValueError: sizes that are not positive or not a list.
      TypeError: a loss that is not a function from params to one number; integer params.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn import diagnostics
      >>> seen = diagnostics.landscape(lambda w: 2 * w**2, jnp.float32(1), jnp.array([0.1, 0.5]))
      >>> [round(float(v), 3) for v in seen.loss], round(float(seen.smoothness), 3)
      ([0.72, 2.0], 4.0)

    References:
      Santurkar et al., "How Does Batch Normalization Help Optimization?", 2018, Fig. 4.
    """
    remedy = "Pass a list such as (0.01, 0.1)."
    check_number(
        "sizes",
        sizes,
        np.nextafter(0, 1),
        np.finfo(float).max,
        "positive and finite",
        remedy,
        kind="a list of numbers",
    )
    check_loss(loss, params)
    steps = jnp.asarray(sizes)
    if steps.ndim != 1 or not steps.size:
        raise ValueError(f"Expected `sizes` to be a list of steps, got {describe(sizes)}. {remedy}")
    gradient = jax.grad(loss)(params)
    length = _norm(jax.tree.leaves(gradient))

    def along(size: Array) -> tuple[Array, Array]:
        there = jax.tree.map(lambda p, g: p - size * g, params, gradient)
        value, other = jax.value_and_grad(loss)(there)
        change = jax.tree.map(lambda a, b: a - b, other, gradient)
        return value, _norm(jax.tree.leaves(change))

    steps = steps.astype(length.dtype)
    # One step size at a time, since params may be large. Outside jit, `lax.map` would compile at
    # every call.
    if isinstance(length, jax.core.Tracer):
        values, changes = jax.lax.map(along, steps)
    else:
        values, changes = map(jnp.stack, zip(*map(along, steps), strict=True))
    return Landscape(values, changes, jnp.max(changes / (steps * length)))
