"""Options and presets of the study `batches`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Config:
    """What the measurements depend on."""

    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    """digits are the small ones inside scikit-learn"""
    seeds: int = 6
    """runs of each kind, each from its own examples, weights and batches"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer, of sigmoid units"""
    batch_size: int = 60
    """examples in a training batch, even"""
    learning_rate: float = 0.5
    """of plain SGD at the first step; it falls linearly to 0"""
    examples: int = 10_020
    """training images of each seed, in whole batches"""
    steps: int = 2500
    """training steps with each kind of batches"""
    sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    """of the batches whose mean is compared with that of all"""
    draws: int = 200
    """batches of each such size"""
    whole_examples: int = 1020
    """training images of each seed, where all of them normalize"""
    whole_steps: int = 1000
    """training steps there"""

    def __post_init__(self) -> None:
        """Refuse a batch that has no halves, and sets that are not whole batches."""
        if self.batch_size % 2 or self.examples % self.batch_size:
            raise ValueError(
                f"Expected an even `batch_size` that divides `examples`, got {self.batch_size} and "
                f"{self.examples}."
            )


EVALUATIONS = 10  # Over the whole steps.
ORDERS = {"shuffled": "shuffled anew", "fixed": "fixed", "sorted": "two classes each"}
PRESETS = {
    "smoke": Config(
        "digits", 2, (20,), examples=960, steps=60, sizes=(2, 32), whole_examples=60, whole_steps=20
    ),
    "quick": Config(),
    "paper": Config(seeds=10, steps=10_000, whole_examples=2040, whole_steps=2000),
}
