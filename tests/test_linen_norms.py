"""The Flax layers of variants and norms are the functions, with parameters and statistics kept."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from jbn.linen_norms import BatchRenorm, GhostBatchNorm, GroupNorm, InstanceNorm, LayerNorm

X = jnp.asarray(np.random.default_rng(0).normal(3, 2, (6, 5, 4)), jnp.float32)
PARAMS = {"scale": jnp.array([1.0, 2.0, 0.5, 3.0]), "bias": jnp.array([0.0, 1.0, -1.0, 2.0])}
STATS = {"mean": jnp.array([3.0, 2.0, 4.0, 3.0]), "var": jnp.array([4.0, 3.0, 5.0, 4.0])}
# Flax's default variance, E[x^2] - E[x]^2, is off by 2e-5 here.
EXACT = {"epsilon": 1e-5, "use_fast_variance": False}


def trees(count=0):
    return jbn.BatchNormParams(**PARAMS), jbn.BatchNormState(**STATS, count=jnp.int32(count))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["ghost", "renorm"])
def test_variants_are_their_functions(name, training):
    if name == "ghost":
        layer = GhostBatchNorm(batch_size=4, momentum=0.9)
        function, options = jbn.ghost_batch_norm, {"batch_size": 4}
    else:
        layer = BatchRenorm(r_max=1.2, d_max=0.3, momentum=0.9)
        function, options = jbn.batch_renorm, {"r_max": 1.2, "d_max": 0.3}
    y, moved = layer.apply(
        {"params": PARAMS, "batch_stats": STATS},
        X,
        use_running_average=not training,
        mutable=["batch_stats"],
    )
    want, state = function(X, *trees(), training=training, momentum=0.9, unbiased=False, **options)
    np.testing.assert_array_equal(y, want)
    for field in ("mean", "var"):
        np.testing.assert_array_equal(moved["batch_stats"][field], getattr(state, field))


def test_renorm_schedules_read_the_count():
    def r_max(count):
        return 1.0 + count

    layer = BatchRenorm(r_max=r_max, d_max=0.0, momentum=jbn.cumulative)
    variables = layer.init(jax.random.key(0), X, use_running_average=False)
    for count in range(2):
        want, _ = jbn.batch_renorm(
            X,
            jbn.BatchNormParams(**variables["params"]),
            jbn.BatchNormState(**variables["batch_stats"]),
            training=True,
            r_max=1.0 + count,
            d_max=0.0,
        )
        y, moved = layer.apply(variables, X, use_running_average=False, mutable=["batch_stats"])
        np.testing.assert_array_equal(y, want)
        variables = {**variables, **moved}
        assert int(variables["batch_stats"]["count"]) == count + 1


@pytest.mark.parametrize(
    ("ours", "flax"),
    [
        (LayerNorm(), nn.LayerNorm(**EXACT)),
        (GroupNorm(groups=2), nn.GroupNorm(num_groups=2, **EXACT)),
        (InstanceNorm(), nn.InstanceNorm(**EXACT)),
        (LayerNorm(use_bias=False), nn.LayerNorm(**EXACT, use_bias=False)),
    ],
)
def test_norms_are_flaxs(ours, flax):
    variables = ours.init(jax.random.key(0), X)
    assert jax.tree.structure(variables) == jax.tree.structure(flax.init(jax.random.key(0), X))
    params = {name: PARAMS[name] for name in variables["params"]}
    got = ours.apply(
        {"params": params}, X, use_running_average=True, mask=jnp.ones((6, 1, 1), bool)
    )
    np.testing.assert_allclose(got, flax.apply({"params": params}, X), rtol=1e-5, atol=2e-6)


def test_ghost_batches_are_of_one_device():
    with pytest.raises(ValueError, match="axis_index_groups"):
        GhostBatchNorm(axis_name="d").init(jax.random.key(0), X, use_running_average=False)
