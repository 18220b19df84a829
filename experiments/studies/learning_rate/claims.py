"""Claims that the study `learning_rate` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below, within

CLAIMS = (
    Claim(
        "plateau",
        ("000",),
        "Where the gradient stalls, the error stays where it is.",
        "learning_rate",
        (
            above(
                "chance_without",
                5_000,
                "steps until test accuracy .2 without BN, sigma .05, rate .01; 20,000 where it takes more",
                expected=20_000,
            ),
            below("chance_with", 1_000, "the same with BN, looked at every 50 steps"),
        ),
        "When a network leaves the plateau differs by thousands of steps between seeds: three are too few to say.",
        figure="plateau",
    ),
    Claim(
        "small-rate",
        ("000",),
        "A small learning rate is a remedy against exploding gradients.",
        "learning_rate",
        (
            below(
                "diverged_small",
                0.5,
                "share of runs below .2 after 500 steps at rate .0001, ReLU, sigma .5, without BN",
            ),
            above("diverged_large", 0.5, "the same at rate 1"),
        ),
        figure="plateau",
    ),
    Claim(
        "higher-rate",
        ("000", "001", "002", "paper"),
        "BN allows a higher learning rate.",
        "learning_rate",
        (
            above(
                "rate_ratio_relu",
                1,
                "largest rate of the grid (to 30) that reaches 90 % in 1,500 steps at sigma .05, BN / without, ReLU",
            ),
            above(
                "rate_ratio_sigmoid",
                1,
                "the same, sigmoid: at least, as BN reaches the end of the grid",
            ),
        ),
        figure="grid",
    ),
    Claim(
        "less-care",
        ("000", "003", "paper"),
        "With BN one can be less careful about initialization and learning rate.",
        "learning_rate",
        (
            above(
                "grid_gain",
                0,
                "share of 24 cells (rate .01 to 30, sigma .05 to 5) at 90 % after 1,500 steps, BN - without, sigmoid",
            ),
            above("grid_gain_relu", 0, "the same, ReLU"),
            above(
                "gain_sigma_5",
                0.1,
                "test accuracy gained after 1,500 steps at sigma 5, rate .01, sigmoid",
                expected=0.466,
            ),
        ),
        figure="grid",
    ),
    Claim(
        "faster",
        ("000", "001", "002", "004", "paper"),
        "BN speeds training up.",
        "learning_rate",
        (
            below(
                "steps_ratio_low", 1, "steps to 90 %, BN / without, at rate .1, sigmoid, sigma .1"
            ),
            below(
                "steps_ratio_best",
                1,
                "the same, each at its best rate of .1 to 3, chosen on validation images",
            ),
        ),
        "At the best rates it hangs on the rate that is chosen for BN: with other draws of images it was unclear.",
        figure="speed",
    ),
    Claim(
        "low-rate-equal",
        ("later",),
        "At the same low rate BN ends no better; its gain comes from high rates (Bjorck et al., 2018).",
        "learning_rate",
        (
            within(
                "last_gain_low",
                -0.005,
                0.005,
                "test accuracy after 5,000 steps gained by BN at rate .1, ReLU, sigma .1",
            ),
            above(
                "gain_from_high_rate", 0, "the same network with BN, best rate of .1 to 3 - rate .1"
            ),
        ),
        figure="speed",
    ),
    Claim(
        "small-rates-slow",
        ("001", "004"),
        "Small learning rates make training slow.",
        "learning_rate",
        (
            above(
                "slowness_without",
                1,
                "steps to 90 %, rate .1 / rate 1, sigmoid, sigma .1, without BN",
            ),
            above("slowness_with", 1, "the same, with BN"),
        ),
        figure="speed",
    ),
    Claim(
        "slower-decay",
        ("000",),
        "With BN the learning rate may decay more slowly.",
        "learning_rate",
        (
            above(
                "slow_minus_fast",
                0,
                "test accuracy with BN after 5,000 steps from rate 1, half-life 3,000 - 83, sigmoid; no control without BN",
            ),
        ),
        "The paper decays it 6x faster, because the network trains faster.",
        figure="speed",
    ),
    Claim(
        "zero-initialization",
        ("003",),
        "Zero initial weights leave the hidden units alike, and the network linear in effect.",
        "learning_rate",
        (
            below(
                "zero_difference",
                1e-6,
                "largest difference between weights of hidden units of a layer after 500 steps, sigmoid, rate .1",
            ),
            below("zero_rank", 1.5, "rank of the weights after training"),
            below("zero_accuracy", 0.5, "test accuracy"),
        ),
    ),
)
