"""Bad input raises under jit, too, and input that is just within limits never raises."""

import jax
import jax.numpy as jnp
import pytest
from wrong_calls import fold, infer, mapped, train, x_of

import jbn


def test_raises_under_jit():
    with pytest.raises(ValueError, match=r"5.*7|7.*5"):
        jax.jit(train)(x_of(4, 7))
    with pytest.raises(TypeError, match="int32"):
        jax.jit(train)(x_of(4, 5, dtype=jnp.int32))
    with pytest.raises(ValueError, match="training=False"):
        jax.jit(train)(x_of(1, 5))


# What is not an error --------------------------------------------------------------------------


ALLOWED = {
    "two values": lambda: train(x_of(2, 5)),
    "one example with space": lambda: train(x_of(1, 2, 5)),
    "momentum 0": lambda: train(x_of(4, 5), momentum=0),
    "momentum 1": lambda: train(x_of(4, 5), momentum=1.0),
    "arrays": lambda: train(x_of(4, 5), momentum=jnp.float32(0.5), epsilon=jnp.float32(1e-3)),
    "one value and a mask": lambda: train(x_of(1, 5), mask=jnp.ones((1, 1), bool)),
    "one value in inference": lambda: infer(x_of(1, 5)),
    "a vector in inference": lambda: infer(x_of(5)),
    "one value and a named axis": lambda: mapped(x_of(2, 1, 5), axis_name="d"),
    "one feature": lambda: train(x_of(4, 1), 1),
    "moments of one value": lambda: jbn.moments(x_of(1, 5)),
    "kernel of a convolution": lambda: fold(x_of(3, 3, 8, 5), jnp.ones(5)),
}


@pytest.mark.parametrize("name", list(ALLOWED))
def test_borders_of_what_is_allowed(name):
    jax.eval_shape(ALLOWED[name])
