"""Multilayer perceptron, with or without a normalisation before each nonlinearity."""

from collections.abc import Callable, Sequence

import flax.linen as nn
from jaxtyping import Array, Bool, Float


class MLP(nn.Module):
    """Dense layers: u -> activation(norm(W u)), then a last W u + b.

    Normalisation goes before the nonlinearity, and where it is, the bias is dropped: subtracting
    the mean would cancel it. Weights come from the same random numbers with and without `norm`.

    Attributes:
      hidden: width of each hidden layer.
      outputs: number of outputs.
      activation: the nonlinearity.
      kernel_init: initialiser of every W.
      norm: makes the normalisation of a hidden layer, called as
        `norm(use_running_average=..., name=...)`, such as `jbn.linen.BatchNorm`; None for none.

    What enters each nonlinearity is sown in `intermediates` as `activation_input_0`, `..._1`, ...

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn.linen import BatchNorm
      >>> from jbn.models import MLP
      >>> model = MLP(hidden=(100, 100), norm=BatchNorm)
      >>> variables = model.init(jax.random.key(0), jnp.ones((1, 784)), training=False)
      >>> model.apply(variables, jnp.ones((60, 784)), training=False).shape
      (60, 10)

    References: Ioffe, Szegedy, "Batch Normalization", 2015, sections 3.2 and 4.1.
    """

    hidden: Sequence[int] = (100, 100, 100)
    outputs: int = 10
    activation: Callable[[Array], Array] = nn.sigmoid
    kernel_init: Callable[..., Array] = nn.initializers.normal(0.1)
    norm: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N F"],
        *,
        training: bool,
        mask: Bool[Array, "N"] | None = None,
    ) -> Float[Array, "N outputs"]:
        """Compute the outputs, `(N, outputs)`, of inputs `(N, F)`.

        `mask` tells which of the rows are examples; the others count for nothing in `norm`, which
        then takes a `mask`.
        """
        masked = {} if mask is None else {"mask": mask[:, None]}
        for i, width in enumerate(self.hidden):
            x = nn.Dense(
                width,
                use_bias=self.norm is None,
                kernel_init=self.kernel_init,
                name=f"dense_{i}",
            )(x)
            if self.norm is not None:
                x = self.norm(use_running_average=not training, name=f"norm_{i}")(x, **masked)
            self.sow("intermediates", f"activation_input_{i}", x)
            x = self.activation(x)
        return nn.Dense(self.outputs, kernel_init=self.kernel_init, name="output")(x)
