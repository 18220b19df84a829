"""A miniature of Inception whose variants differ by traced numbers, and photometric distortion."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

import jbn
from jbn.linen import BatchNorm
from jbn.models.inception import local_response_norm
from jbn.models.units import unit


class Miniature(nn.Module):
    """A 3x3 convolution, groups of Inception blocks, each after max pooling, and a dense layer.

    LRN follows the first pooling, the first place where the original has it.

    Attributes:
      blocks: number of blocks in each group.
      width: features of each of a block's four paths; the first convolution has twice as many.
      norm: apply BN before every nonlinearity.
      lrn: alpha of LRN, 0 for none. This and the next two may be traced.
      dropout: share of the last features dropped in training; needs a `dropout` rng.
      sigmoid: use sigmoids instead of ReLUs.
    """

    blocks: Sequence[int]
    width: int
    norm: bool
    lrn: float
    dropout: float
    sigmoid: bool

    @nn.compact
    def __call__(self, x: Float[Array, "N H W in"], *, training: bool) -> Float[Array, "N 10"]:
        """Compute the outputs."""

        def conv(x: Array, size: int, name: str, features: int = self.width) -> Array:
            layer = functools.partial(
                nn.Conv,
                features,
                (size, size),
                kernel_init=nn.initializers.he_normal(),
                conv_general_dilated=convolve,
            )
            return unit(
                layer,
                x,
                training=training,
                name=name,
                # A short memory, since evaluations happen while the weights change fast.
                norm=functools.partial(BatchNorm, momentum=jbn.debiased(0.9), unbiased=True)
                if self.norm
                else None,
                norm_name=f"{name}_norm",
                activation=lambda x: jnp.where(self.sigmoid, nn.sigmoid(x), nn.relu(x)),
            )

        x = conv(x, 3, "stem", 2 * self.width)
        for group, blocks in enumerate(self.blocks):
            x = max_pool(x)
            x = local_response_norm(x, alpha=self.lrn) if group == 0 else x
            for block in range(blocks):
                name = f"block_{group}_{block}"
                double = conv(conv(x, 1, f"{name}_reduce_double"), 3, f"{name}_double_0")
                paths = (
                    conv(x, 1, f"{name}_one"),
                    conv(conv(x, 1, f"{name}_reduce_3"), 3, f"{name}_three"),
                    conv(double, 3, f"{name}_double_1"),
                    conv(nn.avg_pool(x, (3, 3), padding="SAME"), 1, f"{name}_pool"),
                )
                x = jnp.concatenate(paths, -1)
        x = jnp.mean(x, (1, 2))
        if training:
            mask = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.dropout, x.shape)
            x = jnp.where(mask, x / (1 - self.dropout), 0)
        return nn.Dense(10, kernel_init=nn.initializers.he_normal(), name="output")(x)


def convolve(
    x: Float[Array, "N H W in"], kernel: Float[Array, "size size in out"], *_: Any, **__: Any
) -> Float[Array, "N H W out"]:
    """Convolve with stride 1 and zero padding, as one matrix product.

    On a CPU with few features, this is four times faster than XLA's own convolution in a scan.
    """
    size, (height, width) = len(kernel), x.shape[1:3]
    padding = size // 2, (size - 1) // 2
    padded = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    patches = jnp.concatenate(shifted, -1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def max_pool(x: Float[Array, "N H W C"]) -> Float[Array, "N H/2 W/2 C"]:
    """Max-pool 2x2 squares, with a faster derivative than that of `nn.max_pool`."""
    n, height, width, features = x.shape
    return jnp.max(x.reshape(n, height // 2, 2, width // 2, 2, features), (2, 4))


def distort(
    key: PRNGKeyArray, images: Float[Array, "N H W C"], strength: ArrayLike
) -> Float[Array, "N H W C"]:
    """Change brightness, contrast and saturation of each image (0 to 1) at random.

    Contrast and saturation change by a factor from 1 - strength to 1 + strength, brightness by at
    most strength / 4, as is usual for Inception.
    """
    shape = 3, len(images), 1, 1, 1
    brightness, contrast, saturation = strength * jax.random.uniform(key, shape, minval=-1.0)
    gray = jnp.mean(images, -1, keepdims=True)
    images = gray + (images - gray) * (1 + saturation)
    mean = jnp.mean(images, (1, 2, 3), keepdims=True)
    images = mean + (images - mean) * (1 + contrast)
    return jnp.clip(images + brightness / 4, 0, 1)
