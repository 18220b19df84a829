"""Options and presets of the study `inference`."""

from dataclasses import dataclass

from experiments.checks import check
from experiments.datasets import check_dataset

WINDOW = 100  # Batches in the simple moving average.


@dataclass(frozen=True)
class Config:
    """Everything that the results depend on."""

    dataset: str = "mnist"
    """mnist, fashion_mnist, digits (the small images in scikit-learn), or the path of your own
    data, a .npz file or a folder"""
    seeds: int = 10
    """networks, each with its own weights and batches"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer of sigmoid units"""
    steps: int = 6000
    """training steps"""
    batch_size: int = 60
    """examples in a training batch, and in a batch of Algorithm 2"""
    learning_rate: float = 0.5
    """learning rate of plain SGD"""
    contrast: float = 0.5
    """factor of the gray levels, 0 to 1, in shifted images"""
    brightness: float = 0.3
    """value added to them afterwards"""
    degrees: float = 30.0
    """angle by which images are rotated"""

    def __post_init__(self) -> None:
        """Reject invalid options, and runs too short to fill the window."""
        check(self, batch_size="[2, inf)", brightness="(-inf, inf)", degrees="(-inf, inf)")
        check_dataset(self.dataset)
        if self.steps < WINDOW:
            raise ValueError(f"Expected `steps` of at least {WINDOW}, got {self.steps}.")

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return how many training and test images of each data set the study uses."""
        # Half of the test images are normalized by statistics of batches of the other half.
        return {self.dataset: (self.batch_size, 2 * self.batch_size)}


PRESETS = {
    "smoke": Config(dataset="digits", seeds=2, hidden=(20,), steps=100),
    "quick": Config(),
    "paper": Config(seeds=20, steps=30_000),
}
