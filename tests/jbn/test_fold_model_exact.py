"""What `fold_model` may not fold: a factor near 1, and a norm that it cannot take out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jbn
import jbn.linen
import jbn.nnx


class Scaled(nn.Module):
    """A norm, a factor that bfloat16 rounds to no other, a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = jbn.linen.BatchNorm(use_running_average=True, dtype=jnp.bfloat16)(x)
        return nn.Dense(3)(0.97 * x.astype(jnp.float32))


def test_a_factor_near_one_is_no_mean_in_half_precision():
    x = jnp.ones((4, 5))
    variables = Scaled().init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="BatchNorm_0"):
        jbn.fold_model(Scaled(), x, variables=variables)


class InAList(nnx.Module):
    """Layers in a container that is no module."""

    def __init__(self, rngs):
        layers = [nnx.Linear(5, 5, rngs=rngs), jbn.nnx.BatchNorm(5, rngs=rngs)]
        self.layers = nnx.data(layers)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_norm_that_stays_in_its_container_is_refused():
    model = InAList(nnx.Rngs(0))
    model.eval()
    with pytest.raises(ValueError, match=r"nnx\.List"):
        jbn.fold_model(model, jnp.ones((4, 5)))
