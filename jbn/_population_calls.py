"""Population statistics call by call, shared by `jbn.linen.population` and `jbn.nnx.population`.

While a step runs, each statistic is replaced by a `Tally`. When a layer is called, it reads
`sentinel` values in place of the tally and has momentum 0, so it leaves its batch's own statistics,
which are then added to the tally. Tallies are pytrees of arrays, so they pass through scan, jit and
remat.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Inexact, Int

from jbn._batches import fold
from jbn._collectives import pool
from jbn._dtypes import wide_dtype
from jbn._moments import feature_axes
from jbn._population import State, check_state, from_zero
from jbn._schedules import Schedule


class Tally(NamedTuple):
    """The average of what calls left in place of a statistic, and their total weight."""

    average: Inexact[Array, "*C"]
    weight: Float[Array, "*C"]

    def add(self, value: Array, weight: ArrayLike) -> "Tally":
        """Add one value; if its weight is 0, it may be anything, even NaN."""
        weight = jnp.broadcast_to(weight, self.weight.shape).astype(self.weight.dtype)
        total = self.weight + weight
        share = (weight / jnp.where(total > 0, total, 1)).astype(self.average.dtype)
        change = jnp.where(weight > 0, value.astype(self.average.dtype) - self.average, 0)
        return Tally(self.average + change * share, total)

    def sentinel(self) -> Array:
        """Return what a call reads: values that no batch has, which show if they were not updated.

        They are normal floats, since subnormal ones are flushed to 0, which dead features have.
        """
        return jnp.full_like(self.average, 1.5 * jnp.finfo(self.average.dtype).tiny)

    def enter(self, left: Array, weight: ArrayLike) -> "Tally":
        """Add what a call left in place of the sentinel."""
        if jnp.iscomplexobj(left) and not jnp.iscomplexobj(self.average):
            raise ValueError(
                f"Expected a complex mean in the state for complex x, got {self.average.dtype}. "
                "Train for a step first, or give the state a complex mean."
            )
        has_moved = left != self.sentinel().astype(left.dtype)
        return self.add(left, jnp.where(has_moved, weight, 0))


def population_by_call(step: Callable[[State, Any], State], state: State, batches: Any) -> State:
    """Average over all calls in all batches, where `step` adds each call to tallies.

    Args:
      step: `(state, batch) -> state`, with a `Tally` for each leaf named mean or var.
      state: tree of dicts. Inside the step of another population it may hold tallies itself, to
        which the averages computed here are then added.
      batches: as in `jbn.population`.

    Returns:
      A state like the one given, with averages weighted by the calls' weights. Leaves that are not
      statistics are unchanged, except for counts.
    """

    def is_statistic(path: Any) -> bool:
        return bool(path) and getattr(path[-1], "key", None) in ("mean", "var")

    def absorb(carry: State, batch: Any) -> State:
        new = step(carry, batch)
        _check_tallies(carry, new)

        def keep(old: Any, new: Any) -> Any:
            if isinstance(old, Tally):
                return new
            is_count = not jnp.issubdtype(old.dtype, jnp.inexact)
            return jnp.asarray(new).astype(old.dtype) if is_count else old

        return jax.tree.map(keep, carry, new, is_leaf=_is_tally)

    def open_(path: Any, leaf: Any) -> Any:
        if is_statistic(path):
            value = leaf.average if isinstance(leaf, Tally) else leaf
            dtype = wide_dtype(jnp.result_type(value))
            zeros = jnp.zeros(jnp.shape(value), dtype)
            return Tally(zeros, zeros.real)
        return from_zero(jnp.asarray(leaf))

    def close(old: Any, new: Any) -> Any:
        if isinstance(old, Tally):
            return old.add(*new)
        if isinstance(new, Tally):
            old = jnp.asarray(old)
            return jnp.where(new.weight > 0, new.average.astype(old.dtype), old)
        return new

    opened = jax.tree_util.tree_map_with_path(open_, state, is_leaf=_is_tally)
    tallies = fold(absorb, opened, batches)
    return jax.tree.map(close, state, tallies, is_leaf=_is_tally)


def weight_of_call(statistic: Array, layer: Any, x: Any, mask: ArrayLike | None) -> ArrayLike:
    """Count the values per feature that one call of a layer averages; with a mask, sum the mask.

    If this cannot be inferred from x and `layer.axis`, every call has weight 1.
    """
    if not _is_seen(statistic, layer, x):
        return 1.0
    features = feature_axes(layer.axis, x.ndim)
    others = tuple(a for a in range(x.ndim) if a not in features)
    devices = pool(getattr(layer, "axis_name", None), getattr(layer, "axis_index_groups", None))
    if not others and devices is None:
        raise ValueError(
            f"Expected each of `batches` to hold several examples, got x of shape {x.shape} in a "
            f"{type(layer).__name__}, which is a single example. Pass a single batch x as x[None] "
            "or [x]; put single examples together into batches."
        )
    if mask is None:
        count = jnp.float32(x.size // max(statistic.size, 1))
    else:
        mask = jnp.asarray(mask)
        if not jnp.issubdtype(mask.dtype, jnp.floating):
            mask = mask != 0
        count = jnp.broadcast_to(mask, x.shape).sum(others, dtype=jnp.float32)
    return count if devices is None else devices.sum(count)


def check_momentum(layer: Any, tallies: dict[str, Tally]) -> None:
    """Check that a layer with statistics has a momentum, which is needed to separate its calls."""
    if not hasattr(layer, "momentum"):
        raise ValueError(
            f"Expected layers with `momentum`, got {type(layer).__name__}, which keeps "
            f"{' and '.join(tallies)} without one. Use jbn.population, which takes any statistics."
        )


def zero_momentum(momentum: ArrayLike | Schedule) -> ArrayLike | Schedule:
    """Return momentum 0, as a schedule if this is one, so that the layer still counts."""
    return _zero if callable(momentum) else 0.0


def _zero(count: Int[ArrayLike, ""]) -> float:
    return 0.0


def _is_seen(statistic: Array, layer: Any, x: Any) -> bool:
    if not hasattr(layer, "axis") or not hasattr(x, "ndim") or x.ndim < max(statistic.ndim, 1):
        return False
    features = feature_axes(layer.axis, x.ndim)
    return tuple(x.shape[a] for a in features) == statistic.shape


def _is_tally(node: Any) -> bool:
    return isinstance(node, Tally)


def _check_tallies(old: State, new: State) -> None:
    """Check the state that a step returns; messages name a statistic, not its tally."""
    plain = [
        jax.tree.map(
            lambda leaf: leaf.average if _is_tally(leaf) else leaf, state, is_leaf=_is_tally
        )
        for state in (old, new)
    ]
    check_state(*plain)
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise ValueError(
            "Expected `step` to run the model with the statistics that it is given, got others. "
            "Write step(batch_stats, batch) so that the model reads and moves its first argument."
        )
