"""Claims that the study `titanic` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below

CLAIMS = (
    Claim(
        "titanic-accuracy",
        ("001",),
        "On the Titanic, from class, fare and age, BN lifts the accuracy from 69 to 71 %.",
        "titanic",
        (
            above(
                "gain_raw_relu",
                0,
                "accuracy after 200 epochs gained by BN, raw inputs, ReLU",
                expected=0.063,
            ),
            above("gain_raw_sigmoid", 0, "the same, sigmoid", expected=0.012),
            above(
                "gain_standardized_relu",
                0,
                "accuracy gained by BN, standardized inputs, ReLU",
                expected=0.002,
            ),
            above("gain_standardized_sigmoid", 0, "the same, sigmoid", expected=-0.003),
        ),
        "Scaling the inputs does as much or more; one split of 179 has a standard error of 3.4 points.",
        figure="accuracy",
    ),
    Claim(
        "titanic-steadier",
        ("001",),
        "With BN the accuracy is steadier from epoch to epoch.",
        "titanic",
        (
            below(
                "unsteadiness_raw_relu",
                1,
                "deviation of a fold's accuracy over the last 100 of 200 epochs, BN / without, raw, ReLU",
            ),
            below("unsteadiness_standardized_relu", 1, "the same, standardized inputs"),
        ),
        figure="steadiness",
    ),
    Claim(
        "titanic-epochs",
        ("001",),
        "More epochs would give a better result.",
        "titanic",
        (
            above(
                "gain_epochs_raw_relu", 0, "accuracy after 1,000 epochs - after 200, BN, raw, ReLU"
            ),
            above("gain_epochs_standardized_relu", 0, "the same, standardized inputs"),
        ),
        figure="epochs",
    ),
)
