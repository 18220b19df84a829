"""BatchNorm with noise after it."""

import flax.linen as nn
import jax
from jaxtyping import Array

from jbn.linen import BatchNorm


class NoisyBatchNorm(BatchNorm):
    """BatchNorm, and after it noise of another distribution at every step and for every feature.

    y + m + s z: z ~ N(0, 1) anew for every value, m ~ U(-noise, noise) and s ~ U(0, noise) for
    every feature, all of the collection `noise` of random numbers. Without that collection, and
    outside training, there is none.

    Attributes:
      noise: the largest mean, and the largest deviation.

    References:
      Santurkar et al., "How Does Batch Normalization Help Optimization?", 2018,
      section 2.2.
    """

    noise: float = 0.5

    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> Array:
        """Normalize x, and add the noise."""
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
