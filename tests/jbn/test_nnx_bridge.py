"""Linen models of this library in Flax nnx, through `nnx.bridge.ToNNX`."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import ModifyScopeVariableError

import jbn
import jbn.nnx
from jbn.linen import population
from jbn.models import CNN, MLP

MUTABLE = ["batch_stats"]


def values(shape, seed=0):
    return jax.device_put(np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32))


def bridge(model, x):
    """Return the bridged model and its variables in linen's form."""
    bridged = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0))
    bridged.lazy_init(x, training=False)
    return bridged, variables_of(bridged)


def variables_of(bridged):
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    return {name: nnx.to_pure_dict(nnx.state(bridged, kind)) for name, kind in kinds.items()}


MODELS = {
    "MLP": (MLP(hidden=(4,), norm="batch"), (6, 5)),
    "CNN": (CNN(widths=(4,), norm="batch"), (4, 4, 4, 1)),
    "Flax's norm": (MLP(hidden=(4,), norm=nn.BatchNorm), (6, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_bridged_model_is_the_linen_model(name):
    model, shape = MODELS[name]
    x = values(shape)
    bridged, variables = bridge(model, x)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, training=False))
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, shapes)
    evaluated = bridged(x, training=False)
    np.testing.assert_array_equal(evaluated, model.apply(variables, x, training=False))
    chex.assert_trees_all_equal(variables_of(bridged), variables)  # Evaluation updated nothing.

    want, new = model.apply(variables, x, training=True, mutable=MUTABLE)
    np.testing.assert_array_equal(bridged(x, training=True, mutable=MUTABLE), want)
    chex.assert_trees_all_equal(variables_of(bridged), variables | new)


def test_training_needs_mutable_statistics():
    x = values((6, 5))
    bridged, _ = bridge(MODELS["MLP"][0], x)
    with pytest.raises(ModifyScopeVariableError, match="batch_stats"):
        bridged(x, training=True)


def test_a_jitted_step_is_that_of_linen():
    model, x, target = MODELS["MLP"][0], values((6, 5)), values((6, 10), seed=1)
    bridged, variables = bridge(model, x)

    @nnx.jit
    def step(bridged):
        def loss(bridged):
            return jnp.mean((bridged(x, training=True, mutable=MUTABLE) - target) ** 2)

        return nnx.grad(loss)(bridged)

    def loss(params):
        now = variables | {"params": params}
        y, new = model.apply(now, x, training=True, mutable=MUTABLE)
        return jnp.mean((y - target) ** 2), new["batch_stats"]

    want, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    got = step(bridged)
    chex.assert_trees_all_close(nnx.to_pure_dict(got), want, rtol=1e-5, atol=1e-6)
    found = variables_of(bridged)
    chex.assert_trees_all_close(found["batch_stats"], stats, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(found["params"], variables["params"])


def test_split_and_merge():
    x = values((6, 5))
    bridged, _ = bridge(MODELS["MLP"][0], x)
    bridged(x, training=True, mutable=MUTABLE)
    graphdef, params, stats, rest = nnx.split(bridged, nnx.Param, nnx.BatchStat, ...)
    merged = nnx.merge(graphdef, params, stats, rest, copy=True)
    np.testing.assert_array_equal(merged(x, training=False), bridged(x, training=False))
    merged(x, training=True, mutable=MUTABLE)  # A copy: the original stays as it was.
    before, after = (variables_of(m)["batch_stats"]["norm_0"]["mean"] for m in (bridged, merged))
    assert not np.allclose(before, after)


def test_population_statistics_and_folding_by_the_linen_model():
    model, batches = MODELS["MLP"][0], values((3, 6, 5))
    bridged, variables = bridge(model, batches[0])

    def step(stats, x):
        now = variables | {"batch_stats": stats}
        return model.apply(now, x, training=True, mutable=MUTABLE)[1]["batch_stats"]

    variables["batch_stats"] = population(step, variables["batch_stats"], batches)
    state = nnx.state(bridged, nnx.BatchStat)
    nnx.replace_by_pure_dict(state, variables["batch_stats"])
    nnx.update(bridged, state)
    hidden = np.float64(batches) @ np.float64(variables["params"]["dense_0"]["kernel"])
    mean, var = bridged.norm_0["mean"][...], bridged.norm_0["var"][...]
    np.testing.assert_allclose(mean, hidden.mean((0, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, hidden.var(1, ddof=0).mean(0), rtol=1e-5)

    x = batches[0]
    with pytest.raises(TypeError, match=r"got one of linen inside nnx\.bridge\.ToNNX"):
        jbn.fold_model(bridged, x, training=False)
    with pytest.raises(TypeError, match=r"the model is an nnx\.bridge\.ToNNX"):
        jbn.nnx.population(lambda model, x: model(x, training=True), bridged, batches)
    folded = jbn.fold_model(model, x, variables=variables, training=False)
    got = model.copy(norm=None).apply(folded, x, training=False)
    np.testing.assert_allclose(got, bridged(x, training=False), atol=1e-5)
