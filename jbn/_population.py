"""Population statistics (Algorithm 2), for any step that updates running statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jbn._batches import fold
from jbn._dtypes import wide_dtype
from jbn._inputs import as_array, describe
from jbn._types import is_statistics

State = TypeVar("State")


def population(step: Callable[[State, Any], State], state: State, batches: Any) -> State:
    """Recompute running statistics as plain averages over batches (Algorithm 2, precise BN).

    Every statistic is updated as new = w * old + (1 - w) * batch. With old = 0 a step returns
    (1 - w) * batch, and d new / d old = w, so new / (1 - w) is the batch's own statistic, whatever
    momentum, library or layer is used; the model needs no change. Batches without weight (w = 1)
    are ignored.

    A layer that is called k times in one step updates its statistics k times. The average over
    these calls is then sum_i w^(k-i) batch_i / sum_i w^(k-i), in which late calls weigh up to
    w^(1-k) times as much as early ones (1.01 for two calls at w = .99). `jbn.cumulative` weights
    them equally, and so do `jbn.linen.population` and `jbn.nnx.population`, whatever the momentum.

    A step does not reveal how many values it has seen, so every batch has the same weight, even a
    smaller last one. Where that matters, use `jbn.linen.population` or `jbn.nnx.population`, which
    see the layers and weight each call by its number of values, or merge `jbn.moments` with
    `jbn.merge_moments`.

    Do not use this for layers whose training output depends on the running statistics, such as
    batch renorm: they have to be evaluated with the statistics they were trained with.

    Args:
      step: `(state, batch) -> state`, one forward pass in training mode with frozen parameters.
        The float leaves of the state are the statistics; integer leaves (counts) start from 0 and
        are carried along. The step is compiled once per call of `population` and batch shape. It
        may close over anything, including traced values, as they are when `population` is called.
      state: any pytree, such as a BatchNormState, a dict of them, or a Flax `batch_stats`
        collection.
      batches: an array or a pytree of arrays (tuple, NamedTuple, dict, ...) with a leading axis of
        K batches; or an iterable of any number of batches of any size, such as a generator, a torch
        DataLoader or a list (which is never taken for a pytree of stacked arrays). Each batch is a
        pytree of arrays or CPU tensors, and is released once it has been averaged.

    Returns:
      A state of the same structure, with the averages over the K batches. If the step applies
      Bessel's correction, as `jbn.batch_norm` does by default, the variance is Algorithm 2's
      m / (m - 1) E[var]. Statistics that no batch updated are unchanged.

    Raises:
      TypeError: arguments in the wrong order; batches that are neither arrays nor an iterable.
      ValueError: no batches; different leading axes; a single batch x that is not passed as x[None]
        or [x]; a step whose result has another structure than `state`.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> params, state = jbn.init(1)
      >>> def step(state, x):
      ...     return jbn.batch_norm(x, params, state, training=True)[1]
      >>> state = jbn.population(step, state, jnp.array([[[0.0], [2.0]], [[4.0], [8.0]]]))
      >>> float(state.mean[0]), float(state.var[0]), int(state.count)
      (3.5, 5.0, 2)

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 2, lines 7 to 10.
      Wu, Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3 (precise BN).
    """
    order = "step, state, batches"
    check_step(step, order)
    with in_order(order, state, batches):
        return _population(step, state, batches)


def _population(step: Callable[[State, Any], State], state: State, batches: Any) -> State:
    leaves, treedef = jax.tree.flatten(state)
    leaves = [_as_leaf(leaf) for leaf in leaves]
    moving = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

    def split(leaves: list[Array]) -> tuple[list[Array], list[Array]]:
        floats = [leaf for leaf, is_float in zip(leaves, moving, strict=True) if is_float]
        counts = [leaf for leaf, is_float in zip(leaves, moving, strict=True) if not is_float]
        return floats, counts

    def join(floats: list[Array], counts: list[Array]) -> State:
        f, c = iter(floats), iter(counts)
        return treedef.unflatten([next(f if is_float else c) for is_float in moving])

    floats, counts = split(leaves)

    def absorb(carry: Any, batch: Any) -> Any:
        averages, absorbed, counts = carry

        def moved(floats: list[Array]) -> tuple[list[Array], list[Array]]:
            old = join(floats, counts)
            new = step(old, batch)
            check_state(old, new)
            return split([jnp.asarray(leaf) for leaf in jax.tree.leaves(new)])

        values, slopes, counted = _batch_statistics(moved, floats)
        is_moved = [slope != 1 for slope in slopes]
        absorbed = [n + m.astype(n.dtype) for n, m in zip(absorbed, is_moved, strict=True)]
        averages = [
            a + jnp.where(m, value.astype(a.dtype) - a, 0) / jnp.maximum(n, 1).astype(a.dtype)
            for a, value, m, n in zip(averages, values, is_moved, absorbed, strict=True)
        ]
        counted = [new.astype(old.dtype) for new, old in zip(counted, counts, strict=True)]
        return averages, absorbed, counted

    # Averages in at least float32: a sum in bfloat16 stops growing after 256 batches.
    averages = [jnp.zeros_like(leaf, dtype=wide_dtype(leaf.dtype)) for leaf in floats]
    absorbed = [jnp.zeros_like(leaf, dtype=jnp.int32) for leaf in floats]
    counts = [from_zero(leaf) for leaf in counts]
    averages, absorbed, counts = fold(absorb, (averages, absorbed, counts), batches)
    return join(_averages_where_any(averages, absorbed, floats), counts)


@jax.jit
def _averages_where_any(
    averages: list[Array], absorbed: list[Array], olds: list[Array]
) -> list[Array]:
    return [
        jnp.where(n > 0, average.astype(old.dtype), old)
        for average, n, old in zip(averages, absorbed, olds, strict=True)
    ]


def _as_leaf(leaf: Any) -> Array:
    if isinstance(leaf, jax.Array):  # Of any dtype: a random key is carried along too.
        return leaf
    return as_array("state", leaf, "Pass a pytree of arrays.")


def check_step(step: Any, order: str) -> None:
    """Check that the first argument is a function."""
    if not callable(step):
        raise TypeError(
            f"Expected a function first, as in population({order}), got a {type(step).__name__}. "
            "Give the arguments in this order."
        )


@contextlib.contextmanager
def in_order(order: str, state: Any, batches: Any) -> Iterator[None]:
    """If the body fails and the last two arguments appear to be swapped, say so.

    This is not checked beforehand: a state may have any names, and batches may have columns named
    mean and var.
    """
    try:
        yield
    except Exception:
        if not _has_statistics(batches) or _has_statistics(state):
            raise
        raise TypeError(
            f"Expected population({order}), got statistics last, {describe(batches)}, and "
            f"{describe(state)} before. Give the arguments in this order: batches go last."
        ) from None


def _has_statistics(tree: Any) -> bool:
    def is_leaf(node: Any) -> bool:  # JAX wants to be told that iterators are leaves.
        return is_statistics(node) or jax.tree_util.all_leaves([node])

    return any(map(is_statistics, jax.tree.leaves(tree, is_leaf=is_leaf)))


def from_zero(leaf: Array) -> Array:
    """Reset a count, which is an integer leaf, to 0; leave other leaves as they are."""
    return jnp.zeros(leaf.shape, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf


def check_state(old: State, new: State) -> None:
    """Check that a step returns a state like the one it was given."""
    trees = [jax.tree.structure(state) for state in (old, new)]
    if trees[0] != trees[1]:
        raise ValueError(
            f"Expected `step` to return a state like the one given, {trees[0]}, got {trees[1]}. "
            "Return the new statistics alone, not the output."
        )
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(state)] for state in (old, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Expected `step` to return a state like the one given, of shapes {shapes[0]}, got "
            f"{shapes[1]}. Give it the state of this model, and return the new one."
        )


def _batch_statistics(
    moved: Callable[[list[Array]], tuple[list[Array], list[Array]]], like: list[Array]
) -> tuple[list[Array], list[Array], list[Array]]:
    """Infer a batch's own statistics from a step that moves them: `(values, slopes, counts)`."""
    zeros = [jnp.zeros_like(leaf) for leaf in like]
    ones = [jnp.ones_like(leaf) for leaf in like]
    new, slopes, counts = jax.jvp(moved, (zeros,), (ones,), has_aux=True)
    # A layer that stops the gradient of the statistics it stores, as Flax nnx's does, has slope 0
    # here. Then the slope is a difference quotient, with a rounding error of 1e-7; XLA computes
    # what both passes have in common only once.
    by = [jnp.maximum(1, jnp.abs(leaf)).astype(leaf.dtype) for leaf in new]
    far, _ = moved(by)
    slopes = [
        jnp.where(w == 0, (up - leaf) / step, w)
        for w, up, leaf, step in zip(slopes, far, new, by, strict=True)
    ]
    values = [leaf / jnp.where(w == 1, 1, 1 - w) for leaf, w in zip(new, slopes, strict=True)]
    return values, slopes, counts
