"""Convolutions of the models, compared with Flax's."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbn.models.convolution import Conv

CASES = [
    {"kernel_size": (1, 1)},
    {"kernel_size": (1, 1), "strides": (2, 2)},
    {"kernel_size": (1, 1), "strides": (2, 3), "padding": ((0, 0), (0, 0))},
    {"kernel_size": (1, 1), "padding": 1},
    {"kernel_size": (1, 1), "padding": "VALID", "kernel_dilation": 2},
    {"kernel_size": (1, 1), "input_dilation": 2, "padding": ((0, 0), (0, 0))},
    {"kernel_size": (1, 1), "feature_group_count": 2},
    {"kernel_size": (3, 1), "strides": (2, 2)},
    {"kernel_size": (3, 3), "padding": 1},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_flaxs(options, dtype):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 4))
    flax, ours = nn.Conv(6, dtype=dtype, **options), Conv(6, dtype=dtype, **options)
    variables = flax.init(jax.random.key(1), x)
    y, pull = jax.vjp(ours.apply, variables, x)
    want, want_pull = jax.vjp(flax.apply, variables, x)
    ct = jax.random.normal(jax.random.key(2), y.shape).astype(y.dtype)
    rtol = 32 * float(jnp.finfo(dtype).eps)  # Sums in different orders, rounded once in bfloat16.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=rtol, atol=rtol, strict=True
        ),
        (y, pull(ct)),
        (want, want_pull(ct)),
    )


def test_sums_of_many_features_are_not_in_bfloat16():
    """A sum of 2,000 ones in bfloat16 would stop at 256."""
    x = jnp.ones((1, 1, 1, 2000), jnp.bfloat16)
    model = Conv(1, (1, 1), use_bias=False, dtype=jnp.bfloat16)
    assert model.apply({"params": {"kernel": jnp.ones((1, 1, 2000, 1))}}, x).item() == 2000


def test_each_platform_of_an_export_has_its_own():
    model, x = Conv(6, (1, 1), (2, 2)), jnp.ones((2, 5, 6, 4))
    variables = model.init(jax.random.key(0), x)
    texts = {
        platform: jax.export.export(jax.jit(model.apply), platforms=[platform])(variables, x)
        .mlir_module()
        for platform in ("cpu", "tpu", "cuda")
    }  # fmt: skip
    assert {name: "stablehlo.convolution" in text for name, text in texts.items()} == {
        "cpu": False, "tpu": True, "cuda": True,
    }  # fmt: skip


def test_a_cpu_does_not_convolve_for_a_gradient():
    model, x = Conv(6, (1, 1)), jnp.ones((2, 5, 6, 4))
    variables = model.init(jax.random.key(0), x)

    def loss(variables, x):
        return jnp.sum(model.apply(variables, x) ** 2)

    text = jax.jit(jax.grad(loss, (0, 1))).lower(variables, x).compile().as_text()
    assert re.findall(r"convolution\(", text) == []
