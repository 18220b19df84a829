"""Bad input raises at trace time, and the message says what was expected, what came, what to do."""

import functools
import pathlib
import re
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from meshes import mesh

import jbn
import jbn.linen
import jbn.nnx
from jbn import linen

FEATURES = 5


def x_of(*shape, dtype=jnp.float32):
    return jax.device_put(np.ones(shape, dtype))


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


def traced(call, value):
    """Call with a traced value, as a user does who passes an option through jit."""
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


def mixed(weight):
    x = x_of(4, 3, FEATURES)
    return jbn.normalize_with_example(x, jnp.zeros(FEATURES), jnp.ones(FEATURES), weight=weight)


def pooled(**options):
    return mapped(x_of(4, 4, 5), **options)


def named(name):
    return mapped(x_of(2, 4, 5), axis_name=name)


def synchronize(state, counts=None, **options):
    call = functools.partial(jbn.synchronize, counts=counts, axis_name="d", **options)
    return jax.vmap(lambda _: call(state), axis_name="d")(np.arange(2))


def whitening_of(features=FEATURES):
    return jbn.whiten(jax.device_put(np.eye(8, features, dtype=np.float32)))[1]


class Box:
    """Something that is nothing to us."""


PARAMS, STATE = jbn.init(FEATURES)
MOMENTS = jbn.moments(x_of(4, FEATURES))
HALF_BELOW_ZERO = jnp.float32(-0.5)


def fold(kernel, bias=None, features=FEATURES, **options):
    return jbn.fold(kernel, bias, *jbn.init(features), **options)


def layer(make):
    return make().init(jax.random.key(0), x_of(4, 3, FEATURES))


def warmed_up(**limits):
    options = {"use_running_average": False, "warmup_steps": 1, **limits}
    return layer(lambda: linen.BatchRenorm(**options))


# name: (call, error, words that the message holds)
CASES = {
    # What float32 flushes to 0.
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
    # Layers.
    "r_max below 1 with a warm-up": (
        lambda: warmed_up(r_max=np.array(0.5)),
        ValueError,
        ["r_max", "at least 1", "0.5"],
    ),
    "d_max below 0 with a warm-up": (
        lambda: warmed_up(d_max=np.array(-1.0)),
        ValueError,
        ["d_max", "at least 0", "-1"],
    ),
    "r_max of bool with a warm-up": (lambda: warmed_up(r_max=True), TypeError, ["r_max", "True"]),
    "two axes of LayerNorm": (
        lambda: layer(lambda: linen.LayerNorm(axis=(0, 1))),
        ValueError,
        ["one feature axis", "(0, 1)"],
    ),
    "use_scale of linen": (
        lambda: layer(lambda: jbn.linen.BatchNorm(use_running_average=False, use_scale="no")),
        TypeError,
        ["use_scale", "True or False", "'no'"],
    ),
    "use_bias of linen LayerNorm": (
        lambda: layer(lambda: linen.LayerNorm(use_bias="no")),
        TypeError,
        ["use_bias", "True or False", "'no'"],
    ),
    "use_scale of nnx": (
        lambda: jbn.nnx.BatchNorm(5, use_scale="no", rngs=nnx.Rngs(0)),
        TypeError,
        ["use_scale", "True or False", "'no'"],
    ),
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
    # Axis.
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
    # Masks.
    "mask a string": (lambda: batch_norm(mask="no"), TypeError, ["`mask`", "'no'"]),
    "mask of ints": (
        lambda: batch_norm(mask=np.ones((4, 1), int)),
        TypeError,
        ["`mask`", "int", "mask != 0"],
    ),
    # Statistics given to normalize.
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
    # Whitening.
    "whitening first": (
        lambda: jbn.apply_whitening(whitening_of(), x_of(4, 5)),
        TypeError,
        ["`x`", "Whitening"],
    ),
    "whitening of both": (
        lambda: jbn.apply_whitening(x_of(4, 5), jbn.whiten(jnp.eye(8, 5))),
        TypeError,
        ["`whitening`", "a tuple of 2", "y, whitening = jbn.whiten(x)"],
    ),
    "whitening a state": (
        lambda: jbn.apply_whitening(x_of(4, 5), STATE),
        TypeError,
        ["`whitening`", "BatchNormState"],
    ),
    "whitening of other features": (
        lambda: jbn.apply_whitening(x_of(4, 5), whitening_of(3)),
        ValueError,
        ["3", "(4, 5)"],
    ),
    "whitening's matrix": (
        lambda: jbn.apply_whitening(x_of(4, 5), whitening_of()._replace(matrix=jnp.eye(5))),
        ValueError,
        ["`whitening.matrix`", "(5, 5)"],
    ),
    "method of whitening": (
        lambda: jbn.whiten(x_of(9, 5), method="pca"),
        ValueError,
        ["'pca'", "'cholesky'"],
    ),
    # moving_average.
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
    # Weight norm.
    "kernel None": (lambda: jbn.weight_norm(None, jnp.ones(5)), TypeError, ["`kernel`", "None"]),
    "kernel of ints": (
        lambda: jbn.weight_norm(x_of(4, 5, dtype=int), None),
        TypeError,
        ["`kernel`", "int32"],
    ),
    "scale of weight_norm": (
        lambda: jbn.weight_norm(x_of(4, 5), "one"),
        TypeError,
        ["`scale`", "'one'"],
    ),
    "pre-activations None": (
        lambda: jbn.weight_norm_init(x_of(4, 5), None),
        TypeError,
        ["`pre_activations`", "None"],
    ),
    "weight_norm_init, swapped": (
        lambda: jbn.weight_norm_init(x_of(4, 5), x_of(4, 3)),
        ValueError,
        ["`pre_activations`", "(5,)", "(3,)"],
    ),
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


def assert_message(message, words):
    assert re.search("(?i)expected", message), f"does not say what was expected: {message}"
    assert re.search("(?i)got", message), f"does not say what came: {message}"
    for word in words:
        assert word in message, f"does not say {word!r}: {message}"
    # A sentence after the one that says what came: how to mend it.
    after = message[re.search("(?i)got", message).start() :]
    assert re.search(r"[.:;!] +\S+ +\S+", after), f"does not say how to mend it: {message}"


def assert_ours(error):
    """The traceback ends in jbn, and nothing of JAX's hangs on to it."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    assert pathlib.Path(jbn.__file__).parent in pathlib.Path(last).parents, last
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__


@pytest.mark.parametrize("name", list(CASES))
def test_raises(name):
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        call()
    assert_message(str(caught.value), words)
    assert_ours(caught.value)


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
