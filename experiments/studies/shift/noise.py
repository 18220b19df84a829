"""BatchNorm followed by noise."""

import flax.linen as nn
import jax
from jaxtyping import Array

from jbn.linen import BatchNorm


class NoisyBatchNorm(BatchNorm):
    """BatchNorm followed by noise whose distribution differs by step and feature.

    The output is y + m + s z, with z ~ N(0, 1) drawn for every value, and m ~ U(-noise, noise) and
    s ~ U(0, noise) drawn for every feature, all from the RNG collection `noise`. Without that
    collection, and in inference mode, no noise is added.

    Attributes:
      noise: largest mean and largest standard deviation of the noise.

    References:
      Santurkar et al., "How Does Batch Normalization Help Optimization?", 2018,
      section 2.2.
    """

    noise: float = 0.5

    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> Array:
        """Normalize x and add the noise."""
        y = super().__call__(x, use_running_average, mask=mask)
        average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        if average or not self.has_rng("noise"):
            return y
        of_mean, of_deviation, of_values = jax.random.split(self.make_rng("noise"), 3)
        one = (1,) * (y.ndim - 1) + y.shape[-1:]
        mean = jax.random.uniform(of_mean, one, y.dtype, -self.noise, self.noise)
        deviation = jax.random.uniform(of_deviation, one, y.dtype, 0, self.noise)
        return y + mean + deviation * jax.random.normal(of_values, y.shape, y.dtype)
