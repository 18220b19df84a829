"""What jbn.nnx.BatchNorm adds to Flax: counts and schedules, weights, groups, large means."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx
from flax.nnx.nn import dtypes
from jax.sharding import Mesh, PartitionSpec
from nnx_layers import arrays, call, close, sample

import jbn
from jbn.nnx import BatchNorm


def test_schedule_keeps_its_count_beside_the_statistics():
    layer = BatchNorm(3, momentum=jbn.cumulative, unbiased=True, rngs=nnx.Rngs(0))
    batches = np.asarray(sample((5, 8, 3)))
    for batch in batches:
        layer(batch)
    assert int(layer.count[...]) == 5
    values = oracles.exact(batches)
    oracles.assert_close(layer.mean[...], values.mean((0, 1)), 5e-6)
    oracles.assert_close(layer.var[...], values.var(1, ddof=1).mean(0), 5e-6)


def test_count_stays_int32_after_pmean():
    layer = BatchNorm(3, momentum=jbn.cumulative, rngs=nnx.Rngs(0))
    batches = np.asarray(sample((4, 8, 3)))
    for x in batches[:3]:
        layer(x)
    layer.count.set_value(jnp.float32(3))  # As after lax.pmean.
    call(layer, batches[3])
    assert layer.count[...].dtype == jnp.int32
    assert int(layer.count[...]) == 4
    close(layer.mean[...], batches.mean((0, 1)))


def test_schedule_without_a_count():
    """If the momentum is set to a schedule later, training needs a count; evaluation does not."""
    layer = BatchNorm(3, rngs=nnx.Rngs(0))
    layer.momentum = jbn.cumulative
    layer(sample((8, 3)), use_running_average=True)
    with pytest.raises(ValueError, match=re.escape("layer.count = nnx.BatchStat(jnp.int32(n))")):
        layer(sample((8, 3)))
    layer.count = nnx.BatchStat(jnp.int32(1))
    layer(sample((8, 3)))
    assert int(layer.count[...]) == 2


def test_state_of_flaxs_leaves_the_count_to_be_set():
    theirs = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    theirs(sample((8, 3)))
    layer = BatchNorm(3, momentum=jbn.cumulative, rngs=nnx.Rngs(0))
    nnx.update(layer, nnx.state(theirs))
    layer.count[...] = jnp.int32(1)
    layer(sample((8, 3), seed=1))
    want = (np.asarray(theirs.mean[...]) + np.asarray(sample((8, 3), seed=1)).mean(0)) / 2
    close(layer.mean[...], want)


def test_batch_without_weight_leaves_everything_as_it_was():
    layer = BatchNorm(3, momentum=jbn.debiased(0.9), rngs=nnx.Rngs(0))
    layer(sample((8, 3)))
    before = arrays(layer)
    y = layer(sample((8, 3), seed=1), mask=np.zeros((8, 1), bool))
    assert np.isfinite(y).all()
    chex.assert_trees_all_equal(arrays(layer), before)


def test_weights_equal_repetition():
    """Except for Bessel's factor, which distinguishes eight weighted values from 28."""
    x, weights = np.asarray(sample((8, 3))), np.arange(8, dtype=np.float32)[:, None]
    weighted, plain = (BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(2))
    times = np.arange(8)
    y = np.asarray(weighted(x, mask=weights))
    close(np.repeat(y, times, 0), plain(np.repeat(x, times, 0)))
    close(arrays(weighted), arrays(plain))


def test_large_mean_is_no_nan():
    """Flax's default gives NaN here (PEERS.md)."""
    x = np.float32(1e5) + np.asarray(sample((1024, 3)))
    layer = BatchNorm(3, rngs=nnx.Rngs(0))
    oracles.assert_close(layer(x), oracles.normalize(x, *oracles.moments(x)[:2]), 4e-6)


def test_output_dtype_does_not_round_the_statistics():
    """Flax rounds the running mean to bf16: 100.3 becomes 100.5 (PEERS.md)."""
    layer = BatchNorm(3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer.mean[...] = jnp.full(3, 100.3)
    layer.eval()
    y = layer(jnp.full((2, 3), 101.3))
    assert y.dtype == jnp.bfloat16
    close(y, jnp.ones((2, 3), jnp.bfloat16), 2.0**-8)


def test_promote_dtype_decides_ys_dtype():
    def to_half(args, dtype):
        assert dtype is None
        return dtypes.promote_dtype(args, dtype=jnp.float16)

    layer = BatchNorm(3, promote_dtype=to_half, rngs=nnx.Rngs(0))
    assert layer(sample((8, 3))).dtype == jnp.float16
    assert layer.mean.dtype == jnp.float32


def test_batch_of_one_in_training_is_an_error():
    layer = BatchNorm(3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="more than one value per feature"):
        layer(sample((1, 3)))
    layer.eval()
    layer(sample((1, 3)))


@pytest.mark.parametrize("num_features", [0, 2.5])
def test_number_of_features_is_checked(num_features):
    with pytest.raises((ValueError, TypeError), match="num_features"):
        BatchNorm(num_features, rngs=nnx.Rngs(0))


def test_sync_weighs_devices_by_their_counts():
    x = sample((8, 4, 3))
    mask = np.arange(4)[None, :, None] < np.array([0, 1, 2, 3, 4, 4, 1, 0])[:, None, None]
    layer = BatchNorm(3, axis_name="batch", momentum=0.0, rngs=nnx.Rngs(0))
    whole = BatchNorm(3, momentum=0.0, rngs=nnx.Rngs(0))
    want = whole(x, mask=mask)
    graphdef, state = nnx.split(layer)

    def apply(x, mask):
        layer = nnx.merge(graphdef, state, copy=True)
        return layer(x[0], mask=mask[0])[None], nnx.to_pure_dict(nnx.state(layer))

    rows, copies = PartitionSpec("batch"), PartitionSpec()
    mesh = Mesh(np.array(jax.devices()), "batch")
    sharded = jax.shard_map(apply, mesh=mesh, in_specs=rows, out_specs=(rows, copies))
    y, moved = jax.jit(sharded)(x, mask)
    close(y, want)
    close(moved, arrays(whole))

    mean, var, _ = oracles.moments(x, mask=mask)
    close(moved["mean"], mean)
    close(moved["var"], var)


def test_groups_pool_apart():
    x = np.asarray(sample((4, 5, 3)))
    groups = [[0, 1], [2, 3]]
    layer = BatchNorm(3, axis_name="batch", axis_index_groups=groups, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    apply = jax.vmap(lambda x: nnx.merge(graphdef, state, copy=True)(x), axis_name="batch")
    y = jax.jit(apply)(x)
    whole = BatchNorm(3, rngs=nnx.Rngs(0))
    close(y, np.concatenate([whole(x[:2]), whole(x[2:])]))
