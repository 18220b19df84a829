"""`jax.export` with a symbolic batch for all public functions of arrays, in training and inference.

Options and gradients are tested in `test_export.py`; here no function is left out.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn

C = 4
PARAMS, STATE = jbn.init(C)
WHITENING = jbn.whiten(jnp.asarray(np.random.default_rng(1).normal(size=(50, C)), jnp.float32))[1]


def apply(function, training, **options):
    return lambda x: function(x, PARAMS, STATE, training=training, **options)


def kernel_of(x):
    """Make a kernel with as many inputs as there are examples."""
    return x[:, 0]


def on_two(function):
    """Call a function of statistics on two devices, each of which saw different values."""

    def call(x):
        halves = jnp.stack([x[:, 0], 2 * x[:, 1]])
        states = jax.vmap(lambda half: jbn.update(STATE, jbn.moments(half), momentum=0.5))(halves)
        return jax.vmap(lambda state: function(state, axis_name="d"), axis_name="d")(states)

    return call


def population(x):
    def step(state, x):
        return jbn.batch_norm(x, PARAMS, state, training=True, momentum=0.0)[1]

    return jbn.population(step, STATE, jnp.stack([x, 3 * x]))


# public function: {mode: the call to export}
CALLS = {
    "batch_norm": {
        "training": apply(jbn.batch_norm, True),
        "inference": apply(jbn.batch_norm, False),
    },
    "ghost_batch_norm": {
        "training": apply(jbn.ghost_batch_norm, True, batch_size=4),
        "inference": apply(jbn.ghost_batch_norm, False, batch_size=4),
    },
    "batch_renorm": {
        "training": apply(jbn.batch_renorm, True, r_max=3.0, d_max=5.0),
        "inference": apply(jbn.batch_renorm, False, r_max=3.0, d_max=5.0),
    },
    "normalize": {"": lambda x: jbn.normalize(x, STATE.mean, STATE.var)},
    "normalize_with_example": {
        "": lambda x: jbn.normalize_with_example(x, STATE.mean, STATE.var, weight=0.5)
    },
    "moments": {"": jbn.moments},
    "merge_moments": {"": lambda x: jbn.merge_moments(jbn.moments(x), jbn.moments(2 * x))},
    "update": {"": lambda x: jbn.update(STATE, jbn.moments(x), momentum=0.9)},
    "moving_average": {"": lambda x: jbn.moving_average(x.swapaxes(0, 1), window=2)},
    "cumulative": {
        "": lambda x: jbn.update(STATE, jbn.moments(x), momentum=jbn.cumulative(STATE.count))
    },
    "debiased": {
        "": lambda x: jbn.update(STATE, jbn.moments(x), momentum=jbn.debiased(0.9)(STATE.count))
    },
    "population": {"": population},
    "synchronize": {"": on_two(jbn.synchronize)},
    "is_synchronized": {"": on_two(jbn.is_synchronized)},
    "layer_norm": {"": jbn.layer_norm},
    "group_norm": {"": lambda x: jbn.group_norm(x, groups=2)},
    "instance_norm": {"": jbn.instance_norm},
    "weight_norm": {
        "": lambda x: jbn.weight_norm(kernel_of(x), jnp.ones(C)),
    },
    "weight_norm_init": {"": lambda x: jbn.weight_norm_init(kernel_of(x), x[:, 1])},
    "whiten": {"": jbn.whiten},
    "apply_whitening": {"": lambda x: jbn.apply_whitening(x, WHITENING)},
    "fold": {"": lambda x: jbn.fold(kernel_of(x), None, PARAMS, STATE)},
}
# `init` takes a number of features, which is always known, and `fold_model` a model.
WITHOUT_A_BATCH = {"init", "fold_model"}


def test_no_function_is_left_out():
    public = {name for name, value in vars(jbn).items() if inspect.isroutine(value)}
    assert public == CALLS.keys() | WITHOUT_A_BATCH


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(call, id=f"{name}, {mode}" if mode else name)
        for name, calls in CALLS.items()
        for mode, call in calls.items()
    ],
)
def test_exports(call):
    function = jax.jit(call)
    shape = jax.export.symbolic_shape(f"b, 3, {C}")
    exported = jax.export.export(function)(jax.ShapeDtypeStruct(shape, jnp.float32))
    x = np.random.default_rng(0).normal(size=(11, 3, C)).astype(np.float32)
    found, expected = jax.tree.leaves(exported.call(x)), jax.tree.leaves(function(x))
    for a, b in zip(found, expected, strict=True):
        # The programs sum in different orders.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_last_ghost_group_of_a_symbolic_batch_is_smaller():
    """With a known size, a group of one value is an error; here its output is the bias."""
    function = jax.jit(CALLS["ghost_batch_norm"]["training"])
    (size,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(function)(jax.ShapeDtypeStruct((size, C), jnp.float32))
    x = np.random.default_rng(0).normal(size=(9, C)).astype(np.float32)
    y, _ = exported.call(x)
    groups = np.float64(x[:8]).reshape(2, 4, C)
    groups = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y[:8], groups.reshape(8, C), atol=1e-5)
    np.testing.assert_allclose(y[8], np.zeros(C), atol=1e-9)  # x - mean leaves 1e-12.
