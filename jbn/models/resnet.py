"""Residual networks of any depth, with or without skip connections."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jbn._arguments import check_flag
from jbn._dtypes import wide_dtype
from jbn.models.attributes import check_choice, check_function, check_shared, check_sizes
from jbn.models.convolution import Conv
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


class ResNet(nn.Module):
    """A stem, stages of residual blocks, global average pooling, and a dense layer.

    A block is two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 convolutions to four times
    the width, added to its input. As in the original, a nonlinearity follows the addition.

    Attributes:
      blocks: number of blocks in each stage; each stage after the first halves the resolution.
      widths: features of each stage.
      bottleneck: use three convolutions per block instead of two.
      stem: "cifar", a 3x3 convolution; "imagenet", a 7x7 one with stride 2 and a 3x3 max pool.
      skip: use skip connections; without them, the network is a plain one of the same depth.
      shortcut: where the shape changes, "pad" the features with zeros (CIFAR) or "project" them.
      outputs: number of outputs.
      norm, activation, placement: for every convolution; see `jbn.models.units.unit`.
      kernel_init: initializer of every kernel.
      use_bias: use a bias in every convolution; None omits it where the normalization cancels it.
      dtype: dtype of the computation, such as jnp.bfloat16; None promotes as Flax does. The last
        layer and all statistics use at least float32.
      param_dtype: dtype of kernels and biases; parameters of normalizations are float32.
      zero_init_last: initialize the scale of each block's last normalization to 0, so that each
        block starts as its shortcut; needs `skip`, and a normalization with a scale.
      padding, stem_padding: "symmetric", as many zeros before as after, or "same", XLA's SAME, as
        in Flax's and Haiku's networks: with even image sizes, strided convolutions and the max pool
        then start one pixel later. `stem_padding` is that of the first convolution.
      stride_in_1x1: put the stride in a bottleneck's first 1x1 convolution, as in the paper and
        Keras, instead of its 3x3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jbn.models import resnet20
      >>> model = resnet20(norm="batch")
      >>> x = jnp.ones((1, 32, 32, 3))
      >>> variables = jax.eval_shape(
      ...     lambda x: model.init(jax.random.key(0), x, training=False), x)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
      269722

    Raises:
      TypeError: blocks or widths that are not sequences; outputs that are not an int; a norm that
        is neither a name nor makes a layer; an activation that is not a function; a dtype that is
        not floating.
      ValueError: an unknown stem, shortcut, placement or padding; different numbers of widths and
        blocks; `zero_init_last` without `skip`.

    References:
      He, Zhang, Ren, Sun, "Deep Residual Learning", 2016, sections 3.3, 4.1 and 4.2. Goyal et al.,
      "Accurate, Large Minibatch SGD", 2017, section 5.1 (`zero_init_last`).
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
    use_bias: bool | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    zero_init_last: bool = False
    padding: Literal["symmetric", "same"] = "symmetric"
    stem_padding: Literal["symmetric", "same"] = "symmetric"
    stride_in_1x1: bool = False

    def __post_init__(self) -> None:
        """Check the attributes; a misspelled one would build another network."""
        check_shared(self)
        check_function("activation", self.activation, "jax.nn.relu", optional=False)
        check_choice("stem", self.stem, ("cifar", "imagenet"))
        check_choice("shortcut", self.shortcut, ("pad", "project"))
        for name in ("padding", "stem_padding"):
            check_choice(name, getattr(self, name), ("symmetric", "same"))
        for name in ("bottleneck", "skip", "zero_init_last", "stride_in_1x1"):
            check_flag(name, getattr(self, name))
        check_sizes("blocks", self.blocks)
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
        """Compute the outputs; `mask` tells which images count for the statistics."""
        if not len(self.blocks) == len(self.widths) > 0:
            raise ValueError(
                f"Expected as many `widths` as `blocks`, one per stage, got blocks="
                f"{tuple(self.blocks)} and widths={tuple(self.widths)}."
            )
        if self.zero_init_last and not self.skip:
            raise ValueError(
                "Expected `skip` with `zero_init_last`, got skip=False: blocks that start at 0 "
                "pass neither values nor gradients on. Leave one of the two out."
            )
        x, mask = check_call(x, "N H W C", training=training, mask=mask)
        pixels = None if mask is None else mask[:, None, None, None]

        def conv(
            x: Array,
            features: int,
            size: int,
            name: str,
            stride: int = 1,
            activation: Activation | None = self.activation,
            zero_scale: bool = False,
        ) -> Array:
            padding = self.stem_padding if name == "stem" else self.padding
            layer = functools.partial(
                Conv,
                features,
                (size, size),
                (stride, stride),
                # Symmetric as in torch, from which XLA's SAME is off by one at stride 2.
                padding=(size - 1) // 2 if padding == "symmetric" else "SAME",
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
                use_bias=self.use_bias,
                zero_scale=zero_scale,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )

        if self.stem == "imagenet":
            x = conv(x, self.widths[0], 7, "stem", stride=2)
            padding = ((1, 1), (1, 1)) if self.padding == "symmetric" else "SAME"
            x = max_pool(x, (3, 3), (2, 2), padding)
        else:
            x = conv(x, self.widths[0], 3, "stem")
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            for i in range(count):
                stride = 2 if stage and not i else 1
                name, came_in = f"block_{stage}_{i}", x
                last = functools.partial(conv, activation=None, zero_scale=self.zero_init_last)
                if self.bottleneck:
                    first, second = (stride, 1) if self.stride_in_1x1 else (1, stride)
                    x = conv(x, width, 1, f"{name}_conv_0", first)
                    x = conv(x, width, 3, f"{name}_conv_1", second)
                    x = last(x, 4 * width, 1, f"{name}_conv_2")
                else:
                    x = conv(x, width, 3, f"{name}_conv_0", stride)
                    x = last(x, width, 3, f"{name}_conv_1")
                if self.skip and came_in.shape == x.shape:
                    x = x + came_in
                elif self.skip and self.shortcut == "pad":
                    x = x + pad(came_in[:, ::stride, ::stride], x)
                elif self.skip:
                    shortcut = f"{name}_shortcut"
                    x = x + conv(came_in, x.shape[-1], 1, shortcut, stride, activation=None)
                x = self.activation(x)
        x = jnp.mean(x, (1, 2), dtype=wide_dtype(x.dtype))
        return logits(
            x,
            self.outputs,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )


def pad(x: Float[Array, "N H W in"], like: Float[Array, "N H W out"]) -> Float[Array, "N H W out"]:
    """Pad x with zeros to the number of features of `like`, half of them on either side."""
    missing = like.shape[-1] - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
