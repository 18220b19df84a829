"""Residual networks, with skip connections or without: CIFAR's 20, 56, 110, ImageNet's 18, 50."""

import functools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jbn.models.units import Activation, Initializer, Norm, Placement, check_call, unit


class ResNet(nn.Module):
    """A stem, stages of blocks, the mean over space, one dense layer.

    A block is two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 to four times the width,
    added to what came in. The nonlinearity after the addition is that of the original.

    Attributes:
      blocks: number of blocks in each stage; each stage after the first halves the space.
      widths: features of each stage.
      bottleneck: three convolutions to a block instead of two.
      stem: "cifar", a 3x3 convolution; "imagenet", a 7x7 one with stride 2 and a 3x3 max pool.
      skip: add what came in; without it the network is a plain one of the same depth.
      shortcut: where the shape changes, "pad" the features with zeros (CIFAR) or "project" them.
      outputs: number of outputs.
      norm, activation, placement: of every convolution, see `jbn.models.units.unit`.
      kernel_init: initializer of every kernel.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn.models import resnet20
      >>> model = resnet20(norm="batch")
      >>> x = jnp.ones((1, 32, 32, 3))
      >>> variables = jax.eval_shape(
      ...     lambda x: model.init(jax.random.key(0), x, training=False), x)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
      269722

    References:
      He, Zhang, Ren, Sun, "Deep Residual Learning", 2016, sections 3.3, 4.1 and 4.2.
    """

    blocks: Sequence[int]
    widths: Sequence[int]
    bottleneck: bool = False
    stem: Literal["cifar", "imagenet"] = "cifar"
    skip: bool = True
    shortcut: Literal["pad", "project"] = "pad"
    outputs: int = 10
    norm: Norm = None
    activation: Activation = nn.relu
    placement: Placement = "before"
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N H W in"],
        *,
        training: bool,
        mask: Bool[Array, "N"] | None = None,
    ) -> Float[Array, "N outputs"]:
        """Compute the outputs; `mask` tells which images count for the statistics."""
        x, mask = check_call(x, "N H W C", training=training, mask=mask)
        pixels = None if mask is None else mask[:, None, None, None]

        def conv(
            x: Array,
            features: int,
            size: int,
            name: str,
            stride: int = 1,
            activation: Activation | None = self.activation,
        ) -> Array:
            layer = functools.partial(
                nn.Conv,
                features,
                (size, size),
                (stride, stride),
                padding=(size - 1) // 2,  # As in torch: XLA's SAME is off by one at stride 2.
                kernel_init=self.kernel_init,
            )
            return unit(
                layer,
                x,
                training=training,
                name=name,
                norm=self.norm,
                norm_name=f"{name}_norm",
                activation=activation,
                placement=self.placement,
                mask=pixels,
            )

        if self.stem == "imagenet":
            x = conv(x, self.widths[0], 7, "stem", stride=2)
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        else:
            x = conv(x, self.widths[0], 3, "stem")
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            for i in range(count):
                stride = 2 if stage and not i else 1
                name, came_in = f"block_{stage}_{i}", x
                if self.bottleneck:
                    x = conv(x, width, 1, f"{name}_conv_0")
                    x = conv(x, width, 3, f"{name}_conv_1", stride)
                    x = conv(x, 4 * width, 1, f"{name}_conv_2", activation=None)
                else:
                    x = conv(x, width, 3, f"{name}_conv_0", stride)
                    x = conv(x, width, 3, f"{name}_conv_1", activation=None)
                if self.skip and came_in.shape == x.shape:
                    x = x + came_in
                elif self.skip and self.shortcut == "pad":
                    x = x + pad(came_in[:, ::stride, ::stride], x)
                elif self.skip:
                    shortcut = f"{name}_shortcut"
                    x = x + conv(came_in, x.shape[-1], 1, shortcut, stride, activation=None)
                x = self.activation(x)
        x = jnp.mean(x, (1, 2))
        return nn.Dense(self.outputs, kernel_init=self.kernel_init, name="output")(x)


def pad(x: Float[Array, "N H W in"], like: Float[Array, "N H W out"]) -> Float[Array, "N H W out"]:
    """Give x the features of `like`, half of the zeros on either side."""
    missing = like.shape[-1] - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


def _cifar(depth: int) -> functools.partial[ResNet]:
    return functools.partial(ResNet, blocks=((depth - 2) // 6,) * 3, widths=(16, 32, 64))


def _imagenet(blocks: Sequence[int], bottleneck: bool) -> functools.partial[ResNet]:
    return functools.partial(
        ResNet,
        blocks=blocks,
        widths=(64, 128, 256, 512),
        bottleneck=bottleneck,
        stem="imagenet",
        shortcut="project",
        outputs=1000,
    )


resnet20, resnet56, resnet110 = _cifar(20), _cifar(56), _cifar(110)
resnet18, resnet50 = _imagenet((2, 2, 2, 2), False), _imagenet((3, 4, 6, 3), True)
