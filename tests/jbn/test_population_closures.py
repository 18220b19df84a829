"""Population statistics with steps that close over values, that nest, and that fail."""

import gc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import linen as nn
from flax import nnx
from oracles import assert_close

import jbn
import jbn.linen
import jbn.nnx

# Float32 averages over a few batches with mean/std below 10.
AVERAGED = 5e-6
# (new - m old) / (1 - m) at m = .99, as in population_models.py.
RECOVERED = 5e-5


def batches_of(seed=0, shape=(3, 16, 3)):
    return jax.device_put(np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32))


class Scaled:
    """The owner of what its steps read: x is multiplied by `weight` before it is normalized."""

    def __init__(self, kind, weight=1.0):
        self.kind, self.weight = kind, weight
        self.params, self.state = jbn.init(3)
        self.layer = nn.BatchNorm(use_running_average=False)
        stats = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
        params = {"scale": np.ones(3, np.float32), "bias": np.zeros(3, np.float32)}
        self.variables = {"params": params, "batch_stats": stats}
        self.model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def step(self, state, x):
        h = x * self.weight
        if self.kind == "function":
            return jbn.batch_norm(h, self.params, state, training=True, unbiased=False)[1]
        if self.kind == "linen":
            tree = {**self.variables, "batch_stats": state}
            return self.layer.apply(tree, h, mutable="batch_stats")[1]["batch_stats"]
        return state(h)

    def population(self, batches):
        if self.kind == "function":
            return jbn.population(self.step, self.state, batches)._asdict()
        if self.kind == "linen":
            return jbn.linen.population(self.step, self.variables["batch_stats"], batches)
        return nnx.to_pure_dict(jbn.nnx.population(self.step, self.model, batches))


KINDS = ["function", "linen", "nnx"]
BATCHES = {"stacked": lambda x: x, "list": list}


def check(got, batches, weight=1.0):
    x = oracles.exact(batches) * weight
    assert_close(got["mean"], x.mean((0, 1)), RECOVERED, "mean")
    assert_close(got["var"], x.var(1).mean(0), RECOVERED, "var")


# What a step reads ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_step_reads_is_read_at_the_call(kind, form):
    trainer, batches = Scaled(kind, 10.0), batches_of()
    check(trainer.population(BATCHES[form](batches)), batches, 10)
    trainer.weight = jnp.full((1, 3), 100.0)
    check(trainer.population(BATCHES[form](batches)), batches, 100)


@pytest.mark.parametrize("form", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_may_read_traced_values(kind, form):
    batches = batches_of()

    def variance(weight):
        return Scaled(kind, weight).population(BATCHES[form](batches))["var"].sum()

    at_two = 4 * oracles.exact(batches).var(1).mean(0).sum()

    def transformed(weight):
        mapped = jax.vmap(variance)(jnp.stack([weight / 2, weight]))
        if kind == "nnx":  # Flax's nnx layers stop the gradient of their statistics.
            return variance(weight), mapped
        return *jax.value_and_grad(variance)(weight), mapped  # 2 w var at w = 2

    # Both forms close over traced values, outside and inside jit: each form covers one of these.
    transformed = jax.jit(transformed) if form == "stacked" else transformed
    for _ in range(2):
        *at_weight, mapped = transformed(jnp.float32(2))
        assert_close(at_weight, [at_two] * len(at_weight), RECOVERED)
        assert_close(mapped, [at_two / 4, at_two], RECOVERED)
    assert_close(jax.jit(variance)(2.0), at_two, RECOVERED)


@pytest.mark.parametrize("form", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outlives_the_call(kind, form, old_objects_left_alone):
    """Each of 3 calls makes a new step that holds a weight of 1 MiB."""
    batches = BATCHES[form](batches_of(shape=(2, 4, 3)))
    sizes = []
    for i in range(3):
        trainer = Scaled(kind, jnp.full((1, 3), float(i)))
        trainer.large = jnp.full((512, 512), float(i))
        original = trainer.step
        trainer.step = lambda state, x, t=trainer, f=original: f(state, x + 0 * t.large[:1, :3])
        trainer.population(batches)
        del trainer, original
        gc.collect()
        sizes.append(sum(a.nbytes for a in jax.live_arrays() if not a.is_deleted()))
    assert sizes[-1] - sizes[1] < 2**19


@pytest.mark.parametrize("form", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_leaks(kind, form, old_objects_left_alone):
    trainer, batches = Scaled(kind), BATCHES[form](batches_of())
    with jax.checking_leaks():
        trainer.population(batches)
        jax.jit(lambda w: Scaled(kind, w).population(batches)["var"])(2.0)


# Modes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_under_strict_promotion(kind, form):
    if kind == "nnx":
        pytest.skip("Flax's own nnx layer promotes by itself")
    trainer, batches = Scaled(kind), BATCHES[form](batches_of())
    with jax.numpy_dtype_promotion("strict"):
        got = trainer.population(batches)
    check(got, batches_of())


@pytest.mark.parametrize("kind", KINDS)
def test_without_jit(kind):
    trainer, batches = Scaled(kind), list(batches_of())
    with jax.disable_jit():
        got = trainer.population(batches)
    check(got, batches_of())


@pytest.mark.parametrize("form", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_batches(kind, form):
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec(None, "devices")
    batches = jax.device_put(batches_of(), jax.sharding.NamedSharding(mesh, spec))
    check(Scaled(kind).population(BATCHES[form](batches)), batches_of())


def test_bfloat16_statistics_of_many_batches():
    """A sum in bfloat16 stops growing at 256 times its first term."""
    state = {"mean": jnp.zeros(3, jnp.bfloat16)}

    def step(state, x):
        return {"mean": (0.5 * state["mean"] + 0.5 * x.mean(0)).astype(jnp.bfloat16)}

    got = jbn.population(step, state, jnp.full((1000, 4, 3), 1.5))
    assert got["mean"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got["mean"], np.float32), 1.5)


@pytest.mark.parametrize("form", BATCHES)
def test_what_is_no_statistic_is_carried_along(form):
    state = {"mean": jnp.zeros(3), "seen": np.int32(7), "key": jax.random.key(0), "on": True}

    def step(state, x):
        return {
            "mean": 0.9 * state["mean"] + 0.1 * x.mean(0),
            "seen": state["seen"] + 1,
            "key": jax.random.split(state["key"])[0],
            "on": state["on"],
        }

    got = jbn.population(step, state, BATCHES[form](batches_of()))
    assert_close(got["mean"], oracles.exact(batches_of()).mean((0, 1)), RECOVERED)
    assert int(got["seen"]) == 3
    assert bool(got["on"])
    assert got["key"].dtype == state["key"].dtype


# Nested populations -----------------------------------------------------------------------------


def linen_step(layer, variables, scale=1.0):
    def step(batch_stats, x):
        tree = {**variables, "batch_stats": batch_stats}
        return layer.apply(tree, x * scale, mutable="batch_stats")[1]["batch_stats"]

    return step


@pytest.mark.parametrize("layer", [nn.BatchNorm, jbn.linen.BatchNorm])
def test_linen_of_another_model_inside_a_step(layer):
    """The outer step sees x minus the population mean that the inner one finds."""
    layer = layer(use_running_average=False)
    batches, inner = batches_of(), batches_of(1)
    variables = layer.init(jax.random.key(0), batches[0])
    found = []

    def step(batch_stats, x):
        other = jbn.linen.population(linen_step(layer, variables), variables["batch_stats"], inner)
        found.append(jax.tree.map(jnp.shape, other))
        return linen_step(layer, variables)(batch_stats, x - other["mean"][None])

    got = jbn.linen.population(step, variables["batch_stats"], batches)
    x = oracles.exact(batches) - oracles.exact(inner).mean((0, 1))
    assert_close(got["mean"], x.mean((0, 1)), AVERAGED)
    assert_close(got["var"], x.var(1).mean(0), AVERAGED)
    assert found[0] == {"mean": (3,), "var": (3,)}


def test_linen_of_the_same_statistics_inside_a_step():
    """Each call of the inner steps counts: three batches of 16 become six of 8."""
    layer, batches = nn.BatchNorm(use_running_average=False), batches_of()
    variables = layer.init(jax.random.key(0), batches[0])
    step = linen_step(layer, variables)

    def halves(batch_stats, x):
        return jbn.linen.population(step, batch_stats, x.reshape(2, 8, 3))

    got = jbn.linen.population(halves, variables["batch_stats"], batches)
    want = jbn.linen.population(step, variables["batch_stats"], batches.reshape(6, 8, 3))
    chex.assert_trees_all_close(got, want, rtol=AVERAGED, atol=AVERAGED)


def test_nnx_inside_a_step():
    model, other = (nnx.BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(2))
    batches, inner = batches_of(), batches_of(1)

    def forward(model, x):
        found = jbn.nnx.population(lambda m, x: m(x), other, inner)
        halves = jbn.nnx.population(lambda m, x: m(x), model, x.reshape(2, 8, 3))
        nnx.update(model, halves)
        model(x - nnx.to_pure_dict(found)["mean"][None])

    got = nnx.to_pure_dict(jbn.nnx.population(forward, model, batches))
    x = oracles.exact(batches)
    shifted = x - oracles.exact(inner).mean((0, 1))
    assert_close(got["mean"], (x.mean((0, 1)) + shifted.mean((0, 1))) / 2, AVERAGED)
    within = x.reshape(6, 8, 3).var(1).mean(0)
    assert_close(got["var"], (within + shifted.var(1).mean(0)) / 2, AVERAGED)


def test_the_function_around_the_layers():
    layer, batches = nn.BatchNorm(use_running_average=False), batches_of()
    variables = layer.init(jax.random.key(0), batches[0])

    def step(batch_stats, x):
        return jbn.linen.population(linen_step(layer, variables), batch_stats, x[None])

    got = jbn.population(step, variables["batch_stats"], batches)
    check(got, batches)


# Errors inside a step ---------------------------------------------------------------------------


def snapshot(bound):
    return jax.tree.map(np.array, dict(bound.variables["batch_stats"]))


@pytest.mark.parametrize("wrong", ["input", "later"])
@pytest.mark.parametrize("layer", [nn.BatchNorm, jbn.linen.BatchNorm])
def test_an_error_leaves_a_module_bound_outside_as_it_was(layer, wrong):
    layer, batches = layer(use_running_average=False, momentum=0.9), batches_of()
    variables = layer.init(jax.random.key(0), batches[0])
    bound = layer.bind(variables, mutable=["batch_stats"])
    bound(batches[0])
    before = snapshot(bound)

    def step(batch_stats, x):
        bound(x[..., :2] if wrong == "input" else x)
        raise RuntimeError("later")

    with pytest.raises(Exception, match="later" if wrong == "later" else "shape"):
        jbn.linen.population(step, variables["batch_stats"], batches)
    assert bound.momentum == 0.9
    chex.assert_trees_all_equal(snapshot(bound), before)
    bound(batches[0])


@pytest.mark.parametrize("layer", [nn.BatchNorm, jbn.linen.BatchNorm])
def test_a_module_bound_outside_is_left_as_it_was(layer):
    """An example is a teacher in training mode: the step does not return its statistics."""
    layer, batches = layer(use_running_average=False, momentum=0.9), batches_of()
    variables = layer.init(jax.random.key(0), batches[0])
    bound = layer.bind(variables, mutable=["batch_stats"])
    before = snapshot(bound)

    def step(batch_stats, x):
        return linen_step(layer, variables)(batch_stats, bound(x) + 5)

    got = jbn.linen.population(step, variables["batch_stats"], batches)
    assert_close(got["mean"], np.full(3, 5), AVERAGED)
    chex.assert_trees_all_equal(snapshot(bound), before)


def test_an_error_leaves_an_nnx_model_as_it_was():
    model, batches = nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0)), batches_of()
    model(batches[0])
    graphdef, state = nnx.split(model)
    before = jax.tree.map(np.array, nnx.to_pure_dict(state))

    def forward(model, x):
        model(x)
        raise RuntimeError("later")

    with pytest.raises(RuntimeError, match="later"):
        jbn.nnx.population(forward, model, batches)
    with pytest.raises(TypeError, match="shape"):
        jbn.nnx.population(lambda m, x: m(x[..., :2]), model, batches)
    assert nnx.split(model)[0] == graphdef
    assert type(model) is nnx.BatchNorm
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model)), before)
    check(nnx.to_pure_dict(jbn.nnx.population(lambda m, x: m(x), model, batches)), batches)
