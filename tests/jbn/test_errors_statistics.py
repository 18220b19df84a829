"""Bad params, states and moments raise at trace time, and the message says what to do."""

import jax
import jax.numpy as jnp
import pytest
from wrong_calls import (
    FEATURES,
    PARAMS,
    STATE,
    assert_message,
    assert_ours,
    batch_norm,
    ghost,
    normalize,
    pooled,
    renorm,
    synchronize,
    train,
    x_of,
)

import jbn

MOMENTS = jbn.moments(x_of(4, FEATURES))
# name: (call, error, words in the message)
CASES = {
    # States.
    "complex var": (
        lambda: batch_norm(state=STATE._replace(var=STATE.var.astype(complex))),
        TypeError,
        ["state.var", "real", "complex", "var.real"],
    ),
    "complex var of moments": (
        lambda: jbn.update(STATE, MOMENTS._replace(var=MOMENTS.var.astype(complex)), momentum=0.9),
        TypeError,
        ["moments.var", "real"],
    ),
    "count of each feature": (
        lambda: batch_norm(state=STATE._replace(count=jnp.zeros(5, jnp.int32))),
        ValueError,
        ["state.count", "(5,)", "vmap"],
    ),
    "no dtype of parameters": (lambda: jbn.init(4, param_dtype=None), TypeError, ["param_dtype"]),
    "an empty group": (
        lambda: pooled(axis_name="d", axis_index_groups=[[], [0, 1, 2, 3]]),
        TypeError,
        ["axis_index_groups", "lists of ints", "[[], [0, 1, 2, 3]]"],
    ),
    "counts of bool": (
        lambda: synchronize(STATE, jnp.ones(FEATURES, bool)),
        TypeError,
        ["counts", "bool"],
    ),
    # Parameters.
    "params None": (
        lambda: batch_norm(params=None),
        TypeError,
        ["`params`", "None", "BatchNormParams(None, None)"],
    ),
    "params a dict": (
        lambda: batch_norm(params=PARAMS._asdict()),
        TypeError,
        ["`params`", "a dict", "'scale'", "jbn.BatchNormParams(**params)."],
    ),
    "params a dict without bias": (
        lambda: batch_norm(params={"scale": PARAMS.scale}),
        TypeError,
        ["jbn.BatchNormParams(**params), with bias added."],
    ),
    "params a tuple": (
        lambda: batch_norm(params=tuple(PARAMS)),
        TypeError,
        ["a tuple of 2", "jbn.BatchNormParams(*params)"],
    ),
    "params a list": (
        lambda: jbn.layer_norm(x_of(4, 5), list(PARAMS)),
        TypeError,
        ["a list of 2", "jbn.BatchNormParams(*params)"],
    ),
    "params and state swapped": (
        lambda: batch_norm(params=STATE, state=PARAMS),
        TypeError,
        ["`params`", "BatchNormState", "swapped"],
    ),
    "params what init returned": (
        lambda: batch_norm(params=jbn.init(FEATURES)),
        TypeError,
        ["a tuple of 2", "params, state = "],
    ),
    "params all variables": (
        lambda: batch_norm(params={"params": {}, "batch_stats": {}}),
        TypeError,
        ["'batch_stats'", "from_linen(variables, path)"],
    ),
    "scale a list": (
        lambda: batch_norm(params=PARAMS._replace(scale=[1.0] * 5)),
        TypeError,
        ["`params.scale`", "a list of 5", "params._replace(scale=jnp.asarray(...))"],
    ),
    "scale a string": (
        lambda: normalize(params=PARAMS._replace(scale="ones")),
        TypeError,
        ["`params.scale`", "'ones'"],
    ),
    "bias of ints": (
        lambda: batch_norm(params=PARAMS._replace(bias=jnp.zeros(5, int))),
        TypeError,
        ["`params.bias`", "int32", "astype"],
    ),
    # State.
    "state None in inference": (
        lambda: batch_norm(state=None, training=False),
        TypeError,
        ["`state`", "None", "training=True"],
    ),
    "state None in renorm": (lambda: renorm(state=None), TypeError, ["`state`", "None"]),
    "state a dict": (
        lambda: batch_norm(state=STATE._asdict()),
        TypeError,
        ["`state`", "a dict", "jbn.BatchNormState(**state)."],
    ),
    "state a dict without count": (
        lambda: ghost(state={"mean": STATE.mean, "var": STATE.var}),
        TypeError,
        ["jbn.BatchNormState(**state), with count added."],
    ),
    "state a tuple": (
        lambda: renorm(state=tuple(STATE)),
        TypeError,
        ["a tuple of 3", "jbn.BatchNormState(*state)"],
    ),
    "state what init returned": (
        lambda: batch_norm(state=jbn.init(FEATURES)),
        TypeError,
        ["a tuple of 2", "params, state = "],
    ),
    "count an int": (
        lambda: batch_norm(state=STATE._replace(count=3)),
        TypeError,
        ["`state.count`", "3", "jnp.int32(n)"],
    ),
    "mean None": (
        lambda: batch_norm(state=STATE._replace(mean=None), training=False),
        TypeError,
        ["`state.mean`", "None"],
    ),
    "var a list": (
        lambda: ghost(state=STATE._replace(var=[1.0] * 5)),
        TypeError,
        ["`state.var`", "a list of 5"],
    ),
    # Statistics passed to normalize.
    "normalize by no mean": (
        lambda: jbn.normalize(x_of(4, 5), None, jnp.ones(5)),
        TypeError,
        ["`mean`", "None", "state.mean"],
    ),
    "var a string": (lambda: normalize(var="ones"), TypeError, ["`var`", "'ones'"]),
    "state in place of mean": (
        lambda: normalize(mean=STATE),
        TypeError,
        ["`mean`", "BatchNormState", "state.mean"],
    ),
    "normalize of params and state": (
        lambda: jbn.normalize(x_of(4, 5), PARAMS, STATE),
        TypeError,
        ["`mean`", "BatchNormParams"],
    ),
    "normalize, state first": (
        lambda: jbn.normalize(STATE.mean, x_of(4, 5), STATE.var),
        ValueError,
        ["mean", "(4, 5)"],
    ),
    "var complex": (
        lambda: normalize(var=jnp.ones(5, jnp.complex64)),
        TypeError,
        ["`var`", "complex64"],
    ),
    # Moments.
    "update, swapped": (
        lambda: jbn.update(MOMENTS, STATE, momentum=0.9),
        TypeError,
        ["`state`", "Moments", "second"],
    ),
    "update by a batch": (
        lambda: jbn.update(STATE, x_of(4, 5), momentum=0.9),
        TypeError,
        ["`moments`", "(4, 5)", "jbn.moments(x)"],
    ),
    "update by moments without a count": (
        lambda: jbn.update(STATE, MOMENTS._replace(count=None), momentum=0.9),
        TypeError,
        ["`moments.count`", "None"],
    ),
    "merge of a list": (
        lambda: jbn.merge_moments([MOMENTS, MOMENTS]),
        TypeError,
        ["a list of 2 (Moments)", "merge_moments(*parts)"],
    ),
    "merge of states": (
        lambda: jbn.merge_moments(STATE, STATE),
        TypeError,
        ["BatchNormState", "jbn.moments(x)"],
    ),
    "merge of None": (lambda: jbn.merge_moments(None), TypeError, ["None"]),
    "merge of nothing": (lambda: jbn.merge_moments(), ValueError, ["none", "one or more"]),
    # population.
    "ShapeDtypeStruct for x": (
        lambda: train(jax.ShapeDtypeStruct((8, 5), jnp.float32)),
        TypeError,
        ["`x`", "a jax.ShapeDtypeStruct, which describes an array of shape (8, 5)", "no values"],
    ),
    "ShapeDtypeStruct in a state": (
        lambda: batch_norm(state=jax.eval_shape(lambda: jbn.init(FEATURES)[1])),
        TypeError,
        ["`state.count`", "a jax.ShapeDtypeStruct", "no values"],
    ),
    "population of a string": (
        lambda: jbn.population(lambda state, x: state, "state", x_of(2, 4, 5)),
        TypeError,
        ["`state`", "'state'"],
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
