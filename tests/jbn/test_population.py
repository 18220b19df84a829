"""Population statistics of linen and nnx models against Algorithm 2 in float64 NumPy.

`jbn.population` is for any step, `jbn.linen.population` and `jbn.nnx.population` also for models
that call a layer several times.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import linen as nn
from flax import nnx
from oracles import assert_close
from population_models import (
    AVERAGED,
    LINEN,
    NNX,
    RECOVERED,
    Nnx,
    algorithm_2,
    batches_of,
    check,
    init,
    linen_step,
)

import jbn
import jbn.linen
import jbn.nnx

MOMENTA = {"0": 0.0, "default": 0.99}
SCHEDULES = {"cumulative": jbn.cumulative, "debiased": jbn.debiased(0.9)}
CASES = [
    pytest.param(library, momentum, id=f"{library}-{name}")
    for library in LINEN
    for name, momentum in (MOMENTA if library == "flax" else MOMENTA | SCHEDULES).items()
]


class Linen(nn.Module):
    """A dense layer and a norm, applied `calls` times."""

    norm: type[nn.Module]
    momentum: object
    calls: int = 1

    @nn.compact
    def __call__(self, x, masks=None):
        dense = nn.Dense(3, use_bias=False, name="dense")
        norm = self.norm(momentum=self.momentum, use_running_average=False, name="norm")
        for i in range(self.calls):
            x = norm(dense(jnp.tanh(x)), mask=None if masks is None else masks[i])
        return x


def forward(model, x):
    return model(x)


# A layer that is called once --------------------------------------------------------------------


@pytest.mark.parametrize(("library", "momentum"), CASES)
def test_linen_by_the_plain_function_is_algorithm_2(library, momentum):
    batches = batches_of()
    step, stats, w = linen_step(Linen(LINEN[library], momentum), batches[0])
    got = jbn.population(step, stats, batches)
    check(got["norm"], algorithm_2(w, batches, 1), RECOVERED)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, stats)


@pytest.mark.parametrize("library", LINEN)
def test_linen_is_algorithm_2(library):
    batches = batches_of()
    step, stats, w = linen_step(Linen(LINEN[library], 0.99), batches[0])
    got = jbn.linen.population(step, stats, batches)
    check(got["norm"], algorithm_2(w, batches, 1), AVERAGED)


@pytest.mark.parametrize("library", NNX)
def test_nnx_is_algorithm_2(library):
    batches, model = batches_of(), Nnx(NNX[library], 0.99)
    want = algorithm_2(model.dense.kernel[...], batches, 1)
    state = jbn.nnx.population(forward, model, batches)
    nnx.update(model, state)
    check(nnx.to_pure_dict(state)["norm"], want, AVERAGED)
    check({"mean": model.norm.mean[...], "var": model.norm.var[...]}, want, AVERAGED)


@pytest.mark.parametrize("library", NNX)
def test_nnx_by_split_and_merge_is_algorithm_2(library):
    """Without a helper, users write this; Flax stops the gradient of the statistics it writes."""
    batches, model = batches_of(), Nnx(NNX[library], 0.99)
    graphdef, stats, rest = nnx.split(model, nnx.BatchStat, ...)

    def step(stats, x):
        copy = nnx.merge(graphdef, stats, rest, copy=True)
        copy(x)
        return nnx.state(copy, nnx.BatchStat)

    got = nnx.to_pure_dict(jbn.population(step, stats, batches))
    check(got["norm"], algorithm_2(model.dense.kernel[...], batches, 1), RECOVERED)


def test_unbiased_is_line_10():
    """Var[x] = m / (m - 1) E[var_B]."""
    batches = batches_of()
    model = Nnx(lambda *args, **kw: jbn.nnx.BatchNorm(*args, unbiased=True, **kw), 0.9)
    got = nnx.to_pure_dict(jbn.nnx.population(forward, model, batches))
    check(got["norm"], algorithm_2(model.dense.kernel[...], batches, 1, bessel=True), AVERAGED)


# A layer that is called several times -----------------------------------------------------------


@pytest.mark.parametrize(("library", "momentum"), CASES)
def test_linen_counts_every_call_of_a_shared_layer(library, momentum):
    batches = batches_of()
    step, stats, w = linen_step(Linen(LINEN[library], momentum, 2), batches[0])
    got = jbn.linen.population(step, stats, batches)
    check(got["norm"], algorithm_2(w, batches, 2), AVERAGED)


@pytest.mark.parametrize(("library", "momentum"), CASES)
def test_nnx_counts_every_call_of_a_shared_layer(library, momentum):
    batches, model = batches_of(), Nnx(NNX[library], momentum, 2)
    got = nnx.to_pure_dict(jbn.nnx.population(forward, model, batches))
    check(got["norm"], algorithm_2(model.dense.kernel[...], batches, 2), AVERAGED)


def test_nnx_layer_in_two_places_is_one():
    class Twice(nnx.Module):
        def __init__(self):
            self.first = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
            self.second = self.first

        def __call__(self, x):
            return self.second(self.first(x) * 3 + 5)

    batches = batches_of()
    got = nnx.to_pure_dict(jbn.nnx.population(forward, Twice(), batches))
    values = oracles.exact(batches)
    variance = values.var(1).mean(0)
    check(got["first"], ((values.mean((0, 1)) + 5) / 2, (variance + 9) / 2), 1e-4)


def test_cumulative_needs_no_helper_for_a_shared_layer():
    """Its weight depends on the count, which every call increments."""
    batches = batches_of()
    step, stats, w = linen_step(Linen(jbn.linen.BatchNorm, jbn.cumulative, 3), batches[0])
    got = jbn.population(step, stats, batches)
    check(got["norm"], algorithm_2(w, batches, 3), RECOVERED)
    assert int(got["norm"]["count"]) == 15


@pytest.mark.parametrize("w", [0.5, 0.9])
def test_a_shared_layer_without_helper_weighs_late_calls_more(w):
    """As documented in `jbn.population`: new / (1 - slope) = (w first + second) / (1 + w)."""
    params, state = jbn.init(3)
    batches = batches_of()

    def step(state, x):
        for scale in (1.0, 4.0):
            state = jbn.batch_norm(scale * x, params, state, training=True, momentum=w)[1]
        return state

    got = jbn.population(step, state, batches)
    mean = oracles.exact(batches).mean((0, 1))
    assert_close(got.mean, (w * mean + 4 * mean) / (1 + w), RECOVERED)


# What counts, and what stays --------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.9, jbn.debiased(0.9)])
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_calls_without_weight_count_for_nothing(library, momentum):
    """The second call of each batch is fully masked, and so is the whole second batch."""
    batches = batches_of()
    masks = np.ones((5, 2, 16, 1), bool)
    masks[:, 1] = masks[1] = False
    if library == "linen":
        model = Linen(jbn.linen.BatchNorm, momentum, 2)
        step, stats, w = linen_step(model, batches[0])
        got = jbn.linen.population(step, stats, (batches, masks))
    else:
        model = Nnx(jbn.nnx.BatchNorm, momentum, 2)
        w = model.dense.kernel[...]
        state = jbn.nnx.population(lambda m, xs: m(*xs), model, (batches, masks))
        got = nnx.to_pure_dict(state)
    check(got["norm"], algorithm_2(w, np.delete(batches, 1, 0), 1), AVERAGED)


def test_dead_features_count():
    """Their statistics are exactly 0, which is not the same as having none."""
    step, stats, _ = linen_step(nn.BatchNorm(use_running_average=False), batches_of()[0])
    batches = np.array(batches_of())
    batches[..., 0] = 0
    zero = jbn.linen.population(step, stats, batches)
    assert float(zero["mean"][0]) == float(zero["var"][0]) == 0


def test_layers_that_were_not_called_stay():
    model = Nnx(nnx.BatchNorm, 0.99)
    model.norm.mean[...] = jnp.full(3, 5.0)
    got = nnx.to_pure_dict(jbn.nnx.population(lambda m, x: m.dense(x), model, batches_of()))
    np.testing.assert_array_equal(got["norm"]["mean"], [5, 5, 5])
    np.testing.assert_array_equal(got["norm"]["var"], [1, 1, 1])


@pytest.mark.parametrize("library", NNX)
def test_nnx_model_is_not_changed(library):
    model, x = Nnx(NNX[library], 0.99, calls=2, dropout=0.5), batches_of()
    graphdef, before = nnx.split(model)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    jbn.nnx.population(forward, model, x)
    assert nnx.split(model)[0] == graphdef
    after = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey)))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert model.norm.momentum == 0.99


@pytest.mark.parametrize("library", LINEN)
def test_linen_bound_module_keeps_its_momentum(library):
    layer, x = LINEN[library](use_running_average=False, momentum=0.9), batches_of()
    bound = layer.bind(init(layer, x[0]), mutable=["batch_stats"])

    def step(batch_stats, x):
        bound.scope._collection("batch_stats").update(batch_stats)
        bound(x)
        return dict(bound.variables["batch_stats"])

    jbn.linen.population(step, dict(bound.variables["batch_stats"]), x)
    assert bound.momentum == 0.9


def test_other_statistics_stay():
    """Only mean and var of a layer with momentum are averaged; counts continue."""

    class Watched(nn.Module):
        @nn.compact
        def __call__(self, x):
            largest = self.variable("batch_stats", "largest", jnp.zeros, ())
            seen = self.variable("batch_stats", "seen", jnp.zeros, (), jnp.int32)
            largest.value = jnp.maximum(largest.value, x.max())
            seen.value += 1
            return nn.BatchNorm(use_running_average=False)(x)

    step, stats, _ = linen_step(Watched(), batches_of()[0])
    got = jbn.linen.population(step, stats, batches_of())
    assert float(got["largest"]) == float(stats["largest"])
    assert int(got["seen"]) == 5


@pytest.mark.parametrize("batches", [np.zeros((0, 4, 3), np.float32), ()])
def test_no_batches_is_an_error(batches):
    with pytest.raises(ValueError, match="K >= 1 batches"):
        jbn.nnx.population(forward, Nnx(nnx.BatchNorm, 0.9), batches)
