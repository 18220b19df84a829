"""Options and presets of the study `shift`."""

from dataclasses import dataclass

from experiments.checks import check
from experiments.datasets import check_dataset, check_sizes


@dataclass(frozen=True)
class Config:
    """What the numbers depend on."""

    dataset: str = "mnist"
    """mnist, fashion_mnist, digits (the small images in scikit-learn), or the path of your own
    data, a .npz file or a folder"""
    seeds: int = 5
    """number of seeds of every trained network"""
    train_examples: int = 50_000
    """images to train on"""
    test_examples: int = 5_000
    """test images, and as many training images, drawn at random, on which rates are chosen"""
    batch_size: int = 60
    """examples in a batch"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each layer of Fig. 1's network"""
    sigma: float = 0.1
    """standard deviation of its initial weights"""
    learning_rate: float = 0.1
    """learning rate of its plain gradient descent, for all methods"""
    steps: int = 5_000
    """its training steps"""
    look_every: int = 100
    """steps between measurements"""
    subset: int = 500
    """examples of the small set, which form the full batch"""
    subset_steps: int = 2_000
    """training steps on them"""
    depths: tuple[int, ...] = (3, 10, 20)
    """numbers of hidden layers, ascending"""
    width: int = 64
    """width of these layers"""
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    """learning rates, with momentum .9, of which the best is chosen for each depth and network"""
    depth_steps: int = 500
    """training steps of each"""
    untrained: int = 20
    """number of seeds of the untrained networks"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        check(self, batch_size="[2, inf)")
        check_dataset(self.dataset)

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of training and test images needed, by data set.

        Raises:
          ValueError: a subset larger than the training set, or batches larger than the subset.
        """
        check_sizes(self.train_examples, subset=self.subset)
        check_sizes(self.subset, batch_size=self.batch_size)
        return {self.dataset: (self.train_examples + self.test_examples, self.test_examples)}


PRESETS = {
    "smoke": Config(
        dataset="digits",
        seeds=2,
        train_examples=1_000,
        test_examples=200,
        hidden=(20,),
        steps=40,
        look_every=10,
        subset=60,
        subset_steps=40,
        depths=(2,),
        width=16,
        rates=(0.01, 0.1),
        depth_steps=20,
        untrained=2,
    ),
    "quick": Config(),
    "paper": Config(
        seeds=10,
        steps=20_000,
        look_every=200,
        subset_steps=5_000,
        depth_steps=1_500,
        untrained=50,
    ),
}
