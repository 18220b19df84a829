"""Flax linen layers of batch norm's variants, and of the norms that it is compared with.

All are made as `norm(use_running_average=...)` and called as `norm(x, mask=...)`, like `BatchNorm`,
so that a model takes any of them. Those without running statistics ignore both.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jbn.linen import BatchNorm, Initializer
from jbn.moments import feature_axes
from jbn.norms import group_norm, instance_norm, layer_norm
from jbn.types import BatchNormParams
from jbn.variants import Limit, batch_renorm, ghost_batch_norm


class GhostBatchNorm(BatchNorm):
    """`jbn.ghost_batch_norm` as a layer: `BatchNorm`'s arguments, and `batch_size`.

    Attributes:
      batch_size: examples that share statistics in training; a ragged tail is its own group.
    """

    batch_size: int = 32

    def operation(self) -> Callable[..., Any]:
        """Return the function that normalises."""
        if self.axis_name is not None:
            raise ValueError(
                f"Expected no `axis_name`, got {self.axis_name!r}: ghost batches are groups of one "
                "device's examples. For groups of devices use BatchNorm with axis_index_groups."
            )

        def normalize(*arrays: Any, axis_name: Any, axis_index_groups: Any, **options: Any) -> Any:
            return ghost_batch_norm(*arrays, batch_size=self.batch_size, **options)

        return normalize


class BatchRenorm(BatchNorm):
    """`jbn.batch_renorm` as a layer: `BatchNorm`'s arguments, and the limits.

    Attributes:
      r_max, d_max: how far batch and running statistics may be apart: numbers, or schedules of the
        batches absorbed, which take a schedule as `momentum`, too, to have a count.
    """

    r_max: Limit = 3.0
    d_max: Limit = 5.0

    def operation(self) -> Callable[..., Any]:
        """Return the function that normalises."""
        return functools.partial(batch_renorm, r_max=self.r_max, d_max=self.d_max)


class _WithoutStatistics(nn.Module):
    """A norm of each example by itself: scale and bias in `params`, and nothing else.

    Attributes:
      use_running_average: accepted and ignored, as is `mask`: examples do not mix.
      axis: feature axis.
      epsilon: added to var.
      param_dtype: of scale and bias.
      use_bias, use_scale: have a bias, a scale.
      bias_init, scale_init: their initialisers.
    """

    use_running_average: bool | None = None
    axis: int = -1
    epsilon: float = 1e-5
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N ... C"],
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> Float[Array, "N ... C"]:
        """Normalise x."""
        (feature,) = feature_axes(self.axis, x.ndim)
        shape, dtype = (x.shape[feature],), self.param_dtype
        scale = self.param("scale", self.scale_init, shape, dtype) if self.use_scale else None
        bias = self.param("bias", self.bias_init, shape, dtype) if self.use_bias else None
        return self.normalize(x, BatchNormParams(scale, bias), axis=feature, epsilon=self.epsilon)

    def normalize(self, x: Array, params: BatchNormParams, **options: Any) -> Array:
        """Call the function of this layer."""
        raise NotImplementedError


class LayerNorm(_WithoutStatistics):
    """`jbn.layer_norm` as a layer: over the features, at each position."""

    def normalize(self, x: Array, params: BatchNormParams, **options: Any) -> Array:
        """Normalise over the features."""
        return layer_norm(x, params, **options)


class GroupNorm(_WithoutStatistics):
    """`jbn.group_norm` as a layer: over positions and groups of features, example by example.

    Attributes:
      groups: into how many the features are cut.
    """

    groups: int = 32

    def normalize(self, x: Array, params: BatchNormParams, **options: Any) -> Array:
        """Normalise over positions and groups of features."""
        return group_norm(x, params, groups=self.groups, **options)


class InstanceNorm(_WithoutStatistics):
    """`jbn.instance_norm` as a layer: over positions, for each feature of each example."""

    def normalize(self, x: Array, params: BatchNormParams, **options: Any) -> Array:
        """Normalise over positions."""
        return instance_norm(x, params, **options)
