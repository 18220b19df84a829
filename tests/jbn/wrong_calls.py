"""Calls of the public functions with one argument replaced, and checks of their errors."""

import functools
import pathlib
import re
import traceback

import jax
import jax.numpy as jnp
import numpy as np

import jbn

FEATURES = 5


def x_of(*shape, dtype=jnp.float32):
    return jax.device_put(np.ones(shape, dtype))


def train(x, features=FEATURES, **options):
    return jbn.batch_norm(x, *jbn.init(features), training=True, **options)


def infer(x, features=FEATURES, **options):
    return jbn.batch_norm(x, *jbn.init(features), training=False, **options)


def mapped(x, **options):
    return jax.vmap(functools.partial(train, **options), axis_name="d")(x)


def traced(call, value):
    """Call with a traced value, as when a user passes an option through jit."""
    return jax.make_jaxpr(lambda v: jax.tree.leaves(call(v)))(value)


def call_with(function, **changes):
    """Call a function of x, params and state with one of its arguments replaced."""
    params, state = jbn.init(FEATURES)
    arguments = {"x": x_of(4, FEATURES), "params": params, "state": state, "training": True}
    return function(**{**arguments, **changes})


def batch_norm(**changes):
    return call_with(jbn.batch_norm, **changes)


def ghost(**changes):
    return call_with(jbn.ghost_batch_norm, **{"batch_size": 2, **changes})


def renorm(**changes):
    return call_with(jbn.batch_renorm, **{"r_max": 3.0, "d_max": 5.0, **changes})


def normalize(x=None, mean=None, var=None, **options):
    given = (x_of(4, FEATURES), jnp.zeros(FEATURES), jnp.ones(FEATURES))
    arguments = [g if a is None else a for a, g in zip((x, mean, var), given, strict=True)]
    return jbn.normalize(*arguments, **options)


def pooled(**options):
    return mapped(x_of(4, 4, 5), **options)


def synchronize(state, counts=None, **options):
    call = functools.partial(jbn.synchronize, counts=counts, axis_name="d", **options)
    return jax.vmap(lambda _: call(state), axis_name="d")(np.arange(2))


PARAMS, STATE = jbn.init(FEATURES)


def fold(kernel, bias=None, features=FEATURES, **options):
    return jbn.fold(kernel, bias, *jbn.init(features), **options)


def assert_message(message, words):
    assert re.search("(?i)expected", message), f"does not say what was expected: {message}"
    assert re.search("(?i)got", message), f"does not say what came: {message}"
    for word in words:
        assert word in message, f"does not say {word!r}: {message}"
    # After what was received, a message must say how to fix it.
    after = message[re.search("(?i)got", message).start() :]
    assert re.search(r"[.:;!] +\S+ +\S+", after), f"does not say how to mend it: {message}"


def assert_ours(error):
    """Assert that the traceback ends in jbn and that no JAX error is chained to it."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    assert pathlib.Path(jbn.__file__).parent in pathlib.Path(last).parents, last
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
