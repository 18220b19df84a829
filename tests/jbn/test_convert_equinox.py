"""`jbn.convert` against Equinox: layers and their values, in both directions."""

import chex
import jax
import numpy as np
import pytest
from converted import CLOSE, C, assert_same_bits, evaluate, layer, train, values

import jbn
from jbn import convert


def equinox_norm(eqx, mode, **options):
    make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
    return make(C, axis_name="batch", mode=mode, momentum=0.8, eps=1e-3, **options)


def call_equinox(module, state, x, inference):
    return jax.vmap(
        lambda x, state: module(x, state, inference=inference),
        axis_name="batch",
        in_axes=(0, None),
        out_axes=(0, None),
    )(x, state)


@pytest.mark.parametrize("mode", ["batch", "ema"])
@pytest.mark.parametrize("is_affine", [True, False])
def test_equinox_layer_goes_on_in_jbn(eqx, mode, is_affine):
    module, state = equinox_norm(eqx, mode, channelwise_affine=is_affine)
    if is_affine:
        params = layer()[0]
        module = eqx.tree_at(lambda m: (m.weight, m.bias), module, tuple(params))
    _, state = call_equinox(module, state, values((16, C, 4)), False)
    converted = convert.from_equinox(module, state)
    assert converted.options.epsilon == 1e-3
    for step in range(2):
        x = values((16, C, 4), seed=10 + step)
        want = call_equinox(module, state, x, True)[0]
        np.testing.assert_allclose(evaluate(converted, x, axis=1), want, **CLOSE)
        want, state = call_equinox(module, state, x, False)
        got, converted = train(converted, x, axis=1)
        if mode == "batch":  # "ema" normalizes by running statistics.
            np.testing.assert_allclose(got, want, **CLOSE)
        again = convert.from_equinox(module, state)
        chex.assert_trees_all_close(
            tuple(converted.state[:2]), tuple(again.state[:2]), rtol=1e-5, atol=1e-5
        )
    _, back = convert.to_equinox(*again[:2], module, state)
    chex.assert_trees_all_close(jax.tree.leaves(back), jax.tree.leaves(state), rtol=1e-6)


def test_equinox_first_step_has_the_right_variance(eqx):
    """Equinox's variance at count 1 is (momentum + (1 - momentum) var) / (1 - momentum)."""
    module, state = equinox_norm(eqx, "batch")
    x = values((16, C, 4))
    _, moved = train(convert.from_equinox(module, state), x, axis=1)
    np.testing.assert_allclose(moved.state.var, x.var((0, 2)), rtol=1e-5)


@pytest.mark.parametrize(("mode", "count"), [("ema", 0), ("ema", 1), ("batch", 0), ("batch", 7)])
@pytest.mark.parametrize("is_affine", [True, False])
def test_equinox_round_trip(eqx, mode, count, is_affine):
    ours = layer(is_affine, is_affine, count=count)
    module, state = equinox_norm(eqx, mode, channelwise_affine=is_affine)
    filled = convert.to_equinox(*ours, module, state)
    got = convert.from_equinox(*filled)[:2]
    if mode == "ema" or count == 0:
        assert_same_bits(got, ours)
    else:  # Multiplied by 1 - momentum^count and divided again.
        chex.assert_trees_all_close(tuple(got), tuple(ours), rtol=2e-7)
    # The given state and layer are unchanged.
    chex.assert_trees_all_equal(jax.tree.leaves(state), jax.tree.leaves(equinox_norm(eqx, mode)[1]))


def test_equinox_model_keeps_its_other_states(eqx):
    class Model(eqx.Module):
        first: eqx.nn.BatchNorm
        second: eqx.nn.BatchNorm

        def __init__(self):
            self.first, self.second = (
                eqx.nn.BatchNorm(C, axis_name="batch", mode="batch") for _ in range(2)
            )

    model, state = eqx.nn.make_with_state(Model)()
    ours = layer(count=0)
    _, new = convert.to_equinox(*ours, model.second, state)
    assert_same_bits(convert.from_equinox(model.second, new).state, ours[1])
    assert_same_bits(convert.from_equinox(model.first, new).state, jbn.init(C)[1])


def test_equinox_names_everything_that_is_wrong(eqx):
    module, state = equinox_norm(eqx, "batch", channelwise_affine=False)
    ours = layer(features=4)
    with pytest.raises(convert.ConversionError) as error:
        convert.to_equinox(*ours, module, state, options=convert.Options(0.9, 1e-5, False))
    for part in ("weight", "bias", "input_size is 3, expected 4", "momentum", "epsilon is 0.001"):
        assert part in str(error.value)
    with pytest.raises(convert.ConversionError, match="epsilon"):
        convert.from_equinox(
            module, state, options=convert.Options(convert.Debiased(0.8), 1e-5, False)
        )
