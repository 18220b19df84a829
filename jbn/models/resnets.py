"""ResNets of standard depths: 20 to 110 layers for CIFAR, 18 to 152 for ImageNet."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jbn.models.attributes import did_you_mean
from jbn.models.resnet import ResNet

# Other libraries' names of our attributes.
_ELSEWHERE = {"num_classes": "outputs", "classes": "outputs", "num_outputs": "outputs"}


def _imagenet(blocks: Sequence[int], bottleneck: bool, attributes: dict[str, Any]) -> ResNet:
    defaults: dict[str, Any] = {
        "blocks": blocks,
        "widths": (64, 128, 256, 512),
        "bottleneck": bottleneck,
        "stem": "imagenet",
        "shortcut": "project",
        "outputs": 1000,
    }
    return _make(defaults | attributes)


def _cifar(depth: int, attributes: dict[str, Any]) -> ResNet:
    defaults: dict[str, Any] = {"blocks": ((depth - 2) // 6,) * 3, "widths": (16, 32, 64)}
    return _make(defaults | attributes)


def _make(attributes: dict[str, Any]) -> ResNet:
    there = {field.name for field in dataclasses.fields(ResNet)}
    for name in attributes:
        if name not in there:
            ours = _ELSEWHERE.get(name)
            hint = f" Did you mean {ours!r}?" if ours else did_you_mean(name, there)
            raise TypeError(f"Expected attributes of jbn.models.ResNet, got {name!r}.{hint}")
    return ResNet(**attributes)


def resnet20(**attributes: Any) -> ResNet:
    """Make the ResNet of 20 layers for CIFAR-10: 269,722 parameters with batch normalization.

    Three stages of 3 blocks of two 3x3 convolutions with 16, 32 and 64 features; shortcuts pad with
    zeros. 10 outputs; no normalization by default.

    Args:
      **attributes: attributes of `ResNet`, overriding these and its other defaults.

    Returns:
      The model.

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

    Three stages of 9 blocks of two 3x3 convolutions with 16, 32 and 64 features; shortcuts pad with
    zeros. 10 outputs; no normalization by default.

    Args:
      **attributes: attributes of `ResNet`, overriding these and its other defaults.

    Returns:
      The model.

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

    Three stages of 18 blocks of two 3x3 convolutions with 16, 32 and 64 features; shortcuts pad
    with zeros. 10 outputs; no normalization by default.

    Args:
      **attributes: attributes of `ResNet`, overriding these and its other defaults.

    Returns:
      The model.

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

    Stages of 2, 2, 2 and 2 blocks of two 3x3 convolutions with 64, 128, 256 and 512 features;
    shortcuts are projected where the shape changes. 1000 outputs; no normalization by default.

    Args:
      **attributes: attributes of `ResNet`, overriding these and its other defaults.

    Returns:
      The model.

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

    Stages of 3, 4, 6 and 3 blocks of two 3x3 convolutions with 64, 128, 256 and 512 features;
    shortcuts are projected where the shape changes. 1000 outputs; no normalization by default.

    Args:
      **attributes: attributes of `ResNet`, overriding these and its other defaults.

    Returns:
      The model.

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
    features. A stage's stride is in its first 3x3 convolution, as in torchvision ("v1.5"); in the
    paper it is in the 1x1 convolution before. Shortcuts are projected where the shape changes. 1000
    outputs; no normalization by default.

    Args:
      **attributes: attributes of `ResNet`, overriding these and its other defaults.

    Returns:
      The model.

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
    features. A stage's stride is in its first 3x3 convolution, as in torchvision ("v1.5"); in the
    paper it is in the 1x1 convolution before. Shortcuts are projected where the shape changes. 1000
    outputs; no normalization by default.

    Args:
      **attributes: attributes of `ResNet`, overriding these and its other defaults.

    Returns:
      The model.

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
    features. A stage's stride is in its first 3x3 convolution, as in torchvision ("v1.5"); in the
    paper it is in the 1x1 convolution before. Shortcuts are projected where the shape changes. 1000
    outputs; no normalization by default.

    Args:
      **attributes: attributes of `ResNet`, overriding these and its other defaults.

    Returns:
      The model.

    Example:
      >>> import jax.numpy as jnp
      >>> from jbn.models import resnet152
      >>> resnet152(norm="batch", dtype=jnp.bfloat16).blocks
      (3, 8, 36, 3)

    References:
      He, Zhang, Ren, Sun, "Deep Residual Learning", 2016, Table 1.
    """
    return _imagenet((3, 8, 36, 3), True, attributes)
