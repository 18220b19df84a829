"""Bad axis names and device groups raise at trace time, and the message says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from meshes import mesh
from wrong_calls import (
    PARAMS,
    STATE,
    assert_message,
    assert_ours,
    infer,
    mapped,
    pooled,
    synchronize,
    traced,
    train,
    x_of,
)

import jbn


def named(name):
    return mapped(x_of(2, 4, 5), axis_name=name)


# name: (call, error, words in the message)
CASES = {
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
    # Names and groups.
    "axis_name a number": (lambda: named(3), TypeError, ["`axis_name`", "3", "'devices'"]),
    "axis_name an empty list": (lambda: named([]), ValueError, ["axis_name=[]"]),
    "axis_name a dict": (lambda: named({}), TypeError, ["`axis_name`", "a dict"]),
    "axis_name nested": (lambda: named([["d"]]), TypeError, ["`axis_name`", "a list of 1"]),
    "axis_name an array": (lambda: named(jnp.ones(2)), TypeError, ["`axis_name`", "(2,)"]),
    "axis_name twice": (lambda: named(("d", "d")), ValueError, ["('d', 'd')", "once"]),
    "axis_name None in a tuple": (lambda: named(("d", None)), TypeError, ["`axis_name`", "None"]),
    "groups of floats": (
        lambda: pooled(axis_name="d", axis_index_groups=[[0.5], [1.5]]),
        TypeError,
        ["`axis_index_groups`", "lists of ints", "[[0, 1], [2, 3]]"],
    ),
    "groups a string of digits": (
        lambda: pooled(axis_name="d", axis_index_groups="0123"),
        TypeError,
        ["`axis_index_groups`", "'0123'"],
    ),
    "groups not nested": (
        lambda: pooled(axis_name="d", axis_index_groups=[0, 1, 2, 3]),
        TypeError,
        ["`axis_index_groups`", "[0, 1, 2, 3]"],
    ),
    "groups traced": (
        lambda: traced(
            lambda groups: pooled(axis_name="d", axis_index_groups=groups),
            np.arange(4).reshape(2, 2),
        ),
        TypeError,
        ["`axis_index_groups`", "traced"],
    ),
    # synchronize.
    "synchronize params": (
        lambda: synchronize(PARAMS),
        TypeError,
        ["`state`", "BatchNormParams", "not the parameters"],
    ),
    "synchronize None": (lambda: synchronize(None), TypeError, ["`state`", "None"]),
    "synchronize outside": (
        lambda: jbn.synchronize(STATE, axis_name=None),
        ValueError,
        ["`axis_name`", "None"],
    ),
    "counts a string": (lambda: synchronize(STATE, "3"), TypeError, ["`counts`", "'3'"]),
    "counts of other features": (
        lambda: synchronize(STATE, jnp.ones(3)),
        ValueError,
        ["`counts`", "(5,)", "(3,)"],
    ),
    "statistics None": (
        lambda: synchronize({"mean": None, "var": None}),
        TypeError,
        ["`mean`", "None"],
    ),
    "is_synchronized of None": (
        lambda: jbn.is_synchronized(None),
        TypeError,
        ["`state`", "None"],
    ),
    "is_synchronized of strings": (
        lambda: jbn.is_synchronized({"a": "b"}),
        TypeError,
        ["`state`", "'b'"],
    ),
    "is_synchronized traced": (
        lambda: traced(jbn.is_synchronized, jnp.ones(3)),
        ValueError,
        ["`axis_name`", "traced"],
    ),
    "stacked a string": (
        lambda: jbn.is_synchronized(STATE, stacked="d"),
        TypeError,
        ["`stacked`", "'d'"],
    ),
    "stacked scalars": (
        lambda: jbn.is_synchronized(STATE, stacked=True),
        ValueError,
        ["stacked=True", "()"],
    ),
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


def test_inference_has_no_need_of_the_axis():
    """A model trained on several devices can run on one: inference ignores the name."""
    y, _ = infer(x_of(4, 5), axis_name="devices", axis_index_groups=[[0, 1]])
    assert y.shape == (4, 5)
