"""Any scale of x, epsilon and weights that float32 can hold, and what remains beyond its range.

Values are compared with float64 NumPy, which gets the same float32 numbers as jbn.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from meshes import MAPPED, compiled, spread
from oracles import assert_close

import jbn

# Float32 rounding in sums of 64 values.
ROUNDING = 2e-6
# For gradients, relative to the largest entry of each feature.
GRADIENT = 4e-6
# At scale 1e35 gradients are 1e-35, and their terms reach the end of float32's range.
AT_THE_END = 4e-5
LARGEST = float(np.finfo(np.float32).max)

SCALES = [(1e-30, 1e-5), (1e-13, 1e-30), (1e-10, 1e-24), (1e-5, 1e-5), (5e12, 1e-5)]
SCALES += [(1e16, 1e-5), (1e18, 1e-5), (1e19, 1e-5), (1e25, 1e-5), (1e30, 1e-5), (1e35, 1e-5)]


def draw(shape=(10, 3), seed=0):
    return np.asarray(np.random.default_rng(seed).normal(size=shape), np.float32)


def relative(got, want):
    """Return the largest error, relative to the largest entry of each feature."""
    got, want = oracles.exact(got), oracles.exact(want)
    return float(np.max(np.abs(got - want).max(0) / np.abs(want).max(0)))


NORMS = {
    "batch_norm": lambda x, params, eps: jbn.batch_norm(
        x, params, jbn.init(x.shape[-1])[1], training=True, epsilon=eps
    )[0],
    "batch_renorm": lambda x, params, eps: jbn.batch_renorm(
        x, params, jbn.init(x.shape[-1])[1], training=True, epsilon=eps, r_max=1.0, d_max=0.0
    )[0],
    "ghost_batch_norm": lambda x, params, eps: jbn.ghost_batch_norm(
        x, params, None, training=True, epsilon=eps, batch_size=64
    )[0],
    "layer_norm": lambda x, params, eps: jbn.layer_norm(x.T, params=None, epsilon=eps).T,
    "instance_norm": lambda x, params, eps: jbn.instance_norm(x[None], params, epsilon=eps)[0],
    "group_norm": lambda x, params, eps: jbn.group_norm(
        x[None], params, groups=x.shape[-1], epsilon=eps
    )[0],
    "normalize": lambda x, params, eps: jbn.normalize(
        x, *jax.lax.stop_gradient(jbn.moments(x)[:2]), params, epsilon=eps
    ),
}


@functools.partial(jax.jit, static_argnames="name")
def gradient(x, params, epsilon, dy, name):
    def loss(x, params):
        y = NORMS[name](x, params, epsilon)
        return jnp.sum(y * dy), y

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, params)


@pytest.mark.parametrize(("scale", "epsilon"), SCALES)
@pytest.mark.parametrize("name", [name for name in NORMS if name != "normalize"])
def test_y_and_gradients_are_right_at_any_scale(name, scale, epsilon):
    x, dy = draw((64, 5)) * np.float32(scale), draw((64, 5), seed=1)
    (dx, dparams), y = gradient(x, jbn.init(5)[0], epsilon, dy, name)
    problem = oracles.Problem(
        x, np.ones(5), np.zeros(5), np.zeros(5), np.ones(5), epsilon=np.float32(epsilon)
    )
    want = problem.gradient(dy)
    assert_close(y, problem.forward()[0], ROUNDING, "y")
    if scale > 1e-20:  # Below, y itself is 0 up to rounding.
        assert relative(dx, want["x"]) < (GRADIENT if scale < 1e35 else AT_THE_END)
    if name != "layer_norm":
        assert_close(dparams.scale / 64, want["scale"] / 64, ROUNDING, "scale")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [1e19, 1e25, 1e30])
def test_a_variance_beyond_float32_does_not_poison_the_state(scale, dtype):
    x = (draw() * np.float32(scale)).astype(jnp.dtype(dtype))
    params, state = jbn.init(3)
    y, state = jbn.batch_norm(x, params, state, training=True, momentum=0.5)
    assert_close(y, oracles.normalize(x, *oracles.moments(x)[:2]), 1e-2)
    assert np.isfinite(state.var).all()
    assert (np.asarray(state.var) >= LARGEST * 0.49).all() or scale == 1e19
    for _ in range(2):
        _, state = jbn.batch_norm(draw(), params, state, training=True, momentum=0.0)
    assert_close(state.var, oracles.moments(draw())[1] * 10 / 9, ROUNDING)


@pytest.mark.parametrize("scale", [1e-25, 1e18, 1e30])
def test_whitening_is_right_at_any_scale(scale):
    x = draw((200, 3)) * np.float32(scale)
    y, found = jbn.whiten(x, epsilon=1e-30 if scale < 1 else 1e-5)
    want, y = np.eye(3) if scale > 1 else np.zeros((3, 3)), np.asarray(y)
    assert_close(y.T @ y / 200, want, 1e-5)
    assert np.isfinite(found.matrix).all()


def test_frozen_statistics_have_gradients_at_any_scale():
    x, dy = draw() * np.float32(1e17), draw(seed=1)
    mean, var = (m.astype(np.float32) for m in oracles.moments(x)[:2])
    dvar = jax.jit(jax.grad(lambda v: jnp.sum(dy * jbn.normalize(x, mean, v))))(var)
    deviation = oracles.exact(x) - oracles.exact(mean)
    want = -0.5 * (oracles.exact(dy) * deviation).sum(0) * oracles.exact(var) ** -1.5
    assert relative(np.asarray(dvar)[None], want[None]) < GRADIENT


# Weights -----------------------------------------------------------------------------------------


def aweights_var(x, w):
    """Return the unbiased variance of each feature, weighted by NumPy."""
    return np.array([np.cov(column, aweights=w, ddof=1) for column in oracles.exact(x).T])


@pytest.mark.parametrize("total", [1e-30, 1e-3, 1.0, 10.0, 1e30, 1e37])
def test_bessel_factor_of_weights_is_numpys(total):
    x, w = draw(), np.abs(draw((10,), seed=2)) + 0.1
    w = np.asarray(w / w.sum() * total, np.float32)
    _, state = jbn.batch_norm(x, *jbn.init(3), training=True, momentum=0.0, mask=w[:, None])
    assert_close(state.var, aweights_var(x, w), ROUNDING)
    assert_close(state.mean, np.average(x, axis=0, weights=w.astype(np.float64)), ROUNDING)


def test_weights_that_sum_to_one_do_not_explode():
    w = np.asarray(jax.nn.softmax(jnp.zeros((10, 1)), axis=0))
    x = draw()
    _, state = jbn.batch_norm(x, *jbn.init(3), training=True, momentum=0.9, mask=w)
    assert_close(state.var, 0.9 + 0.1 * aweights_var(x, np.full(10, 0.1)), ROUNDING)


# `test_devices` tests the gather in every mode, with weights of the usual size.
@pytest.mark.parametrize(("mode", "limit"), [*((mode, 2) for mode in MAPPED), ("shard_map", 64)])
def test_bessel_factor_of_weights_over_devices(monkeypatch, mode, limit):
    monkeypatch.setattr("jbn._center._merge.GATHER_LIMIT", limit)
    rows = 8 * limit  # A separate shape per limit, so that traces with another are not reused.
    x, w = draw((rows, 3)), np.abs(draw((rows, 1), seed=2)) * np.float32(1e-3)

    def step(sharded, state):
        x, w = sharded
        return jbn.batch_norm(
            x, jbn.init(3)[0], state, training=True, momentum=0.0, mask=w, axis_name="d"
        )

    run = compiled(spread(step, mode, replicated=True), mode)
    _, state = run((x, w), jbn.init(3)[1])
    if mode in ("pmap", "vmap"):
        state = jax.tree.map(lambda leaf: np.asarray(leaf)[0], state)
    assert_close(state.var, aweights_var(x, w[:, 0]), ROUNDING)


def test_merged_weighted_moments_are_the_whole():
    x, w = draw((20, 3)), np.abs(draw((20, 1), seed=2))
    parts = [jbn.moments(x[i : i + 10], mask=w[i : i + 10]) for i in (0, 10)]
    merged, whole = jbn.merge_moments(*parts), jbn.moments(x, mask=w)
    for got, want in zip(merged, whole, strict=True):
        assert_close(got, want, ROUNDING)
    ones = np.ones((10, 1), np.float32)
    mixed = jbn.merge_moments(parts[0], jbn.moments(x[10:]))
    ones = jbn.merge_moments(parts[0], jbn.moments(x[10:], mask=ones))
    assert_close(mixed.effective_count, ones.effective_count, ROUNDING)


def test_ghost_batches_take_the_same_factor():
    x, w = draw(), np.abs(draw((10, 1), seed=2)) * np.float32(1e-2)
    _, state = jbn.ghost_batch_norm(
        x, *jbn.init(3), training=True, batch_size=4, momentum=0.0, mask=w
    )
    assert_close(state.var, aweights_var(x, w[:, 0]), ROUNDING)


def test_ones_as_weights_are_the_unweighted():
    x, ones = draw(), np.ones((10, 1), np.float32)
    _, weighted = jbn.batch_norm(x, *jbn.init(3), training=True, mask=ones)
    _, plain = jbn.batch_norm(x, *jbn.init(3), training=True)
    assert_close(weighted.var, plain.var, 1e-7)


def test_a_weight_of_zero_has_its_derivative():
    x = np.array([[1.0], [2.0], [10.0]], np.float32)
    w = np.array([[1.0], [1.0], [0.0]], np.float32)
    tangent = np.array([[0.0], [0.0], [1.0]], np.float32)

    def mean_and_var(w):
        mean, var, *_ = jbn.moments(x, mask=w)
        return mean[0], var[0]

    @jax.jit
    def differentiate(w):
        return jax.jacrev(mean_and_var)(w), jax.jvp(mean_and_var, (w,), (tangent,))[1]

    (dmean, dvar), (forward, _) = jax.device_get(differentiate(w))
    assert_close(dmean[:, 0], [-0.25, 0.25, 4.25], ROUNDING)
    assert_close(dvar[:, 0], [0.0, 0.0, (8.5**2 - 0.25) / 2], ROUNDING)
    assert_close(forward, 4.25, ROUNDING)


def test_garbage_of_weight_zero_reaches_no_gradient():
    x = np.array([[1.0], [2.0], [np.nan], [np.inf], [1e30]], np.float32)
    w = np.array([[1.0], [1.0], [0.0], [0.0], [0.0]], np.float32)
    dy = np.array([[1.0], [2.0]], np.float32)

    def loss(x):
        return jnp.sum(jbn.batch_norm(x, *jbn.init(1), training=True, mask=w)[0][:2] * dy)

    dx = np.asarray(jax.jit(jax.grad(loss))(x))
    assert np.isfinite(dx).all()
    assert (dx[2:] == 0).all()


@pytest.mark.parametrize("scale", [1e-9, 1.0])
def test_tiny_weights_of_tiny_values(scale):
    x = draw() * np.float32(scale)
    mean = np.asarray(jbn.moments(x, mask=np.full((10, 1), 1e-30, np.float32)).mean)
    assert_close(mean / scale, oracles.moments(x)[0] / scale, ROUNDING)


def test_huge_weights_keep_the_mean():
    x = draw()
    got = jbn.moments(x, mask=np.full((10, 1), 1e38, np.float32))
    assert_close(got.mean, oracles.moments(x)[0], ROUNDING)
    assert_close(got.var, oracles.moments(x)[1], ROUNDING)
    assert_close(got.effective_count, np.full(3, 10.0), ROUNDING)
    assert (np.asarray(got.count) == LARGEST).all()


def test_negative_weights_count_as_none():
    x, w = draw(), np.ones((10, 1), np.float32)
    w[:6, 0] = [1.0, 2.0, -1.0, 1.0, -5.0, 0.5]
    got, want = (jbn.moments(x, mask=m) for m in (w, np.maximum(w, 0)))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 0.0)


def test_a_nan_weight_is_nan_in_y_and_in_the_state():
    x, w = draw(), np.ones((10, 1), np.float32)
    w[2] = np.nan
    y, state = jbn.batch_norm(x, *jbn.init(3), training=True, mask=w)
    assert np.isnan(y).all()
    assert np.isnan(state.mean).all()
    assert np.isnan(state.var).all()


# One value, and none -----------------------------------------------------------------------------


# Only `update` reads `unbiased`: its own test, below, has all combinations.
@pytest.mark.parametrize(("weight", "unbiased"), [(True, False), (np.float32(0.3), True)])
def test_one_value_left_moves_the_mean_and_not_the_variance(weight, unbiased):
    bias, var = np.array([0.5, -0.5, 0.0], np.float32), np.full(3, 4, np.float32)
    params, state = jbn.init(3)
    params, state = params._replace(bias=bias), state._replace(var=var)
    x, mask = draw(), np.zeros((10, 1), np.asarray(weight).dtype)
    mask[0] = weight
    options = {"training": True, "mask": mask, "momentum": 0.9, "unbiased": unbiased}
    y, moved = jbn.batch_norm(x, params, state, **options)
    assert_close(np.asarray(y)[0], bias, ROUNDING)
    assert_close(moved.mean, 0.1 * x[0], ROUNDING)
    assert_close(moved.var, var, 0.0)
    assert int(moved.count) == 1
    _, grouped = jbn.ghost_batch_norm(x, params, state, batch_size=4, **options)
    assert_close(grouped.var, var, 0.0)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_update_keeps_the_variance_where_n_is_one(weighted, unbiased):
    _, state = jbn.init(2)
    mean, zero, one = (np.array(v, np.float32) for v in ([1.0, 2.0], [0.0, 0.0], [1.0, 1.0]))
    batch = jbn.WeightedMoments(mean, zero, 0.3 * one, one)
    moved = jbn.update(
        state,
        batch if weighted else jbn.Moments(mean, zero, one),
        momentum=0.9,
        unbiased=unbiased,
    )
    assert_close(moved.mean, [0.1, 0.2], ROUNDING)
    assert_close(moved.var, [1.0, 1.0], 0.0)


def test_a_device_without_weight_keeps_the_precision_of_y():
    rng = np.random.default_rng(3)
    x = rng.normal(1e5, 1, (8, 16, 3)).astype(np.float32)
    mask = np.ones((8, 16, 1), bool)
    mask[2] = False
    params, state = jbn.init(3)

    def loss(params, x, mask, dy):
        train = functools.partial(jbn.batch_norm, training=True, axis_name="d")
        y, _ = jax.vmap(
            lambda x, mask: train(x, params, state, mask=mask), axis_name="d", out_axes=(0, None)
        )(x, mask)
        return jnp.sum(y * dy), y

    dy = draw((8, 16, 3), seed=5)
    dparams, y = jax.jit(jax.grad(loss, has_aux=True))(params, x, mask, dy)
    mean, var, _ = oracles.moments(x, mask=mask)
    want = oracles.normalize(x, mean, var)
    assert_close(y, want, 4e-6)
    dscale = np.asarray(dparams.scale)
    assert_close(dscale / 384, (oracles.exact(dy) * want).sum((0, 1)) / 384, ROUNDING)


# Weights of the old value ------------------------------------------------------------------------


def test_a_momentum_of_zero_replaces_a_broken_state():
    params, state = jbn.init(3)
    bad = np.array([np.nan, np.inf, -np.inf], np.float32)
    broken = state._replace(mean=bad, var=np.abs(bad))
    x = draw()
    for momentum in (0.0, jnp.float32(0), jbn.cumulative):
        _, moved = jbn.batch_norm(x, params, broken, training=True, momentum=momentum)
        assert_close(moved.mean, oracles.moments(x)[0], ROUNDING)
        assert_close(moved.var, oracles.moments(x)[1] * 10 / 9, ROUNDING)


def test_a_momentum_of_one_keeps_a_good_state():
    params, state = jbn.init(3)
    x = draw()
    x[0, :2] = np.nan, np.inf
    _, moved = jbn.batch_norm(x, params, state, training=True, momentum=1.0)
    assert_close(moved.mean, state.mean, 0.0)
    assert_close(moved.var, state.var, 0.0)


def test_the_count_saturates():
    _, state = jbn.init(3)
    last = np.iinfo(np.int32).max
    state = state._replace(count=jnp.int32(last - 1))
    batch = jbn.moments(draw())
    for want in (last, last):
        state = jbn.update(state, batch, momentum=0.9)
        assert int(state.count) == want


def test_more_than_two_to_the_24_values_are_counted():
    x, mask = np.zeros((2**24 + 2, 1), np.float32), np.ones((2**24 + 2, 1), bool)
    assert float(jbn.moments(x, mask=mask).count[0]) == 2**24 + 2
    with jax.enable_x64():
        assert float(jbn.moments(x[:-1].astype(float)).count[0]) == 2**24 + 1
