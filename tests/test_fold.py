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

# Folding moves a product into the kernel: sums of up to 72 products are rounded differently.
FOLDED = 1e-5


def setting(features, use_scale=True, use_bias=True):
    params = jbn.BatchNormParams(
        values(0, (features,), mean=1.0, std=0.3) if use_scale else None,
        values(1, (features,)) if use_bias else None,
    )
    rng = np.random.default_rng(2)
    state = jbn.BatchNormState(
        values(3, (features,)),
        jnp.asarray(rng.uniform(0.5, 2, features), jnp.float32),
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
    gradient = jax.grad(lambda p: sum(map(jnp.sum, jbn.fold(kernel, bias, p, state))))(params)
    rstd = 1 / np.sqrt(oracles.exact(state.var) + 1e-5)
    want = (oracles.exact(kernel).sum(0) + oracles.exact(bias) - oracles.exact(state.mean)) * rstd
    assert_close(gradient.scale, want, FOLDED)
    np.testing.assert_allclose(gradient.bias, np.ones(4), rtol=1e-6)
    stacked = jax.vmap(functools.partial(jbn.fold, params=params, state=state))(
        jnp.stack([kernel, 2 * kernel]), jnp.stack([bias, bias])
    )
    one = jbn.fold(kernel, bias, params, state)
    assert_close(stacked[0][0], one[0], F32_VALUE)
    assert_close(stacked[1][0], one[1], F32_VALUE)
