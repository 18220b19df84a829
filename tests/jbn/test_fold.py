"""`jbn.fold`: a folded layer equals the layer followed by batch norm in inference."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import F32_VALUE, assert_close
from strategies import values

import jbn

# Folding moves a factor into the kernel, so sums of up to 72 products are rounded differently.
FOLDED = 1e-5


def setting(features, use_scale=True, use_bias=True):
    params = jbn.BatchNormParams(
        values(0, (features,), mean=1.0, std=0.3) if use_scale else None,
        values(1, (features,)) if use_bias else None,
    )
    rng = np.random.default_rng(2)
    state = jbn.BatchNormState(
        values(3, (features,)),
        jax.device_put(rng.uniform(0.5, 2, features).astype(np.float32)),
        jnp.int32(9),
    )
    return params, state


def dense(x, kernel, bias):
    y = jnp.einsum("ni,io->no", x, kernel)
    return y if bias is None else y + bias[None]


def conv(x, kernel, bias):
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y if bias is None else y + bias[None, None, None]


def depthwise(x, kernel, bias):
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    return y if bias is None else y + bias[None, None, None]


LAYERS = {
    "dense": (dense, (6, 4), (5, 6)),
    "conv": (conv, (3, 3, 8, 4), (2, 5, 5, 8)),
    "depthwise": (depthwise, (3, 3, 1, 4), (2, 5, 5, 4)),
}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("layer_bias", [True, False])
@pytest.mark.parametrize("layer", list(LAYERS))
def test_folded_layer_is_layer_then_batch_norm(layer, layer_bias, use_scale, use_bias):
    function, kernel_shape, x_shape = LAYERS[layer]
    params, state = setting(4, use_scale, use_bias)
    x, kernel = values(4, x_shape), values(5, kernel_shape)
    bias = values(6, (4,)) if layer_bias else None
    want, _ = jbn.batch_norm(function(x, kernel, bias), params, state, training=False, epsilon=1e-3)
    new_kernel, new_bias = jbn.fold(kernel, bias, params, state, epsilon=1e-3)
    assert new_kernel.shape == kernel.shape
    assert new_bias.shape == (4,)
    assert_close(function(x, new_kernel, new_bias), want, FOLDED)


def test_fold_is_the_formula_of_algorithm_2():
    """Line 11: y = gamma / sqrt(Var + eps) x + (beta - gamma E / sqrt(Var + eps))."""
    params, state = setting(4)
    kernel, bias = values(7, (6, 4)), values(8, (4,))
    new_kernel, new_bias = jax.jit(jbn.fold)(kernel, bias, params, state)
    gain = oracles.exact(params.scale) / np.sqrt(oracles.exact(state.var) + 1e-5)
    assert_close(new_kernel, oracles.exact(kernel) * gain, F32_VALUE)
    want = oracles.exact(params.bias) + (oracles.exact(bias) - oracles.exact(state.mean)) * gain
    assert_close(new_bias, want, F32_VALUE)


def test_fold_of_identity_statistics_is_the_layer():
    params, state = jbn.init(4)
    kernel, bias = values(9, (6, 4)), values(10, (4,))
    got = jbn.fold(kernel, bias, params, state, epsilon=1e-12)
    chex.assert_trees_all_close(got, (kernel, bias), rtol=F32_VALUE)


def test_fold_keeps_the_dtype_of_the_kernel():
    params, state = setting(4)
    kernel, bias = values(11, (6, 4), "bfloat16"), values(12, (4,), "bfloat16")
    new_kernel, new_bias = jbn.fold(kernel, bias, params, state)
    assert new_kernel.dtype == new_bias.dtype == jnp.bfloat16
    want, _ = jbn.fold(kernel.astype(jnp.float32), bias.astype(jnp.float32), params, state)
    assert_close(new_kernel, want, oracles.output_tolerance("bfloat16"))


def test_fold_is_differentiable_and_maps():
    params, state = setting(4)
    kernel, bias = values(13, (6, 4)), values(14, (4,))
    of_sum = jax.jit(jax.grad(lambda p: sum(map(jnp.sum, jbn.fold(kernel, bias, p, state)))))
    gradient = of_sum(params)
    rstd = 1 / np.sqrt(oracles.exact(state.var) + 1e-5)
    want = (oracles.exact(kernel).sum(0) + oracles.exact(bias) - oracles.exact(state.mean)) * rstd
    assert_close(gradient.scale, want, FOLDED)
    np.testing.assert_allclose(gradient.bias, np.ones(4), rtol=1e-6)
    stacked = jax.vmap(functools.partial(jbn.fold, params=params, state=state))(
        np.stack([kernel, 2 * np.asarray(kernel)]), np.stack([bias, bias])
    )
    one = jbn.fold(kernel, bias, params, state)
    assert_close(np.asarray(stacked[0])[0], one[0], F32_VALUE)
    assert_close(np.asarray(stacked[1])[0], one[1], F32_VALUE)


def test_fold_takes_the_mappings_of_a_restored_checkpoint():
    params, state = setting(4)
    kernel = values(15, (6, 4))
    want = jbn.fold(kernel, None, params, state)
    batch_stats = {"mean": state.mean, "var": state.var}
    got = jbn.fold(kernel, None, params._asdict(), batch_stats)
    chex.assert_trees_all_equal(got, want)
    want = jbn.fold(kernel, None, params._replace(bias=None), state)
    chex.assert_trees_all_equal(jbn.fold(kernel, None, {"scale": params.scale}, state), want)


def test_fold_under_strict_promotion():
    params, state = setting(4)
    kernel, bias = values(16, (6, 4)), values(17, (4,))
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.float32, jnp.bfloat16, jnp.complex64):
            got = jbn.fold(kernel.astype(dtype), bias.astype(dtype), params, state)
            assert got[0].dtype == got[1].dtype == dtype


def test_fold_of_complex_layers():
    params, state = setting(4)
    kernel = values(18, (6, 4)) + 1j * values(19, (6, 4))
    complex_state = state._replace(mean=state.mean + 2j)
    x = values(20, (5, 6)) + 1j * values(21, (5, 6))
    complex_params = jbn.BatchNormParams(*(p.astype(jnp.complex64) for p in params))
    want, _ = jbn.batch_norm(x @ kernel, complex_params, complex_state, training=False)
    got = jbn.fold(kernel, None, params, complex_state)
    np.testing.assert_allclose(x @ got[0] + got[1][None], want, rtol=0, atol=FOLDED * 20)


# Wrong calls -----------------------------------------------------------------------------------

KERNEL, PARAMS, STATE = jnp.ones((6, 4)), *jbn.init(4)
ONES = jnp.ones(4)

# name: (call, error, words in the message)
CASES = {
    "kernel of integers": (
        lambda: jbn.fold(jnp.ones((6, 4), jnp.int8), None, PARAMS, STATE),
        TypeError,
        ["int8", "Fold before you quantize"],
    ),
    "kernel of booleans": (
        lambda: jbn.fold(np.ones((6, 4), bool), None, PARAMS, STATE),
        TypeError,
        ["bool", "floating"],
    ),
    "kernel of None": (
        lambda: jbn.fold(None, None, PARAMS, STATE),
        TypeError,
        ["`kernel`", "None"],
    ),
    "parameters of the layer": (
        lambda: jbn.fold({"kernel": KERNEL, "bias": ONES}, None, PARAMS, STATE),
        TypeError,
        ["`kernel`", "the keys 'kernel', 'bias'", "its bias or None after it"],
    ),
    **{
        f"{field} of shape {shape}": (
            lambda field=field, shape=shape: jbn.fold(
                KERNEL, None, PARAMS._replace(**{field: jnp.ones(shape)}), STATE
            ),
            ValueError,
            [f"`params.{field}` of shape (4,)", str(shape), "the same layer"],
        )
        for field in ("scale", "bias")
        for shape in ((), (1,), (6,), (4, 1))
    },
    **{
        f"var of shape {shape}": (
            lambda shape=shape: jbn.fold(KERNEL, None, PARAMS, STATE._replace(var=jnp.ones(shape))),
            ValueError,
            ["`state.var` of shape (4,)", str(shape)],
        )
        for shape in ((), (1,), (6,))
    },
    "mean of shape ()": (
        lambda: jbn.fold(KERNEL, None, PARAMS, STATE._replace(mean=jnp.ones(()))),
        ValueError,
        ["()", "last axis"],
    ),
    "params of other features": (
        lambda: jbn.fold(KERNEL, None, jbn.init(5)[0], STATE),
        ValueError,
        ["`params.scale`", "(4,)", "(5,)"],
    ),
    "complex mean, real kernel": (
        lambda: jbn.fold(KERNEL, None, PARAMS, STATE._replace(mean=ONES + 1j)),
        TypeError,
        ["float32", "complex state.mean", "kernel complex"],
    ),
    "complex scale, real kernel": (
        lambda: jbn.fold(KERNEL, None, PARAMS._replace(scale=ONES + 1j), STATE),
        TypeError,
        ["complex params.scale"],
    ),
    "complex bias, real kernel": (
        lambda: jbn.fold(KERNEL, ONES + 1j, PARAMS, STATE),
        TypeError,
        ["complex bias"],
    ),
    "bias of words": (
        lambda: jbn.fold(KERNEL, "bias", PARAMS, STATE),
        TypeError,
        ["`bias`", "'bias'", "or None"],
    ),
    "a state within the state": (
        lambda: jbn.fold(KERNEL, None, PARAMS, STATE._replace(mean=STATE)),
        TypeError,
        ["`state.mean`", "BatchNormState", "one value per feature"],
    ),
    "params of None": (
        lambda: jbn.fold(KERNEL, None, None, STATE),
        TypeError,
        ["`params`", "None", "jbn.BatchNormParams(None, None)"],
    ),
    "state of None": (
        lambda: jbn.fold(KERNEL, None, PARAMS, None),
        TypeError,
        ["`state`", "None", "jbn.init"],
    ),
    "swapped": (
        lambda: jbn.fold(KERNEL, None, STATE, PARAMS),
        TypeError,
        ["`params`", "BatchNormState", "swapped"],
    ),
    "params as a tuple": (
        lambda: jbn.fold(KERNEL, None, tuple(PARAMS), STATE),
        TypeError,
        ["a tuple of 2", "jbn.BatchNormParams(*params)"],
    ),
    "state as a list": (
        lambda: jbn.fold(KERNEL, None, PARAMS, list(STATE)),
        TypeError,
        ["a list of 3", "jbn.BatchNormState(*state)"],
    ),
    "params of a dense layer": (
        lambda: jbn.fold(KERNEL, None, {"kernel": KERNEL, "bias": ONES}, STATE),
        TypeError,
        ["'kernel', 'bias'", "jbn.BatchNormParams(**params)"],
    ),
    "whole result of init": (
        lambda: jbn.fold(KERNEL, None, jbn.init(4), STATE),
        TypeError,
        ["params, state ="],
    ),
    "variables of a model": (
        lambda: jbn.fold(KERNEL, None, PARAMS, {"params": {}, "batch_stats": {}}),
        TypeError,
        ["'params', 'batch_stats'", "from_linen"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_raises(name):
    call, error, words = CASES[name]
    for run in (call, lambda: jax.eval_shape(call)):
        with pytest.raises(error) as caught:
            run()
        for word in ["Expected", "got", *words]:
            assert word in str(caught.value), f"does not say {word!r}: {caught.value}"
