"""Options and presets of the study `gradients`."""

from dataclasses import dataclass

from experiments.checks import check
from experiments.datasets import check_dataset, check_sizes

# Standard deviation of the initial weights in units of 1 / sqrt(fan-in), which is Xavier's between
# layers of equal width; None stands for a deviation of .01 at any width.
GAINS = {
    "zero": 0.0,
    "small": None,
    "Xavier": 1.0,
    "He": 2**0.5,
    "twice He": 2 * 2**0.5,
    "He / 10": 0.1 * 2**0.5,
    "10 He": 10 * 2**0.5,
}
INITS = tuple(GAINS)


@dataclass(frozen=True)
class Training:
    """Everything that the training depends on."""

    dataset: str = "mnist"
    """mnist, fashion_mnist, digits (the small images in scikit-learn), or the path of your own
    data, a .npz file or a folder"""
    seeds: int = 8
    """networks of each kind, before and during training, unless an option below says otherwise"""
    train_examples: int = 10_000
    """images to train on"""
    test_examples: int = 2_000
    """test images, and as many training images, drawn at random, on which the rate is chosen"""
    batch_size: int = 60
    """examples in a batch"""
    depth: int = 20
    """weight layers of a deep network"""
    width: int = 100
    """width of its hidden layers"""
    first_steps: int = 100
    """training steps for the movement of each layer, and for clipping"""
    dying_rates: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8, 1.6)
    """learning rates at which ReLU and leaky ReLU may die"""
    dying_steps: int = 500
    """training steps at each of these rates"""
    clip_norm: float = 1.0
    """largest norm of the clipped gradient"""
    residual_depth: int = 56
    """weight layers of the deeper of the plain and residual networks"""
    residual_width: int = 32
    """width of their hidden layers in training"""
    residual_rates: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    """learning rates, of which each kind takes its best"""
    residual_steps: int = 150
    """training steps at each of these rates"""
    residual_seeds: int = 5
    """networks at each of these rates"""

    def __post_init__(self) -> None:
        """Reject invalid options."""
        check(self, batch_size="[2, inf)", depth="[2, inf)", residual_depth="[2, inf)")
        check_dataset(self.dataset)

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return how many training and test images of each data set the study uses.

        Raises:
          ValueError: batches larger than the training set.
        """
        check_sizes(self.train_examples, batch_size=self.batch_size)
        return {self.dataset: (self.train_examples + self.test_examples, self.test_examples)}


@dataclass(frozen=True)
class Config(Training):
    """Everything that the results depend on."""

    field_networks: int = 40
    """networks with which the mean field theory is tested"""
    field_width: int = 256
    """their width, large as the theory assumes"""
    field_batch: int = 128
    """their batch size where the theory assumes large batches"""


PRESETS = {
    "smoke": Config(
        dataset="digits",
        seeds=2,
        train_examples=600,
        test_examples=200,
        batch_size=20,
        depth=6,
        width=20,
        first_steps=5,
        dying_rates=(0.1, 0.8),
        dying_steps=10,
        residual_depth=6,
        residual_width=10,
        residual_rates=(0.01, 0.1),
        residual_steps=10,
        residual_seeds=2,
        field_networks=10,
        field_width=32,
        field_batch=16,
    ),
    "quick": Config(),
    "paper": Config(
        seeds=12,
        dying_steps=1000,
        residual_steps=500,
        residual_seeds=10,
        field_networks=200,
    ),
}


def name_of(depth: int, norm: str | None, skip: bool) -> str:
    """Return the name of a kind of plain or residual network."""
    return f"{'residual' if skip else 'plain'}_{norm or 'none'}_{depth}"
