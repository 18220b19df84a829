"""A dense network of any depth that compiles as fast as a shallow one."""

import flax.linen as nn
from jaxtyping import Array, Float

from jbn.models.units import Activation, Norm, cancels_bias, make_norm


class DeepMLP(nn.Module):
    """Equal hidden layers, plain or residual: a first layer, a scan over blocks, an output layer.

    Blocks map pre-activations h to pre-activations, and normalize them before the nonlinearity f. A
    block of one layer is h -> skip h + W dropout(f(norm(h))); with two layers the second term is
    W2 dropout(f(norm(W1 ...))). Parameters of the blocks are stacked.

    Attributes:
      depth: number of hidden layers: the first, and those of the blocks.
      width: units of every hidden layer.
      outputs: number of outputs.
      activation: the nonlinearity f.
      norm: see `jbn.models.units.unit`; None for none.
      layers_per_block: hidden layers that a skip connection spans.
      skip: 1 adds a block's input to its output, which makes the network residual; 0 makes it
        plain. May be traced.
      dropout: share of units dropped after every nonlinearity, by the random numbers `dropout`.

    Sown in `intermediates`: `preactivation`, h of the first layer, `(N, width)`, and
    `blocks/preactivation`, h after each block, `(blocks, N, width)`, both of which are also
    `perturbations`, to differentiate with respect to h; `blocks/inputs_0`, the inputs to the
    nonlinearities of each block, and `inputs`, those to the last nonlinearity.

    References:
      He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", 2016.
    """

    depth: int
    width: int
    outputs: int = 10
    activation: Activation = nn.relu
    norm: Norm = None
    layers_per_block: int = 1
    skip: float | Array = 0.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "N F"], *, training: bool) -> Float[Array, "N outputs"]:
        """Compute the outputs."""
        length, remainder = divmod(self.depth - 1, self.layers_per_block)
        if length < 1 or remainder:
            raise ValueError(
                f"Expected `depth` of one layer plus blocks of {self.layers_per_block}, so 1 more "
                f"than a multiple of `layers_per_block`, got {self.depth}."
            )
        x = nn.Dense(self.width, use_bias=not cancels_bias(self.norm), name="first")(x)
        x = self.perturb("preactivation", x)
        self.sow("intermediates", "preactivation", x)
        stacked = ("params", "batch_stats", "intermediates", "perturbations")
        blocks = nn.scan(
            _Block,
            variable_axes=dict.fromkeys(stacked, 0),
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=length,
        )
        own = (self.width, self.activation, self.norm, self.layers_per_block, self.skip)
        x, _ = blocks(*own, self.dropout, name="blocks")(x, training)
        return nn.Dense(self.outputs, name="output")(_enter(self, x, "", training))


class _Block(nn.Module):
    width: int
    activation: Activation
    norm: Norm
    layers: int
    skip: float | Array
    dropout: float

    @nn.compact
    def __call__(self, x: Array, training: bool) -> tuple[Array, None]:
        """Compute the block's output, and None, as a scan requires."""
        y, bias = x, not cancels_bias(self.norm)
        for i in range(self.layers):
            y = _enter(self, y, f"_{i}", training)
            y = nn.Dense(self.width, use_bias=bias, name=f"dense_{i}")(y)
        y = self.perturb("preactivation", self.skip * x + y)
        self.sow("intermediates", "preactivation", y)
        return y, None


def _enter(module: DeepMLP | _Block, h: Array, suffix: str, training: bool) -> Array:
    """Normalize if there is a norm, apply the nonlinearity, and drop units."""
    make = make_norm(module.norm)
    if make is not None:
        h = make(use_running_average=not training, name=f"norm{suffix}")(h)
    module.sow("intermediates", f"inputs{suffix}", h)
    return nn.Dropout(module.dropout, deterministic=not training)(module.activation(h))
