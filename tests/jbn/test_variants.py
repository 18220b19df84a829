"""What ghost batches and renorm share: momentum 0 and 1, batches without weight, wrong calls."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import F32_STATISTICS, assert_close
from strategies import values
from variant_calls import LIMITS, SHAPE, ghost, renorm, setting, train

import jbn

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


def test_weights_of_nothing_have_a_gradient_of_nothing():
    x, (params, state) = np.array([[1.0], [2.0], [10.0], [4.0]], np.float32), jbn.init(1)

    def var(weights, batch_size):
        options = {"training": True, "batch_size": batch_size, "mask": weights}
        return jbn.ghost_batch_norm(x, params, state, **options)[1].var[0]

    sizes, zeros = (1, 2, 3, 9), np.zeros((4, 1), np.float32)
    gradients = jax.jit(lambda weights: [jax.grad(var)(weights, size) for size in sizes])(zeros)
    for size, gradient in zip(sizes, gradients, strict=True):
        np.testing.assert_array_equal(gradient, zeros, err_msg=f"groups of {size}")
