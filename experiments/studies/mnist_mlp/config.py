"""Options and presets of the study `mnist_mlp`."""

from dataclasses import dataclass
from typing import Literal

MANY_DEVICES = True  # It trains on several, of one host or more.


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    """digits are the small ones inside scikit-learn"""
    seeds: int = 3
    """how many seeds, trained at once"""
    steps: int = 10_000
    """training steps"""
    batch_size: int = 60
    """examples in a batch"""
    learning_rate: float = 0.1
    """of plain SGD"""
    sigma: float = 0.1
    """standard deviation of the initial weights"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer"""
    momentum: float = 0.99
    """weight of the old value in the exponential averages"""
    population_batches: int = 100
    """training batches that the population statistics are averaged over"""
    evaluate_every: int = 100
    """steps between evaluations"""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        for name in ("seeds", "steps", "batch_size", "population_batches", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected `{name}` to be at least 1, got {getattr(self, name)}.")
        if self.batch_size < 2:
            raise ValueError("Expected `batch_size` of at least 2: one example has no variance.")
        for name in ("learning_rate", "sigma"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"Expected `{name}` to be positive, got {getattr(self, name)}.")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"Expected positive widths in `hidden`, got {self.hidden}.")


PRESETS = {
    "smoke": Config(dataset="digits", seeds=2, steps=300, population_batches=10, evaluate_every=20),
    "quick": Config(),
    "paper": Config(seeds=5, steps=50_000, evaluate_every=250),
}
