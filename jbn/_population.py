"""Population statistics: Algorithm 2, for any step that moves running statistics."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Int

from jbn._schedules import Schedule

State = TypeVar("State")


def population(step: Callable[[State, Any], State], state: State, batches: Any) -> State:
    """Recompute running statistics as plain averages over batches: Algorithm 2, precise BN.

    Every statistic moves as new = w * old + (1 - w) * batch. With old = 0 a step returns
    (1 - w) * batch, and d new / d old = w, so new / (1 - w) is the batch's own statistic, whatever
    momentum, library or layer moved it: the model stays as it is. Batches without weight (w = 1)
    count for nothing.

    A layer that one step calls k times moves its statistics k times; what is read off is then
    sum_i w^(k-i) batch_i / sum_i w^(k-i): all calls count, late ones by up to w^(1-k) more (1.01
    for two calls at w = .99). `jbn.cumulative` weighs them alike, and so do
    `jbn.linen.population` and `jbn.nnx.population`, whatever the momentum.

    Not for layers whose output in training depends on the running statistics, as batch renorm's
    does: those statistics are what they are to be used with.

    Args:
      step: `(state, batch) -> state`, one forward pass in training mode with parameters frozen.
        Its float leaves are the statistics; integer leaves (counts) are carried along.
      state: any pytree: BatchNormState, a dict of them, a Flax `batch_stats` collection.
      batches: pytree of arrays with a leading axis of K batches.

    Returns:
      A state like the one given, with the averages over the K batches. If the step corrects
      the variance by Bessel's factor, as `jbn.batch_norm` does by default, that is
      Algorithm 2's m / (m - 1) E[var]. A statistic that no batch moved stays as it was.

    Raises:
      ValueError: no batches, or leading axes that differ; a step whose result is unlike `state`.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> params, state = jbn.init(1)
      >>> def step(state, x):
      ...     return jbn.batch_norm(x, params, state, training=True)[1]
      >>> state = jbn.population(step, state, jnp.array([[[0.0], [2.0]], [[4.0], [8.0]]]))
      >>> float(state.mean[0]), float(state.var[0]), int(state.count)
      (3.5, 5.0, 2)

    References: Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 2, lines 7 to 10.
      Wu, Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3 (precise BN).
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            "Expected `batches` with one leading axis of K >= 1 batches on every array, got "
            f"leading axes {sorted(lengths)}. Stack the batches: jnp.stack([batch, ...])."
        )
    return _population(step, state, batches)


@functools.partial(jax.jit, static_argnums=0)
def _population(step: Callable[[State, Any], State], state: State, batches: Any) -> State:
    leaves, treedef = jax.tree.flatten(state)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    moving = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    floats = [leaf for leaf, is_float in zip(leaves, moving, strict=True) if is_float]
    counts = [leaf for leaf, is_float in zip(leaves, moving, strict=True) if not is_float]

    def join(floats: list[Array], counts: list[Array]) -> State:
        f, c = iter(floats), iter(counts)
        return treedef.unflatten([next(f if is_float else c) for is_float in moving])

    def absorb(carry, batch):
        totals, absorbed, counts = carry

        def moved(floats):
            new, new_treedef = jax.tree.flatten(step(join(floats, counts), batch))
            if new_treedef != treedef:
                raise ValueError(
                    f"Expected `step` to return a state like the one given, {treedef}, got "
                    f"{new_treedef}. Return the new statistics alone, not the output."
                )
            return (
                [leaf for leaf, is_float in zip(new, moving, strict=True) if is_float],
                [leaf for leaf, is_float in zip(new, moving, strict=True) if not is_float],
            )

        zeros = [jnp.zeros_like(leaf) for leaf in floats]
        ones = [jnp.ones_like(leaf) for leaf in floats]
        new, slope, counted = jax.jvp(moved, (zeros,), (ones,), has_aux=True)
        # A layer that stops the gradient of what it writes, as Flax nnx's does, has slope 0 here.
        # Then it is a difference, whose rounding is 1e-7; XLA computes what both passes share once.
        steps = [jnp.maximum(1, jnp.abs(leaf)).astype(leaf.dtype) for leaf in new]
        far, _ = moved(steps)
        slope = [
            jnp.where(w == 0, (up - leaf) / by, w)
            for w, up, leaf, by in zip(slope, far, new, steps, strict=True)
        ]
        moved_by_batch = [w != 1 for w in slope]
        totals = [
            total + jnp.where(is_moved, leaf / jnp.where(is_moved, 1 - w, 1), 0)
            for total, leaf, w, is_moved in zip(totals, new, slope, moved_by_batch, strict=True)
        ]
        absorbed = [n + is_moved for n, is_moved in zip(absorbed, moved_by_batch, strict=True)]
        return (totals, absorbed, counted), None

    zeros = [jnp.zeros_like(leaf) for leaf in floats]
    none = [jnp.zeros(leaf.shape, jnp.int32) for leaf in floats]
    counts = [jnp.zeros_like(leaf) for leaf in counts]
    (totals, absorbed, counts), _ = jax.lax.scan(absorb, (zeros, none, counts), batches)
    averages = [
        jnp.where(n > 0, total / jnp.maximum(n, 1), old).astype(old.dtype)
        for total, n, old in zip(totals, absorbed, floats, strict=True)
    ]
    return join(averages, counts)


# Calls apart: what `jbn.linen.population` and `jbn.nnx.population` share. While a step runs, each
# statistic holds a ledger instead, (..., 2): the sum of what calls left, and how many moved it.
# Every call reads `untouched` values and has momentum 0, so what it leaves is its batch's own.


def population_by_call(step: Callable[[State, Any], State], state: State, batches: Any) -> State:
    """Average over all calls of all batches, where `step` moves ledgers in place of statistics.

    Args:
      step: `(state, batch) -> state`, with a ledger for each leaf named mean or var; it passes them
        to `untouched` before a call and to `enter` after it.
      state, batches: as in `population`; state a tree of dicts.

    Returns:
      State like the one given: averages over the calls of each batch, then over the batches, so a
      batch in which a mask left some calls without weight counts like any other. Leaves that are
      no statistics stay, but for counts.
    """

    def averaged(state: State, batch: Any) -> State:
        opened = jax.tree_util.tree_map_with_path(
            lambda path, leaf: _ledger(leaf) if _is_statistic(path) else leaf, state
        )
        entered = step(opened, batch)

        def close(path: Any, old: Array, new: Array) -> Array:
            if _is_statistic(path):
                calls = new[..., 1].real
                return jnp.where(calls > 0, new[..., 0] / jnp.maximum(calls, 1), old)
            return old if jnp.issubdtype(jnp.result_type(old), jnp.inexact) else new

        return jax.tree_util.tree_map_with_path(close, state, entered)

    return population(averaged, state, batches)


def untouched(ledger: Array) -> Array:
    """Make what a call reads: values that no batch has, so that unmoved ones are told by them."""
    value = 1.5 * jnp.finfo(ledger.dtype).tiny
    return jnp.full(ledger.shape[:-1], value, ledger.dtype)


def enter(ledger: Array, left: Array) -> Array:
    """Add what a call left in place of `untouched`."""
    has_moved = left != untouched(ledger).astype(left.dtype)
    entry = jnp.stack([jnp.where(has_moved, left, 0), has_moved.astype(left.dtype)], -1)
    return ledger + entry.astype(ledger.dtype)


def forgetful(momentum: ArrayLike | Schedule) -> ArrayLike | Schedule:
    """Give the momentum 0 in the form of this one: a schedule keeps its layer's count moving."""
    return _zero if callable(momentum) else 0.0


def _zero(count: Int[ArrayLike, ""]) -> float:
    return 0.0


def _ledger(leaf: Array) -> Array:
    return jnp.zeros((*jnp.shape(leaf), 2), jnp.promote_types(leaf.dtype, jnp.float32))


def _is_statistic(path: Any) -> bool:
    return path[-1].key in ("mean", "var")
