"""Claims that the study `mnist_mlp` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below

CLAIMS = (
    Claim(
        "fig1-faster",
        ("002", "001", "paper"),
        "On MNIST, the network with batch normalization learns much faster and ends better.",
        "mnist_mlp",
        (
            above(
                "accuracy_gain_early", 0.1, "test accuracy gained after 1,000 steps", expected=0.373
            ),
            above(
                "accuracy_gain_last", 0, "test accuracy gained after the last step", expected=0.016
            ),
            below(
                "share_of_steps",
                0.5,
                "share of all steps in which BN reaches the other's last accuracy",
            ),
        ),
        "Once the rate is good, the last difference is a point or less: the gain is speed.",
        figure="fig1",
    ),
    Claim(
        "fig1-stable-inputs",
        ("002", "000", "paper"),
        "With BN the inputs of a sigmoid keep their distribution over training; without it they swing.",
        "mnist_mlp",
        (
            above("drift_difference", 0, "drift of the median, without BN - with", expected=0.4),
            above(
                "spread_without",
                2,
                "largest / smallest spread over training, without BN",
                expected=5.0,
            ),
            below(
                "spread_with", 2, "largest / smallest spread over training, with BN", expected=1.56
            ),
        ),
        figure="fig1",
    ),
)
