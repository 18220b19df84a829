"""Options and presets of the study `transfer`."""

from dataclasses import dataclass
from typing import Literal

from experiments.checks import check

DatasetName = Literal["mnist", "fashion_mnist", "digits"]


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    source: DatasetName = "mnist"
    """what networks are pretrained on"""
    target: DatasetName = "fashion_mnist"
    """what they are adapted to; with permuted pixels where it is the source"""
    seeds: int = 5
    """how many seeds"""
    batch_size: int = 60
    """examples in a batch"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer"""
    sigma: float = 0.1
    """standard deviation of the initial weights"""
    validation: int = 5_000
    """training images, drawn at random, to choose the rate on"""
    statistics: int = 5_000
    """training images that population statistics are computed from"""
    pretraining_steps: int = 2_000
    """training steps on the source"""
    pretraining_rate: float = 0.2
    """learning rate there"""
    learning_rates: tuple[float, ...] = (0.05, 0.2, 0.8, 3.2)
    """grid of rates on the target"""
    goal: float = 0.8
    """test accuracy to race to"""
    race_steps: int = 500
    """training steps of the race; who does not arrive counts as arriving after the last"""
    race_every: int = 10
    """steps from evaluation to evaluation, a divisor of `race_steps`"""
    race_images: int = 2_000
    """for validation, testing and statistics, at each evaluation"""
    steps: int = 1_500
    """training steps of every way, to the end"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        check(self, batch_size="[2, inf)", goal="(0, 1]")
        if self.race_steps % self.race_every:
            raise ValueError(
                f"Expected `race_every` to divide {self.race_steps}, got {self.race_every}."
            )

    def needs(self) -> dict[str, tuple[int, int]]:
        """Say how many training and test images of which data set this takes."""
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
