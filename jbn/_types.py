"""The pytrees that functions take and return, and the legend of shapes.

Shape letters, used in every signature: N batch, H W space, C features, D devices, K batches.
C stands for the shape of the feature axes: `(64,)` for one axis, `(28, 64)` for two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from jaxtyping import Array, Complex, Float, Inexact, Int

# Array, or None where a layer has no scale or no bias.
if TYPE_CHECKING:
    # Type checkers support a TypeVar with a default; `typing` has it only from Python 3.13 on.
    from typing_extensions import TypeVar as TypeVarWithDefault

    Factor = TypeVarWithDefault("Factor", bound=Inexact[Array, "*C"] | None, default=Any)
else:
    Factor = TypeVar("Factor", bound=Inexact[Array, "*C"] | None)


class BatchNormParams(NamedTuple, Generic[Factor]):
    """Learned parameters, gamma and beta of the paper, `(C,)`; None where one is not used."""

    scale: Factor
    bias: Factor


class BatchNormState(NamedTuple):
    """Running statistics, in at least float32 whatever the dtype of x.

    `count` is the number of batches absorbed; schedules such as `jbn.cumulative` depend on it.
    """

    mean: Float[Array, "*C"] | Complex[Array, "*C"]
    var: Float[Array, "*C"]
    count: Int[Array, ""]


# A state, or None where none is kept.
OptionalState = TypeVar("OptionalState", BatchNormState, None)


class Moments(NamedTuple):
    """Moments of one batch: mean, *biased* variance, and count.

    `count` is the number of values per feature.
    """

    mean: Float[Array, "*C"] | Complex[Array, "*C"]
    var: Float[Array, "*C"]
    count: Float[Array, "*C"]


class WeightedMoments(NamedTuple):
    """Moments of one batch with float weights, as `numpy.cov` computes them with `aweights`.

    `count` is the total weight, sum w. `effective_count` is Kish's effective sample size
    (sum w)^2 / sum w^2, which replaces n in Bessel's correction n / (n - 1).
    """

    mean: Float[Array, "*C"] | Complex[Array, "*C"]
    var: Float[Array, "*C"]
    count: Float[Array, "*C"]
    effective_count: Float[Array, "*C"]


def is_statistics(node: Any) -> bool:
    """Tell whether a node is one layer's statistics: a BatchNormState, or a dict with mean and var.

    Flax keeps such dicts in `batch_stats`.
    """
    is_dict = isinstance(node, Mapping) and {"mean", "var"} <= node.keys()
    return isinstance(node, BatchNormState) or is_dict
