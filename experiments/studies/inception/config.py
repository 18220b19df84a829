"""Options and presets of the study `inception`."""

from dataclasses import dataclass
from typing import Literal

from experiments.checks import check


@dataclass(frozen=True)
class Config:
    """Everything that the results depend on."""

    dataset: Literal["cifar10", "digits"] = "cifar10"
    """data set; digits are the small images in scikit-learn"""
    seeds: int = 4
    """number of seeds for weights, batches, dropout and distortion"""
    steps: int = 1_280
    """training steps"""
    watch_every: int = 40
    """steps between evaluations of the accuracy"""
    batch_size: int = 32
    """examples in a batch, as in the paper"""
    train_examples: int = 5_120
    """training images, a whole number of batches, so that fixed ones are the same in every epoch"""
    test_examples: int = 1_000
    """test images on which the accuracy is evaluated"""
    shrink: int = 2
    """factor by which images are reduced, by averaging pixels"""
    blocks: tuple[int, ...] = (1, 2)
    """blocks of Inception after each max pooling"""
    width: int = 8
    """features of each path of a block"""
    rate: float = 0.03
    """learning rate of the original: of .003, .01, .03 and .1, the one with its best accuracy
    (.285, .369, .385, .360, mean of two other seeds) on the 1,000 images after the training ones"""
    rate_left: float = 0.5
    """share of the original's rate that is left after all steps; the changed variants decay six
    times as fast, to rate_left**6"""
    l2: float = 5e-4
    """weight of half the sum of squares of the kernels; the changed variants use a fifth of it"""
    dropout: float = 0.4
    """share of the last features that the original drops; the changed variants drop none"""
    lrn: float = 0.067
    """alpha of the original's LRN: 2e-5, meant for pixels of standard deviation 58, times 58**2"""
    distortion: tuple[float, float] = (0.4, 0.1)
    """strength of photometric distortion, original and changed"""

    def __post_init__(self) -> None:
        """Reject invalid options."""
        check(
            self,
            batch_size="[2, inf)",
            rate_left="(0, 1]",
            l2="[0, inf)",
            dropout="[0, 1)",
            lrn="[0, inf)",
            distortion="[0, 1)",
        )
        if self.train_examples % self.batch_size:
            raise ValueError(
                f"Expected `train_examples` to be a multiple of {self.batch_size}, the batch size, "
                f"got {self.train_examples}."
            )
        if self.steps % self.watch_every:
            raise ValueError(
                f"Expected `watch_every` to divide {self.steps} steps, got {self.watch_every}."
            )

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return how many training and test images of each data set the study uses."""
        return {self.dataset: (self.train_examples, self.test_examples)}


PRESETS = {
    "smoke": Config(
        "digits", seeds=2, steps=4, watch_every=2, batch_size=4, train_examples=8, test_examples=20,
        blocks=(1,), width=2,
    ),
    "quick": Config(),
    "paper": Config(seeds=8, steps=5_120, watch_every=80, test_examples=2_000),
}  # fmt: skip
