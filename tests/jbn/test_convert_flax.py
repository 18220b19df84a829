"""`jbn.convert` against Flax linen and nnx: layers and their values, in both directions."""

import chex
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from converted import CLOSE, C, affine, assert_same_bits, evaluate, layer, train, values
from flax import nnx

import jbn
import jbn.linen
from jbn import convert


@affine
@pytest.mark.parametrize("make", [nn.BatchNorm, jbn.linen.BatchNorm])
def test_linen_layer_goes_on_in_jbn(make, use_scale, use_bias):
    theirs = make(momentum=0.8, use_scale=use_scale, use_bias=use_bias)
    variables = convert.to_linen(*layer(use_scale, use_bias))
    options = convert.Options(0.8, 1e-5, False)
    back = convert.to_linen(*convert.from_linen(variables)[:2])
    chex.assert_trees_all_equal_shapes_and_dtypes(back, variables)
    chex.assert_trees_all_equal(back, variables)
    x = values((16, C), seed=9)
    y, moved = theirs.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    got, converted = train(convert.from_linen(variables, options=options), x)
    np.testing.assert_allclose(got, y, **CLOSE)
    want = convert.from_linen(variables | moved).state
    chex.assert_trees_all_close(tuple(converted.state[:2]), tuple(want[:2]), rtol=2e-6, atol=2e-6)
    y = theirs.apply(variables, x, use_running_average=True)
    np.testing.assert_allclose(evaluate(convert.from_linen(variables), x), y, **CLOSE)


def test_linen_model_by_paths():
    params, state = layer()
    variables = convert.to_linen(params, state, "block/norm", with_count=True)
    assert_same_bits(convert.from_linen(variables, "block/norm")[:2], (params, state))
    with pytest.raises(convert.ConversionError) as error:
        convert.convert_layers(
            convert.from_linen, variables, names=["block/norm", "block/nrm", "norm"], num_features=4
        )
    assert len(error.value.problems) == 8  # Four shapes, and mean and var twice.


@affine
def test_nnx_layer_goes_on_in_jbn(use_scale, use_bias):
    options = {"use_scale": use_scale, "use_bias": use_bias, "momentum": 0.8, "epsilon": 1e-3}
    theirs = nnx.BatchNorm(C, rngs=nnx.Rngs(0), **options)
    ours = layer(use_scale, use_bias)
    nnx.update(theirs, convert.to_nnx(*ours))
    converted = convert.from_nnx(theirs)
    assert converted.options == (0.8, 1e-3, False)
    without_count = (ours[0], ours[1]._replace(count=jnp.int32(0)))
    assert_same_bits(converted[:2], without_count)
    assert_same_bits(convert.from_nnx(nnx.state(theirs))[:2], without_count)
    assert_same_bits(convert.from_nnx(nnx.to_pure_dict(nnx.state(theirs)))[:2], without_count)
    assert_same_bits(convert.from_nnx(convert.to_nnx(*ours, with_count=True))[:2], ours)
    x = values((16, C), seed=9)
    np.testing.assert_allclose(evaluate(converted, x), theirs(x, use_running_average=True), **CLOSE)
    y, converted = train(converted, x)
    np.testing.assert_allclose(y, theirs(x, use_running_average=False), **CLOSE)
    chex.assert_trees_all_close(
        tuple(converted.state[:2]), tuple(convert.from_nnx(theirs).state[:2]), rtol=2e-6, atol=2e-6
    )
    with pytest.raises(convert.ConversionError, match=r"epsilon is 0\.001, expected 1e-05"):
        convert.from_nnx(theirs, options=convert.Options(0.8, 1e-5, False))
