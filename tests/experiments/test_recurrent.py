"""The functions of the recurrent experiment: Jacobians, the adding problem, gates, rates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.recurrent import adding
from experiments.studies.recurrent import jacobian as recurrent_jacobian
from experiments.studies.recurrent.config import CHANCE, PRESETS
from jbn.models.recurrent import Recurrent

DRAW = np.random.default_rng(0)


def jacobian(move, start, inputs, *, every):
    run = jax.jit(functools.partial(recurrent_jacobian.jacobian, move, every=every))
    return jax.device_get(run(start, inputs))


def test_jacobian_is_the_product_of_the_steps_even_where_float32_would_be_zero():
    step = 0.2 * np.linalg.qr(DRAW.normal(size=(4, 4)))[0] @ np.diag([1.0, 0.9, 0.8, 0.7])
    log, product = jacobian(
        lambda h, x: jnp.asarray(step, jnp.float32) @ h + x,
        np.ones(4, np.float32),
        np.ones((100, 4), np.float32),
        every=50,
    )
    for i, steps in enumerate((0, 50, 100)):
        exact = np.linalg.matrix_power(step, steps)
        norm = np.linalg.norm(exact)
        np.testing.assert_allclose(log[i], np.log(norm), rtol=1e-5, atol=1e-5 if steps else 2)
        seen = np.asarray(product[i], np.float64)
        np.testing.assert_allclose(seen / np.linalg.norm(seen), exact / norm, atol=1e-4)
    assert norm < np.finfo(np.float32).tiny


def test_jacobian_sees_the_nonlinearity():
    kernel = DRAW.normal(size=(3, 3)).astype(np.float32)
    inputs, start = DRAW.normal(size=(2, 3)).astype(np.float32), np.zeros(3, np.float32)

    def move(h, x):
        return jnp.tanh(kernel @ h + x)

    log, product = jacobian(move, start, inputs, every=1)
    whole = jax.jit(jax.jacobian(lambda h: move(move(h, inputs[0]), inputs[1])))(start)
    np.testing.assert_allclose(np.exp(log[2]) * product[2], whole, atol=1e-6)


def test_adding_marks_one_value_in_each_half():
    x, y = adding.sample_adding(0, 500, 11)
    marked = x[..., 1] == 1
    assert np.all(marked[:, :5].sum(1) == 1)
    assert np.all(marked[:, 5:].sum(1) == 1)
    np.testing.assert_allclose(y, x[..., 0][marked].reshape(-1, 2).sum(1), rtol=1e-6)
    assert np.mean((y - 1) ** 2) == pytest.approx(CHANCE, abs=0.02)


def test_every_example_is_seen_once_and_none_that_is_held_out():
    config = PRESETS["smoke"]
    (x, _), (held_out, _), batches = adding.sample_sequences(config, 2, 3, 10)
    assert sorted(batches.ravel()) == list(range(x.shape[1]))
    assert batches.shape == (3, config.batch_size)
    assert held_out.shape == (2, 2 * config.held_out, 10, 2)
    assert not np.array_equal(x[0], x[1])


@pytest.mark.parametrize("kind", ["lstm", "lstm_1"])
def test_gates_open_and_close_as_initialized(kind):
    length, size = 50, 200
    model = Recurrent(cell="lstm", hidden=size, outputs=1)
    init = jax.jit(functools.partial(model.init, training=False))
    params = init(jax.random.key(0), np.ones((1, 1, 2), np.float32))["params"]
    made = jax.device_get(adding.set_gates(params, jax.random.key(1), kind, length))
    inward, forget, candidate, outward = np.split(made["input"]["bias"], 4)
    assert not np.any(candidate)
    assert not np.any(outward)
    if kind == "lstm_1":
        assert np.all(forget == 1)
        assert not np.any(inward)
    else:
        lasts = np.exp(np.float64(forget))
        assert lasts.min() >= 1
        assert lasts.max() <= length - 1
        assert lasts.mean() == pytest.approx(length / 2, rel=0.15)
        np.testing.assert_array_equal(inward, -forget)


def test_best_rate_is_chosen_on_one_set_and_reported_on_the_other():
    errors = np.array([[[[0.9, 0.9], [0.2, 0.0]]], [[[0.9, 0.9], [0.1, 0.3]]]])
    np.testing.assert_array_equal(adding.at_best_rate(errors), [[0.9, 0.3]])
    errors[1, 0, 1] = np.nan  # NaN is worse than anything, even chance.
    errors[0, 0, 1] = [2 * CHANCE, 0.4]
    np.testing.assert_array_equal(adding.at_best_rate(errors), [[0.9, 0.4]])
    errors[0, 0, 1] = np.nan
    np.testing.assert_array_equal(adding.at_best_rate(errors), [[0.9, CHANCE]])
