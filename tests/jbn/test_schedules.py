"""Schedules of the momentum, and the moving average that explains them."""

import functools
import math
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import F32_STATISTICS, assert_close
from strategies import values

import jbn
from jbn._schedules import Switched, at_count

# A running average over K float32 batches has K roundings of 6e-8 each, relative to its size.
AVERAGED = 5e-6
# 1 - decay^t in float32 loses digits if decay^t is near 1: at .99, two decimal digits.
RECOVERED = 2e-5


def state_of(mean, var, count=0):
    return jax.device_put(jbn.BatchNormState(np.float32(mean), np.float32(var), np.int32(count)))


def moments_of(mean, var, count):
    mean = np.float32(mean)
    return jax.device_put(jbn.Moments(mean, np.float32(var), np.full_like(mean, count)))


STATE = state_of([1.0, -2.0], [4.0, 0.5], 3)
BATCH = ([3.0, 1.0], [2.0, 6.0], 5)


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
        assert_close(got.mean, weight @ np.array([b[0] for b in batches[:t]]), RECOVERED)
        assert_close(got.var, weight @ np.array([b[1] for b in batches[:t]]), RECOVERED)


def test_debiased_first_batch_is_the_batch():
    got = absorb(batches_of(1), jbn.debiased(0.99), state_of([99.0, -99.0], [50.0, 60.0]))
    np.testing.assert_array_equal(got.mean, np.float32(batches_of(1)[0][0]))


def test_debiased_tends_to_its_decay():
    assert abs(float(jbn.debiased(0.9)(jnp.int32(10_000))) - 0.9) < 1e-6
    assert abs(float(jbn.debiased(0.999)(jnp.int32(1_000_000))) - 0.999) < 1e-6


def test_a_batch_that_was_not_absorbed_does_not_move_the_schedule():
    """The mean over all batches is the mean over the absorbed ones."""
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
    """The mean of var_B m / (m - 1) tends to the true variance; the mean of var_B does not."""
    m, k = 2, 4000
    x = values(1, (k, m, 1), std=3.0)
    moments = jax.vmap(jbn.moments)(x)
    mean_var = float(moments.var.mean())
    error = 3 * 9 * np.sqrt(2 / k)  # three standard errors of the unbiased estimate
    assert abs(mean_var * m / (m - 1) - 9) < error
    assert abs(mean_var - 9) > error


# As values -----------------------------------------------------------------------------------

MADE = {
    "cumulative": lambda: jbn.cumulative,
    "debiased": lambda: jbn.debiased(0.9),
    "of an array": lambda: jbn.debiased(np.array(0.9)),
    "FirstBatch": lambda: jbn.convert.FirstBatch(0.9),
    "Switched": lambda: Switched(10, 1.0, 3.0),
    "Switched to a schedule": lambda: Switched(10, 1.0, jbn.debiased(0.5)),
}


@pytest.mark.parametrize("name", MADE)
def test_schedules_pickle_and_equal_themselves_remade(name):
    make = MADE[name]
    for again in (make(), pickle.loads(pickle.dumps(make()))):
        assert again == make()
        assert hash(again) == hash(make())
    assert make() not in (jbn.debiased(0.8), jbn.convert.FirstBatch(0.8), Switched(9, 1.0, 3.0))


@pytest.mark.parametrize("name", MADE)
def test_equal_schedules_are_one_static_argument(name):
    traces = []

    @functools.partial(jax.jit, static_argnames="momentum")
    def step(count, momentum):
        traces.append(momentum)
        return momentum(count)

    for _ in range(3):
        step(STATE.count, momentum=MADE[name]())
    assert len(traces) == 1


def test_debiased_and_first_batch_of_one_decay_differ():
    assert jbn.debiased(0.9) != jbn.convert.FirstBatch(0.9)
    assert jbn.convert.Debiased is type(jbn.debiased(0.9))


def test_a_traced_decay_equals_itself_alone():
    @jax.jit
    def weight(decay):
        one, other = jbn.debiased(decay), jbn.debiased(decay + 0)
        assert one == one
        assert one == jbn.debiased(decay)
        assert one != other
        assert len({one, one, other}) == 2
        return one(jnp.int32(3)), jax.grad(lambda d: jbn.debiased(d)(jnp.int32(3)))(decay)

    got, slope = weight(0.9)

    def exact(d, t=3):
        return d * (1 - d**t) / (1 - d ** (t + 1))

    np.testing.assert_allclose(got, exact(0.9), rtol=1e-6)
    np.testing.assert_allclose(slope, (exact(0.9 + 1e-6) - exact(0.9 - 1e-6)) / 2e-6, rtol=1e-4)
    outside = jax.grad(lambda d: jbn.debiased(d)(jnp.int32(3)))(0.9)  # Outside jit: a known value.
    np.testing.assert_allclose(outside, slope, rtol=1e-6)


@pytest.mark.parametrize(
    ("decay", "error"),
    [
        (1.0, ValueError),
        (-0.1, ValueError),
        (math.nan, ValueError),
        (np.array(1.5), ValueError),
        (jnp.array(1.5), ValueError),
        (None, TypeError),
        ("0.9", TypeError),
        (True, TypeError),
        ([0.9], TypeError),
        (0.9j, TypeError),
        (np.array([0.9, 0.8]), TypeError),
    ],
)
@pytest.mark.parametrize("make", [jbn.debiased, jbn.convert.Debiased, jbn.convert.FirstBatch])
def test_a_decay_out_of_range_is_an_error(make, decay, error):
    with pytest.raises(error, match="Expected `decay`"):
        make(decay)


# Extreme values ------------------------------------------------------------------------------

COUNTS = [0, 1, 2, 7, 100, 2**24 + 1, 2**31 - 2, 2**31 - 1]
WEIGHTS = {  # In Python's double precision.
    "cumulative": (lambda: jbn.cumulative, lambda t: t / (t + 1)),
    **{
        f"debiased({decay})": (
            functools.partial(jbn.debiased, decay),
            lambda t, d=decay: d * (1 - d**t) / (1 - d ** (t + 1)) if t else 0.0,
        )
        for decay in (0.0, 0.5, 0.9, 0.999)
    },
    "FirstBatch": (lambda: jbn.convert.FirstBatch(0.9), lambda t: 0.9 if t else 0.0),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("how", ["eager", "jit", "disable_jit", "x64", "strict"])
def test_weights_from_the_first_count_to_the_last(name, how):
    make, exact = WEIGHTS[name]
    modes = {
        "disable_jit": jax.disable_jit,
        "x64": lambda: jax.enable_x64(True),
        "strict": lambda: jax.numpy_dtype_promotion("strict"),
    }
    with modes.get(how, jax.enable_x64)(*([False] if how not in modes else [])):
        schedule = jax.jit(make()) if how == "jit" else make()
        got = [schedule(jnp.asarray(count, jnp.int32)) for count in COUNTS]
        assert {weight.dtype.name for weight in got} == {"float64" if how == "x64" else "float32"}
        # At .999, decay^t is near 1 for small t.
        tolerance = 1e-12 if how == "x64" else RECOVERED
        np.testing.assert_allclose(got, [exact(t) for t in COUNTS], rtol=tolerance)
        assert make()(2**40) <= 1  # A Python int may exceed int32.


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_call_outside_jit_transfers_nothing(name):
    schedule, count = WEIGHTS[name][0](), jax.device_put(np.int32(3))
    with jax.transfer_guard("disallow"):
        schedule(count)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_second_call_outside_jit_compiles_nothing(name, caplog):
    make, _ = WEIGHTS[name]
    make()(jnp.int32(0))
    with jax.log_compiles(), caplog.at_level("DEBUG"):
        make()(jnp.int32(5))
    assert not [r for r in caplog.records if "ompil" in r.getMessage()]


def test_switched_turns_at_its_step():
    switched = Switched(2, 1.0, 3.0)
    assert [float(switched(jnp.int32(count))) for count in range(4)] == [1, 1, 3, 3]
    rising = Switched(2, 1.0, lambda count: 1.0 + count)
    assert [float(rising(jnp.int32(count))) for count in range(4)] == [1, 1, 3, 4]


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
    """A window after a huge value is exact again: nothing is subtracted from a running sum."""
    got = jbn.moving_average(jnp.array([1e9, 1.0, 2.0, 3.0]), window=2)
    np.testing.assert_array_equal(got[2:], [1.5, 2.5])


# Not a schedule ---------------------------------------------------------------------------------

# name: (object passed as a schedule, words in the message)
WRONG = {
    "two arguments": (lambda a, b: 0.9, ["a function of (a, b)", "lambda count"]),
    "no argument": (lambda: 0.9, ["a function of ()"]),
    "a keyword": (lambda *, count: 0.9, ["a function of (*, count)"]),
    "partial": (functools.partial(lambda a, b, c: 0.9, 0.5), ["functools.partial of (b, c)"]),
    "function of jax.jit": (jax.jit(lambda a, b: 0.9), ["of (a, b)"]),
    "class": (dict, ["the class dict, not an instance"]),
    "class of a schedule": (Switched, ["the class Switched, not an instance"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_raises(name):
    schedule, words = WRONG[name]
    with pytest.raises(TypeError) as caught:
        at_count("momentum", schedule, jnp.int32(3))
    for word in ["Expected `momentum`", "called as momentum(count)", "got", *words]:
        assert word in str(caught.value), f"does not say {word!r}: {caught.value}"
    with pytest.raises(TypeError, match="called as schedule"):
        Switched(2, 1.0, schedule)(3)


def test_an_error_inside_a_schedule():
    def schedule(count):
        raise TypeError("of its own")

    with pytest.raises(TypeError, match="of its own"):
        at_count("momentum", schedule, 3)
    with pytest.raises(TypeError, match="real number"):  # A builtin function of one argument.
        at_count("momentum", math.sqrt, "3")
