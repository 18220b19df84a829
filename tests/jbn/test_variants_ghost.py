"""`jbn.ghost_batch_norm` against loops, torch and float64 NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import F32_GRADIENT, F32_STATISTICS, F32_VALUE, F64_GRADIENT, assert_close
from strategies import garbage_at, values
from variant_calls import REORDERED, SHAPE, ghost, infer, setting, train

import jbn

# torch in float32 at mean 0.5, std 1: its own errors added to ours.
PEER = 1e-5


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
        shape = (6, 2, 3)  # One full group and a tail.
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
