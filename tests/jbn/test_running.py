"""How running statistics are updated: `update` and `population`."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import F32_STATISTICS, assert_close
from strategies import values

import jbn

# `population` may recover a batch's statistics from the updated state, (new - m old) / (1 - m). At
# m = .99 that magnifies float32's rounding a hundredfold.
RECOVERED = 2e-5


def state_of(mean, var, count=0):
    return jax.device_put(jbn.BatchNormState(np.float32(mean), np.float32(var), np.int32(count)))


def moments_of(mean, var, count):
    mean = np.float32(mean)
    return jax.device_put(jbn.Moments(mean, np.float32(var), np.full_like(mean, count)))


STATE = state_of([1.0, -2.0], [4.0, 0.5], 3)
BATCH = ([3.0, 1.0], [2.0, 6.0], 5)

# update ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99, 1.0])
def test_update_is_the_formula(momentum, unbiased):
    got = jbn.update(STATE, moments_of(*BATCH), momentum=momentum, unbiased=unbiased)
    batch = (np.array(BATCH[0]), np.array(BATCH[1]), np.full(2, 5.0))
    want = oracles.moved(*STATE, batch, momentum=momentum, unbiased=unbiased)
    assert isinstance(got, jbn.BatchNormState)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, F32_STATISTICS)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, STATE)


def test_update_by_hand():
    got = jbn.update(STATE, moments_of(*BATCH), momentum=0.9)
    np.testing.assert_allclose(got.mean, [0.9 * 1 + 0.1 * 3, 0.9 * -2 + 0.1 * 1], rtol=1e-6)
    np.testing.assert_allclose(got.var, [0.9 * 4 + 0.1 * 2.5, 0.9 * 0.5 + 0.1 * 7.5], rtol=1e-6)
    assert int(got.count) == 4


@pytest.mark.parametrize(("m", "factor"), [(2, 2.0), (5, 1.25), (32, 32 / 31), (60, 60 / 59)])
def test_bessel_factor(m, factor):
    """Section 3.1 of the paper: Var[x] = m / (m - 1) E[var_B]."""
    batch = moments_of([0.0, 0.0], [1.0, 2.0], m)
    got = jbn.update(STATE, batch, momentum=0.0)
    np.testing.assert_allclose(got.var, [factor, 2 * factor], rtol=3e-7)
    plain = jbn.update(STATE, batch, momentum=0.0, unbiased=False)
    np.testing.assert_allclose(plain.var, [1, 2], rtol=3e-7)


def test_features_without_weight_stay_and_the_batch_counts():
    batch = moments_of([3.0, 9.0], [2.0, 9.0], [5.0, 0.0])
    got, old = jax.device_get((jbn.update(STATE, batch, momentum=0.9), STATE))
    assert got.mean[1] == old.mean[1]
    assert got.var[1] == old.var[1]
    np.testing.assert_allclose(got.mean[0], 1.2, rtol=1e-6)
    assert int(got.count) == 4


def test_a_batch_without_weight_changes_nothing():
    batch = moments_of([3.0, 9.0], [2.0, 9.0], 0.0)
    chex.assert_trees_all_equal(jbn.update(STATE, batch, momentum=0.9), STATE)
    chex.assert_trees_all_equal(jbn.update(STATE, batch, momentum=jbn.cumulative), STATE)


def test_momentum_may_be_traced():
    step = jax.jit(lambda m: jbn.update(STATE, moments_of(*BATCH), momentum=m))
    chex.assert_trees_all_close(
        step(0.9), jbn.update(STATE, moments_of(*BATCH), momentum=0.9), rtol=F32_STATISTICS
    )
    slope = jax.jit(jax.grad(lambda m: step(m).mean.sum()))(0.9)
    np.testing.assert_allclose(slope, (1 - 3) + (-2 - 1), rtol=1e-6)


# population ------------------------------------------------------------------------------------

MOMENTA = {
    "0": 0.0,
    "half": 0.5,
    "default": 0.99,
    "cumulative": jbn.cumulative,
    "debiased": jbn.debiased(0.9),
}


# Bessel's factor depends on the batch alone, not on its weight in the average.
@pytest.mark.parametrize(
    ("momentum", "unbiased"), [*((name, True) for name in MOMENTA), ("default", False)]
)
def test_population_is_algorithm_2_whatever_the_momentum(momentum, unbiased):
    batches = values(2, (7, 5, 3), mean=2.0)
    params, state = jbn.init(3)
    state = state._replace(mean=state.mean + 10, var=state.var * 5)

    def step(state, x):
        return jbn.batch_norm(
            x, params, state, training=True, momentum=MOMENTA[momentum], unbiased=unbiased
        )[1]

    got = jbn.population(step, state, batches)
    x = oracles.exact(batches)
    assert isinstance(got, jbn.BatchNormState)
    assert_close(got.mean, x.mean((0, 1)), RECOVERED)
    assert_close(got.var, (5 / 4 if unbiased else 1) * x.var(1).mean(0), RECOVERED)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, state)


def two_layers(momentum):
    """Return (step, states) of two layers, the second of which gets the first one's output."""
    params, state = jbn.init(4)
    w = values(3, (4, 4))

    def step(states, batch):
        h, first = jbn.batch_norm(
            batch["x"], params, states["first"], training=True, momentum=momentum
        )
        _, second = jbn.batch_norm(
            jnp.tanh(h) @ w + batch["shift"],
            params,
            states["rest"][0],
            training=True,
            momentum=momentum,
        )
        return {"first": first, "rest": [second]}

    return step, {"first": state, "rest": [state]}


@pytest.mark.parametrize("momentum", ["default", "cumulative"])
def test_population_of_a_tree_of_states_and_a_tree_of_batches(momentum):
    batches = {"x": values(4, (6, 8, 4), mean=-1.0), "shift": values(5, (6, 4))}
    batches["shift"] = batches["shift"][:, None]
    step, states = two_layers(MOMENTA[momentum])
    got = jbn.population(step, states, batches)
    replace = jax.jit(two_layers(0.0)[0])
    arrays = jax.tree.map(np.asarray, batches)
    each = [replace(states, jax.tree.map(lambda b, i=i: b[i], arrays)) for i in range(6)]
    for pick in (lambda s: s["first"], lambda s: s["rest"][0]):
        for field in ("mean", "var"):
            want = np.mean([np.asarray(getattr(pick(s), field), np.float64) for s in each], 0)
            assert_close(getattr(pick(got), field), want, RECOVERED)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, states)


def test_population_under_jit_and_traced_once():
    batches = values(6, (50, 5, 3))
    params, state = jbn.init(3)

    def step(state, x):
        return jbn.batch_norm(x, params, state, training=True)[1]

    counted = chex.assert_max_traces(step, n=4)  # one scan for any K, and a few abstract passes
    got = jbn.population(counted, state, batches)
    again = jax.jit(functools.partial(jbn.population, step))(state, batches)
    chex.assert_trees_all_close(got, again, rtol=RECOVERED, atol=RECOVERED)


def test_population_does_not_depend_on_the_state_it_starts_from():
    batches = values(7, (4, 5, 3))
    params, state = jbn.init(3)

    def step(state, x):
        return jbn.batch_norm(x, params, state, training=True, momentum=0.9)[1]

    trained = state._replace(mean=state.mean - 3, var=state.var * 7, count=state.count + 1000)
    one, two = (jbn.population(step, s, batches) for s in (state, trained))
    assert_close(one.mean, two.mean, RECOVERED)
    assert_close(one.var, two.var, RECOVERED)


@pytest.mark.parametrize("momentum", [0.9, 0.99])
def test_population_of_a_flax_model_with_flax_batch_norm(momentum):
    nn = pytest.importorskip("flax.linen")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(6)(x)
            x = nn.BatchNorm(use_running_average=False, momentum=momentum, use_fast_variance=False)(
                x
            )
            x = nn.Dense(5)(nn.relu(x))
            return nn.BatchNorm(
                use_running_average=False, momentum=momentum, use_fast_variance=False
            )(x)

    model, batches = Model(), values(8, (5, 16, 4), mean=1.0)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((16, 4), np.float32))

    def step(stats, x):
        tree = {"params": variables["params"], "batch_stats": stats}
        return model.apply(tree, x, mutable=["batch_stats"])[1]["batch_stats"]

    got = jbn.population(step, variables["batch_stats"], batches)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, variables["batch_stats"])
    # The first layer by hand, in float64.
    dense = variables["params"]["Dense_0"]
    z = oracles.exact(batches) @ oracles.exact(dense["kernel"]) + oracles.exact(dense["bias"])
    assert_close(got["BatchNorm_0"]["mean"], z.mean((0, 1)), RECOVERED)
    assert_close(got["BatchNorm_0"]["var"], z.var(1).mean(0), RECOVERED)

    # Both layers: Flax's own statistics without the old ones' part.
    @jax.jit
    def alone(old, x):
        return jax.tree.map(
            lambda new, old: (new - momentum * old) / (1 - momentum), step(old, x), old
        )

    per_batch = [alone(variables["batch_stats"], x) for x in np.asarray(batches)]
    want = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *per_batch)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # Here the oracle is recovered from float32 states, too, so both have the magnified error.
        assert_close(a, b, 2 * RECOVERED)
