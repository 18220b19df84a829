"""`jbn.convert` against Keras: layers and their values, in both directions."""

import jax.numpy as jnp
import numpy as np
import pytest
from converted import CLOSE, C, affine, assert_same_bits, evaluate, layer, train, values

from jbn import convert

# Keras 3.15 does not accept NumPy 2's `copy` argument, so its get_weights() warns.
keras_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@affine
@keras_warns
def test_keras_layer_goes_on_in_jbn(keras, use_scale, use_bias):
    theirs = keras.layers.BatchNormalization(momentum=0.8, scale=use_scale, center=use_bias)
    theirs.build((None, C))
    weights = [values((C,), seed) ** 2 + 0.5 for seed in range(len(theirs.get_weights()))]
    theirs.set_weights(weights)
    converted = convert.from_keras(theirs)
    assert converted.options == (0.8, 1e-3, False)
    by_list = convert.from_keras(theirs.get_weights(), use_scale=use_scale, use_bias=use_bias)
    assert_same_bits(by_list[:2], converted[:2])
    assert by_list.options == (0.99, 1e-3, False)
    for got, want in zip(convert.to_keras(*converted[:2]), weights, strict=True):
        np.testing.assert_array_equal(got, want, strict=True)

    x = values((16, C), seed=9)
    np.testing.assert_allclose(evaluate(converted, x), theirs(x, training=False), **CLOSE)
    y, converted = train(converted, x)
    np.testing.assert_allclose(y, theirs(x, training=True), **CLOSE)
    for got, want in zip(convert.to_keras(*converted[:2]), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)
    theirs.set_weights(convert.to_keras(*converted[:2]))
    np.testing.assert_allclose(evaluate(converted, x), theirs(x, training=False), **CLOSE)


@affine
def test_keras_layout_round_trips_without_the_count(use_scale, use_bias):
    params, state = layer(use_scale, use_bias)
    weights = convert.to_keras(params, state)
    got = convert.from_keras(weights, use_scale=use_scale, use_bias=use_bias)
    assert_same_bits(got[:2], (params, state._replace(count=jnp.int32(0))))


def test_keras_names_everything_that_is_wrong(keras):
    theirs = keras.layers.BatchNormalization()
    theirs.build((None, 4))
    with pytest.raises(convert.ConversionError) as error:
        convert.from_keras(theirs, num_features=C, options=convert.Options(0.9, 1e-5, True))
    text = str(error.value)
    for part in ("gamma", "beta", "moving_mean", "moving_variance", "momentum", "epsilon", "unbia"):
        assert part in text
    with pytest.raises(convert.ConversionError, match="2 weights, expected 4: gamma, beta"):
        convert.from_keras([np.zeros(3), np.ones(3)])


def test_keras_layer_that_is_not_built_has_nothing(keras):
    with pytest.raises(convert.ConversionError, match="moving_variance") as error:
        convert.from_keras(keras.layers.BatchNormalization())
    assert len(error.value.problems) == 4
