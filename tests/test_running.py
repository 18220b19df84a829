"""How running statistics move: `update`, schedules, `population`, `moving_average`."""

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

# A running average of K float32 batches: K roundings of 6e-8 each, relative to its size.
AVERAGED = 5e-6
# `population` may read a batch off a moved state, (new - m old) / (1 - m): at m = .99 that
# magnifies float32's rounding a hundredfold.
RECOVERED = 2e-5


def state_of(mean, var, count=0):
    return jbn.BatchNormState(
        jnp.asarray(mean, jnp.float32), jnp.asarray(var, jnp.float32), jnp.asarray(count, jnp.int32)
    )


def moments_of(mean, var, count):
    mean = jnp.asarray(mean, jnp.float32)
    count = jnp.broadcast_to(jnp.asarray(count, jnp.float32), mean.shape)
    return jbn.Moments(mean, jnp.asarray(var, jnp.float32), count)


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
    got = jbn.update(STATE, batch, momentum=0.9)
    assert got.mean[1] == STATE.mean[1]
    assert got.var[1] == STATE.var[1]
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
    slope = jax.grad(lambda m: step(m).mean.sum())(0.9)
    np.testing.assert_allclose(slope, (1 - 3) + (-2 - 1), rtol=1e-6)


# Schedules -------------------------------------------------------------------------------------


def absorb(batches, momentum, start, unbiased=False):
    state = start
    for mean, var, count in batches:
        state = jbn.update(
            state, moments_of(mean, var, count), momentum=momentum, unbiased=unbiased
        )
    return state


def batches_of(k, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=2), rng.uniform(0.5, 2, 2), 7) for _ in range(k)]


def test_schedule_sees_the_count_before_the_batch():
    seen = []

    def schedule(count):
        seen.append(int(count))
        return 0.5

    absorb(batches_of(3), schedule, state_of([0.0, 0.0], [1.0, 1.0]))
    assert seen == [0, 1, 2]


def test_schedule_is_the_weight_of_the_old_value():
    first = jbn.update(
        STATE, moments_of(*BATCH), momentum=lambda count: jnp.where(count == 3, 0.0, 0.9)
    )
    np.testing.assert_array_equal(first.mean, np.float32(BATCH[0]))


def test_cumulative_is_the_schedule_of_a_mean():
    np.testing.assert_allclose(
        [float(jbn.cumulative(jnp.int32(t))) for t in range(5)],
        [t / (t + 1) for t in range(5)],
        rtol=1e-7,
    )


@pytest.mark.parametrize("unbiased", [True, False])
def test_cumulative_forgets_the_start_and_averages_all(unbiased):
    batches = batches_of(20)
    got = absorb(batches, jbn.cumulative, state_of([99.0, -99.0], [50.0, 60.0]), unbiased)
    factor = 7 / 6 if unbiased else 1
    assert_close(got.mean, np.mean([b[0] for b in batches], 0), AVERAGED)
    assert_close(got.var, factor * np.mean([b[1] for b in batches], 0), AVERAGED)
    assert int(got.count) == 20


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])
def test_debiased_is_the_zero_debiased_average(decay):
    batches = batches_of(12)
    for t in (1, 2, 3, 12):
        got = absorb(batches[:t], jbn.debiased(decay), state_of([99.0, -99.0], [50.0, 60.0]))
        weight = decay ** np.arange(t - 1, -1, -1.0) * (1 - decay) / (1 - decay**t)
        assert np.isclose(weight.sum(), 1)
        # 1 - decay^t in float32 loses digits where decay^t is near 1: .99 leaves a hundredth.
        assert_close(got.mean, weight @ np.array([b[0] for b in batches[:t]]), RECOVERED)
        assert_close(got.var, weight @ np.array([b[1] for b in batches[:t]]), RECOVERED)


def test_debiased_first_batch_is_the_batch():
    got = absorb(batches_of(1), jbn.debiased(0.99), state_of([99.0, -99.0], [50.0, 60.0]))
    np.testing.assert_array_equal(got.mean, np.float32(batches_of(1)[0][0]))


def test_debiased_tends_to_its_decay():
    assert abs(float(jbn.debiased(0.9)(jnp.int32(10_000))) - 0.9) < 1e-6
    assert abs(float(jbn.debiased(0.999)(jnp.int32(1_000_000))) - 0.999) < 1e-6


def test_a_batch_that_was_not_absorbed_does_not_move_the_schedule():
    """The mean of all batches is that of the absorbed ones."""
    first, second = batches_of(2)
    empty = (np.zeros(2), np.zeros(2), 0)
    start = state_of([9.0, 9.0], [9.0, 9.0])
    chex.assert_trees_all_equal(
        absorb([first, empty, second], jbn.cumulative, start),
        absorb([first, second], jbn.cumulative, start),
    )


def test_cumulative_in_batch_norm_is_algorithm_2():
    """E[x] = E[mu_B], Var[x] = m / (m - 1) E[var_B], over the mini-batches of section 3.1."""
    batches = values(0, (6, 5, 3), mean=2.0)
    params, state = jbn.init(3)
    step = jax.jit(
        lambda s, x: jbn.batch_norm(x, params, s, training=True, momentum=jbn.cumulative)[1]
    )
    for x in batches:
        state = step(state, x)
    x = oracles.exact(batches)
    assert_close(state.mean, x.mean((0, 1)), AVERAGED)
    assert_close(state.var, 5 / 4 * x.var(1).mean(0), AVERAGED)


def test_bessel_makes_the_average_unbiased():
    """Mean var_B m / (m - 1) tends to the true variance, mean var_B does not."""
    m, k = 2, 4000
    x = values(1, (k, m, 1), std=3.0)
    moments = jax.vmap(jbn.moments)(x)
    mean_var = float(moments.var.mean())
    error = 3 * 9 * np.sqrt(2 / k)  # three standard errors of the unbiased estimate
    assert abs(mean_var * m / (m - 1) - 9) < error
    assert abs(mean_var - 9) > error


# population ------------------------------------------------------------------------------------

MOMENTA = {
    "0": 0.0,
    "half": 0.5,
    "default": 0.99,
    "cumulative": jbn.cumulative,
    "debiased": jbn.debiased(0.9),
}


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("momentum", list(MOMENTA))
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
    """Return (step, state): the second layer's batches depend on the first one's output."""
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
    replace, _ = two_layers(0.0)
    each = [replace(states, jax.tree.map(lambda b, i=i: b[i], batches)) for i in range(6)]
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

    counted = chex.assert_max_traces(step, n=4)  # one scan, whatever K; a few abstract passes
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
    variables = model.init(jax.random.key(0), batches[0])

    def step(stats, x):
        tree = {"params": variables["params"], "batch_stats": stats}
        return model.apply(tree, x, mutable=["batch_stats"])[1]["batch_stats"]

    got = jbn.population(step, variables["batch_stats"], batches)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, variables["batch_stats"])
    # Layer one by hand, in float64.
    dense = variables["params"]["Dense_0"]
    z = oracles.exact(batches) @ oracles.exact(dense["kernel"]) + oracles.exact(dense["bias"])
    assert_close(got["BatchNorm_0"]["mean"], z.mean((0, 1)), RECOVERED)
    assert_close(got["BatchNorm_0"]["var"], z.var(1).mean(0), RECOVERED)
    # Both layers: Flax's own statistics with nothing kept of the old.
    per_batch = [
        jax.tree.map(
            lambda new, old: (new - momentum * old) / (1 - momentum),
            step(variables["batch_stats"], x),
            variables["batch_stats"],
        )
        for x in batches
    ]
    want = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *per_batch)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # Here the oracle itself is read off float32 states, so both carry the magnified error.
        assert_close(a, b, 2 * RECOVERED)


# moving_average --------------------------------------------------------------------------------


def test_moving_average_of_the_notes():
    got = jbn.moving_average(jnp.array([100.0, 110.0, 130.0, 120.0, 140.0]), window=2)
    np.testing.assert_array_equal(got, [100, 105, 120, 125, 130])


@pytest.mark.parametrize("window", [1, 2, 3, 5, 9])
def test_moving_average_is_the_mean_of_the_last(window):
    x = values(9, (5, 2, 3))
    got = jax.jit(functools.partial(jbn.moving_average, window=window))(x)
    want = [oracles.exact(x)[max(0, t + 1 - window) : t + 1].mean(0) for t in range(5)]
    assert_close(got, np.array(want), F32_STATISTICS)
    assert got.dtype == x.dtype


def test_moving_average_of_a_list():
    np.testing.assert_array_equal(jbn.moving_average([1.0, 3.0], window=2), [1, 2])


def test_moving_average_does_not_cancel():
    """A window after a huge value is exact again: no running sum from which it is taken away."""
    got = jbn.moving_average(jnp.array([1e9, 1.0, 2.0, 3.0]), window=2)
    np.testing.assert_array_equal(got[2:], [1.5, 2.5])
