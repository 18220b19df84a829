"""How running statistics move: decay schedules, the update, population statistics."""

import functools
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from jbn.types import BatchNormState, Moments

Schedule = Callable[[Int[Array, ""]], ArrayLike]
State = TypeVar("State")


def update(
    state: BatchNormState,
    moments: Moments,
    *,
    momentum: ArrayLike | Schedule,
    unbiased: bool = True,
) -> BatchNormState:
    """Move running statistics towards the moments of one batch.

    new = momentum * old + (1 - momentum) * batch, for mean and var, where the batch's var takes
    Bessel's factor n / (n - 1) if `unbiased`. The only place where running statistics move.

    Args:
      state: running statistics, `(C,)`.
      moments: of the batch, `(C,)`; var biased.
      momentum: weight of the *old* value, in [0, 1] (PyTorch's momentum is 1 - this), or a
        schedule of it: a function of `state.count`, such as `jbn.cumulative`. May be traced.
      unbiased: correct var by n / (n - 1). Where n is 1 or less, var stays as it is.

    Returns:
      BatchNormState of the same shapes and dtypes, count one higher. A feature without any weight
      keeps its statistics; if all are without, the state comes back unchanged.

    Raises:
      ValueError: a momentum known at trace time outside [0, 1]; shapes that differ.

    Example:
      >>> import jax.numpy as jnp, jbn
      >>> _, state = jbn.init(1)
      >>> batch = jbn.moments(jnp.array([[1.0], [3.0]]))
      >>> state = jbn.update(state, batch, momentum=0.5)
      >>> float(state.mean[0]), float(state.var[0]), int(state.count)
      (1.0, 1.5, 1)

    References: Ioffe, Szegedy, "Batch Normalization", 2015, section 3.1 and Algorithm 2.
    """
    if jnp.shape(state.mean) != jnp.shape(moments.mean):
        raise ValueError(
            f"Expected moments of the state's shape {jnp.shape(state.mean)}, got "
            f"{jnp.shape(moments.mean)}. Make the state with jbn.init for these features."
        )
    old_weight = momentum(state.count) if callable(momentum) else momentum
    check_momentum(old_weight)
    n = moments.count
    bessel = jnp.where(n > 1, n / jnp.where(n > 1, n - 1, 1), 1) if unbiased else 1
    has = n > 0

    def moved(old: Array, batch: Array) -> Array:
        dtype = jnp.promote_types(old.dtype, batch.dtype)
        weight = jnp.asarray(old_weight, jnp.finfo(dtype).dtype)
        return jnp.where(has, weight * old + (1 - weight) * batch, old).astype(old.dtype)

    return BatchNormState(
        mean=moved(state.mean, moments.mean),
        var=moved(state.var, moments.var * bessel),
        count=state.count + jnp.any(has).astype(state.count.dtype),
    )


def check_momentum(momentum: ArrayLike) -> None:
    """Reject a momentum outside [0, 1], where its value is known without waiting for a device."""
    if isinstance(momentum, Real) and not 0 <= momentum <= 1:
        raise ValueError(
            f"Expected `momentum`, the weight of the old value, in [0, 1], got {momentum}. "
            "PyTorch's momentum is 1 minus this one."
        )


def cumulative(count: Int[ArrayLike, ""]) -> Float[Array, ""]:
    """Weigh all batches since count 0 equally: count / (count + 1), a schedule for `momentum`.

    The running statistics are then the means over batches that Algorithm 2 asks for.

    Args: count: batches absorbed so far.
    Returns: weight of the old value, float32.

    Example:
      >>> import jbn
      >>> [float(jbn.cumulative(count)) for count in (0, 1, 3)]
      [0.0, 0.5, 0.75]

    References: Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 2, line 10.
    """
    count = jnp.asarray(count, jnp.result_type(float))
    return count / (count + 1)


def debiased(decay: ArrayLike) -> Schedule:
    """Make the schedule of an exponential average that forgets its initial value at once.

    After t batches, mean = sum_i decay^(t-i) batch_i (1 - decay) / (1 - decay^t). As a weight of
    the old value that is decay (1 - decay^t) / (1 - decay^(t+1)): 0 at count 0, `decay` in the end.

    Args: decay: in [0, 1), the weight of the old value in the long run. May be traced.
    Returns: schedule, count -> weight of the old value, for `momentum`.
    Raises: ValueError: a decay known at trace time outside [0, 1).

    Example:
      >>> import jbn
      >>> schedule = jbn.debiased(0.5)
      >>> [round(float(schedule(count)), 4) for count in (0, 1, 100)]
      [0.0, 0.3333, 0.5]

    References: Kingma, Ba, "Adam", 2015, section 3.
    """
    if isinstance(decay, Real) and not 0 <= decay < 1:
        raise ValueError(
            f"Expected `decay` in [0, 1), got {decay}. For equal weights use jbn.cumulative."
        )

    def schedule(count: Int[ArrayLike, ""]) -> Float[Array, ""]:
        t = jnp.asarray(count, jnp.result_type(float))
        if isinstance(decay, Real):  # In double precision: log(float32(.9999)) is 3e-4 off.
            rate = jnp.asarray(math.log(decay) if decay else -jnp.inf, t.dtype)
        else:
            rate = jnp.log(jnp.asarray(decay, t.dtype))
        # 1 - decay^t without cancellation; 0 at t = 0 for decay 0 as well, where t * rate is NaN.
        missing = jnp.where(t > 0, -jnp.expm1(jnp.where(t > 0, t, 1) * rate), 0)
        return jnp.asarray(decay, t.dtype) * missing / -jnp.expm1((t + 1) * rate)

    return schedule


def moving_average(values: Shaped[ArrayLike, "K ..."], *, window: int) -> Float[Array, "K ..."]:
    """Average each value with the ones before it, `window` of them or as many as there are.

    The simple moving average that textbooks use to explain running statistics.

    Args:
      values: one per step along the first axis, `(K, ...)`.
      window: how many values, at least 1.
    Returns: `(K, ...)`, float32 at least.
    Raises: ValueError: window not a positive int; no values.

    Example:
      >>> import jbn
      >>> jbn.moving_average([100, 110, 130, 120, 140], window=2).tolist()
      [100.0, 105.0, 120.0, 125.0, 130.0]
    """
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(
            f"Expected `window` to be a positive int, got {window!r}. "
            "Pass the number of values to average."
        )
    values = jnp.asarray(values)
    if values.ndim == 0 or values.shape[0] == 0:
        raise ValueError(
            f"Expected one or more values along a first axis, got shape {values.shape}. "
            "Pass a sequence with one value per step."
        )
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    window = min(window, values.shape[0])
    # Each window on its own: differences of one running sum would lose digits along the way.
    padded = jnp.concatenate([jnp.zeros((window - 1, *values.shape[1:]), values.dtype), values])
    total = sum(padded[i : i + values.shape[0]] for i in range(window))
    have = jnp.minimum(jnp.arange(1, values.shape[0] + 1), window)
    return total / have.reshape(-1, *(1,) * (values.ndim - 1))


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
