"""Statements of the study notes and the paper that hold exactly, as equalities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import F32_VALUE, assert_close
from strategies import values

import jbn

# gamma = sqrt(var + eps) undoes the division: one or two roundings of values up to 5, about 1e-6.
IDENTITY = 1e-6


@functools.partial(jax.jit, static_argnames="unbiased")
def train(x, params, state, **options):
    return jbn.batch_norm(x, params, state, training=True, **options)


def test_moving_average_of_length_two():
    got = jbn.moving_average(jnp.array([100.0, 110.0, 130.0, 120.0, 140.0]), window=2)
    assert got.tolist() == [100, 105, 120, 125, 130]


@pytest.mark.parametrize(("m", "factor"), [(2, 2.0), (5, 1.25), (32, 1.032), (60, 1.0169)])
def test_bessel_factors(m, factor):
    params, state = jbn.init(3)
    x = values(0, (m, 3))
    _, unbiased = train(x, params, state, momentum=0.0)
    _, biased = train(x, params, state, momentum=0.0, unbiased=False)
    ratio = np.asarray(unbiased.var) / np.asarray(biased.var)
    np.testing.assert_allclose(ratio, m / (m - 1), rtol=1e-6)
    np.testing.assert_allclose(ratio, factor, rtol=3e-4)  # the notes round to four digits


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3, 0.1])
def test_scale_of_sqrt_var_plus_epsilon_and_bias_of_mean_restore_x(epsilon):
    x = values(1, (60, 4), mean=0.5, std=1.5)
    mean, var, _ = jax.device_get(jax.jit(jbn.moments)(x))
    _, state = jbn.init(4)
    params = jbn.BatchNormParams(np.sqrt(var + epsilon), mean)
    assert_close(train(x, params, state, epsilon=epsilon)[0], x, IDENTITY)
    std_only = jbn.BatchNormParams(np.sqrt(var), mean)
    left = oracles.error(train(x, std_only, state, epsilon=epsilon)[0], x)
    assert left > 0.05 * epsilon, "the standard deviation alone leaves an error of order epsilon"


@pytest.mark.parametrize("a", [0.1, 10.0, 100.0])
def test_scale_invariance(a):
    """Section 3.3: BN((aW)u) = BN(Wu), d/du unchanged, d/d(aW) = (1 / a) d/dW, <W, dW> = 0."""
    with jax.enable_x64(True):
        shapes = (16, 5), (5, 4), (16, 4)
        u, w, dy = (np.asarray(values(i, s, "float64")) for i, s in enumerate(shapes, 2))
        params, state = jbn.init(4)

        def loss(w, u):
            y, _ = train(u @ w, params, state, epsilon=1e-12)
            return jnp.sum(y * dy), y

        both = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (_, y), (dw, du) = jax.device_get(both(w, u))
        (_, ya), (dwa, dua) = jax.device_get(both(a * w, u))
        small = 1e-8  # epsilon 1e-12 relative to a^2 var, which is at least 5e-4
        assert_close(ya, y, small)
        assert_close(dua, du, small)
        assert_close(a * dwa, dw, small)
        np.testing.assert_allclose((w * dw).sum(0), np.zeros(4), atol=small)


def test_bias_before_batch_norm_is_redundant():
    """Section 3.2: BN(Wu + b) = BN(Wu), and the gradient of b is 0."""
    u, w, b = values(5, (16, 5)), values(6, (5, 4)), values(7, (4,), std=3.0)
    dy = values(8, (16, 4))
    params, state = jbn.init(4)

    @jax.jit
    def y(b):
        return train(u @ w + b[None], params, state)[0]

    # |Wu + b| reaches 15, whose float32 spacing is 1e-6.
    assert_close(y(b), y(np.zeros(4, np.float32)), F32_VALUE)
    gradient = jax.jit(jax.grad(lambda b: jnp.sum(y(b) * dy)))(b)
    np.testing.assert_allclose(gradient, np.zeros(4), atol=2e-5)


def test_convolution_is_the_dense_form_on_the_reshape():
    m, p, q, n = 6, 4, 5, 3
    x = np.asarray(values(9, (m, p, q, n), mean=1.0))
    params, state = jbn.init(n)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2 * n
    y, new = train(x, params, state)
    flat_y, flat_new = train(x.reshape(m * p * q, n), params, state)
    assert_close(np.asarray(y).reshape(m * p * q, n), flat_y, F32_VALUE)
    assert_close(new.mean, flat_new.mean, F32_VALUE)
    assert_close(new.var, flat_new.var, F32_VALUE)


def test_a_constant_batch_is_finite_with_epsilon():
    params, state = jbn.init(3)
    y, _ = train(np.full((8, 3), 7.3, np.float32), params, state)
    np.testing.assert_array_equal(y, np.zeros((8, 3)))


def test_normalized_values_are_bounded_by_sqrt_m_minus_1():
    """The notes say -1 to 1, but an outlier in a batch of 60 reaches sqrt(59) = 7.68."""
    params, state = jbn.init(1)
    x = np.zeros((60, 1), np.float32)
    x[7] = 1000
    y, _ = train(x, params, state)
    np.testing.assert_allclose(np.abs(np.asarray(y)).max(), np.sqrt(59), rtol=1e-6)


def test_shape_of_the_distribution_stays():
    """Batch norm makes nothing Gaussian: skew and kurtosis are those of the input."""
    x = np.random.default_rng(10).exponential(size=(500, 1)).astype(np.float32)
    params, state = jbn.init(1)
    y = oracles.exact(train(x, params, state, epsilon=1e-12)[0])
    x = oracles.exact(x)
    for power in (3, 4):
        before = (((x - x.mean()) / x.std()) ** power).mean()
        after = (((y - y.mean()) / y.std()) ** power).mean()
        assert abs(before - after) < 1e-4 * abs(before)
        assert abs(before - {3: 0, 4: 3}[power]) > 1


def test_a_parameter_outside_the_step_grows_while_the_loss_stays():
    """With normalization outside the gradient step, b = 100 after 1000 steps; inside, it stays."""
    u = np.asarray(values(11, (10, 1)))
    params, state = jbn.init(1)

    @jax.jit
    def step(_, b):
        z = u + b
        mean = jax.lax.stop_gradient(z.mean())  # the gradient ignores that E depends on b

        def loss(b):
            return jnp.mean((u + b - mean - (u - u.mean() + 1)) ** 2) / 2

        return b - 0.1 * jax.grad(loss)(b)

    b = jax.lax.fori_loop(0, 1000, step, jnp.float32(0))
    np.testing.assert_allclose(b, 100, rtol=1e-4)

    @jax.jit
    @jax.grad
    def gradient(b):
        return jnp.mean((train(u + b, params, state)[0] - u - 1) ** 2)

    assert abs(float(gradient(3.0))) < 1e-5
