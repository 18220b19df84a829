"""Options and presets of the study `learning_rate`."""

from dataclasses import dataclass

from experiments.checks import check, check_divides
from experiments.datasets import check_dataset

BATCH_SIZE = 60
LOW, HIGH = 0.1, 1.0  # Rates.
DECAYS = (1 / 6, 1, 6)  # Factors of the half-life.


@dataclass(frozen=True)
class Config:
    """Everything that the results depend on; lengths of training are in steps."""

    dataset: str = "mnist"
    """mnist, fashion_mnist, digits (the small images in scikit-learn), or the path of your own
    data, a .npz file or a folder"""
    seeds: int = 3
    """number of seeds"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer"""
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    """learning rates of the grid, ascending, with .01"""
    sigmas: tuple[float, ...] = (0.05, 0.5, 5.0)
    """initial standard deviations of the grid, ascending, with .05 and 5"""
    grid_steps: int = 1500
    """training steps of the grid"""
    plateau_steps: int = 20_000
    """training steps at sigma .05 and rate .01, without BN"""
    plateau_every: int = 250
    """steps between evaluations there, a divisor of `plateau_steps`"""
    fast_rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    """learning rates whose speed is measured, at sigma .1; ascending, with .1 and 1"""
    fast_steps: int = 5000
    """training steps at these rates"""
    fast_every: int = 50
    """steps between evaluations there, a divisor of `fast_steps`"""
    half_life: int = 500
    """half-life of the decay from rate 1; 6 times as long and as short ones are also tried"""
    exploding_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
    """learning rates of ReLU with weights of sigma .5, ascending to 1"""
    exploding_seeds: int = 8
    """number of seeds at these rates"""
    short_steps: int = 500
    """training steps at these rates, and from zero weights"""
    validation: int = 1000
    """training images, drawn at random, on which the rate is chosen"""
    looked_at: int = 2000
    """test images for frequent evaluations; others use all"""
    population_batches: int = 10
    """training batches over which the population statistics are averaged"""

    def __post_init__(self) -> None:
        """Reject invalid options, and grids without the values that the claims need."""
        check(self)
        check_dataset(self.dataset)
        check_divides("plateau_every", "plateau_steps", self)
        check_divides("fast_every", "fast_steps", self)
        needed = {
            "rates": (0.01,),
            "sigmas": (0.05, 5.0),
            "fast_rates": (LOW, HIGH),
            "exploding_rates": (1.0,),
        }
        for name, values in needed.items():
            given = getattr(self, name)
            if len(given) < 2 or not set(values) <= set(given) or list(given) != sorted(given):
                raise ValueError(
                    f"Expected at least two ascending values in `{name}`, including {values}, got "
                    f"{given}."
                )

    def needs(self) -> dict[str, tuple[int, int]]:
        """Return how many training and test images of each data set the study uses."""
        return {self.dataset: (self.validation + BATCH_SIZE, 1)}


PRESETS = {
    # Equal lengths and numbers of settings, so that few programs are compiled.
    "smoke": Config(
        dataset="digits",
        seeds=2,
        hidden=(16,),
        rates=(0.01, 1.0),
        sigmas=(0.05, 5.0),
        grid_steps=20,
        plateau_steps=20,
        plateau_every=20,
        fast_steps=20,
        fast_every=20,
        half_life=10,
        exploding_rates=(1e-4, 1e-2, 0.1, 1.0),
        exploding_seeds=2,
        short_steps=20,
        validation=100,
        population_batches=2,
    ),
    "quick": Config(),
    "paper": Config(
        seeds=5,
        sigmas=(0.005, 0.05, 0.5, 5.0),
        grid_steps=5000,
        plateau_steps=50_000,
        fast_steps=10_000,
        half_life=1000,
        exploding_seeds=16,
    ),
}
