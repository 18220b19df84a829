"""Options and presets of the study `batch_size`."""

from dataclasses import dataclass

from experiments.checks import check
from experiments.datasets import check_dataset, check_sizes


@dataclass(frozen=True)
class Config:
    """Everything that the results depend on."""

    dataset: str = "mnist"
    """mnist, fashion_mnist, digits (the small images in scikit-learn), or the path of your own
    data, a .npz file or a folder"""
    seeds: int = 5
    """number of seeds"""
    train: int = 20_000
    """training images per seed"""
    validation: int = 2000
    """further training images per seed, drawn at random, on which rates are chosen"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer"""
    ghost: int = 64
    """examples that share statistics in ghost BN"""
    rates: tuple[float, ...] = (0.06, 0.12, 0.25, 0.5, 1.0)
    """learning rates of plain SGD to choose from at batches of 32"""
    top_rates: tuple[float, ...] = (0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
    """learning rates to choose from at the largest size; the choice also caps those of smaller
    sizes"""
    small: tuple[int, ...] = (1, 2, 4, 8)
    """batch sizes below 32; the claims are about 2 and 4"""
    small_examples: int = 16_384
    """examples seen by each network in batches of up to 32"""
    small_methods: tuple[str, ...] = ("none", "batch", "renorm", "layer", "group", "weight")
    """methods trained in small batches; the claims are about these six"""
    huge: tuple[int, ...] = (64, 256, 1024, 4096)
    """sizes of large batches, of which the first and the last are compared"""
    huge_examples: int = 163_840
    """examples seen by each network in large batches"""
    huge_methods: tuple[str, ...] = (
        "none", "batch", "ghost", "renorm", "layer", "group", "weight",
    )  # fmt: skip
    """methods trained in large batches; the claims are about none, batch and ghost"""
    equal_steps: int = 300
    """steps at the first and the last of the large sizes, at an equal rate"""
    population: int = 4096
    """training images that population statistics are averaged over"""
    descent: int = 1024
    """training images in full-batch descent"""
    descent_epochs: int = 80
    """most epochs that mini-batches and full batches may take to reach the loss"""
    descent_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    """learning rates to choose from for both"""
    descent_loss: float = 0.3
    """the training loss to reach"""

    def __post_init__(self) -> None:
        """Reject invalid options, and sizes and methods without those that the claims need."""
        check(self)
        check_dataset(self.dataset)
        needed = {
            "small": (2, 4),
            "small_methods": ("none", "batch", "renorm", "layer", "group", "weight"),
            "huge_methods": ("none", "batch", "ghost"),
        }
        for name, values in needed.items():
            given = getattr(self, name)
            if not set(values) <= set(given):
                raise ValueError(f"Expected `{name}` to include {values}, got {given}.")
        unknown = set(self.huge_methods) - {*self.small_methods, "ghost"}
        if unknown:  # Their learning rates are chosen in small batches.
            raise ValueError(
                f"Expected `huge_methods` from `small_methods`, or ghost, got {min(unknown)}."
            )
        if len(self.huge) < 2 or list(self.huge) != sorted(set(self.huge)):
            raise ValueError(f"Expected at least two ascending sizes in `huge`, got {self.huge}.")

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return how many training and test images of each data set the study uses.

        Raises:
          ValueError: batches larger than the training set.
        """
        takes = {"small": max((32, *self.small)), "huge": max(self.huge)}
        takes |= {"population": self.population, "descent": self.descent}
        check_sizes(self.train, **takes)
        return {self.dataset: (self.train + self.validation, 1)}


PRESETS = {
    "smoke": Config(
        dataset="digits", seeds=2, train=128, validation=40, hidden=(20,), ghost=16,
        rates=(0.1,), top_rates=(0.1,), small=(2, 4), small_examples=128, huge=(4, 32),
        huge_examples=128, huge_methods=("none", "batch", "ghost"), equal_steps=4, population=128,
        descent=128, descent_epochs=4, descent_rates=(0.1,),
    ),
    "quick": Config(),
    "paper": Config(seeds=10, train=50_000, small_examples=60_000, huge_examples=655_360),
}  # fmt: skip
