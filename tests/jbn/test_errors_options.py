"""Bad options raise at trace time, and the message says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrong_calls import (
    FEATURES,
    assert_message,
    assert_ours,
    batch_norm,
    fold,
    ghost,
    infer,
    normalize,
    renorm,
    traced,
    train,
    x_of,
)

import jbn


def update(**options):
    _, state = jbn.init(FEATURES)
    return jbn.update(state, jbn.moments(x_of(4, FEATURES)), **options)


def mixed(weight):
    x = x_of(4, 3, FEATURES)
    return jbn.normalize_with_example(x, jnp.zeros(FEATURES), jnp.ones(FEATURES), weight=weight)


HALF_BELOW_ZERO = jnp.float32(-0.5)
# name: (call, error, words in the message)
CASES = {
    # Values that float32 flushes to 0.
    "epsilon of nothing": (
        lambda: train(x_of(4, 5), epsilon=1e-40),
        ValueError,
        ["epsilon", "at least 1.2e-38", "1e-40", "1e-5"],
    ),
    "epsilon of nothing in layer norm": (
        lambda: jbn.layer_norm(x_of(4, 5), epsilon=1e-38),
        ValueError,
        ["epsilon", "1.2e-38"],
    ),
    "epsilon of nothing in fold": (lambda: fold(x_of(3, 5), epsilon=1e-40), ValueError, ["1e-40"]),
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
    "window None": (
        lambda: jbn.moving_average(jnp.ones(3), window=None),
        TypeError,
        ["`window`", "None"],
    ),
    "window a string": (
        lambda: jbn.moving_average(jnp.ones(3), window="2"),
        TypeError,
        ["`window`", "'2'"],
    ),
    "window traced": (
        lambda: traced(lambda n: jbn.moving_average(jnp.ones(3), window=n), jnp.int32(2)),
        TypeError,
        ["`window`", "traced"],
    ),
    "values None": (lambda: jbn.moving_average(None, window=2), TypeError, ["`values`", "None"]),
    # Flags.
    "training a string": (lambda: batch_norm(training="yes"), TypeError, ["`training`", "'yes'"]),
    "training None": (lambda: ghost(training=None), TypeError, ["`training`", "None"]),
    "training an int": (lambda: renorm(training=1), TypeError, ["`training`", "1"]),
    "training an array": (
        lambda: batch_norm(training=jnp.array(True)),
        TypeError,
        ["`training`", "array"],
    ),
    "training traced": (
        lambda: traced(lambda flag: batch_norm(training=flag), jnp.array(True)),
        TypeError,
        ["`training`", "traced", "static"],
    ),
    "unbiased a string": (lambda: batch_norm(unbiased="no"), TypeError, ["`unbiased`", "'no'"]),
    "unbiased traced": (
        lambda: traced(lambda flag: renorm(unbiased=flag), jnp.array(True)),
        TypeError,
        ["`unbiased`", "traced", "static"],
    ),
    "unbiased in update": (
        lambda: update(momentum=0.9, unbiased=0),
        TypeError,
        ["`unbiased`", "0"],
    ),
    "use_scale a string": (
        lambda: jbn.init(3, use_scale="no"),
        TypeError,
        ["`use_scale`", "'no'"],
    ),
    # Numbers.
    "momentum a string": (lambda: batch_norm(momentum="0.9"), TypeError, ["`momentum`", "'0.9'"]),
    "momentum None": (lambda: ghost(momentum=None), TypeError, ["`momentum`", "None", "schedule"]),
    "momentum per feature": (
        lambda: batch_norm(momentum=jnp.ones(5)),
        ValueError,
        ["`momentum`", "(5,)"],
    ),
    "momentum of NumPy, 0-d": (
        lambda: renorm(momentum=np.array(2.5)),
        ValueError,
        ["`momentum`", "2.5"],
    ),
    "momentum of JAX, 0-d": (
        lambda: batch_norm(momentum=HALF_BELOW_ZERO),
        ValueError,
        ["`momentum`", "-0.5"],
    ),
    "momentum a function of two": (
        lambda: batch_norm(momentum=lambda a, b: 0.9),
        TypeError,
        ["called as momentum(count)", "a function of (a, b)", "lambda count"],
    ),
    "momentum a class": (
        lambda: update(momentum=dict),
        TypeError,
        ["called as momentum(count)", "the class dict", "lambda count"],
    ),
    "r_max a function of none": (
        lambda: renorm(r_max=lambda: 3.0),
        TypeError,
        ["called as r_max(count)", "a function of ()"],
    ),
    "momentum a schedule of strings": (
        lambda: batch_norm(momentum=lambda count: "0.9"),
        TypeError,
        ["momentum(count)", "'0.9'"],
    ),
    "epsilon a string": (lambda: normalize(epsilon="1e-5"), TypeError, ["`epsilon`", "'1e-5'"]),
    "epsilon None": (lambda: batch_norm(epsilon=None), TypeError, ["`epsilon`", "None"]),
    "epsilon of JAX, 0-d": (
        lambda: jbn.layer_norm(x_of(4, 5), epsilon=HALF_BELOW_ZERO),
        ValueError,
        ["`epsilon`", "-0.5"],
    ),
    "epsilon of NumPy, 0-d": (
        lambda: jbn.instance_norm(x_of(4, 3, 5), epsilon=np.array(0.0)),
        ValueError,
        ["`epsilon`", "0.0"],
    ),
    "epsilon infinite": (
        lambda: batch_norm(epsilon=float("inf")),
        ValueError,
        ["`epsilon`", "inf"],
    ),
    "r_max a string": (lambda: renorm(r_max="3"), TypeError, ["`r_max`", "'3'", "schedule"]),
    "r_max None": (lambda: renorm(r_max=None), TypeError, ["`r_max`", "None"]),
    "r_max below one": (lambda: renorm(r_max=np.array(0.5)), ValueError, ["`r_max`", "0.5"]),
    "d_max None in inference": (
        lambda: renorm(d_max=None, training=False),
        TypeError,
        ["`d_max`", "None"],
    ),
    "d_max below zero": (
        lambda: renorm(d_max=HALF_BELOW_ZERO),
        ValueError,
        ["`d_max`", "-0.5"],
    ),
    "weight None": (lambda: mixed(None), TypeError, ["`weight`", "None"]),
    "weight above": (lambda: mixed(np.float32(1.5)), ValueError, ["`weight`", "1.5"]),
    "decay None": (lambda: jbn.debiased(None), TypeError, ["`decay`", "None"]),
    "decay a string": (lambda: jbn.debiased("0.9"), TypeError, ["`decay`", "'0.9'"]),
    "count of a schedule": (lambda: jbn.cumulative("3"), TypeError, ["`count`", "'3'"]),
    "count None": (lambda: jbn.debiased(0.9)(None), TypeError, ["`count`", "None"]),
    # Sizes.
    "batch_size a float": (lambda: ghost(batch_size=2.0), TypeError, ["`batch_size`", "2.0"]),
    "batch_size None": (lambda: ghost(batch_size=None), TypeError, ["`batch_size`", "None"]),
    "batch_size zero": (
        lambda: ghost(batch_size=0, training=False),
        ValueError,
        ["`batch_size`", "0"],
    ),
    "batch_size traced": (
        lambda: traced(lambda size: ghost(batch_size=size), jnp.int32(2)),
        TypeError,
        ["`batch_size`", "traced"],
    ),
    "groups a string": (
        lambda: jbn.group_norm(x_of(4, 6), groups="2"),
        TypeError,
        ["`groups`", "'2'"],
    ),
    "groups that do not divide": (
        lambda: jbn.whiten(x_of(4, 5), groups=2),
        ValueError,
        ["`groups`", "5", "2"],
    ),
    "features a range": (lambda: jbn.init(range(2)), ValueError, ["num_features"]),
    "features an array of floats": (
        lambda: jbn.init(np.array([3.0, 4.0])),
        TypeError,
        ["num_features", "3.0"],
    ),
    "features traced": (
        lambda: traced(jbn.init, jnp.int32(3)),
        TypeError,
        ["num_features", "x.shape[-1]"],
    ),
    "param_dtype of ints": (
        lambda: jbn.init(3, param_dtype=jnp.int32),
        TypeError,
        ["param_dtype", "int32"],
    ),
    "param_dtype no dtype": (
        lambda: jbn.init(3, param_dtype="single float"),
        TypeError,
        ["param_dtype", "single float", "jnp.float32"],
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
