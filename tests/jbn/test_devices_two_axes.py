"""Eight devices on two named axes equal one: pooled over one or both, in groups, with features."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import PartitionSpec as P
from meshes import compiled, mesh
from oracles import F32_GRADIENT, F32_VALUE, assert_close
from sharded_batches import (
    EPSILON,
    MOMENTUM,
    PER_DEVICE,
    SHAPE,
    assert_state,
    inputs,
    make_mask,
    problem,
)
from strategies import values

import jbn

A, B = 4, 2
TWO = ("shard_map", "shard_map_unchecked", "vmap", "pmap of vmap")


def spread_two(function, mode, state_axes):
    """Return `(x, mask, params, state) -> (y, new)` with the batch spread over axes "a" and "b".

    `new` has leading axes `state_axes`: those of ("a", "b") along which the states differ.
    """
    if mode in ("vmap", "pmap of vmap"):
        inner = jax.vmap(function, axis_name="b", in_axes=(0, 0, None, None))
        outer = jax.pmap if mode == "pmap of vmap" else jax.vmap
        mapped = outer(inner, axis_name="a", in_axes=(0, 0, None, None))

        def run(x, mask, params, state):
            parts = [None if t is None else t.reshape(A, B, -1, *t.shape[1:]) for t in (x, mask)]
            y, new = mapped(*parts, params, state)
            index = tuple(slice(None) if name in state_axes else 0 for name in ("a", "b"))
            return y.reshape(x.shape), jax.tree.map(lambda leaf: leaf[index], new)

        return run

    def body(x, mask, params, state):
        y, new = function(x, mask, params, state)
        return y, jax.tree.map(lambda leaf: leaf.reshape((1,) * len(state_axes) + leaf.shape), new)

    batch = P(("a", "b"))
    return jax.shard_map(
        body,
        mesh=mesh(("a", A), ("b", B)),
        in_specs=(batch, batch, P(), P()),
        out_specs=(batch, P(*state_axes)),
        check_vma=mode == "shard_map",
    )


NAMED = {"a": "a", "b": "b", "tuple of one": ("a",), "a, b": ("a", "b"), "b, a": ("b", "a")}


@pytest.mark.parametrize("named", list(NAMED))
@pytest.mark.parametrize("mode", TWO)
def test_one_or_both_of_two_axes(mode, named):
    x, params, state, _ = inputs()
    names = NAMED[named]
    pooled = set(names)
    state_axes = tuple(name for name in ("a", "b") if name not in pooled)

    def function(x, mask, params, state):
        return jbn.batch_norm(
            x,
            params,
            state,
            training=True,
            momentum=MOMENTUM,
            epsilon=EPSILON,
            mask=mask,
            axis_name=names,
        )

    run = compiled(spread_two(function, mode, state_axes), mode.split()[0])
    for name in ("unequal", "one shard empty", "nothing left"):
        mask = make_mask(name)
        y, new = jax.device_get(run(x, mask, params, state))
        # Split the batch as the mesh does and pool over the named axes.
        cells = np.arange(SHAPE[0]).reshape(A, B, PER_DEVICE)
        for a in range(A) if "a" not in pooled else [slice(None)]:
            for b in range(B) if "b" not in pooled else [slice(None)]:
                rows = cells[a, b].reshape(-1)
                want_y, want = problem(x[rows], mask[rows], params, state).forward()
                assert_close(y[rows], want_y, F32_VALUE, f"y, {name}")
                index = tuple(i for i in (a, b) if not isinstance(i, slice))
                assert_state(jax.tree.map(lambda leaf, i=index: leaf[i], new), want)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("mode", TWO)
def test_groups_are_of_the_flattened_index_over_both_axes(mode, order):
    """The index is row-major over the named axes, in the order of their names."""
    x, params, state, (dy, _, _) = inputs()
    mask = make_mask("one shard empty")
    groups = [[0, 1, 2, 5], [3, 4, 6, 7]]

    def function(x, mask, params, state):
        return jbn.batch_norm(
            x,
            params,
            state,
            training=True,
            momentum=MOMENTUM,
            epsilon=EPSILON,
            mask=mask,
            axis_name=order,
            axis_index_groups=groups,
        )

    run = spread_two(function, mode, ("a", "b"))

    def loss(x):
        y, new = run(x, mask, params, state)
        return jnp.sum(y * dy), (y, new)

    run_all = compiled(jax.grad(loss, has_aux=True), mode.split()[0])
    gradient, (y, new) = jax.device_get(run_all(x))
    cells = np.arange(SHAPE[0]).reshape(A, B, PER_DEVICE)
    flat = cells if order == ("a", "b") else cells.transpose(1, 0, 2)
    flat = flat.reshape(8, PER_DEVICE)
    for members in groups:
        rows = flat[members].reshape(-1)
        p = problem(x[rows], mask[rows], params, state)
        want_y, want = p.forward()
        assert_close(y[rows], want_y, F32_VALUE)
        assert_close(gradient[rows], p.gradient(oracles.exact(dy)[rows])["x"], F32_GRADIENT)
        for device in members:
            a, b = divmod(device, B) if order == ("a", "b") else divmod(device, A)[::-1]
            assert_state(jax.tree.map(lambda leaf, i=(a, b): leaf[i], new), want)


def test_features_may_be_sharded_too():
    """A model axis that shards features is not named: each device has its own features."""
    x = values(8, (16, 8), mean=1.0)
    params, state = jbn.init(8)

    def function(x, params, state):
        return jbn.batch_norm(x, params, state, training=True, axis_name="a")

    split_features = P("b")
    run = jax.shard_map(
        function,
        mesh=mesh(("a", A), ("b", B)),
        in_specs=(P("a", "b"), split_features, jbn.BatchNormState(P("b"), P("b"), P())),
        out_specs=(P("a", "b"), jbn.BatchNormState(P("b"), P("b"), P())),
        check_vma=False,
    )
    y, new = jax.jit(run)(x, params, state)
    want_y, want = jbn.batch_norm(x, params, state, training=True)
    assert_close(y, want_y, F32_VALUE)
    assert_state(new, [oracles.exact(leaf) for leaf in want])
