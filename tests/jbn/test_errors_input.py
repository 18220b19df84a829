"""Bad x, axes and masks raise at trace time, and the message says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrong_calls import (
    STATE,
    assert_message,
    assert_ours,
    batch_norm,
    infer,
    mapped,
    traced,
    train,
    x_of,
)

import jbn


def state_only(x, features):
    _, state = jbn.init(features)
    return jbn.batch_norm(x, jbn.BatchNormParams(None, None), state, training=True)


class Box:
    """An object that is no array."""


# name: (call, error, words in the message)
CASES = {
    # Wrong number of features.
    "features of params": (lambda: train(x_of(4, 7)), ValueError, ["5", "7"]),
    "features in inference": (lambda: infer(x_of(4, 7)), ValueError, ["5", "7"]),
    "features of state": (lambda: state_only(x_of(4, 7), 5), ValueError, ["5", "7"]),
    "features of one would broadcast": (lambda: train(x_of(4, 7), 1), ValueError, ["1", "7"]),
    "features of x would broadcast": (lambda: train(x_of(4, 1), 7), ValueError, ["1", "7"]),
    "features of two axes": (
        lambda: train(x_of(4, 3, 7), (3, 5), axis=(1, 2)),
        ValueError,
        ["3, 5", "3, 7"],
    ),
    "features of another axis": (lambda: train(x_of(4, 7, 5), axis=1), ValueError, ["5", "7"]),
    "features in normalize": (
        lambda: jbn.normalize(x_of(4, 7), jnp.zeros(5), jnp.ones(5)),
        ValueError,
        ["5", "7"],
    ),
    # Integer x.
    "integer x": (lambda: train(x_of(4, 5, dtype=jnp.int32)), TypeError, ["int32", "float"]),
    "integer x in inference": (
        lambda: infer(x_of(4, 5, dtype=jnp.uint8)),
        TypeError,
        ["uint8", "float"],
    ),
    "boolean x": (lambda: train(x_of(4, 5, dtype=jnp.bool_)), TypeError, ["bool", "float"]),
    "integer x in moments": (
        lambda: jbn.moments(x_of(4, 5, dtype=jnp.int32)),
        TypeError,
        ["int32", "float"],
    ),
    "integer x in normalize": (
        lambda: jbn.normalize(x_of(4, 5, dtype=jnp.int32), jnp.zeros(5), jnp.ones(5)),
        TypeError,
        ["int32", "float"],
    ),
    "complex x, real state": (
        lambda: train(x_of(4, 5, dtype=jnp.complex64)),
        TypeError,
        ["complex", "float32"],
    ),
    # Axis.
    "axis above": (lambda: train(x_of(4, 5), axis=2), ValueError, ["axis", "2"]),
    "axis below": (lambda: train(x_of(4, 5), axis=-3), ValueError, ["axis", "-3"]),
    "axis in a tuple": (lambda: train(x_of(4, 5), axis=(1, 5)), ValueError, ["axis", "5"]),
    "axis twice": (lambda: train(x_of(4, 5), (5, 5), axis=(1, 1)), ValueError, ["(1, 1)"]),
    "axis twice by sign": (lambda: train(x_of(4, 5), (5, 5), axis=(1, -1)), ValueError, ["-1"]),
    "axis in inference": (lambda: infer(x_of(4, 5), axis=2), ValueError, ["axis", "2"]),
    "axis in moments": (lambda: jbn.moments(x_of(4, 5), axis=2), ValueError, ["axis", "2"]),
    "axis twice in moments": (
        lambda: jbn.moments(x_of(4, 5), axis=(0, 0)),
        ValueError,
        ["(0, 0)"],
    ),
    "axis in normalize": (
        lambda: jbn.normalize(x_of(4, 5), jnp.zeros(5), jnp.ones(5), axis=7),
        ValueError,
        ["axis", "7"],
    ),
    "axis None": (lambda: batch_norm(axis=None), TypeError, ["`axis`", "None"]),
    "axis a string": (lambda: batch_norm(axis="C"), TypeError, ["`axis`", "'C'"]),
    "axis a float": (lambda: jbn.layer_norm(x_of(4, 5), axis=1.0), TypeError, ["`axis`", "1.0"]),
    "axis a bool": (lambda: jbn.moments(x_of(4, 5), axis=True), TypeError, ["`axis`", "True"]),
    "axis an array": (
        lambda: batch_norm(axis=np.array([0, 1])),
        TypeError,
        ["`axis`", "array of shape (2,)", "tuple of ints"],
    ),
    "axis a JAX array": (
        lambda: jbn.whiten(x_of(4, 5), axis=jnp.arange(2)),
        TypeError,
        ["`axis`", "(2,)"],
    ),
    "axis traced": (
        lambda: traced(lambda axis: batch_norm(axis=axis), jnp.int32(1)),
        TypeError,
        ["`axis`", "traced"],
    ),
    # One value, or none.
    "batch of one": (lambda: train(x_of(1, 5)), ValueError, ["training=False", "(1, 5)"]),
    "batch of one, space of one": (lambda: train(x_of(1, 1, 1, 5)), ValueError, ["training=False"]),
    "nothing reduced": (lambda: train(x_of(4, 5), (4, 5), axis=(0, 1)), ValueError, ["(4, 5)"]),
    "a vector": (lambda: train(x_of(5)), ValueError, ["(5,)"]),
    "empty batch": (lambda: train(x_of(0, 5)), ValueError, ["empty", "(0, 5)"]),
    "empty space": (lambda: train(x_of(4, 0, 5)), ValueError, ["(4, 0, 5)"]),
    "empty batch with a mask": (
        lambda: train(x_of(0, 5), mask=jnp.ones((0, 1), bool)),
        ValueError,
        ["(0, 5)"],
    ),
    "empty batch over an axis": (lambda: mapped(x_of(8, 0, 5), axis_name="d"), ValueError, ["0"]),
    # Masks.
    "mask of another length": (
        lambda: train(x_of(4, 5), mask=jnp.ones((3, 1), bool)),
        ValueError,
        ["mask", "(4, 5)", "(3, 1)"],
    ),
    "mask per example without axes": (
        lambda: train(x_of(4, 3, 5), mask=jnp.ones(4, bool)),
        ValueError,
        ["mask", "(4, 3, 5)", "(4,)"],
    ),
    "mask of a higher rank": (
        lambda: train(x_of(4, 5), mask=jnp.ones((2, 4, 5), bool)),
        ValueError,
        ["mask", "(2, 4, 5)"],
    ),
    "mask that would widen x": (
        lambda: train(x_of(1, 4, 5), mask=jnp.ones((2, 4, 5), bool)),
        ValueError,
        ["mask", "(2, 4, 5)"],
    ),
    "mask in moments": (
        lambda: jbn.moments(x_of(4, 5), mask=jnp.ones((3, 1))),
        ValueError,
        ["mask", "(3, 1)"],
    ),
    "complex mask": (
        lambda: train(x_of(4, 5), mask=jnp.ones((4, 1), jnp.complex64)),
        TypeError,
        ["mask", "complex64"],
    ),
    "mask a string": (lambda: batch_norm(mask="no"), TypeError, ["`mask`", "'no'"]),
    "mask of ints": (
        lambda: batch_norm(mask=np.ones((4, 1), int)),
        TypeError,
        ["`mask`", "int", "mask != 0"],
    ),
    # x.
    "x None": (lambda: batch_norm(x=None), TypeError, ["`x`", "None", "array"]),
    "x a string": (lambda: batch_norm(x="x.npy"), TypeError, ["`x`", "'x.npy'"]),
    "x a ragged list": (lambda: batch_norm(x=[[1.0, 2.0], [3.0]]), TypeError, ["`x`", "a list"]),
    "x a list of ints": (lambda: batch_norm(x=[[1] * 5] * 4), TypeError, ["int32", "float32"]),
    "x a dict": (lambda: jbn.moments({"x": 1}), TypeError, ["`x`", "a dict", "'x'"]),
    "x an object": (lambda: jbn.layer_norm(Box()), TypeError, ["`x`", "Box"]),
    "x of objects": (lambda: jbn.whiten(np.array([[None]])), TypeError, ["`x`", "object"]),
    "x random keys": (lambda: jbn.moments(jax.random.key(0)), TypeError, ["`x`", "key"]),
    "x a state": (lambda: jbn.moments(STATE), TypeError, ["`x`", "BatchNormState"]),
    "x a scalar": (lambda: jbn.moments(2.5), ValueError, ["scalar", "x[None]"]),
}


@pytest.mark.parametrize("name", list(CASES))
def test_raises(name):
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        call()
    assert_message(str(caught.value), words)
    assert_ours(caught.value)


@pytest.mark.parametrize("name", list(CASES))
def test_raises_while_tracing(name):
    """Abstract values suffice: nothing is computed before the error."""
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        jax.eval_shape(call)
    assert_message(str(caught.value), words)
