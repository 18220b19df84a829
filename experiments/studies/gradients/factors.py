"""Factors by which gradients change from layer to layer, computed from arrays over all layers."""

import numpy as np
from jaxtyping import ArrayLike, Float

from experiments.studies.gradients.config import INITS


def of_init(values: np.ndarray, init: str) -> np.ndarray:
    """Return the values of networks with these initial weights, (seeds, L)."""
    return values[INITS.index(init)]


def layers_between(values: np.ndarray) -> int:
    """Count the layers from the first pre-activations to the last; a block has two."""
    return 2 * (values.shape[-1] - 1)


def factor(first: ArrayLike, last: ArrayLike, layers: int) -> np.ndarray:
    """Compute the factor per layer that turns `last` into `first` in `layers` layers.

    Example:
      >>> from experiments.studies.gradients.factors import factor
      >>> round(float(factor(1.0, 8.0, 3)), 3)
      0.5
    """
    return (np.asarray(first) / np.asarray(last)) ** (1 / layers)


def mean_factor(squared: Float[np.ndarray, "seeds L"], groups: int) -> Float[np.ndarray, "groups"]:
    """Compute the factor per layer of the mean squared gradient, one for each group of networks.

    Squares are averaged before the ratio is taken. Near either end the distribution has not
    settled, so two pre-activations are left out at each end if there are more than six.
    """
    away = 2 if squared.shape[1] > 6 else 0
    means = np.stack([group.mean(0) for group in np.array_split(squared, groups)])
    means = means[:, away : means.shape[1] - away]
    return factor(means[:, 0], means[:, -1], 2 * (means.shape[1] - 1))
