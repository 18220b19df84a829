"""Second and third derivatives, in every order of modes, equal the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import F32_GRADIENT, assert_close
from strategies import values
from transformed import assert_trees, case, ours, plain, scalar

import jbn

# Second derivatives divide by the variance once more; values are of order 10 in float64.
F64_HESSIAN = 1e-8

# One program of the formula for all tests here.
hessian_of_plain = jax.jit(jax.hessian(scalar(plain)))


@pytest.mark.parametrize("masked", [True, False])
def test_hessian_by_everything_is_that_of_the_plain_formula(x64, masked):
    arguments = case(shape=(4, 2), masked=masked)
    got = jax.jit(jax.hessian(scalar(ours)))(arguments)
    assert_trees(got, hessian_of_plain(arguments), F64_HESSIAN)


@pytest.mark.parametrize(
    "second", ["forward over forward", "reverse over reverse", "reverse over forward"]
)
def test_second_order_in_every_order_of_modes(x64, second):
    outer, inner = {
        "forward over forward": (jax.jacfwd, jax.jacfwd),
        "reverse over reverse": (jax.jacrev, jax.jacrev),
        "reverse over forward": (jax.jacrev, jax.jacfwd),
    }[second]
    arguments = case(shape=(4, 2))

    def loss(part):
        return scalar(ours)(arguments | part)

    got = jax.jit(outer(inner(loss)))({name: arguments[name] for name in ("mask", "x")})
    want = hessian_of_plain(arguments)
    want = {i: {j: want[i][j] for j in ("mask", "x")} for i in ("mask", "x")}
    assert_trees(got, want, F64_HESSIAN)


def test_third_order(x64):
    arguments = case(shape=(4, 2), masked=False)

    def third(function):
        def along(t):
            return scalar(function)(arguments | {"x": arguments["x"] * (1 + t) + t**2})

        return jax.jit(jax.grad(jax.grad(jax.grad(along))))(jnp.float64(0.3))

    assert_close(third(ours), third(plain), 1e3 * F64_HESSIAN)


def test_gradient_penalty_in_float32():
    """A gradient inside a loss, as in WGAN-GP: reverse over reverse through two layers."""
    params, state = jbn.init(3)
    x, w = values(0, (6, 3)), values(1, (3, 3))

    def network(x, w, norm):
        return jnp.sum(jnp.tanh(norm(jnp.tanh(norm(x)) @ w)))

    def norm(x):
        return jbn.batch_norm(x, params, state, training=True)[0]

    def formula(x):
        mean = x.mean(0, keepdims=True)
        return (x - mean) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)

    def penalty(norm):
        def loss(w):
            return jnp.sum(jax.grad(lambda x: network(x, w, norm))(x) ** 2)

        return jax.jit(jax.value_and_grad(loss))(w)

    assert_trees(penalty(norm), penalty(formula), 10 * F32_GRADIENT)


def test_gradient_of_gradient_under_checkpoint_and_vmap_together(x64):
    """Combine all of them, since each alone can be right by luck."""
    arguments = case(shape=(4, 2), masked=False)

    def hvp(function):
        wrapped = jax.checkpoint(scalar(function))

        def one(v):
            return jax.jvp(
                jax.grad(lambda x: wrapped(arguments | {"x": x})), (arguments["x"],), (v,)
            )[1]

        return jax.jit(jax.vmap(one))(
            np.stack([np.asarray(arguments["x"]) * i for i in (1.0, 2.0)])
        )

    assert_trees(hvp(ours), hvp(plain), F64_HESSIAN)
