"""Options and presets of the study `transfer`."""

from dataclasses import dataclass
from typing import Literal

from experiments.checks import check

DatasetName = Literal["mnist", "fashion_mnist", "digits"]


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    source: DatasetName = "mnist"
    """data set on which networks are pretrained"""
    target: DatasetName = "fashion_mnist"
    """data set to which they are adapted, with permuted pixels if it is the source"""
    seeds: int = 5
    """number of seeds"""
    batch_size: int = 60
    """examples in a batch"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer"""
    sigma: float = 0.1
    """standard deviation of the initial weights"""
    validation: int = 5_000
    """training images, drawn at random, on which the rate is chosen"""
    statistics: int = 5_000
    """training images from which population statistics are computed"""
    pretraining_steps: int = 2_000
    """training steps on the source"""
    pretraining_rate: float = 0.2
    """learning rate on the source"""
    learning_rates: tuple[float, ...] = (0.05, 0.2, 0.8, 3.2)
    """grid of learning rates on the target"""
    goal: float = 0.8
    """test accuracy to reach in the race"""
    race_steps: int = 500
    """training steps of the race; a network that does not reach the goal counts with all of them"""
    race_every: int = 10
    """steps between evaluations in the race, a divisor of `race_steps`"""
    race_images: int = 2_000
    """images each for validation, testing and statistics at an evaluation in the race"""
    steps: int = 1_500
    """training steps otherwise"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        check(self, batch_size="[2, inf)", goal="(0, 1]")
        if self.race_steps % self.race_every:
            raise ValueError(
                f"Expected `race_every` to divide {self.race_steps}, got {self.race_every}."
            )

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of training and test images needed, by data set."""
        trained = max(self.batch_size, self.statistics, self.race_images)
        each = self.validation + trained, self.race_images
        return {self.source: each, self.target: each}


PRESETS = {
    "smoke": Config(
        source="digits",
        target="digits",
        seeds=2,
        hidden=(20,),
        validation=300,
        statistics=500,
        pretraining_steps=50,
        learning_rates=(0.2,),
        race_steps=100,
        race_every=20,
        race_images=300,
        steps=50,
    ),
    "quick": Config(),
    "paper": Config(seeds=10, pretraining_steps=10_000, steps=5_000),
}
