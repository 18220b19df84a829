"""A small convolutional network, whose convolutions are dense layers on patches."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbn.models.pooling import max_pool
from jbn.models.units import Norm, unit


class PatchConv(nn.Module):
    """3x3 convolution as a dense layer on patches.

    Equivalent to `nn.Conv`, whose gradient in a scan on a CPU takes ten times as long.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "N H W in"]) -> Float[Array, "N H W features"]:
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        dense = nn.Dense(
            self.features,
            use_bias=self.use_bias,
            kernel_init=nn.initializers.he_normal(),
            name="patches",
        )
        return dense(jnp.concatenate(shifts, -1))


class SmallCNN(nn.Module):
    """Stages of two convolutions and a max pool, then the mean over positions."""

    widths: tuple[int, ...]
    norm: Norm = None
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Float[Array, "N H W"], *, training: bool) -> Float[Array, "N outputs"]:
        x = x[..., None]
        for stage, width in enumerate(self.widths):
            for i in range(2):
                x = unit(
                    functools.partial(PatchConv, width),
                    x,
                    training=training,
                    name=f"conv_{stage}_{i}",
                    norm=self.norm,
                    norm_name=f"norm_{stage}_{i}",
                    activation=self.activation,
                )
            x = max_pool(x, (2, 2), (2, 2), "SAME")
        return nn.Dense(10, kernel_init=nn.initializers.he_normal(), name="output")(x.mean((1, 2)))
