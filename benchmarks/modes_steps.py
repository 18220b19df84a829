"""The steps of one device in `benchmarks/modes.py`: plain, scanned, accumulated, several models."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

import jbn
from jbn import BatchNormParams, BatchNormState

# Axes: examples (sharded); steps, micro-batches, models or slices of a device; space; features.
SHAPE = (16, 2, 3, 6)
PARTS = SHAPE[1]
MOMENTUM, EPSILON = 0.75, 1e-2
Groups = Sequence[Sequence[int]]
# One call in training: (x, mask, params, state) -> (y, new state).
Step = Callable[
    [Array, Array | None, BatchNormParams, BatchNormState], tuple[Array, BatchNormState]
]


# ---- Steps of one device -------------------------------------------------------------------------


def norm(names: Any = None, groups: Groups | None = None) -> Step:
    """Make the step of one device: `jbn.batch_norm` pooled over `names`."""

    def step(x, mask, params, state):
        return jbn.batch_norm(
            x,
            params,
            state,
            training=True,
            momentum=MOMENTUM,
            epsilon=EPSILON,
            mask=mask,
            axis_name=names,
            axis_index_groups=groups,
        )

    return step


def accumulated(names: Any = None, groups: Groups | None = None) -> Step:
    """Make `norm` of micro-batches: merge their moments, normalize each, update the state once."""

    def step(x, mask, params, state):
        def one(part):
            values, mask = part
            return jbn.moments(values, mask=mask, axis_name=names, axis_index_groups=groups)

        micro_batches = parts(x), parts(mask)
        each = jax.lax.map(one, micro_batches)
        merged = jbn.merge_moments(*unstack(each, PARTS))
        has = merged.count > 0  # Without any weight, the running statistics are used.
        mean = jnp.where(has, merged.mean, state.mean)
        var = jnp.where(has, merged.var, state.var)
        y = jax.lax.map(
            lambda part: jbn.normalize(part, mean, var, params, epsilon=EPSILON), micro_batches[0]
        )
        return jnp.moveaxis(y, 0, 1), jbn.update(state, merged, momentum=MOMENTUM)

    return step


def scanned(step: Step) -> Step:
    """Make a step that scans over the parts of the batch and carries the state along."""

    def run(x, mask, params, state):
        def one(state, part):
            x, mask = part
            y, state = step(x, mask, params, state)
            return state, y

        state, y = jax.lax.scan(one, state, (parts(x), parts(mask)))
        return jnp.moveaxis(y, 0, 1), state

    return run


def looped(step: Step) -> Step:
    """Make the step that `scanned` must equal: the same steps in a Python loop."""

    def run(x, mask, params, state):
        y = []
        for k in range(PARTS):
            out, state = step(x[:, k], None if mask is None else mask[:, k], params, state)
            y.append(out)
        return jnp.stack(y, 1), state

    return run


def models(step: Step) -> Step:
    """Make a vmapped step of several models, each with its own batch, parameters and state."""
    return jax.vmap(step, in_axes=(1, 1, 0, 0), out_axes=(1, 0))


def models_in_turn(step: Step) -> Step:
    """Make the step that `models` must equal: one model after the other."""

    def run(x, mask, params, state):
        found = [
            step(x[:, k], None if mask is None else mask[:, k], *own)
            for k, own in enumerate(unstack((params, state), PARTS))
        ]
        y, new = zip(*found, strict=True)
        return jnp.stack(y, 1), stack(new)

    return run


def pooled_slices(name: Any, groups: Groups | None) -> Step:
    """Make `norm` over `name` and over a vmapped axis "v" of slices of each device's batch."""
    if groups:  # Indices over both names are row-major, so a group has all slices of its devices.
        groups = [[i * PARTS + v for i in group for v in range(PARTS)] for group in groups]
    each = jax.vmap(
        norm((name, "v"), groups), axis_name="v", in_axes=(1, 1, None, None), out_axes=(1, 0)
    )

    def run(x, mask, params, state):
        y, new = each(x, mask, params, state)
        return y, jax.tree.map(lambda a: a[0], new)

    return run


def parts(x: Array | None) -> Array | None:
    """Move the second axis to the front."""
    return None if x is None else jnp.moveaxis(x, 1, 0)


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Stack the arrays of trees with equal structure."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: PyTree, count: int) -> list[PyTree]:
    """Undo `stack`."""
    return [jax.tree.map(lambda a, k=k: a[k], tree) for k in range(count)]
