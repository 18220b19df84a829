"""`jbn.variants`: ghost batches, renorm, example weighing; against loops, torch, float64 NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from oracles import F32_GRADIENT, F32_STATISTICS, F32_VALUE, F64_GRADIENT, assert_close
from strategies import garbage_at, values

import jbn

# The same function compiled in two ways: the order of sums and fused multiply-adds differ.
REORDERED = 2e-6
# torch in float32 at mean 0.5, std 1: its own errors added to ours.
PEER = 1e-5

SHAPE = (10, 2, 3)  # In groups of 4 it has a tail of 2.
LIMITS = {"r_max": 1.1, "d_max": 0.3}


def setting(features, dtype="float32", count=3):
    """Return params and a state that are neither ones nor zeros."""
    wide = "float64" if dtype == "float64" else "float32"
    params = jbn.BatchNormParams(
        values(0, features, dtype, mean=1.0, std=0.3), values(1, features, dtype)
    )
    var = jax.device_put(np.random.default_rng(2).uniform(0.5, 2, features).astype(wide))
    count = jax.device_put(np.int32(count))
    return params, jbn.BatchNormState(values(3, features, wide), var, count)


ghost = functools.partial(jbn.ghost_batch_norm, training=True)
renorm = functools.partial(jbn.batch_renorm, training=True)
train = functools.partial(jbn.batch_norm, training=True)
infer = jbn.normalize


def ghost_oracle(x, params, state, size, mask=None, axis=-1, epsilon=1e-5):
    """Normalize chunk by chunk in float64."""
    x = oracles.exact(x)
    mask = None if mask is None else np.broadcast_to(mask, x.shape)
    chunks = []
    for i in range(0, x.shape[0], size):
        weights = None if mask is None else mask[i : i + size]
        mean, var, n = oracles.moments(x[i : i + size], axis=axis, mask=weights)
        mean = np.where(n > 0, mean, oracles.exact(state.mean))
        var = np.where(n > 0, var, oracles.exact(state.var))
        chunks.append(
            oracles.normalize(x[i : i + size], mean, var, *params, axis=axis, epsilon=epsilon)
        )
    return np.concatenate(chunks)


# Ghost batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "axis", "dtype"),
    [(4, -1, "float32"), (5, 1, "float32"), (4, (1, 2), "bfloat16"), (3, 2, "complex64")],
)
def test_ghost_is_batch_norm_of_each_chunk(size, axis, dtype):
    x = values(4, SHAPE, dtype, mean=0.5)
    if dtype == "bfloat16":
        x = np.asarray(x)[:, None].repeat(2, 1)  # Two values per feature in the tail.
        axis = (2, 3)
    params, state = setting(oracles.feature_shape(x.shape, axis))
    mean = np.asarray(state.mean).astype(jnp.promote_types(dtype, "float32"))
    state = state._replace(mean=jax.device_put(mean))
    y, new = ghost(x, params, state, batch_size=size, axis=axis, momentum=0.9)
    assert y.dtype == dtype
    want = ghost_oracle(x, params, state, size, axis=axis)
    assert_close(y, want, oracles.output_tolerance(dtype))
    _, whole = train(x, params, state, axis=axis, momentum=0.9)
    chex.assert_trees_all_close(new, whole, rtol=REORDERED, atol=REORDERED)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_ghost_is_a_loop_of_ours_with_every_gradient():
    with jax.enable_x64(True):
        params, state = setting((3,), "float64")
        shape = (6, 2, 3)  # A group and a tail.
        x, dy = values(5, shape, "float64"), values(6, shape, "float64")
        mask = np.random.default_rng(7).uniform(0.3, 2, (6, 2, 1))

        def loop(x, params, state, mask):
            chunks = [
                jbn.batch_norm(x[i : i + 4], params, state, training=True, mask=mask[i : i + 4])[0]
                for i in (0, 4)
            ]
            return jnp.concatenate(chunks), jbn.update(
                state, jbn.moments(x, mask=mask), momentum=0.99
            )

        def ours(x, params, state, mask):
            return jbn.ghost_batch_norm(x, params, state, training=True, batch_size=4, mask=mask)

        def loss(function, x, params, mean, var, mask):
            y, new = function(x, params, jbn.BatchNormState(mean, var, state.count), mask)
            return jnp.sum(y * dy) + jnp.sum(new.mean**2) + jnp.sum(new.var**2)

        arguments = (x, params, state.mean, state.var, mask)
        got, want = (
            jax.jit(jax.value_and_grad(functools.partial(loss, f), range(5)))(*arguments)
            for f in (ours, loop)
        )
        chex.assert_trees_all_close(got, want, rtol=F64_GRADIENT, atol=F64_GRADIENT)


def test_ghost_is_a_loop_of_torch():
    torch = pytest.importorskip("torch", reason="torch is a peer, which may be absent")
    params, state = setting((3,))
    x, dy = values(8, SHAPE, mean=0.5), values(9, SHAPE)
    y, pullback = jax.vjp(lambda x, p: ghost(x, p, state, batch_size=4, momentum=0.9)[0], x, params)
    dx, dparams = pullback(dy)
    tx, scale, bias = (torch.tensor(np.asarray(v)).requires_grad_() for v in (x, *params))
    ty = torch.cat(
        [
            torch.nn.functional.batch_norm(
                part.movedim(-1, 1), None, None, scale, bias, training=True, eps=1e-5
            ).movedim(1, -1)
            for part in tx.split(4)
        ]
    )
    ty.backward(torch.tensor(np.asarray(dy)))
    assert_close(y, ty.detach().numpy(), PEER, "y")
    assert_close(dx, tx.grad.numpy(), PEER, "x")
    assert_close(dparams.scale, scale.grad.numpy(), 5 * PEER, "scale")
    assert_close(dparams.bias, bias.grad.numpy(), 5 * PEER, "bias")


@pytest.mark.parametrize("weighted", [False, True])
def test_ghost_mask_is_the_filtered_subset(weighted):
    params, state = setting((3,))
    rng = np.random.default_rng(10)
    mask = rng.random((10, 2, 1)) < 0.6
    mask[4:8] = False  # A group with nothing left.
    mask[0, 0] = mask[9, 0] = True
    mask = np.float32(mask * rng.uniform(0.5, 2, mask.shape)) if weighted else mask
    x = values(11, SHAPE, mean=0.5)
    dirty, weights = garbage_at(x, mask)

    @jax.jit
    def run(x):
        def loss(x):
            options = {"training": True, "batch_size": 4, "momentum": 0.9, "mask": weights}
            y, new = jbn.ghost_batch_norm(x, params, state, **options)
            return y.sum(), (y, new)

        return jax.grad(loss, has_aux=True)(x)

    _, (y, new) = run(dirty)
    here = np.broadcast_to(mask > 0, SHAPE)
    assert_close(np.where(here, y, 0), here * ghost_oracle(x, params, state, 4, mask), F32_VALUE)
    _, (clean, _) = jax.device_get(run(x))
    assert_close(clean[4:8], np.asarray(infer(x, *state[:2], params))[4:8], REORDERED)
    _, whole = train(dirty, params, state, momentum=0.9, mask=weights)
    chex.assert_trees_all_close(new, whole, rtol=REORDERED, atol=REORDERED)
    gradient, _ = run(np.where(np.isfinite(dirty), dirty, 0))
    chex.assert_tree_all_finite(gradient)


def test_ghost_with_everything_masked_leaves_the_state():
    params, state = setting((3,))
    x = values(12, SHAPE)
    y, new = ghost(x, params, state, batch_size=4, mask=np.zeros((1, 1, 1), bool))
    assert_close(y, infer(x, *state[:2], params), REORDERED)
    chex.assert_trees_all_equal(new, state)


@pytest.mark.parametrize("size", [10, 1000])
def test_one_ghost_batch_is_batch_norm(size):
    params, state = setting((3,))
    x = values(13, SHAPE)
    chex.assert_trees_all_close(
        ghost(x, params, state, batch_size=size), train(x, params, state), rtol=REORDERED
    )


def test_ghost_in_inference_is_batch_norm():
    params, state = setting((3,))
    x = values(14, SHAPE)
    got = jbn.ghost_batch_norm(x, params, state, training=False, batch_size=4)
    chex.assert_trees_all_equal(got, jbn.batch_norm(x, params, state, training=False))


def test_ghost_has_no_loop_and_keeps_one_array():
    params, state = jbn.init(16)

    def step(x):
        return jbn.ghost_batch_norm(x, params, state, training=True, batch_size=8)[0]

    few, many = (
        len(jax.make_jaxpr(step)(np.ones((n, 16), np.float32)).jaxpr.eqns) for n in (16, 1024)
    )
    assert few == many
    _, pullback = jax.vjp(jax.jit(step), values(15, (1024, 16)))
    large = {id(leaf) for leaf in jax.tree.leaves(pullback) if leaf.size >= 1024 * 16}
    assert len(large) == 1


def test_ghost_maps_and_has_forward_mode():
    params, state = setting((3,))
    x, dx = values(16, (2, *SHAPE)), values(17, (2, *SHAPE))

    def step(x):
        return jbn.ghost_batch_norm(x, params, state, training=True, batch_size=4)[0]

    def both(x, dx):
        return jax.jvp(step, (x,), (dx,))

    mapped, one_by_one = jax.jit(
        lambda *v: (jax.vmap(both)(*v), jax.lax.map(lambda v: both(*v), v))
    )(x, dx)
    assert_close(mapped[0], one_by_one[0], REORDERED)
    assert_close(mapped[1], one_by_one[1], F32_GRADIENT)


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("ratio", [0.0, 1e4, 1e5])
def test_ghost_with_a_large_mean(ratio, size):
    params, state = jbn.init(3)
    x = values(18, (22, 4, 3), mean=ratio)
    y, new = ghost(x, params, state, batch_size=size, momentum=0.0)
    assert_close(y, ghost_oracle(x, (None, None), state, size), F32_VALUE)
    mean, var, n = oracles.moments(x)
    assert_close(new.mean, mean, F32_STATISTICS)
    assert_close(new.var, var * oracles.bessel(n), F32_STATISTICS)


# Renorm ----------------------------------------------------------------------------------------


def renorm_oracle(x, params, state, r_max, d_max, mask=None, axis=-1, epsilon=1e-5):
    """Return y, r, d by the formulas of the paper's Algorithm 1, in float64."""
    mean, var, n = oracles.moments(x, axis=axis, mask=mask)
    old_mean, old_var = oracles.exact(state.mean), oracles.exact(state.var)
    mean, var = np.where(n > 0, mean, old_mean), np.where(n > 0, var, old_var)
    sigma_batch, sigma = np.sqrt(var + epsilon), np.sqrt(old_var + epsilon)
    r = np.clip(sigma_batch / sigma, 1 / r_max, r_max)
    d = np.clip((mean - old_mean) / sigma, -d_max, d_max)
    scale, bias = (oracles.exact(p) for p in params)
    table = (oracles.rows(x, axis) - mean.ravel()) / sigma_batch.ravel()
    table = (table * r.ravel() + d.ravel()) * scale.ravel() + bias.ravel()
    return oracles.unrows(table, np.shape(x), axis), r, d


@pytest.mark.parametrize(
    ("axis", "dtype", "masked"),
    [
        (-1, "float32", False),
        (-1, "float32", True),
        ((1, 2), "float32", True),
        (2, "float16", False),
    ],
)
def test_renorm_is_the_formula(axis, dtype, masked):
    x = values(20, SHAPE, dtype, mean=0.5)
    params, state = setting(oracles.feature_shape(SHAPE, axis))
    mask = np.random.default_rng(21).random(SHAPE) < 0.6 if masked else None
    y, new = renorm(x, params, state, axis=axis, mask=mask, **LIMITS)
    want, _, _ = renorm_oracle(x, params, state, **LIMITS, mask=mask, axis=axis)
    assert y.dtype == dtype
    assert_close(y, want, oracles.output_tolerance(dtype))
    chex.assert_trees_all_equal(new, train(x, params, state, axis=axis, mask=mask)[1])


def test_renorm_clips_on_both_sides():
    x = values(20, SHAPE, mean=0.5)
    mean, var, _ = oracles.moments(x)
    shift, ratio = np.array([1.0, 0.01, -1.0]), np.array([4.0, 1.05, 0.25])
    params, state = setting((3,))
    state = state._replace(
        mean=(mean + shift).astype(np.float32), var=(var * ratio).astype(np.float32)
    )
    want, r, d = renorm_oracle(x, params, state, **LIMITS)
    np.testing.assert_allclose(r, [1 / 1.1, 1.05**-0.5, 1.1], rtol=1e-5)
    np.testing.assert_allclose(d[[0, 2]], [-0.3, 0.3])
    assert -0.3 < d[1] < 0
    assert_close(renorm(x, params, state, **LIMITS)[0], want, F32_VALUE)


def test_renorm_without_room_is_batch_norm_bit_for_bit():
    params, state = setting((3,))
    x = values(22, SHAPE, mean=0.5)
    ones, no_count = np.ones(3, np.float32), np.zeros((), jax.dtypes.float0)
    cotangents = values(23, SHAPE), jbn.BatchNormState(2 * ones, 3 * ones, no_count)

    def with_gradient(function):
        out, pull = jax.vjp(lambda x, params: function(x, params, state), x, params)
        return out, pull(cotangents)

    chex.assert_trees_all_equal(
        with_gradient(train), with_gradient(functools.partial(renorm, r_max=1, d_max=0))
    )
    for used in (jbn.BatchNormParams(None, None), jbn.BatchNormParams(params.scale, None)):
        chex.assert_trees_all_equal(renorm(x, used, state, r_max=1, d_max=0), train(x, used, state))


@pytest.mark.parametrize("ratio", [0.0, 1e4, 1e5])
def test_renorm_without_limits_is_inference_by_the_old_state(ratio):
    """Settled statistics near a large mean: d is small, and has all its digits."""
    params, state = setting((3,))
    x = np.asarray(values(24, (40, 4, 3), mean=ratio))
    state = state._replace(mean=x.mean((0, 1)) + np.float32(0.3))
    y, _ = renorm(x, params, state, r_max=np.inf, d_max=np.inf)
    want = oracles.normalize(x, state.mean, state.var, *params)
    assert_close(y, want, F32_VALUE)
    want, _, _ = renorm_oracle(x, params, state, **LIMITS)
    assert_close(renorm(x, params, state, **LIMITS)[0], want, F32_VALUE)
    cold = state._replace(mean=jnp.zeros(3))
    want, _, _ = renorm_oracle(x, params, cold, **LIMITS)
    assert_close(renorm(x, params, cold, **LIMITS)[0], want, F32_VALUE)


def test_renorm_passes_no_gradient_through_r_and_d():
    with jax.enable_x64(True):
        params, state = setting((3,), "float64")
        x, dy = values(25, SHAPE, "float64", mean=0.5), values(26, SHAPE, "float64")
        _, r, d = renorm_oracle(x, params, state, **LIMITS)

        def ours(x, params, mean, var, r_max, d_max):
            state_ = jbn.BatchNormState(mean, var, state.count)
            y, _ = jbn.batch_renorm(x, params, state_, training=True, r_max=r_max, d_max=d_max)
            return jnp.sum(y * dy)

        none = jbn.BatchNormParams(None, None)

        def constant(x, params):
            xhat = jbn.batch_norm(x, none, state, training=True)[0]
            y = (xhat * r[None, None] + d[None, None]) * params.scale[None, None]
            return jnp.sum((y + params.bias[None, None]) * dy)

        got = jax.jit(jax.grad(ours, range(6)))(x, params, *state[:2], 1.1, 0.3)
        want = jax.jit(jax.grad(constant, (0, 1)))(x, params)
        chex.assert_trees_all_close(got[:2], want, rtol=F64_GRADIENT, atol=F64_GRADIENT)
        chex.assert_trees_all_equal(got[2:], jax.tree.map(jnp.zeros_like, got[2:]))


def test_renorm_schedules_read_the_count():
    def r_max(count):
        return jnp.interp(count, jnp.array([5.0, 10.0]), jnp.array([1.0, 1.1]))

    def d_max(count):
        return jnp.where(count < 10, 0.0, 0.3)

    x = values(27, SHAPE, mean=0.5)
    params, state = setting((3,), count=5)
    got = renorm(x, params, state, r_max=r_max, d_max=d_max)
    chex.assert_trees_all_close(got, train(x, params, state), rtol=REORDERED)
    state = state._replace(count=jnp.int32(10))
    want, _, _ = renorm_oracle(x, params, state, **LIMITS)
    assert_close(renorm(x, params, state, r_max=r_max, d_max=d_max)[0], want, F32_VALUE)


def test_renorm_without_weight_uses_the_running_statistics():
    params, state = setting((3,))
    x = values(28, SHAPE)
    y, new = renorm(x, params, state, mask=np.zeros((10, 1, 1), bool), **LIMITS)
    assert_close(y, infer(x, *state[:2], params), REORDERED)
    chex.assert_trees_all_equal(new, state)


def test_renorm_in_inference_is_batch_norm():
    params, state = setting((3,))
    x = values(29, SHAPE)
    got = jbn.batch_renorm(x, params, state, training=False, **LIMITS)
    chex.assert_trees_all_equal(got, jbn.batch_norm(x, params, state, training=False))


@pytest.mark.parametrize("how", ["shard_map", "groups of vmap"])
def test_renorm_over_devices_is_one_device(how):
    params, state = setting((3,))
    x, dy = (np.asarray(values(seed, (8, 2, 2, 3), mean=0.5)) for seed in (30, 31))
    index_groups = [[0, 3, 5, 6], [1, 2, 4, 7]] if how != "shard_map" else None

    def step(x, dy):
        def loss(x):
            y, new = jbn.batch_renorm(
                x, params, state, training=True, axis_name="d", axis_index_groups=index_groups,
                **LIMITS,
            )  # fmt: skip
            return jnp.sum(y * dy), (y, new)

        return jax.grad(loss, has_aux=True)(x)

    @jax.jit
    def one(x, dy):
        def loss(x):
            y, new = jbn.batch_renorm(x, params, state, training=True, **LIMITS)
            return jnp.sum(y * dy), (y, new)

        return jax.grad(loss, has_aux=True)(x)

    if how == "shard_map":
        mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        step = jax.shard_map(step, mesh=mesh, in_specs=P("d"), out_specs=(P("d"), (P("d"), P())))
        dx, (y, new) = jax.device_get(jax.jit(step)(x, dy))
        new = jax.tree.map(lambda v: np.stack([v] * 8), new)
    else:
        dx, (y, new) = jax.device_get(jax.jit(jax.vmap(step, axis_name="d"))(x, dy))

    for members in index_groups or [list(range(8))]:
        want_dx, (want_y, want_new) = one(x[members], dy[members])
        assert_close(y[members], want_y, F32_VALUE)
        assert_close(dx[members], want_dx, F32_GRADIENT)
        chex.assert_trees_all_close(
            jax.tree.map(lambda v, i=members[0]: v[i], new), want_new, rtol=REORDERED
        )


# Both ------------------------------------------------------------------------------------------

TRAINERS = {
    "batch": functools.partial(train, unbiased=True),
    "ghost": functools.partial(ghost, batch_size=4),
    "renorm": functools.partial(renorm, **LIMITS),
}


@pytest.mark.parametrize("step", TRAINERS.values(), ids=TRAINERS)
def test_momentum_at_its_ends(step):
    params, state = setting((3,))
    x = values(32, SHAPE)
    _, new = step(x, params, state, momentum=jnp.float32(0))
    mean, var, n = oracles.moments(x)
    assert_close(new.mean, mean, F32_STATISTICS)
    assert_close(new.var, var * oracles.bessel(n), F32_STATISTICS)
    _, new = step(x, params, state, momentum=jnp.float32(1))
    chex.assert_trees_all_equal(new, state._replace(count=state.count + 1))
    _, new = step(x, params, state._replace(count=jnp.int32(0)), momentum=jbn.cumulative)
    assert_close(new.mean, mean, F32_STATISTICS)


def test_renorm_derivatives_against_finite_differences():
    """By x, scale and bias, at limits that r and d stay at, where they are constants."""
    with jax.enable_x64(True):
        params, state = setting((2,), "float64")
        x = values(33, (5, 2, 2), "float64", mean=9.0, std=3.0)

        def step(x, params):
            return jbn.batch_renorm(x, params, state, training=True, **LIMITS)[0]

        check_grads(jax.jit(step), (x, params), order=1, rtol=1e-6, atol=1e-6)


def test_errors():
    params, state = jbn.init(3)
    x = np.asarray(values(34, (9, 3)))

    def fails(match, function=jbn.ghost_batch_norm, error=ValueError, x=x, **options):
        base = {"batch_size": 4} if function is jbn.ghost_batch_norm else dict(LIMITS)
        with pytest.raises(error, match=match):
            function(x, params, state, **{"training": True, **base, **options})

    fails("whose last group has one")
    fails("whose last group has one", batch_size=1)
    fails("more than one value", x=x[:1])
    fails("at least one value", x=x[:0])
    fails("positive int", batch_size=0)
    fails("positive int", batch_size=2.5, error=TypeError)
    fails("positive int", batch_size=True, error=TypeError)
    fails("first axis", x=values(0, (3, 4)), axis=0)
    fails("shape", x=x[:8, :2])
    fails("floating", x=np.ones((8, 3), int), error=TypeError)
    fails("x's length or 1", x=x[:8], mask=np.ones((8, 2), bool))
    fails("momentum", x=x[:8], momentum=1.5)
    fails("epsilon", x=x[:8], epsilon=0)
    fails("training", training=1, error=TypeError)
    stands = functools.partial(jbn.ghost_batch_norm, training=True, batch_size=4)
    jax.eval_shape(lambda mask: stands(x, params, state, mask=mask), np.ones((9, 1), bool))

    fails = functools.partial(fails, function=jbn.batch_renorm)
    fails("r_max", r_max=0.9)
    fails("d_max", d_max=-1.0)
    fails("r_max", r_max=lambda count: 0.5)
    fails("more than one value", x=x[:1])
    fails("at least one value", x=x[:0])
    fails("shape", x=x[:8, :2])
    fails("training", training=1, error=TypeError)
    fails("momentum", momentum=1.5)
    complex_state = state._replace(mean=state.mean.astype(jnp.complex64))
    with pytest.raises(TypeError, match="real x"):
        jbn.batch_renorm(x.astype("complex64"), params, complex_state, training=True, **LIMITS)


# Mixed and frozen statistics -------------------------------------------------------------------

weigh = jbn.normalize_with_example


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ratio", [0.0, 1e4, 1e5])
def test_example_weighing_is_the_moments_of_the_mixture(weight, ratio):
    params, state = setting((3,))
    x = np.asarray(values(40, (4, 50, 3), mean=ratio))
    state = state._replace(mean=x.mean((0, 1)) + np.float32(0.3))
    y = weigh(x, *state[:2], params, weight=weight)
    v, mean, var = oracles.exact(x), oracles.exact(state.mean), oracles.exact(state.var)
    first = weight * v.mean(1) + (1 - weight) * mean
    # E[x^2] about the running mean, which float64 can square.
    second = weight * ((v - mean) ** 2).mean(1) + (1 - weight) * var
    spread = second - (first - mean) ** 2
    want = (v - first[:, None]) / np.sqrt(spread[:, None] + 1e-5)
    want = want * oracles.exact(params.scale) + oracles.exact(params.bias)
    assert_close(y, want, F32_VALUE)
    if weight == 0:
        assert_close(y, infer(x, *state[:2], params), REORDERED)
    if weight == 1:
        assert_close(y, jbn.instance_norm(x, params), REORDERED)


def test_example_weighing_is_a_merge_for_each_example():
    params, state = setting((3,))
    x = values(41, (4, 3, 50), mean=0.5)
    y = weigh(x, *state[:2], params, weight=0.3, axis=1)

    @jax.jit
    @jax.vmap
    def one(x):
        own = jbn.moments(x, axis=0)._replace(count=jnp.full(3, 0.3))
        both = jbn.merge_moments(own, jbn.Moments(*state[:2], jnp.full(3, 0.7)))
        return jbn.normalize(x, both.mean, both.var, params, axis=0)

    assert_close(y, one(x), F32_VALUE)


def test_example_weighing_does_not_mix_examples():
    params, state = setting((3,))
    x = np.array(values(42, (4, 50, 3)))
    want = np.asarray(weigh(x, *state[:2], params, weight=0.3))
    x[1:] = 7.0
    others = np.asarray(weigh(x, *state[:2], params, weight=0.3))
    assert_close(others[0], want[0], REORDERED)


def test_example_weighing_derivatives():
    """By everything, and by the weight at 0 as well, where a run that learns it would start."""
    with jax.enable_x64(True):
        params, state = setting((2,), "float64")
        x = values(43, (2, 3, 2), "float64")

        def f(x, mean, var, params, weight):
            return jbn.normalize_with_example(x, mean, var, params, weight=weight)

        f = jax.jit(f)
        for weight in (0.4, 0.0):
            arguments = (x, *state[:2], params, jnp.asarray(weight))
            check_grads(f, arguments, order=1, rtol=1e-5, atol=1e-5)


def test_example_weighing_errors():
    params, state = jbn.init(3)
    x = np.asarray(values(44, (4, 5, 3)))
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="weight"):
            jbn.normalize_with_example(x, *state[:2], params, weight=weight)
    with pytest.raises(ValueError, match="first axis"):
        jbn.normalize_with_example(x.T, *state[:2], params, weight=0.1, axis=0)
    with pytest.raises(ValueError, match="shape"):
        jbn.normalize_with_example(x[..., :2], *state[:2], params, weight=0.1)
    with pytest.raises(TypeError, match="floating"):
        jbn.normalize_with_example(x.astype(int), *state[:2], params, weight=0.1)


def test_statistics_of_batch_and_running_pooled():
    """The recipe of the module: k values of the running distribution beside the batch's."""
    params, state = setting((3,))
    x = values(45, (20, 3), mean=0.5)
    rest = np.random.default_rng(46).normal(size=(30, 3))
    rest = (rest - rest.mean(0)) / rest.std(0) * np.sqrt(state.var) + oracles.exact(state.mean)

    @jax.jit
    def pooled(x):
        running = jbn.Moments(*state[:2], jnp.full(3, 30.0))
        both = jbn.merge_moments(jbn.moments(x), running)
        return jbn.normalize(x, both.mean, both.var, params)

    mean, var, _ = oracles.moments(np.concatenate([oracles.exact(x), rest]))
    assert_close(pooled(x), oracles.normalize(x, mean, var, *params), F32_VALUE)


def test_frozen_statistics_pass_the_gradient_of_an_affine_map():
    params, state = setting((3,))
    x, dy = values(47, (5, 3)), values(48, (5, 3))

    def loss(x, mean, var):
        return jnp.sum(jbn.normalize(x, mean, var, params) * dy)

    dx, dmean, dvar = jax.jit(jax.grad(loss, (0, 1, 2)))(x, *state[:2])
    a = oracles.exact(params.scale) / np.sqrt(oracles.exact(state.var) + 1e-5)
    g = oracles.exact(dy) * a
    assert_close(dx, g, F32_GRADIENT)
    assert_close(dmean, -g.sum(0), F32_GRADIENT)
    centered = oracles.exact(x) - oracles.exact(state.mean)
    want = -0.5 * (g * centered).sum(0) / (oracles.exact(state.var) + 1e-5)
    assert_close(dvar, want, F32_GRADIENT)


def test_weights_of_nothing_have_a_gradient_of_nothing():
    x, (params, state) = np.array([[1.0], [2.0], [10.0], [4.0]], np.float32), jbn.init(1)

    def var(weights, batch_size):
        options = {"training": True, "batch_size": batch_size, "mask": weights}
        return jbn.ghost_batch_norm(x, params, state, **options)[1].var[0]

    sizes, zeros = (1, 2, 3, 9), np.zeros((4, 1), np.float32)
    gradients = jax.jit(lambda weights: [jax.grad(var)(weights, size) for size in sizes])(zeros)
    for size, gradient in zip(sizes, gradients, strict=True):
        np.testing.assert_array_equal(gradient, zeros, err_msg=f"groups of {size}")


def test_renorm_that_corrects_nothing_is_batch_norm_over_a_broken_state():
    x, (params, state) = jnp.array([[1.0], [2.0], [10.0], [4.0]]), jbn.init(1)
    nan = np.full(1, np.nan, np.float32)
    broken = state._replace(mean=nan, var=nan)
    options = {"training": True, "momentum": 0.0}
    want, mended = jbn.batch_norm(x, params, broken, **options)
    got, moved = jbn.batch_renorm(x, params, broken, r_max=1.0, d_max=0.0, **options)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for a, b in zip(moved, mended, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_example_of_nothing_needs_no_batch():
    x, mean, var = (np.float32(make) for make in (np.zeros((0, 3, 4)), np.zeros(4), np.ones(4)))
    y = jbn.normalize_with_example(x, mean, var, weight=0.5)
    assert y.shape == x.shape
