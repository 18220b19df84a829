"""Options and presets of the study `recurrent`."""

from dataclasses import dataclass

from experiments.checks import check, check_divides

CHANCE = 1 / 6  # Variance of the sum of two values of U(0, 1).
LENGTHS = 50, 100, 200  # Sequence lengths of the adding problem.
FORGET_BIASES = 0, 1, 5
STEPS_BACK, EVALUATE_EVERY = 200, 10  # Largest T of the Jacobians, and steps between them.


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    jacobian_seeds: int = 8
    """networks and input sequences whose Jacobian is computed"""
    jacobian_hidden: int = 50
    """width of their state"""
    jacobian_inputs: int = 10
    """width of their inputs"""
    seeds: int = 5
    """networks of each kind and rate in the adding problem"""
    hidden: int = 32
    """width of their state"""
    batch_size: int = 32
    """sequences in a batch, new ones in every step"""
    steps: int = 700
    """training steps"""
    looks: int = 20
    """evaluations during training, a divisor of `steps`"""
    rates: tuple[float, ...] = (0.003, 0.01)
    """learning rates of Adam, of which each kind takes its best"""
    held_out: int = 250
    """sequences on which the rate is chosen, and as many on which results are reported"""
    clip: float = 1.0
    """largest norm of the gradient of all parameters, with clipping"""
    clip_seeds: int = 16
    """runs with clipping, and as many without"""
    clip_gain: float = 2.0
    """factor of the orthogonal recurrent weights in these runs"""
    clip_length: int = 50
    """length of their adding problem"""
    clip_steps: int = 300
    """their training steps"""
    clip_rate: float = 0.05
    """their learning rate of plain gradient descent"""
    clip_bound: float = 10 * CHANCE
    """final error above which, or if it is not finite, a run has diverged"""

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
