"""Options and presets of the study `whitening`."""

from dataclasses import dataclass

from experiments.checks import check
from experiments.datasets import check_dataset

BATCH = 50  # Images in a batch of the small networks.


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    dataset: str = "mnist"
    """mnist, fashion_mnist, digits (the small images in scikit-learn), or the path of your own
    data, a .npz file or a folder"""
    seeds: int = 8
    """number of subsets of the data, or of draws of inputs and weights"""
    choosing_seeds: int = 4
    """number of other subsets, on which rates are chosen"""
    examples: int = 500
    """images in a subset, more than an image has pixels"""
    features: tuple[int, ...] = (128, 256, 512)
    """numbers of features to time, ascending; the claim is about the last"""
    repetitions: int = 7
    """repetitions of the timing"""
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    """learning rates of the logistic regression, on pixels from 0 to 1"""
    descent_steps: int = 1000
    """most steps of the logistic regression"""
    target_loss: float = 0.2
    """training loss to reach, in nats"""
    stuck_seeds: int = 24
    """small networks on each kind of input"""
    stuck_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """learning rates of these networks"""
    stuck_steps: int = 3000
    """training steps of these networks"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        check(self)
        check_dataset(self.dataset)

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of training and test images needed, by data set."""
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
