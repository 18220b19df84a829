"""Options and presets of the study `compare`."""

import itertools
from dataclasses import dataclass
from typing import Literal

from experiments.checks import check
from experiments.datasets import check_sizes

Model = Literal["mlp", "cnn", "resnet20"]
Norm = Literal[
    "none", "batch", "batch_bfloat16", "ghost", "renorm", "layer", "group", "instance", "weight",
]  # fmt: skip
DatasetName = Literal["mnist", "fashion_mnist", "cifar10", "digits"]


@dataclass(frozen=True)
class Config:
    """Everything that the results depend on."""

    models: tuple[Model, ...] = ("mlp", "cnn", "resnet20")
    """which networks"""
    norms: tuple[Norm, ...] = (
        "none", "batch", "batch_bfloat16", "ghost", "renorm", "layer", "group", "instance",
        "weight",
    )  # fmt: skip
    """which norms; all networks are float32 except those of batch_bfloat16"""
    datasets: tuple[DatasetName, ...] = ("mnist", "fashion_mnist", "cifar10")
    """which data sets; digits are the small images in scikit-learn"""
    seeds: int = 3
    """number of seeds"""
    choosing: int = 1
    """number of seeds, the first ones, by which the rate is chosen"""
    batch_sizes: tuple[int, ...] = (8, 128)
    """batch sizes, ascending; claims compare the first and the last"""
    train: int = 10_240
    """training images"""
    validation: int = 1_000
    """training images, drawn at random, on which the rate is chosen"""
    test: int = 1_000
    """test images, spread over all; if as many as for validation, one program less is compiled"""
    examples: int = 10_240
    """examples seen by each network at every batch size"""
    evaluations: int = 10
    """number of evaluations of the test accuracy"""
    rates: tuple[float, ...] = (0.004, 0.016, 0.064, 0.256)
    """initial learning rates to choose from at batches of 128; scaled by the square root of
    size / 128 at other sizes"""
    shrink: int = 4
    """factor by which images of 32x32 are reduced, by averaging pixels"""
    hidden: tuple[int, ...] = (128, 128, 128)
    """width of each hidden layer of the MLP"""
    cnn_widths: tuple[int, ...] = (16, 32)
    """features of each stage of the CNN, of two convolutions each"""
    resnet_widths: tuple[int, ...] = (8, 16, 32)
    """features of each stage of ResNet-20"""
    resnet_blocks: int = 3
    """blocks of two convolutions in each of its three stages; 3 make 20 layers"""
    groups: int = 4
    """groups of group norm, a divisor of all widths"""
    ghost: int = 32
    """examples that share statistics in ghost batch norm"""
    memory: int = 1_280
    """approximate number of examples that running averages remember"""
    rounds: int = 5
    """rounds in which steps of all norms are timed in turn"""
    timed_examples: int = 1_280
    """examples seen by each norm in a round"""

    def __post_init__(self) -> None:
        """Reject invalid options."""
        check(self, batch_sizes="[2, inf)")
        for name in ("models", "norms", "datasets"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"Expected each of `{name}` once, got {' '.join(values)}.")
        for model, size in itertools.product(self.models, self.batch_sizes):
            if not any(applies(self, model, norm, size) for norm in self.norms):
                raise ValueError(
                    f"Expected a norm that has an effect in {model} with batches of {size}, got "
                    f"{' '.join(self.norms)}: instance norm has one value for each feature in an "
                    f"MLP, and ghost batches of {self.ghost} need a batch of at least "
                    f"{2 * self.ghost}. Add another norm."
                )
        if self.choosing > self.seeds:
            raise ValueError(
                f"Expected `choosing` of at most {self.seeds}, the number of seeds, got "
                f"{self.choosing}."
            )
        if list(self.batch_sizes) != sorted(set(self.batch_sizes)):
            raise ValueError(f"Expected `batch_sizes` in ascending order, got {self.batch_sizes}.")
        if self.shrink not in (1, 2, 4):
            raise ValueError(f"Expected `shrink` to be 1, 2 or 4, got {self.shrink}.")
        for size in self.batch_sizes:
            if self.examples % (size * self.evaluations):
                raise ValueError(
                    f"Expected `examples` to be a multiple of {size * self.evaluations}, batches "
                    f"of {size} times {self.evaluations} evaluations, got {self.examples}."
                )
        wrong = [
            n for n in (*self.hidden, *self.cnn_widths, *self.resnet_widths) if n % self.groups
        ]
        if "group" in self.norms and wrong:
            raise ValueError(
                f"Expected `groups` to divide all widths, including {wrong}, got {self.groups}."
            )

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return how many training and test images of each data set the study uses.

        Raises:
          ValueError: batches larger than the training set.
        """
        check_sizes(self.train, batch_sizes=max(self.batch_sizes))
        return dict.fromkeys(self.datasets, (self.train + self.validation, self.test))


def applies(config: Config, model: str, norm: str, size: int) -> bool:
    """Return whether a norm does something of its own in a network, at a batch size."""
    if norm == "instance":
        return model != "mlp"  # In an MLP, each feature of an example is one value, of variance 0.
    return norm != "ghost" or size >= 2 * config.ghost


PAPER = Config(
    choosing=3,
    train=45_000,
    validation=5_000,
    test=10_000,
    examples=1_351_680,
    evaluations=30,
    shrink=1,
    cnn_widths=(32, 64, 128),
    resnet_widths=(16, 32, 64),
    groups=8,
    memory=12_800,
)
PRESETS = {
    "smoke": Config(  # Mostly compilation time, hence one batch size, and one stage per CNN.
        norms=("none", "batch", "batch_bfloat16", "ghost", "layer", "group", "weight"),
        datasets=("digits",),
        seeds=2,
        batch_sizes=(32,),
        train=320,
        validation=100,
        test=100,
        examples=320,
        evaluations=2,
        rates=(0.1,),
        hidden=(16,),
        cnn_widths=(4,),
        resnet_widths=(4,),
        resnet_blocks=1,
        ghost=16,
        rounds=1,
        timed_examples=64,
    ),
    "quick": Config(),
    "paper": PAPER,  # The usual name for the preset meant for an accelerator.
    "full": PAPER,
}
