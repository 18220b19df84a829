"""Multilayer perceptron, with or without a normalization around each nonlinearity."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jbn.models.attributes import check_shared, check_sizes
from jbn.models.units import (
    Activation,
    Initializer,
    Norm,
    Placement,
    check_call,
    logits,
    unit,
)


class MLP(nn.Module):
    """Dense layers u -> activation(norm(W u)), then a last layer W u + b.

    By default the normalization comes before the nonlinearity, and the bias is omitted where
    subtracting the mean would cancel it. Initial weights are the same with and without `norm`.

    Attributes:
      hidden: width of each hidden layer.
      outputs: number of outputs.
      activation: the nonlinearity.
      kernel_init: initializer of every W.
      norm, placement: for every hidden layer; see `jbn.models.units.unit`. A norm is a name such as
        "batch", or a function such as `jbn.linen.BatchNorm`; None for none.
      use_bias: use a bias in every hidden layer; None omits it where the normalization cancels it.
      dtype: dtype of the computation, such as jnp.bfloat16; None promotes as Flax does. The last
        layer and all statistics use at least float32.
      param_dtype: dtype of kernels and biases; parameters of normalizations are float32.

    Inputs of the nonlinearities are sown in `intermediates` as `activation_input_0`, `..._1`, ...

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn.models import MLP
      >>> model = MLP(hidden=(100, 100), norm="batch")
      >>> x = jnp.ones((60, 784))
      >>> variables = model.init(jax.random.key(0), x, training=False)
      >>> model.apply(variables, x, training=False).shape
      (60, 10)

    References:
      Ioffe, Szegedy, "Batch Normalization", 2015, sections 3.2 and 4.1.
    """

    hidden: Sequence[int] = (100, 100, 100)
    outputs: int = 10
    activation: Activation = nn.sigmoid
    kernel_init: Initializer = nn.initializers.normal(0.1)
    norm: Norm = None
    placement: Placement = "before"
    use_bias: bool | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Check the attributes."""
        check_shared(self)
        check_sizes("hidden", self.hidden)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N F"],
        *,
        training: bool,
        mask: Bool[Array, "N"] | None = None,
    ) -> Float[Array, "N outputs"]:
        """Compute the outputs; `mask` tells which rows count for the statistics."""
        x, mask = check_call(x, "N F", training=training, mask=mask)
        for i, width in enumerate(self.hidden):
            x = unit(
                functools.partial(nn.Dense, width, kernel_init=self.kernel_init),
                x,
                training=training,
                name=f"dense_{i}",
                norm=self.norm,
                norm_name=f"norm_{i}",
                activation=self.activation,
                placement=self.placement,
                mask=None if mask is None else mask[:, None],
                sow=functools.partial(self.sow, "intermediates", f"activation_input_{i}"),
                use_bias=self.use_bias,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )
        return logits(
            x,
            self.outputs,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
