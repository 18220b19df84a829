"""Flax linen layers for the variants of batch norm, and for the norms it is compared with.

All are constructed as `norm(use_running_average=...)` and called as `norm(x, mask=...)`, like
`BatchNorm`, so a model can use any of them. Norms without running statistics ignore both arguments.
"""

from jbn import _flax as _flax

# isort: split

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jbn._arguments import check_flag
from jbn._inputs import as_array
from jbn._norms import group_norm, instance_norm, layer_norm, one_feature_axis
from jbn._schedules import Switched
from jbn._types import BatchNormParams
from jbn._variants import Limit, batch_renorm, check_limit, ghost_batch_norm
from jbn.linen._batch_norm import BatchNorm, Initializer


class GhostBatchNorm(BatchNorm):
    """`jbn.ghost_batch_norm` as a layer: the arguments of `BatchNorm`, and `batch_size`.

    Attributes:
      batch_size: number of examples that share statistics in training; a last partial group has
        its own.
    """

    batch_size: int = 32

    @nn.nowrap
    def _operation(self) -> Callable[..., Any]:
        if self.axis_name is not None:
            raise ValueError(
                f"Expected no `axis_name`, got {self.axis_name!r}: ghost batches are groups of one "
                "device's examples. For groups of devices use BatchNorm with axis_index_groups."
            )

        def normalize(*arrays: Any, axis_name: Any, axis_index_groups: Any, **options: Any) -> Any:
            return ghost_batch_norm(*arrays, batch_size=self.batch_size, **options)

        return normalize


class BatchRenorm(BatchNorm):
    """`jbn.batch_renorm` as a layer: the arguments of `BatchNorm`, the limits, and a warm-up.

    `batch_stats` has a `count` if momentum, r_max or d_max is a schedule, or there is a warm-up.

    Attributes:
      r_max, d_max: limits of the difference between batch and running statistics: numbers, or
        schedules of the number of batches absorbed.
      warmup_steps: number of batches at the start with r = 1 and d = 0, as in `BatchNorm`, since
        the initial running statistics 0 and 1 are not yet estimates.

    References:
      Warm-up as in SBX, `BatchRenorm(warm_up_steps=...)`, and TorchRL,
      `BatchRenorm1d(warmup_steps=...)`.
    """

    r_max: Limit = 3.0
    d_max: Limit = 5.0
    warmup_steps: int = 0

    @nn.nowrap
    def _operation(self) -> Callable[..., Any]:
        steps = self.warmup_steps
        if isinstance(steps, bool) or not hasattr(steps, "__index__") or steps < 0:
            raise ValueError(
                f"Expected `warmup_steps` to be an int of 0 or more, got {steps!r}. "
                "Pass the number of batches to normalize as BatchNorm does."
            )
        foreign = [n for n in ("steps", "r_max", "d_max") if self.has_variable("batch_stats", n)]
        if foreign:
            keys = "batch_stats" + "".join(f'["{name}"]' for name in self.path)
            raise ValueError(
                f"Expected mean, var and count in {keys}, got {', '.join(foreign)}, too, as SBX's "
                f'BatchRenorm keeps them. Convert: {keys}["count"] = jnp.int32({keys}.pop("steps"))'
                "; remove r_max and d_max, which are arguments here: BatchRenorm(r_max=3.0, "
                "d_max=5.0, warmup_steps=100_000) are SBX's."
            )
        r_max, d_max = self.r_max, self.d_max
        if steps:
            # Check here, since `batch_renorm` does not check the values that a schedule returns.
            check_limit(r_max, "r_max", 1)
            check_limit(d_max, "d_max", 0)
            r_max, d_max = Switched(int(steps), 1.0, r_max), Switched(int(steps), 0.0, d_max)
        return functools.partial(batch_renorm, r_max=r_max, d_max=d_max)

    @nn.nowrap
    def _has_schedule(self) -> bool:
        schedules = (self.momentum, self.r_max, self.d_max)
        return self.warmup_steps > 0 or any(callable(s) for s in schedules)


class _WithoutStatistics(nn.Module):
    """Base of norms that treat each example by itself; their only variables are scale and bias.

    Attributes:
      use_running_average: accepted and ignored, as is `mask`, since examples do not mix.
      axis: feature axis.
      epsilon: added to var.
      param_dtype: dtype of scale and bias.
      use_bias, use_scale: whether to use a bias and a scale.
      bias_init, scale_init: their initializers.
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
        """Normalize x."""
        x = as_array("x", x)
        feature = one_feature_axis(x, self.axis)
        shape, dtype = (x.shape[feature],), self.param_dtype
        scale = bias = None
        if check_flag("use_scale", self.use_scale):
            scale = self.param("scale", self.scale_init, shape, dtype)
        if check_flag("use_bias", self.use_bias):
            bias = self.param("bias", self.bias_init, shape, dtype)
        return self._normalize(x, BatchNormParams(scale, bias), axis=feature, epsilon=self.epsilon)

    @nn.nowrap
    def _normalize(self, x: Array, params: BatchNormParams, **options: Any) -> Array:
        raise NotImplementedError


class LayerNorm(_WithoutStatistics):
    """`jbn.layer_norm` as a layer: normalizes over the features at each position."""

    @nn.nowrap
    def _normalize(self, x: Array, params: BatchNormParams, **options: Any) -> Array:
        return layer_norm(x, params, **options)


class GroupNorm(_WithoutStatistics):
    """`jbn.group_norm` as a layer: normalizes each example over positions and groups of features.

    Attributes:
      groups: number of groups of features.
    """

    groups: int = 32

    @nn.nowrap
    def _normalize(self, x: Array, params: BatchNormParams, **options: Any) -> Array:
        return group_norm(x, params, groups=self.groups, **options)


class InstanceNorm(_WithoutStatistics):
    """`jbn.instance_norm` as a layer: normalizes each feature of each example over positions."""

    @nn.nowrap
    def _normalize(self, x: Array, params: BatchNormParams, **options: Any) -> Array:
        return instance_norm(x, params, **options)
