"""A plain convolutional network for MNIST, Fashion-MNIST and CIFAR."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jbn._dtypes import wide_dtype
from jbn.models.attributes import check_shared, check_sizes
from jbn.models.pooling import max_pool
from jbn.models.units import (
    Activation,
    Initializer,
    Norm,
    Placement,
    check_call,
    logits,
    unit,
)


class CNN(nn.Module):
    """Stages of two 3x3 convolutions and a max pool, then global average pooling and a dense layer.

    Attributes:
      widths: features of each stage.
      outputs: number of outputs.
      norm, activation, placement: for every convolution; see `jbn.models.units.unit`.
      kernel_init: initializer of every kernel.
      use_bias: use a bias in every convolution; None omits it where the normalization cancels it.
      dtype: dtype of the computation, such as jnp.bfloat16; None promotes as Flax does. The last
        layer and all statistics use at least float32.
      param_dtype: dtype of kernels and biases; parameters of normalizations are float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn.models import CNN
      >>> model = CNN(norm="batch")
      >>> x = jnp.ones((4, 28, 28, 1))
      >>> variables = model.init(jax.random.key(0), x, training=False)
      >>> model.apply(variables, x, training=False).shape
      (4, 10)
    """

    widths: Sequence[int] = (32, 64, 128)
    outputs: int = 10
    norm: Norm = None
    activation: Activation = nn.relu
    placement: Placement = "before"
    kernel_init: Initializer = nn.initializers.he_normal()
    use_bias: bool | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Check the attributes."""
        check_shared(self)
        check_sizes("widths", self.widths)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N H W in"],
        *,
        training: bool,
        mask: Bool[Array, "N"] | None = None,
    ) -> Float[Array, "N outputs"]:
        """Compute the outputs; only images selected by `mask` count for the statistics."""
        x, mask = check_call(x, "N H W C", training=training, mask=mask)
        pixels = None if mask is None else mask[:, None, None, None]
        for stage, width in enumerate(self.widths):
            conv = functools.partial(nn.Conv, width, (3, 3), kernel_init=self.kernel_init)
            for i in range(2):
                x = unit(
                    conv,
                    x,
                    training=training,
                    name=f"conv_{stage}_{i}",
                    norm=self.norm,
                    norm_name=f"norm_{stage}_{i}",
                    activation=self.activation,
                    placement=self.placement,
                    mask=pixels,
                    sow=functools.partial(
                        self.sow, "intermediates", f"activation_input_{stage}_{i}"
                    ),
                    use_bias=self.use_bias,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                )
            x = max_pool(x, (2, 2), (2, 2), "SAME")
        x = jnp.mean(x, (1, 2), dtype=wide_dtype(x.dtype))
        return logits(
            x,
            self.outputs,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
