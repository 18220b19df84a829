"""jbn.nnx.BatchNorm under transforms: statistics are updated once per forward pass."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from nnx_layers import LAYERS, Network, arrays, call, close, sample

import jbn
from jbn.nnx import BatchNorm


def loss(model, x):
    return jnp.mean(model(x) ** 2)


def merged(model, x):
    graphdef, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    @jax.jit
    def step(params, stats, x):
        def of(params):
            model = nnx.merge(graphdef, params, stats, rest, copy=True)
            return loss(model, x), nnx.state(model, nnx.BatchStat)

        (_, moved), _ = jax.value_and_grad(of, has_aux=True)(params)
        return moved

    nnx.update(model, step(params, stats, x))


FORWARDS = {
    "call": loss,
    "nnx.jit": nnx.jit(loss),
    "nnx.grad": nnx.grad(loss),
    "nnx.jit of nnx.value_and_grad": nnx.jit(nnx.value_and_grad(loss)),
    "nnx.remat": nnx.remat(loss),
    "nnx.grad of nnx.remat": nnx.grad(nnx.remat(loss)),
    "jax.jit of split and merge": merged,
}


@pytest.mark.parametrize("how", FORWARDS)
def test_statistics_move_once_under(how):
    plain, model = (Network(BatchNorm, nnx.Rngs(0), momentum=jbn.debiased(0.9)) for _ in range(2))
    for seed in range(2):
        x = sample((8, 3), seed=seed)
        call(plain, x)
        FORWARDS[how](model, x)
    assert int(model.norm.count[...]) == 2
    close(arrays(model), arrays(plain))


def test_scan_over_batches_moves_once_per_batch():
    batches = np.asarray(sample((5, 8, 3)))
    plain, model = (Network(BatchNorm, nnx.Rngs(0), momentum=jbn.cumulative) for _ in range(2))
    want = [plain(x) for x in batches]

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def forward(model, x):
        return model, model(x)

    model, got = forward(model, batches)
    assert int(model.norm.count[...]) == 5
    close(got, np.stack(want))
    close(arrays(model), arrays(plain))


class Block(nnx.Module):
    """One of a stack of layers, as wide as its input."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.norm = BatchNorm(3, momentum=jbn.cumulative, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense(x))


@nnx.jit
def stack(rngs):
    return nnx.split_rngs(splits=4)(nnx.vmap(Block))(rngs)


def test_scan_over_layers_moves_each_once():
    blocks, x = stack(nnx.Rngs(0)), sample((8, 3))
    graphdef, state = nnx.split(blocks)
    each, want = [], x
    for i in range(4):
        block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], state))
        want = block(want)
        each.append(arrays(block))
    forward = nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    got = forward(blocks, x)
    assert blocks.norm.count[...].tolist() == [1, 1, 1, 1]
    close(got, want)
    close(arrays(blocks), jax.tree.map(lambda *leaves: np.stack(leaves), *each))


def test_vmap_over_an_ensemble_moves_each_once():
    blocks, x = stack(nnx.Rngs(0)), sample((8, 3))
    graphdef, state = nnx.split(blocks)
    one = nnx.merge(graphdef, jax.tree.map(lambda leaf: np.asarray(leaf)[2], state))
    want = one(x)
    got = nnx.vmap(lambda block, x: block(x), in_axes=(0, None))(blocks, x)
    assert blocks.norm.count[...].tolist() == [1, 1, 1, 1]
    close(np.asarray(got)[2], want)
    close(jax.tree.map(lambda leaf: np.asarray(leaf)[2], arrays(blocks)), arrays(one))


def test_vmap_over_examples_pools_them_and_moves_once():
    x = sample((8, 3))
    plain, model = (
        BatchNorm(3, momentum=jbn.cumulative, axis_name=name, rngs=nnx.Rngs(0))
        for name in (None, "batch")
    )
    want = plain(x)
    apply = nnx.vmap(
        lambda model, x: model(x),
        in_axes=(nnx.StateAxes({...: None}), 0),
        axis_name="batch",
        graph=True,
        graph_updates=True,
    )
    close(apply(model, x), want)
    assert int(model.count[...]) == 1
    close(arrays(model), arrays(plain))


def test_many_steps_are_one_trace():
    model = Network(BatchNorm, nnx.Rngs(0), momentum=jbn.debiased(0.9))

    @nnx.jit
    @chex.assert_max_traces(1)
    def step(model, x):
        return model(x)

    for seed in range(3):
        step(model, sample((8, 3), seed=seed))
    assert int(model.norm.count[...]) == 3


def test_nothing_of_what_moved_takes_part_in_the_derivative():
    """As in Flax, no gradient flows through the updated running statistics."""
    for layer in LAYERS:
        norm = layer(3, rngs=nnx.Rngs(0))

        def of_mean(x, norm=norm):
            copy = nnx.clone(norm)
            copy(x)
            return copy.mean[...].sum()

        gradient = jax.jit(jax.grad(of_mean))(sample((8, 3)))
        np.testing.assert_array_equal(gradient, np.zeros((8, 3)))
