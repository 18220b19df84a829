"""Choose the best setting, and find when a goal is reached: one protocol for all studies."""

from typing import Literal

import numpy as np
from jaxtyping import ArrayLike, Float, Int


def best(
    scores: Float[ArrayLike, "... settings seeds"], which: Literal["highest", "lowest"]
) -> Int[np.ndarray, "..."]:
    """Choose the setting with the best mean over seeds.

    The protocol of all studies: `scores` are measured after the last step on data that is not
    reported, that is, on validation images or on seeds set aside for it; one setting is chosen for
    all seeds. A study that deviates says so in its docstring. A run that diverged (NaN, infinity)
    is worse than any other, and so is its setting. Of equal settings the first is chosen.

    Returns:
      index along the axis of settings.

    Example:
      >>> from experiments.stats import selection
      >>> int(selection.best([[0.7, 0.9], [0.9, 0.9], [1.0, float("nan")]], "highest"))
      1
    """
    x = np.asarray(scores, np.float64)
    x = np.where(np.isfinite(x), x if which == "lowest" else -x, np.inf)
    return x.mean(-1).argmin(-1)


def at_best(accuracies: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Select the setting that is best on the validation images at the last evaluation.

    Args:
      accuracies: accuracies by name, "validation" among them, (settings, seeds, evaluations).
    """
    chosen = best(accuracies["validation"][..., -1], "highest")
    return {name: values[chosen] for name, values in accuracies.items()}


def steps_to(
    goal: Float[ArrayLike, "..."],
    values: Float[ArrayLike, "... evaluations"],
    steps: Int[ArrayLike, "evaluations"],
    *,
    falling: bool = False,
) -> Int[np.ndarray, "..."]:
    """Find the step of the first evaluation at which a goal is reached.

    Args:
      goal: a single goal, or one for each run.
      values: the measurement at each evaluation; NaN reaches no goal.
      steps: number of steps taken before each evaluation.
      falling: whether the goal is reached from above, as by a loss.

    Returns:
      steps. A run that never reaches the goal counts as reaching it at the last evaluation, which
      is a lower bound.

    Example:
      >>> from experiments.stats import selection
      >>> selection.steps_to(0.9, [[0.1, 0.9, 1.0], [0.1, 0.2, 0.3]], [0, 50, 100]).tolist()
      [50, 100]
    """
    values, goals = np.asarray(values), np.asarray(goal)[..., None]
    reached = values <= goals if falling else values >= goals
    first = np.where(reached.any(-1), reached.argmax(-1), values.shape[-1] - 1)
    return np.asarray(steps)[first]
