"""Options and presets of the study `batches`."""

from dataclasses import dataclass

from experiments.checks import check
from experiments.datasets import check_dataset, check_sizes


@dataclass(frozen=True)
class Config:
    """Everything that the results depend on."""

    dataset: str = "mnist"
    """mnist, fashion_mnist, digits (the small images in scikit-learn), or the path of your own
    data, a .npz file or a folder"""
    seeds: int = 6
    """runs of each kind, each with its own examples, weights and batches"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer of sigmoid units"""
    batch_size: int = 60
    """examples in a training batch, even"""
    learning_rate: float = 0.5
    """learning rate of plain SGD at the first step; it decays linearly to 0"""
    examples: int = 10_020
    """training images per seed, a whole number of batches"""
    steps: int = 2500
    """training steps with each kind of batches"""
    sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    """sizes of the batches whose mean is compared with that of all the data"""
    draws: int = 200
    """batches of each of these sizes"""
    whole_examples: int = 1020
    """training images per seed when normalizing by all of them"""
    whole_steps: int = 1000
    """training steps when normalizing by all images"""

    def __post_init__(self) -> None:
        """Reject invalid options, an odd batch size, and `examples` that leave a ragged batch."""
        check(self, batch_size="[2, inf)")
        check_dataset(self.dataset)
        if self.batch_size % 2 or self.examples % self.batch_size:
            raise ValueError(
                f"Expected an even `batch_size` that divides `examples`, got {self.batch_size} and "
                f"{self.examples}."
            )
        if len(set(self.sizes)) < 2:
            raise ValueError(f"Expected at least two different `sizes`, got {self.sizes}.")

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return how many training and test images of each data set the study uses.

        Raises:
          ValueError: batches larger than the training set.
        """
        least, most = sorted((self.examples, self.whole_examples))
        check_sizes(least, batch_size=self.batch_size)
        return {self.dataset: (most, 1)}


EVALUATIONS = 10  # Of accuracy, over `whole_steps`.
ORDERS = {"shuffled": "shuffled anew", "fixed": "fixed", "sorted": "two classes each"}
PRESETS = {
    "smoke": Config(
        "digits", 2, (20,), examples=960, steps=60, sizes=(2, 32), whole_examples=60, whole_steps=20
    ),
    "quick": Config(),
    "paper": Config(seeds=10, steps=10_000, whole_examples=2040, whole_steps=2000),
}
