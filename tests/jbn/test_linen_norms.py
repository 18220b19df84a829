"""The Flax layers of variants and norms equal the functions and hold parameters and statistics."""

import functools
import pickle
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from jbn.linen import BatchNorm, BatchRenorm, GhostBatchNorm, GroupNorm, InstanceNorm, LayerNorm

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
    variables, theirs = (jax.eval_shape(layer.init, jax.random.key(0), X) for layer in (ours, flax))
    assert jax.tree.structure(variables) == jax.tree.structure(theirs)
    params = {name: PARAMS[name] for name in variables["params"]}
    got = ours.apply({"params": params}, X, use_running_average=True, mask=np.ones((6, 1, 1), bool))
    want = jax.jit(flax.apply)({"params": params}, X)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


def test_ghost_batches_are_of_one_device():
    with pytest.raises(ValueError, match="axis_index_groups"):
        GhostBatchNorm(axis_name="d").init(jax.random.key(0), X, use_running_average=False)


# Renorm's count and warm-up ----------------------------------------------------------------------

ONE_OF_THREE = {
    "momentum": {"momentum": jbn.cumulative},
    "r_max": {"r_max": lambda count: 1.0 + count},
    "d_max": {"d_max": lambda count: 0.1 * count},
    "warm-up": {"warmup_steps": 2},
}


def steps_of(layer, variables, batches):
    """Return y of each batch, and the final variables."""
    outputs = []
    for x in batches:
        y, moved = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        variables = {**variables, **moved}
        outputs.append(y)
    return outputs, variables


@pytest.mark.parametrize("name", ONE_OF_THREE)
def test_renorm_counts_if_anything_depends_on_the_count(name):
    layer = BatchRenorm(**ONE_OF_THREE[name])
    variables = layer.init(jax.random.key(0), X, use_running_average=False)
    assert int(variables["batch_stats"]["count"]) == 0
    _, variables = steps_of(layer, variables, [X] * 3)
    assert int(variables["batch_stats"]["count"]) == 3
    del variables["batch_stats"]["count"]
    layer.apply(variables, X, use_running_average=True)
    with pytest.raises(ValueError, match="count"):
        steps_of(layer, variables, [X])


def test_renorm_without_schedules_has_no_count():
    variables = BatchRenorm().init(jax.random.key(0), X, use_running_average=False)
    assert sorted(variables["batch_stats"]) == ["mean", "var"]


@pytest.mark.parametrize("momentum", [0.9, jbn.cumulative])
@pytest.mark.parametrize("limits", [(3.0, 5.0), (lambda count: 1.0 + count, lambda count: 5.0)])
def test_warm_up_is_batch_norm_and_then_renorm(limits, momentum):
    """The warm-up is that of TorchRL and SBX; the formulas are Ioffe's Algorithm 1, in float64."""
    batches = np.random.default_rng(1).normal(1, 2, (5, 16, 3))
    layer = BatchRenorm(
        r_max=limits[0], d_max=limits[1], warmup_steps=3, momentum=momentum, epsilon=1e-5
    )
    x = jnp.asarray(batches, jnp.float32)
    variables = layer.init(jax.random.key(0), x[0], use_running_average=False)
    got, variables = steps_of(layer, variables, x)
    mean, var = np.zeros(3), np.ones(3)
    for count, batch in enumerate(batches):
        r_max, d_max = (1.0, 0.0) if count < 3 else (3.0, 5.0)
        if count >= 3 and callable(limits[0]):
            r_max = 1.0 + count
        std, running = np.sqrt(batch.var(0) + 1e-5), np.sqrt(var + 1e-5)
        r = np.clip(std / running, 1 / r_max, r_max)
        d = np.clip((batch.mean(0) - mean) / running, -d_max, d_max)
        want = (batch - batch.mean(0)) / std * r + d
        np.testing.assert_allclose(got[count], want, rtol=1e-4, atol=1e-5)
        weight = count / (count + 1) if callable(momentum) else momentum
        mean = weight * mean + (1 - weight) * batch.mean(0)
        var = weight * var + (1 - weight) * batch.var(0)
    np.testing.assert_allclose(variables["batch_stats"]["var"], var, rtol=1e-5)


@pytest.mark.parametrize("steps", [-1, 2.5, True, None, "3"])
def test_warm_up_is_a_number_of_steps(steps):
    with pytest.raises(ValueError, match="`warmup_steps`"):
        BatchRenorm(warmup_steps=steps).init(jax.random.key(0), X, use_running_average=False)


@pytest.mark.parametrize(
    "limit", [{"r_max": 0.5}, {"d_max": -1.0}, {"r_max": "3"}, {"d_max": None}]
)
def test_limits_are_checked_under_a_warm_up(limit):
    layer = BatchRenorm(**limit, warmup_steps=2)
    with pytest.raises((ValueError, TypeError), match=f"`{next(iter(limit))}`"):
        layer.init(jax.random.key(0), X, use_running_average=False)


def test_renorm_with_a_warm_up_is_one_static_argument():
    @functools.partial(jax.jit, static_argnums=0)
    def apply(layer, variables):
        traces.append(layer)
        return layer.apply(variables, X, use_running_average=False, mutable=["batch_stats"])

    traces = []
    for _ in range(3):
        layer = BatchRenorm(warmup_steps=2, momentum=jbn.debiased(0.9), r_max=jbn.debiased(0.5))
        layer = pickle.loads(pickle.dumps(layer))
        apply(layer, layer.init(jax.random.key(0), X, use_running_average=False))
    assert len(traces) == 1


def test_a_checkpoint_of_sbx_says_how_to_convert_it():
    """SBX's BatchRenorm keeps steps, r_max and d_max in batch_stats."""
    layer = BatchRenorm(warmup_steps=100_000)
    variables = layer.init(jax.random.key(0), X, use_running_average=False)
    stats = {**variables["batch_stats"], "steps": 7, "r_max": 3, "d_max": 5}
    del stats["count"]
    for evaluate in (True, False):
        with pytest.raises(ValueError, match=re.escape('["count"] = jnp.int32(')) as raised:
            layer.apply(
                {**variables, "batch_stats": stats},
                X,
                use_running_average=evaluate,
                mutable=["batch_stats"],
            )
        assert all(name in str(raised.value) for name in ("steps", "r_max", "d_max", "SBX"))
    stats["count"] = jnp.int32(stats.pop("steps"))
    del stats["r_max"], stats["d_max"]
    _, moved = steps_of(layer, {**variables, "batch_stats": stats}, [X])
    assert int(moved["batch_stats"]["count"]) == 8


# What Flax records -------------------------------------------------------------------------------

LAYERS = {
    "batch": BatchNorm,
    "ghost": functools.partial(GhostBatchNorm, batch_size=2),
    "renorm": BatchRenorm,
    "renorm, warm-up": functools.partial(BatchRenorm, warmup_steps=2),
    "layer": LayerNorm,
    "group": functools.partial(GroupNorm, groups=2),
    "instance": InstanceNorm,
}


@pytest.mark.parametrize("name", LAYERS)
def test_flax_records_the_call_and_nothing_else(name):
    layer = LAYERS[name](use_running_average=False)

    def apply(x):
        y, moved = layer.apply(
            layer.init(jax.random.key(0), x),
            x,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, method: True,
        )
        assert list(moved["intermediates"]) == ["__call__"]
        assert moved["intermediates"]["__call__"][0] is y

    jax.eval_shape(apply, X)


@pytest.mark.parametrize("name", LAYERS)
def test_tabulate_counts_the_flops(name):
    layer = LAYERS[name](use_running_average=False)
    table = nn.tabulate(layer, jax.random.key(0), compute_flops=True, show_repeated=True)(X)
    assert f" {type(layer).__name__} " in table


@pytest.mark.parametrize("name", LAYERS)
def test_layers_have_the_public_methods_of_flaxs(name):
    layer = LAYERS[name]()
    fields = {
        field for kind in type(layer).__mro__ for field in vars(kind).get("__annotations__", {})
    }
    names = {n for n in dir(layer) if not n.startswith("_")} - fields
    assert names <= set(dir(nn.LayerNorm()))


# Strict modes ------------------------------------------------------------------------------------


def train_and_evaluate(layer, variables, x, mask):
    options = {"mask": mask, "mutable": ["batch_stats"]}
    y, moved = layer.apply(variables, x, use_running_average=False, **options)
    return y, moved, layer.apply({**variables, **moved}, x, use_running_average=True)


@pytest.mark.parametrize("mask", [None, bool, jnp.int32, jnp.float32])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_strict_promotion_changes_nothing(name, dtype, mask):
    layer, x = LAYERS[name](), X.astype(dtype)
    mask = mask if mask is None else jax.device_put(np.ones((6, 1, 1), mask))
    results = []
    for mode in ("standard", "strict"):
        with jax.numpy_dtype_promotion(mode):
            variables = layer.init(jax.random.key(0), x, use_running_average=True)
            results.append((variables, train_and_evaluate(layer, variables, x, mask)))
    chex.assert_trees_all_equal(*results)
    chex.assert_trees_all_equal_dtypes(*results)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_transferred_outside_jit(name, masked):
    layer = LAYERS[name]()
    variables = layer.init(jax.random.key(0), X, use_running_average=True)
    mask = jnp.ones((6, 1, 1), bool) if masked else None
    with jax.transfer_guard("disallow"):
        train_and_evaluate(layer, variables, X, mask)
