"""Options and presets of the study `titanic`."""

from dataclasses import dataclass
from typing import Literal

from experiments.checks import check
from experiments.datasets import check_sizes

PASSENGERS = 891  # In the table, and in the one that is made up.


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    source: Literal["titanic", "synthetic"] = "titanic"
    """synthetic is a table made up by a rule, see `titanic.sample_passengers`: it needs no file"""
    seeds: int = 10
    """repetitions of the cross-validation"""
    folds: int = 10
    """of the cross-validation"""
    epochs: int = 200
    """after which networks are compared"""
    more: int = 1000
    """epochs after which they are compared again; a multiple of `epochs`"""
    watched: int = 100
    """epochs, the last of `epochs`, over which unsteadiness is measured"""
    batch_size: int = 32
    """examples in a batch"""
    learning_rate: float = 0.01
    """of SGD"""
    momentum: float = 0.9
    """of SGD"""
    hidden: tuple[int, ...] = (16, 16)
    """width of each hidden layer"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        check(self, folds="[2, inf)", batch_size="[2, inf)", momentum="[0, 1)")
        if self.more % self.epochs:
            raise ValueError(f"Expected `more` to be a multiple of {self.epochs}, got {self.more}.")
        if not 1 < self.watched <= self.epochs:
            raise ValueError(f"Expected `watched` of 2 to {self.epochs}, got {self.watched}.")

    def needs(self) -> dict[str, tuple[int, int]]:
        """Say how many passengers this takes, none where they are made up.

        Raises:
          ValueError: batches of more passengers than there are to train on.
        """
        largest_fold = -(-PASSENGERS // self.folds)
        check_sizes(PASSENGERS - largest_fold, batch_size=self.batch_size)
        return {"titanic": (PASSENGERS, 0)} if self.source == "titanic" else {}


PRESETS = {
    "smoke": Config(source="synthetic", seeds=2, folds=3, epochs=4, more=8, watched=3),
    "quick": Config(),
    "paper": Config(seeds=50),
}
