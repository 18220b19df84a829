"""Options and presets of the study `regularization`."""

from dataclasses import dataclass

from experiments.checks import check
from experiments.datasets import check_dataset


@dataclass(frozen=True)
class Config:
    """What the measurement depends on."""

    dataset: str = "mnist"
    """mnist, fashion_mnist, digits (the small images in scikit-learn), or the path of your own
    data, a .npz file or a folder"""
    seeds: int = 6
    """number of seeds"""
    train: int = 512
    """training images per seed"""
    validation: int = 2000
    """further training images per seed, drawn at random, on which rates and strengths are chosen"""
    test: int = 5000
    """test images, spread over all, the same for all seeds"""
    depth: int = 2
    """hidden layers"""
    width: int = 256
    """units in each hidden layer"""
    widths: tuple[int, ...] = (16, 64, 256, 1024)
    """widths that are compared, ascending"""
    batch_size: int = 64
    """examples in a batch"""
    steps: int = 400
    """training steps"""
    large_batch: int = 256
    """examples in a batch when ghost batches are compared"""
    large_steps: int = 200
    """training steps with these batches"""
    ghosts: tuple[int, ...] = (16, 64)
    """examples that share statistics in a large batch, ascending"""
    rates: tuple[float, ...] = (0.2, 0.28, 0.4, 0.57, 0.8, 1.13, 1.6, 2.26)
    """learning rates of plain SGD to choose from, on a fine grid: without BN the best is just below
    the first that diverges, and a coarse grid would miss it and favor BN"""
    dropout: tuple[float, ...] = (0.05, 0.1, 0.4)
    """shares of hidden units dropped"""
    l1: tuple[float, ...] = (1e-5, 1e-4, 1e-3)
    """strengths of L1, factors of the sum of all |w|"""
    l2: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    """strengths of L2, factors of the sum of all w^2"""
    combined: tuple[float, float, float] = (0.1, 1e-5, 1e-4)
    """strengths of dropout, L1 and L2 in all their combinations"""
    flips: tuple[float, ...] = (0.2, 0.4, 0.6)
    """shares of training labels that are replaced by wrong ones; the claim is about .4"""
    near_zero: float = 1e-3
    """absolute value below which a weight counts as near zero"""

    def __post_init__(self) -> None:
        """Refuse batches that do not divide an epoch, and a sweep without the claim's share."""
        check(
            self,
            batch_size="[2, inf)",
            dropout="[0, 1)",
            l1="[0, inf)",
            l2="[0, inf)",
            combined="[0, 1)",
            flips="[0, 1]",
        )
        check_dataset(self.dataset)
        for size in (self.batch_size, self.large_batch):
            if self.train % size:
                raise ValueError(f"Expected batches of {size} to divide `train`, got {self.train}.")
        if 0.4 not in self.flips:
            raise ValueError(f"Expected .4 among `flips`, got {self.flips}.")

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of training and test images needed, by data set."""
        return {self.dataset: (self.train + self.validation, self.test)}


PRESETS = {
    "smoke": Config(
        dataset="digits", seeds=2, train=128, validation=40, test=40, width=16, widths=(16,),
        depth=1, batch_size=16, steps=8, large_batch=16, large_steps=8, ghosts=(8,),
        rates=(0.1,), dropout=(0.1,), l1=(1e-3,), l2=(1e-3,), flips=(0.4,),
    ),
    "quick": Config(),
    "paper": Config(seeds=20, train=1024, steps=800, large_steps=400),
}  # fmt: skip
