"""Residual networks, with skip connections or without, of CIFAR's depths and of ImageNet's."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jbn._dtypes import wide_dtype
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
      use_bias: have a bias in every convolution; None drops it where the normalization cancels it.
      dtype: of the arithmetic, such as jnp.bfloat16; None promotes as Flax does. The last layer and
        all statistics are float32 at least.
      param_dtype: of kernels and biases; those of normalizations are float32.
      zero_init_last: start the scale of each block's last normalization at 0, so that the network
        begins as its shortcuts alone; needs `skip`, and a normalization with a scale.
      padding, stem_padding: "symmetric", as many zeros before as after, or "same", XLA's SAME, as
        Flax's and Haiku's examples have it: in images of an even size, strided convolutions and the
        max pool begin a pixel later. The second is the first convolution's.
      stride_in_1x1: halve the space in a bottleneck's first 1x1 convolution, as in the paper and
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

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N H W in"],
        *,
        training: bool,
        mask: Bool[Array, "N"] | None = None,
    ) -> Float[Array, "N outputs"]:
        """Compute the outputs; `mask` tells which images count for the statistics."""
        if self.zero_init_last and not self.skip:
            raise ValueError(
                "Expected `skip` with `zero_init_last`, got skip=False: blocks that start at 0 "
                "pass neither values nor gradients on. Leave one of the two out."
            )
        for attribute in ("padding", "stem_padding"):
            if getattr(self, attribute) not in ("symmetric", "same"):
                raise ValueError(
                    f"Expected `{attribute}` 'symmetric' or 'same', got "
                    f"{getattr(self, attribute)!r}."
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
                nn.Conv,
                features,
                (size, size),
                (stride, stride),
                # As in torch: XLA's SAME is off by one at stride 2.
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
            x = nn.max_pool(x, (3, 3), (2, 2), padding=padding)
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
    """Give x the features of `like`, half of the zeros on either side."""
    missing = like.shape[-1] - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


def _imagenet(blocks: Sequence[int], bottleneck: bool, attributes: dict[str, Any]) -> ResNet:
    defaults: dict[str, Any] = {
        "blocks": blocks,
        "widths": (64, 128, 256, 512),
        "bottleneck": bottleneck,
        "stem": "imagenet",
        "shortcut": "project",
        "outputs": 1000,
    }
    return ResNet(**defaults | attributes)


def _cifar(depth: int, attributes: dict[str, Any]) -> ResNet:
    defaults: dict[str, Any] = {"blocks": ((depth - 2) // 6,) * 3, "widths": (16, 32, 64)}
    return ResNet(**defaults | attributes)


def resnet20(**attributes: Any) -> ResNet:
    """Make the ResNet of 20 layers for CIFAR-10: 269,722 parameters with batch normalization.

    Three stages of 3 blocks of two 3x3 convolutions, of 16, 32 and 64 features; shortcuts pad with
    zeros. 10 outputs, no normalization unless one is given.

    Args:
      **attributes: of `ResNet`, in place of these and its other defaults.

    Returns:
      the model.

    Example:
      >>> from jbn.models import resnet20
      >>> resnet20(norm="batch").blocks
      (3, 3, 3)

    References:
      He, Zhang, Ren, Sun, "Deep Residual Learning", 2016, section 4.2.
    """
    return _cifar(20, attributes)


def resnet56(**attributes: Any) -> ResNet:
    """Make the ResNet of 56 layers for CIFAR-10: 853,018 parameters with batch normalization.

    Three stages of 9 blocks of two 3x3 convolutions, of 16, 32 and 64 features; shortcuts pad with
    zeros. 10 outputs, no normalization unless one is given.

    Args:
      **attributes: of `ResNet`, in place of these and its other defaults.

    Returns:
      the model.

    Example:
      >>> from jbn.models import resnet56
      >>> resnet56(norm="batch").blocks
      (9, 9, 9)

    References:
      He, Zhang, Ren, Sun, "Deep Residual Learning", 2016, section 4.2.
    """
    return _cifar(56, attributes)


def resnet110(**attributes: Any) -> ResNet:
    """Make the ResNet of 110 layers for CIFAR-10: 1,727,962 parameters with batch normalization.

    Three stages of 18 blocks of two 3x3 convolutions, of 16, 32 and 64 features; shortcuts pad with
    zeros. 10 outputs, no normalization unless one is given.

    Args:
      **attributes: of `ResNet`, in place of these and its other defaults.

    Returns:
      the model.

    Example:
      >>> from jbn.models import resnet110
      >>> resnet110(norm="batch").blocks
      (18, 18, 18)

    References:
      He, Zhang, Ren, Sun, "Deep Residual Learning", 2016, section 4.2.
    """
    return _cifar(110, attributes)


def resnet18(**attributes: Any) -> ResNet:
    """Make the ResNet of 18 layers for ImageNet: 11,689,512 parameters with batch normalization.

    Stages of 2, 2, 2 and 2 blocks of two 3x3 convolutions, of 64, 128, 256 and 512 features;
    shortcuts are projected where the shape changes. 1000 outputs, no normalization unless one is
    given.

    Args:
      **attributes: of `ResNet`, in place of these and its other defaults.

    Returns:
      the model.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn.models import resnet18
      >>> resnet18(norm="batch", dtype=jnp.bfloat16).blocks
      (2, 2, 2, 2)

    References:
      He, Zhang, Ren, Sun, "Deep Residual Learning", 2016, Table 1.
    """
    return _imagenet((2, 2, 2, 2), False, attributes)


def resnet34(**attributes: Any) -> ResNet:
    """Make the ResNet of 34 layers for ImageNet: 21,797,672 parameters with batch normalization.

    Stages of 3, 4, 6 and 3 blocks of two 3x3 convolutions, of 64, 128, 256 and 512 features;
    shortcuts are projected where the shape changes. 1000 outputs, no normalization unless one is
    given.

    Args:
      **attributes: of `ResNet`, in place of these and its other defaults.

    Returns:
      the model.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn.models import resnet34
      >>> resnet34(norm="batch", dtype=jnp.bfloat16).blocks
      (3, 4, 6, 3)

    References:
      He, Zhang, Ren, Sun, "Deep Residual Learning", 2016, Table 1.
    """
    return _imagenet((3, 4, 6, 3), False, attributes)


def resnet50(**attributes: Any) -> ResNet:
    """Make the ResNet of 50 layers for ImageNet: 25,557,032 parameters with batch normalization.

    Stages of 3, 4, 6 and 3 blocks of 1x1, 3x3 and 1x1 convolutions, to 256, 512, 1024 and 2048
    features. A stage's stride is in its first 3x3 convolution, as in torchvision ("v1.5"); the
    paper has it in the 1x1 before. Shortcuts are projected where the shape changes. 1000 outputs,
    no normalization unless one is given.

    Args:
      **attributes: of `ResNet`, in place of these and its other defaults.

    Returns:
      the model.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn.models import resnet50
      >>> resnet50(norm="batch", dtype=jnp.bfloat16).blocks
      (3, 4, 6, 3)

    References:
      He, Zhang, Ren, Sun, "Deep Residual Learning", 2016, Table 1.
    """
    return _imagenet((3, 4, 6, 3), True, attributes)


def resnet101(**attributes: Any) -> ResNet:
    """Make the ResNet of 101 layers for ImageNet: 44,549,160 parameters with batch normalization.

    Stages of 3, 4, 23 and 3 blocks of 1x1, 3x3 and 1x1 convolutions, to 256, 512, 1024 and 2048
    features. A stage's stride is in its first 3x3 convolution, as in torchvision ("v1.5"); the
    paper has it in the 1x1 before. Shortcuts are projected where the shape changes. 1000 outputs,
    no normalization unless one is given.

    Args:
      **attributes: of `ResNet`, in place of these and its other defaults.

    Returns:
      the model.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn.models import resnet101
      >>> resnet101(norm="batch", dtype=jnp.bfloat16).blocks
      (3, 4, 23, 3)

    References:
      He, Zhang, Ren, Sun, "Deep Residual Learning", 2016, Table 1.
    """
    return _imagenet((3, 4, 23, 3), True, attributes)


def resnet152(**attributes: Any) -> ResNet:
    """Make the ResNet of 152 layers for ImageNet: 60,192,808 parameters with batch normalization.

    Stages of 3, 8, 36 and 3 blocks of 1x1, 3x3 and 1x1 convolutions, to 256, 512, 1024 and 2048
    features. A stage's stride is in its first 3x3 convolution, as in torchvision ("v1.5"); the
    paper has it in the 1x1 before. Shortcuts are projected where the shape changes. 1000 outputs,
    no normalization unless one is given.

    Args:
      **attributes: of `ResNet`, in place of these and its other defaults.

    Returns:
      the model.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn.models import resnet152
      >>> resnet152(norm="batch", dtype=jnp.bfloat16).blocks
      (3, 8, 36, 3)

    References:
      He, Zhang, Ren, Sun, "Deep Residual Learning", 2016, Table 1.
    """
    return _imagenet((3, 8, 36, 3), True, attributes)
