"""jbn.linen.BatchNorm under transforms: statistics are updated once per forward pass."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linen_layers import sample

import jbn
from jbn.linen import BatchNorm


class Block(nn.Module):
    """A block as wide as its input; returns (carry, None), as scan requires."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(x)
        norm = BatchNorm(
            use_running_average=False, momentum=jbn.cumulative, axis_name=self.axis_name
        )
        return norm(x), None


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, x):
    """Return loss, gradient and updated statistics."""

    def loss(params):
        (y, _), moved = model.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.sum(y**3), moved["batch_stats"]

    (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return value, gradient, moved


def counts(batch_stats):
    paths = jax.tree_util.tree_leaves_with_path(batch_stats)
    return [leaf.tolist() for path, leaf in paths if path[-1].key == "count"]


@pytest.mark.parametrize("transform", [nn.remat, nn.jit])
def test_statistics_move_once_under(transform):
    """Recomputing the forward pass for the gradient does not update them again."""
    x = sample((8, 3))
    # The automatic name of a lifted class depends on the lifting, so the block itself is the model.
    variables = Block().init(jax.random.key(0), x)
    want = train(Block(), variables, x)
    got = train(transform(Block)(), variables, x)
    chex.assert_trees_all_close(got, want, rtol=2e-5, atol=2e-5)
    assert counts(got[2]) == [1]


def test_scan_over_layers_moves_each_once():
    x = sample((8, 3))
    axes = {"params": 0, "batch_stats": 0}
    stack = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=4)()
    variables = jax.jit(stack.init)(jax.random.key(0), x)
    assert counts(variables) == [[0] * 4]
    _, _, got = train(stack, variables, x)
    assert counts(got) == [[1] * 4]
    y, got = x, jax.tree.map(np.asarray, got)
    for i in range(4):
        one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], variables)
        (y, _), moved = Block().apply(one, y, mutable=["batch_stats"])
        part = jax.tree.map(lambda leaf, i=i: leaf[i], got)
        chex.assert_trees_all_close(part, moved["batch_stats"], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_scan_over_steps_moves_once_per_step(remat):
    """The statistics of a shared layer are carried: three calls are three updates."""
    x = sample((8, 3))
    kind = nn.remat(Block, prevent_cse=False) if remat else Block
    steps = nn.scan(
        kind,
        variable_broadcast="params",
        variable_carry="batch_stats",
        split_rngs={"params": False},
        length=3,
    )()
    variables = Block().init(jax.random.key(0), x)
    _, _, got = train(steps, variables, x)
    assert counts(got) == [3]
    y, stats = x, variables["batch_stats"]
    for _ in range(3):
        tree = {**variables, "batch_stats": stats}
        (y, _), moved = Block().apply(tree, y, mutable=["batch_stats"])
        stats = moved["batch_stats"]
    chex.assert_trees_all_close(got, stats, rtol=2e-5, atol=2e-5)


def test_vmap_over_an_ensemble_moves_each_once():
    x = sample((8, 3))
    ensemble = nn.vmap(
        Block,
        in_axes=None,
        axis_size=4,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
    )()
    variables = jax.jit(ensemble.init)(jax.random.key(0), x)
    _, _, got = train(ensemble, variables, x)
    assert counts(got) == [[1] * 4]
    one, part = (jax.tree.map(lambda leaf: np.asarray(leaf)[2], tree) for tree in (variables, got))
    _, _, want = train(Block(), one, x)
    chex.assert_trees_all_close(part, want, rtol=2e-5, atol=2e-5)


def test_vmap_over_shards_pools_them_and_moves_once():
    x = sample((4, 8, 3))
    shards = nn.vmap(
        Block,
        variable_axes={"params": None, "batch_stats": None},
        split_rngs={"params": False},
        axis_name="batch",
    )(axis_name="batch")
    variables = Block().init(jax.random.key(0), sample((8, 3)))
    want = train(Block(), variables, x)
    got = train(shards, variables, x)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-4)
    assert counts(got[2]) == [1]
