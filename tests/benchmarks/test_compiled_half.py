"""On a TPU, the convolutions of a half-precision network stay bfloat16, all but its last layer."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks import compiled, programs
from jbn import models

CONVOLUTION = re.compile(
    r"= (\w+)\[[^=]*? convolution\(%?([\w.-]+), %?([\w.-]+)\).*op_name=\"([^\"]*)"
)


def training_step(dtype):
    """Make a training step of a small ResNet; on a TPU, its last layer is a convolution too."""
    model = models.ResNet(blocks=(1,), widths=(16,), norm="batch", dtype=dtype)

    def make():
        x, labels = jnp.ones((32, 8, 8, 3)), jnp.zeros(32, jnp.int32)
        return model.init(jax.random.key(0), x, training=False), x, labels

    def step(variables, x, labels):
        def loss(params):
            logits, moved = model.apply(
                {**variables, "params": params}, x, training=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), moved

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return programs.Program(step, make, 1)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_no_convolution_is_float32_on_a_tpu(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    text = compiled.compile_for("v5e", training_step(jnp.bfloat16)).as_text()
    dtype_of = dict(re.findall(r"%?([\w.-]+) = (\w+)\[", text))
    found = {True: set(), False: set()}
    for result, x, kernel, name in CONVOLUTION.findall(text):
        found["/output/" in name] |= {result, dtype_of[x], dtype_of[kernel]}
    assert found == {True: {"f32"}, False: {"bf16"}}
