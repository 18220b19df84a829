"""`jbn.convert` against Haiku: layers and their values, in both directions."""

import chex
import jax
import numpy as np
import pytest
from converted import CLOSE, C, affine, assert_same_bits, evaluate, layer, train, values

from jbn import convert


@affine
@pytest.mark.parametrize(("shape", "axis"), [((16, C), -1), ((4, 5, 5, C), -1), ((4, C, 5), 1)])
def test_haiku_layer_goes_on_in_jbn(hk, use_scale, use_bias, shape, axis):
    data_format = "channels_first" if axis == 1 else "channels_last"

    def forward(x, is_training):
        norm = hk.BatchNorm(use_scale, use_bias, 0.8, eps=1e-3, data_format=data_format)
        return norm(x, is_training)

    theirs = hk.transform_with_state(forward)
    apply = jax.jit(theirs.apply, static_argnums=4)
    x = values(shape, seed=9)
    params, state = jax.jit(theirs.init, static_argnums=2)(None, x, True)
    assert int(convert.from_haiku(params, state, decay_rate=0.8).state.count) == 0
    keywords = {"decay_rate": 0.8, "epsilon": 1e-3}
    _, state = apply(params, state, None, x, True)
    converted = convert.from_haiku(params, state, **keywords)
    for step in range(2):
        x = values(shape, seed=10 + step)
        np.testing.assert_allclose(
            evaluate(converted, x, axis=axis),
            apply(params, state, None, x, False)[0],
            **CLOSE,
        )
        want, state = apply(params, state, None, x, True)
        got, converted = train(converted, x, axis=axis)
        np.testing.assert_allclose(got, want, **CLOSE)
        again = convert.from_haiku(params, state, **keywords)
        chex.assert_trees_all_close(
            tuple(converted.state), tuple(again.state), rtol=1e-5, atol=1e-5
        )
    back = convert.to_haiku(*again[:2], decay_rate=0.8, ndim=len(shape), axis=axis)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, (dict(params), state))
    chex.assert_trees_all_close(back, (dict(params), state), rtol=1e-6)
    for ema, arrays in state.items():  # Exact, unlike `hidden`.
        np.testing.assert_array_equal(back[1][ema]["average"], arrays["average"])


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_haiku_round_trip_is_bit_exact(count):
    ours = layer(count=count)
    trees = convert.to_haiku(*ours, "net/~/norm", decay_rate=0.999, ndim=4)
    got = convert.from_haiku(*trees, "net/~/norm", decay_rate=0.999)
    assert_same_bits(got[:2], ours)


def test_haiku_names_everything_that_is_wrong():
    params, state = convert.to_haiku(*layer(), decay_rate=0.9)
    state = {ema: dict(arrays) for ema, arrays in state.items()}
    del state["batch_norm/~/var_ema"]["average"]
    state["batch_norm/~/var_ema"]["counter"] = np.int32(3)
    with pytest.raises(convert.ConversionError) as error:
        convert.from_haiku(params, state, decay_rate=0.99, num_features=4)
    text = str(error.value)
    for part in ("no 'var_ema/average'", "decay_rate=0.99", "7 batches, var_ema 3", "'offset' has"):
        assert part in text
    with pytest.raises(convert.ConversionError, match="no 'mean_ema/average'"):
        convert.from_haiku(params, state, "typo", decay_rate=0.9)
