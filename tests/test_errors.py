"""Bad input raises at trace time, and the message says what was expected, what came, what to do."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from meshes import mesh

import jbn

FEATURES = 5


def x_of(*shape, dtype=jnp.float32):
    return jnp.ones(shape, dtype)


def train(x, features=FEATURES, **options):
    return jbn.batch_norm(x, *jbn.init(features), training=True, **options)


def infer(x, features=FEATURES, **options):
    return jbn.batch_norm(x, *jbn.init(features), training=False, **options)


def update(**options):
    _, state = jbn.init(FEATURES)
    return jbn.update(state, jbn.moments(x_of(4, FEATURES)), **options)


def state_only(x, features):
    _, state = jbn.init(features)
    return jbn.batch_norm(x, jbn.BatchNormParams(None, None), state, training=True)


def mapped(x, **options):
    return jax.vmap(functools.partial(train, **options), axis_name="d")(x)


def fold(kernel, bias=None, features=FEATURES, **options):
    return jbn.fold(kernel, bias, *jbn.init(features), **options)


# name: (call, error, words that the message holds)
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
    # One value, no value.
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
    # Momentum and epsilon.
    "momentum above": (lambda: train(x_of(4, 5), momentum=1.5), ValueError, ["momentum", "1.5"]),
    "momentum below": (lambda: train(x_of(4, 5), momentum=-0.1), ValueError, ["momentum", "-0.1"]),
    "momentum NaN": (
        lambda: train(x_of(4, 5), momentum=float("nan")),
        ValueError,
        ["momentum", "nan"],
    ),
    "momentum of NumPy": (
        lambda: train(x_of(4, 5), momentum=np.float32(2)),
        ValueError,
        ["momentum", "2"],
    ),
    "momentum in update": (lambda: update(momentum=1.01), ValueError, ["momentum", "1.01"]),
    "decay of debiased": (lambda: jbn.debiased(1.5), ValueError, ["1.5"]),
    "negative decay of debiased": (lambda: jbn.debiased(-0.5), ValueError, ["-0.5"]),
    "epsilon zero": (lambda: train(x_of(4, 5), epsilon=0.0), ValueError, ["epsilon", "0.0"]),
    "epsilon negative": (lambda: train(x_of(4, 5), epsilon=-1e-3), ValueError, ["-0.001"]),
    "epsilon in inference": (lambda: infer(x_of(4, 5), epsilon=0), ValueError, ["epsilon"]),
    "epsilon in normalize": (
        lambda: jbn.normalize(x_of(4, 5), jnp.zeros(5), jnp.ones(5), epsilon=-1.0),
        ValueError,
        ["epsilon", "-1.0"],
    ),
    "epsilon in fold": (lambda: fold(x_of(3, 5), epsilon=0.0), ValueError, ["epsilon", "0.0"]),
    # Named axes.
    "unbound axis name": (
        lambda: train(x_of(4, 5), axis_name="devices"),
        (ValueError, TypeError),
        ["devices"],
    ),
    "one of two names unbound": (
        lambda: mapped(x_of(2, 4, 5), axis_name=("d", "e")),
        (ValueError, TypeError),
        ["'e'"],
    ),
    "unbound axis name in moments": (
        lambda: jbn.moments(x_of(4, 5), axis_name="devices"),
        (ValueError, TypeError),
        ["devices"],
    ),
    "groups without a name": (
        lambda: train(x_of(4, 5), axis_index_groups=[[0, 1]]),
        ValueError,
        ["axis_name", "[[0, 1]]"],
    ),
    "groups without a name in moments": (
        lambda: jbn.moments(x_of(4, 5), axis_index_groups=[[0, 1]]),
        ValueError,
        ["axis_name"],
    ),
    "groups that leave an index out": (
        lambda: mapped(x_of(4, 4, 5), axis_name="d", axis_index_groups=[[0, 1], [2]]),
        ValueError,
        ["axis_index_groups", "[[0, 1], [2]]"],
    ),
    "groups with an index twice": (
        lambda: mapped(x_of(2, 4, 5), axis_name="d", axis_index_groups=[[0, 1], [1, 0]]),
        ValueError,
        ["axis_index_groups"],
    ),
    "groups beyond the axis": (
        lambda: mapped(x_of(2, 4, 5), axis_name="d", axis_index_groups=[[0, 1, 2]]),
        ValueError,
        ["axis_index_groups"],
    ),
    # init.
    "no features": (lambda: jbn.init(0), ValueError, ["num_features", "0"]),
    "negative features": (lambda: jbn.init(-3), ValueError, ["num_features", "-3"]),
    "half a feature": (lambda: jbn.init(2.5), (TypeError, ValueError), ["num_features", "2.5"]),
    "features by name": (lambda: jbn.init("64"), (TypeError, ValueError), ["num_features", "64"]),
    "a zero in a tuple": (lambda: jbn.init((3, 0)), ValueError, ["num_features", "0"]),
    "a float in a tuple": (
        lambda: jbn.init((3, 2.0)),
        (TypeError, ValueError),
        ["num_features", "2.0"],
    ),
    # fold.
    "kernel of other features": (lambda: fold(x_of(3, 3, 8, 7)), ValueError, ["7", "5"]),
    "kernel of one feature": (lambda: fold(x_of(3, 1)), ValueError, ["1", "5"]),
    "bias of other features": (lambda: fold(x_of(3, 5), jnp.ones(7)), ValueError, ["7", "5"]),
    # moving_average.
    "window of zero": (
        lambda: jbn.moving_average(jnp.ones(3), window=0),
        (ValueError, TypeError),
        ["window", "0"],
    ),
    "window of a half": (
        lambda: jbn.moving_average(jnp.ones(3), window=1.5),
        (ValueError, TypeError),
        ["window", "1.5"],
    ),
}


def assert_message(message, words):
    assert re.search("(?i)expected", message), f"does not say what was expected: {message}"
    assert re.search("(?i)got", message), f"does not say what came: {message}"
    for word in words:
        assert word in message, f"does not say {word!r}: {message}"
    # A sentence after the one that says what came: how to mend it.
    after = message[re.search("(?i)got", message).start() :]
    assert re.search(r"[.:;!] +\S+ +\S+", after), f"does not say how to mend it: {message}"


@pytest.mark.parametrize("name", list(CASES))
def test_raises(name):
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        call()
    assert_message(str(caught.value), words)


@pytest.mark.parametrize("name", list(CASES))
def test_raises_while_tracing(name):
    """Abstract values are enough: nothing is computed before the error."""
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        jax.eval_shape(call)
    assert_message(str(caught.value), words)


def test_raises_under_jit():
    with pytest.raises(ValueError, match=r"5.*7|7.*5"):
        jax.jit(train)(x_of(4, 7))
    with pytest.raises(TypeError, match="int32"):
        jax.jit(train)(x_of(4, 5, dtype=jnp.int32))
    with pytest.raises(ValueError, match="training=False"):
        jax.jit(train)(x_of(1, 5))


def test_raises_inside_shard_map_and_pmap():
    def unbound(x):
        return train(x, axis_name="elsewhere")[0]

    run = jax.shard_map(unbound, mesh=mesh(("d", 8)), in_specs=P("d"), out_specs=P("d"))
    with pytest.raises((ValueError, TypeError), match="elsewhere"):
        run(x_of(16, 5))
    with pytest.raises((ValueError, TypeError), match="elsewhere"):
        jax.pmap(unbound, axis_name="d")(x_of(8, 4, 5))
    # A batch of one on each device under another name is still a batch of one.
    with pytest.raises(ValueError, match="training=False"):
        jax.pmap(lambda x: train(x)[0], axis_name="d")(x_of(8, 1, 5))


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


def test_inference_has_no_need_of_the_axis():
    """A model trained over devices is applied without them: the name does not matter then."""
    y, _ = infer(x_of(4, 5), axis_name="devices", axis_index_groups=[[0, 1]])
    assert y.shape == (4, 5)
