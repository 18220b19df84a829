"""Options and presets of the study `placement`."""

from dataclasses import dataclass

from experiments.checks import check
from experiments.datasets import check_dataset


@dataclass(frozen=True)
class Config:
    """Everything that the results depend on."""

    dataset: str = "fashion_mnist"
    """mnist, fashion_mnist, digits (the small images in scikit-learn), or the path of your own
    data, a .npz file or a folder"""
    seeds: int = 5
    """number of seeds"""
    batch_size: int = 60
    """examples in a batch"""
    validation: int = 2_000
    """training images, drawn at random, on which the rate is chosen"""
    statistics: int = 2_000
    """training images from which the population statistics are computed"""
    steps: int = 800
    """training steps of the three-layer networks"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each of their hidden layers"""
    sigma: float = 0.1
    """standard deviation of their initial weights"""
    learning_rates: tuple[float, ...] = (0.1, 0.4, 1.6)
    """grid of their learning rates, with plain SGD"""
    conv_steps: int = 300
    """training steps of the convolutional networks"""
    widths: tuple[int, ...] = (8, 16)
    """features of each of their stages"""
    conv_learning_rates: tuple[float, ...] = (0.004, 0.016)
    """grid of their learning rates, with Adam"""

    def __post_init__(self) -> None:
        """Reject invalid options."""
        check(self, batch_size="[2, inf)")
        check_dataset(self.dataset)

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return how many training and test images of each data set the study uses."""
        trained = max(self.batch_size, self.statistics)
        return {self.dataset: (self.validation + trained, 1)}


PRESETS = {
    "smoke": Config(
        dataset="digits",
        seeds=2,
        batch_size=20,
        validation=60,
        statistics=60,
        steps=10,
        hidden=(20,),
        learning_rates=(0.4,),
        conv_steps=4,
        widths=(6,),
        conv_learning_rates=(0.01,),
    ),
    "quick": Config(),
    "paper": Config(
        seeds=10,
        steps=2_000,
        learning_rates=(0.1, 0.4, 1.6, 6.4),
        conv_steps=600,
        conv_learning_rates=(0.001, 0.004, 0.016, 0.064),
    ),
}
