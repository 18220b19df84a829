"""Options and presets of the study `mnist_mlp`."""

from dataclasses import dataclass

from experiments.checks import check
from experiments.datasets import check_dataset

MANY_DEVICES = True  # It can train on several devices, on one or more hosts.


@dataclass(frozen=True)
class Config:
    """Everything that the results depend on."""

    dataset: str = "mnist"
    """mnist, fashion_mnist, digits (the small images in scikit-learn), or the path of your own
    data, a .npz file or a folder"""
    seeds: int = 3
    """number of seeds, trained together"""
    steps: int = 10_000
    """training steps"""
    batch_size: int = 60
    """examples in a batch"""
    learning_rate: float = 0.1
    """learning rate of plain SGD"""
    sigma: float = 0.1
    """standard deviation of the initial weights"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer"""
    momentum: float = 0.99
    """weight of the old value in the exponential averages"""
    population_batches: int = 100
    """training batches over which the population statistics are averaged"""
    evaluate_every: int = 100
    """steps between evaluations"""

    def __post_init__(self) -> None:
        """Reject invalid options."""
        check(self, batch_size="[2, inf)", momentum="[0, 1]")  # One example has no variance.
        check_dataset(self.dataset)

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return how many training and test images of each data set the study uses."""
        return {self.dataset: (self.batch_size, 1)}


PRESETS = {
    "smoke": Config(dataset="digits", seeds=2, steps=300, population_batches=10, evaluate_every=20),
    "quick": Config(),
    "paper": Config(seeds=5, steps=50_000, evaluate_every=250),
}
