"""Options and presets of the study `whitening`."""

from dataclasses import dataclass

from experiments.checks import check
from experiments.datasets import check_dataset

BATCH = 50  # Images in a batch of the small networks.


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    dataset: str = "mnist"
    """mnist, fashion_mnist, digits, the small ones inside scikit-learn, or the path of your own, a
    .npz file or a folder"""
    seeds: int = 8
    """subsets of the data, or draws of inputs and weights"""
    choosing_seeds: int = 4
    """other subsets, on which rates are chosen"""
    examples: int = 500
    """images in a subset, more than the pixels"""
    features: tuple[int, ...] = (128, 256, 512)
    """numbers of features to time, growing; the last is the claim's"""
    repetitions: int = 7
    """of the timing"""
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    """of the logistic regression, on pixels from 0 to 1"""
    descent_steps: int = 1000
    """its steps at most"""
    target_loss: float = 0.2
    """training loss to reach, nats"""
    stuck_seeds: int = 24
    """small networks on each kind of input"""
    stuck_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """their rates"""
    stuck_steps: int = 3000
    """their steps"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        check(self)
        check_dataset(self.dataset)

    def needs(self) -> dict[str, tuple[int, int]]:
        """Say how many training and test images of which data set this takes."""
        return {self.dataset: (max(self.examples, BATCH), 0)}


PRESETS = {
    "smoke": Config(
        dataset="digits",
        seeds=2,
        choosing_seeds=1,
        examples=200,
        features=(16, 32),
        repetitions=2,
        descent_steps=20,
        stuck_seeds=2,
        stuck_steps=20,
    ),
    "quick": Config(),
    "paper": Config(seeds=20, choosing_seeds=10, repetitions=20, stuck_seeds=100),
}
