"""Results of the trained variants, beside the paper's numbers."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.stats import selection
from experiments.studies.imagenet.config import Config

NAMES = {f"{of}_{top}" for of in ("moving", "population") for top in ("top_1", "top_5")}
LABELS = {
    "inception": "Inception",
    "bn_baseline": "BN-Baseline",
    "bn_x5": "BN-x5",
    "bn_x30": "BN-x30",
    "bn_x5_sigmoid": "BN-x5-Sigmoid",
    "inception_x5": "Inception, rate x5",
    "sigmoid_without_bn": "Inception, sigmoid",
}


class Paper(NamedTuple):
    """A row of the paper's Fig. 3: steps to 72.2 %, in millions, and best accuracy, in percent."""

    steps: float | None
    best: float | None


PAPER = {
    "inception": Paper(31.0, 72.2),
    "bn_baseline": Paper(13.3, 72.7),
    "bn_x5": Paper(2.1, 73.0),
    "bn_x30": Paper(2.7, 74.8),
    "bn_x5_sigmoid": Paper(None, 69.8),
}


class Trained(NamedTuple):
    """One network: its accuracy on the watched images during training, and on all at the end.

    - steps, accuracy: step and top-1 accuracy of each evaluation, with moving averages.
    - result: the `NAMES`, with moving averages and with population statistics.
    """

    steps: Int[np.ndarray, "evaluations"]
    accuracy: Float[np.ndarray, "evaluations"]
    result: dict[str, float]


def steps_to_best_of_inception(trained: dict[str, list[Trained]]) -> dict[str, np.ndarray]:
    """Find the steps that each variant takes to the original's best accuracy, seed by seed.

    Returns:
      By variant, an array (seeds,), if it gets there with every seed; empty without the original.
    """
    if "inception" not in trained:
        return {}
    goals = np.array([network.accuracy.max() for network in trained["inception"]])
    steps = {}
    for name, networks in trained.items():
        curves = np.stack([network.accuracy for network in networks])
        if np.all(curves.max(1) >= goals):
            steps[name] = selection.steps_to(goals, curves, networks[0].steps)
    return steps


def table(config: Config, trained: dict[str, list[Trained]], steps: dict[str, np.ndarray]) -> str:
    """Format our numbers and those of the paper's Fig. 3 as a table, in percent."""
    header = ("", "rate", "steps to best of Inception", "best", "moving", "population", "top-5",
              "paper: steps", "best")  # fmt: skip
    lines: list[str] = ["  ".join((f"{header[0]:20}", *header[1:]))]
    variants = config.variants()
    for name, networks in trained.items():
        cells = [f"{config.learning_rate * variants[name].rate:g}"]
        cells.append(f"{steps[name].mean():,.0f}" if name in steps else "-")
        best = [network.accuracy.max() for network in networks]
        numbers = [best]
        for key in ("moving_top_1", "population_top_1", "population_top_5"):
            numbers.append([network.result[key] for network in networks])
        cells += [f"{100 * np.mean(values):.1f}" for values in numbers]
        paper = PAPER.get(name, Paper(None, None))
        cells.append("-" if paper.steps is None else f"{paper.steps:.1f} M")
        cells.append("-" if paper.best is None else f"{paper.best:.1f}")
        row = [f"{cell:>{len(title)}}" for cell, title in zip(cells, header[1:], strict=True)]
        lines.append("  ".join((f"{LABELS[name]:20}", *row)))
    lines += [
        "",
        "best: of all evaluations on the watched images; moving, population, top-5: at the end, on "
        f"all validation images, {config.crops} crop{'s' * (config.crops > 1)} of each, in "
        f"percent; {config.seeds} seed{'s' * (config.seeds > 1)}",
    ]
    return "\n".join(lines)
