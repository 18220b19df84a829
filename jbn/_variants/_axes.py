"""The axis of examples, and the axes that are neither examples nor features."""

from collections.abc import Sequence

from jaxtyping import Array

from jbn._axes import reduction_axes


def check_examples(features: tuple[int, ...], axis: int | Sequence[int]) -> None:
    if 0 in features:
        raise ValueError(
            f"Expected examples along the first axis, got the feature axis {axis}, which is the "
            "first. Move it: jnp.moveaxis(x, 0, -1)."
        )


def space_axes(x: Array, features: tuple[int, ...]) -> tuple[int, ...]:
    """List the axes that are neither examples nor features."""
    return tuple(a for a in reduction_axes(x, features) if a != 0)
