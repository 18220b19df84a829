"""Claims that the study `compare` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below, within

CLAIMS = (
    Claim(
        "norms-accuracy",
        ("paper",),
        "Networks with BN end at a higher test accuracy than without, each at its best rate.",
        "compare",
        (
            above(
                "batch_gain_mlp",
                0,
                "test accuracy, BN - no norm, batches of 128, mean over the data sets, MLP",
            ),
            above("batch_gain_cnn", 0, "the same, CNN"),
            above("batch_gain_resnet20", 0, "the same, ResNet-20"),
        ),
        figure="last",
    ),
    Claim(
        "norms-steps",
        ("paper",),
        "BN reaches the accuracy of the network without it in fewer steps.",
        "compare",
        (
            below(
                "batch_steps_mlp",
                1,
                "share of all steps until BN has the last test accuracy of no norm, 1 if never, batches of 128, MLP",
            ),
            below("batch_steps_cnn", 1, "the same, CNN"),
            below("batch_steps_resnet20", 1, "the same, ResNet-20"),
        ),
        figure="curves",
    ),
    Claim(
        "norms-seconds",
        ("paper",),
        "BN reaches the accuracy of the network without it in less time, too.",
        "compare",
        (
            below(
                "batch_seconds_mlp",
                1,
                "that share times the seconds of a step, BN / no norm, batches of 128, MLP",
            ),
            below("batch_seconds_cnn", 1, "the same, CNN"),
            below("batch_seconds_resnet20", 1, "the same, ResNet-20"),
        ),
        "The paper counts steps; a step with BN takes longer, by how much depends on the machine.",
        figure="curves",
    ),
    Claim(
        "norms-group",
        ("later",),
        "Group norm is no worse than BN in small batches, and gains on it as they shrink (Wu & He, 2018).",
        "compare",
        (
            above(
                "group_gain_small_cnn",
                -0.005,
                "test accuracy, group norm - BN, batches of 8, mean over the data sets, CNN",
            ),
            above("group_gain_small_resnet20", -0.005, "the same, ResNet-20"),
            above("group_gain_excess_cnn", 0, "that at batches of 8, less the same at 128, CNN"),
            above("group_gain_excess_resnet20", 0, "the same, ResNet-20"),
        ),
        figure="last",
    ),
    Claim(
        "norms-layer",
        ("later",),
        "In convolutional networks layer norm is worse than BN (Ba et al., 2016).",
        "compare",
        (
            below(
                "layer_gain_cnn",
                0,
                "test accuracy, layer norm - BN, batches of 128, mean over the data sets, CNN",
            ),
            below("layer_gain_resnet20", 0, "the same, ResNet-20"),
        ),
        "Measured with the statistics of each position; Ba et al. take those of a whole layer.",
        figure="last",
    ),
    Claim(
        "norms-weight",
        ("later",),
        "Weight norm does not reach the test accuracy of BN (Gitman & Ginsburg, 2017).",
        "compare",
        (
            below(
                "weight_gain_cnn",
                0,
                "test accuracy, weight norm - BN, batches of 128, mean over the data sets, CNN",
            ),
            below("weight_gain_resnet20", 0, "the same, ResNet-20"),
        ),
        figure="last",
    ),
    Claim(
        "norms-ghost",
        ("later",),
        "Ghost batches help at usual sizes of the batch, too (Summers & Dinneen, 2020).",
        "compare",
        (
            above(
                "ghost_gain_cnn",
                0,
                "test accuracy, ghost BN of 32 - BN, batches of 128, mean over the data sets, CNN",
            ),
            above("ghost_gain_resnet20", 0, "the same, ResNet-20"),
        ),
        figure="last",
    ),
    Claim(
        "norms-bfloat16",
        ("later",),
        "Training in bfloat16 ends where float32 does (Kalamkar et al., 2019).",
        "compare",
        (
            within(
                "batch_bfloat16_gain_mlp",
                -0.01,
                0.01,
                "test accuracy, BN in bfloat16 (weights and statistics float32) - in float32, batches of 128, mean over the data sets, MLP",
            ),
            within("batch_bfloat16_gain_cnn", -0.01, 0.01, "the same, CNN"),
            within("batch_bfloat16_gain_resnet20", -0.01, 0.01, "the same, ResNet-20"),
        ),
        figure="last",
    ),
)
