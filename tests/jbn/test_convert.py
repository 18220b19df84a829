"""`jbn.convert`: what it imports, and which options each framework has."""

import subprocess
import sys

import flax.linen as nn
import pytest
from converted import C
from flax import nnx

import jbn
from jbn import convert

# Imports ----------------------------------------------------------------------------------------


def test_no_framework_is_imported_before_its_objects_are_made():
    code = """
import sys, numpy as np, jbn
c = jbn.convert
layer = jbn.init(3)
c.from_torch(c.to_torch(*layer, tensors=False))
c.from_torch_kernel(c.to_torch_kernel(np.ones((3, 4)), tensors=False))
c.from_keras(c.to_keras(*layer))
c.from_linen(c.to_linen(*layer))
c.from_nnx(c.to_nnx(*layer))
c.from_haiku(*c.to_haiku(*layer, decay_rate=.9), decay_rate=.9)
peers = {"torch", "keras", "tensorflow", "flax", "optax", "haiku", "equinox"}
assert not peers & set(sys.modules), peers & set(sys.modules)
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# Options ----------------------------------------------------------------------------------------


OPTIONS = {
    "torch": convert.Options(1 - 0.3, 1e-3, True),
    "keras": convert.Options(0.7, 1e-4, False),
    "linen": convert.Options(0.7, 1e-4, False),
    "nnx": convert.Options(0.7, 1e-4, False),
    "haiku": convert.Options(convert.Debiased(0.7), 1e-4, False),
    "equinox": convert.Options(convert.Debiased(0.7), 1e-4, False),
}


@pytest.mark.parametrize("framework", OPTIONS)
def test_arguments_make_the_layer_that_has_these_options(request, framework):
    options = OPTIONS[framework]
    arguments = convert.framework_kwargs(options, framework)
    if framework == "torch":
        got = convert.from_torch(
            request.getfixturevalue("torch").nn.BatchNorm2d(C, **arguments), options=options
        ).options
        assert got.momentum == pytest.approx(0.7, rel=1e-15)
    elif framework == "keras":
        theirs = request.getfixturevalue("keras").layers.BatchNormalization(**arguments)
        theirs.build((None, C))
        assert convert.from_keras(theirs).options == options
    elif framework == "linen":
        theirs = nn.BatchNorm(**arguments)
        assert (theirs.momentum, theirs.epsilon) == options[:2]
    elif framework == "nnx":
        theirs = nnx.BatchNorm(C, rngs=nnx.Rngs(0), **arguments)
        assert convert.from_nnx(theirs).options == options
    elif framework == "haiku":
        assert arguments == {"decay_rate": 0.7, "eps": 1e-4}
    else:
        make = request.getfixturevalue("eqx").nn
        pair = make.make_with_state(make.BatchNorm)(C, axis_name="batch", **arguments)
        assert convert.from_equinox(*pair).options == options


@pytest.mark.parametrize("framework", OPTIONS)
def test_what_a_framework_cannot_do_is_an_error(framework):
    unbiased = OPTIONS[framework].unbiased
    wrong = convert.Options(lambda count: 0.9, 1e-5, not unbiased)
    with pytest.raises(convert.ConversionError) as error:
        convert.framework_kwargs(wrong, framework)
    assert len(error.value.problems) == 2


def test_torch_cumulative_average_and_unknown_frameworks():
    options = convert.Options(jbn.cumulative, 1e-5, True)
    assert convert.framework_kwargs(options, "torch") == {"momentum": None, "eps": 1e-5}
    with pytest.raises(ValueError, match="one of torch, keras"):
        convert.framework_kwargs(options, "caffe")


def test_layers_with_two_feature_axes_fit_no_format_but_linen():
    ours = jbn.init((2, 3))
    for to in (convert.to_torch, convert.to_keras, convert.to_nnx):
        with pytest.raises(convert.ConversionError, match="one feature axis"):
            to(*ours)
    with pytest.raises(convert.ConversionError, match="one feature axis"):
        convert.to_haiku(*ours, decay_rate=0.9)
