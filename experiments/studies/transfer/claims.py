"""Claims that the study `transfer` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below

CLAIMS = (
    Claim(
        "pretrained",
        ("003",),
        "A pretrained model, adapted, reaches the goal sooner.",
        "transfer",
        (
            below(
                "steps_ratio",
                1,
                "steps to 80 % on Fashion-MNIST (looked at every 10), pretrained on MNIST / from scratch",
            ),
            above("last_gain", 0, "last test accuracy, pretrained - from scratch"),
        ),
        figure="race",
    ),
    Claim(
        "statistics-transfer",
        ("later",),
        "On new data the statistics should be estimated again rather than frozen.",
        "transfer",
        (
            above(
                "reestimated_gain",
                0,
                "test accuracy of a new last layer, statistics estimated again - frozen",
            ),
            above(
                "trained_gain",
                0,
                "test accuracy of a new last layer, gamma and beta trained as well - statistics alone",
            ),
        ),
        figure="ways",
    ),
)
