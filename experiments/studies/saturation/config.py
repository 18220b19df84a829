"""Options and presets of the study `saturation`."""

from dataclasses import dataclass

from experiments.checks import check
from experiments.datasets import check_dataset


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    dataset: str = "mnist"
    """mnist, fashion_mnist, digits (the small images in scikit-learn), or the path of your own
    data, a .npz file or a folder"""
    seeds: int = 5
    """number of seeds"""
    steps: int = 2_000
    """training steps"""
    batch_size: int = 60
    """examples in a batch"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer"""
    sigma: float = 0.1
    """standard deviation of the initial weights"""
    learning_rates: tuple[float, ...] = (0.1, 0.4, 1.6, 6.4)
    """grid of learning rates, each network at its best, with and without gamma and beta"""
    large_sigma: float = 1.0
    """standard deviation of large initial weights"""
    large_learning_rate: float = 0.1
    """learning rate of networks with large initial weights"""
    looks: int = 10
    """number of measurements of saturation during training, a divisor of `steps`"""
    validation: int = 5_000
    """training images, drawn at random, on which the rate is chosen"""
    statistics: int = 10_000
    """training images from which the population statistics are computed"""
    looked_at: int = 1_000
    """test images on which units are measured"""
    sample: int = 1_000_000
    """values drawn to measure a distribution's shape"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        check(self, batch_size="[2, inf)")
        check_dataset(self.dataset)
        if self.steps % self.looks:
            raise ValueError(f"Expected `looks` to divide {self.steps} steps, got {self.looks}.")

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of training and test images needed, by data set."""
        trained = max(self.batch_size, self.statistics)
        return {self.dataset: (self.validation + trained, self.looked_at)}


PRESETS = {
    "smoke": Config(
        dataset="digits",
        seeds=2,
        steps=60,
        hidden=(20,),
        learning_rates=(0.4,),
        looks=2,
        validation=300,
        statistics=500,
        looked_at=200,
        sample=10_000,
    ),
    "quick": Config(),
    "paper": Config(seeds=10, steps=10_000),
}
