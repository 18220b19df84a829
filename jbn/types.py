"""The pytrees that go in and out, and the shape legend.

Shape letters, used in every signature: N batch, H W space, C features, D devices, K batches.
C stands for the shape of the feature axes: `(64,)` for one axis, `(28, 64)` for two.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Complex, Float, Inexact, Int


class BatchNormParams(NamedTuple):
    """What training learns: gamma and beta of the paper; None where a factor is not used."""

    scale: Inexact[Array, "*C"] | None
    bias: Inexact[Array, "*C"] | None


class BatchNormState(NamedTuple):
    """Running statistics: float32 at least, whatever the dtype of x.

    `count` is the number of batches absorbed, which schedules such as `jbn.cumulative` read.
    """

    mean: Float[Array, "*C"] | Complex[Array, "*C"]
    var: Float[Array, "*C"]
    count: Int[Array, ""]


class Moments(NamedTuple):
    """Moments of one batch: mean, *biased* variance, and how much data they rest on.

    `count` is the number of values per feature, or their total weight where a mask weighs them.
    """

    mean: Float[Array, "*C"] | Complex[Array, "*C"]
    var: Float[Array, "*C"]
    count: Float[Array, "*C"]


def is_statistics(node: Any) -> bool:
    """Tell one layer's statistics in a pytree: a BatchNormState, or a dict with mean and var.

    The latter is what Flax keeps in `batch_stats`.
    """
    is_dict = isinstance(node, Mapping) and {"mean", "var"} <= node.keys()
    return isinstance(node, BatchNormState) or is_dict
