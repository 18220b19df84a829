"""Options and presets of the study `recurrent`."""

from dataclasses import dataclass

from experiments.checks import check, check_divides

CHANCE = 1 / 6  # Variance of the sum of two values of U(0, 1).
LENGTHS = 50, 100, 200  # Of the adding problem.
FORGET_BIASES = 0, 1, 5
STEPS_BACK, EVALUATE_EVERY = 200, 10  # Of the Jacobian.


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    jacobian_seeds: int = 8
    """networks and input sequences whose Jacobian is taken"""
    jacobian_hidden: int = 50
    """their state's width"""
    jacobian_inputs: int = 10
    """their inputs' width"""
    seeds: int = 5
    """networks of each kind and rate in the adding problem"""
    hidden: int = 32
    """their state's width"""
    batch_size: int = 32
    """sequences in a batch, fresh in every step"""
    steps: int = 700
    """training steps"""
    looks: int = 20
    """evaluations over training, a divisor of `steps`"""
    rates: tuple[float, ...] = (0.003, 0.01)
    """learning rates of Adam, of which each kind takes its best"""
    held_out: int = 250
    """sequences to choose the rate on, and as many to report"""
    clip: float = 1.0
    """largest norm of the gradient of all parameters, where it is clipped"""
    clip_seeds: int = 16
    """runs with clipping and without"""
    clip_gain: float = 2.0
    """the recurrent weights there are orthogonal times this"""
    clip_length: int = 50
    """length of the adding problem there"""
    clip_steps: int = 300
    """training steps there"""
    clip_rate: float = 0.05
    """of plain gradient descent there"""
    clip_bound: float = 10 * CHANCE
    """a run whose error in the end is above this, or not finite, has diverged"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        check(self)
        check_divides("looks", "steps", self)


PRESETS = {
    "smoke": Config(
        jacobian_seeds=2,
        jacobian_hidden=8,
        seeds=2,
        hidden=4,
        batch_size=4,
        steps=4,
        looks=1,
        held_out=4,
        clip_seeds=2,
        clip_length=10,
        clip_steps=10,
    ),
    "quick": Config(),
    "paper": Config(jacobian_seeds=32, seeds=10, steps=2000, clip_seeds=64, clip_steps=1000),
}
