"""Claims that the study `placement` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below, within

CLAIMS = (
    Claim(
        "before-activation",
        ("002", "004", "paper"),
        "BN belongs before the nonlinearity.",
        "placement",
        (
            above(
                "before_sigmoid",
                0,
                "test accuracy, BN before - after the nonlinearity, sigmoid, each at its best rate",
            ),
            above("before_relu", 0, "the same, ReLU"),
            above("before_tanh", 0, "the same, tanh"),
        ),
        "In these networks BN after a sigmoid does better; with ReLU and tanh five seeds show no difference.",
        figure="order",
    ),
    Claim(
        "bias-left-out",
        ("000", "002", "paper"),
        "Nothing is lost by leaving the bias out before BN.",
        "placement",
        (
            within(
                "bias_gain",
                -0.002,
                0.002,
                "test accuracy gained by keeping the bias, mean of sigmoid, tanh and ReLU",
            ),
        ),
        figure="order",
    ),
    Claim(
        "lrn-unneeded",
        ("002", "paper"),
        "With BN, local response normalization is not needed.",
        "placement",
        (
            below(
                "lrn_gain_bn",
                0.005,
                "test accuracy gained by LRN after every ReLU of a small CNN, with BN",
            ),
            above("lrn_gain", 0, "the same, without BN"),
        ),
        figure="local_response",
    ),
)
