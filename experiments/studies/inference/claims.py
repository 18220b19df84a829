"""Claims that the study `inference` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below, within

CLAIMS = (
    Claim(
        "deterministic",
        ("000", "paper"),
        "In training an output depends on the rest of the batch; in inference it is fixed.",
        "inference",
        (
            above(
                "training_difference",
                1e-3,
                "largest difference of one image's outputs (logits) in two batches of 60, training mode",
            ),
            below("inference_difference", 1e-12, "the same in inference"),
            below(
                "one_by_one",
                1e-5,
                "largest difference of outputs of 60 images alone and in a batch, inference",
            ),
        ),
        figure="test_batches",
    ),
    Claim(
        "test-batch-statistics",
        ("000", "004"),
        "Normalizing test data by their own batch does not work properly.",
        "inference",
        (
            below("batch_2", 0, "test accuracy by statistics of test batches of 2 - population"),
            below("batch_32", 0, "the same, batches of 32"),
            below("batch_500", 0, "the same, batches of 500"),
            below("batch_sorted", 0, "the same, batches of 32 of one class each"),
        ),
        figure="test_batches",
    ),
    Claim(
        "wrong-mode",
        ("004",),
        "Forgetting to switch to inference gives wrong results.",
        "inference",
        (below("mode_1", 0.2, "test accuracy image by image in training mode (by the formula)"),),
        figure="test_batches",
    ),
    Claim(
        "moving-statistics",
        ("000", "004", "paper"),
        "A simple or exponential moving average kept in training serves for inference.",
        "inference",
        (
            within(
                "exponential",
                -0.005,
                0.005,
                "test accuracy, exponential average (.99) - population statistics of all training images",
            ),
            within("debiased", -0.005, 0.005, "the same, debiased exponential average"),
            within("window", -0.005, 0.005, "the same, mean of the last 100 batches"),
            within("cumulative", -0.005, 0.005, "the same, mean of all batches since the start"),
        ),
        figure="statistics",
    ),
    Claim(
        "average-gamma-beta",
        ("002",),
        "At test, gamma and beta are the averages of those of the mini-batches.",
        "inference",
        (
            above(
                "averaged",
                0,
                "test accuracy, gamma and beta averaged over all training steps - the last, population statistics made for each",
            ),
        ),
        "Mean and variance are averaged; gamma and beta are the last, like all weights.",
        figure="statistics",
    ),
    Claim(
        "population-size",
        ("later",),
        "Population statistics need a thousand to ten thousand examples (Wu & Johnson, 2021).",
        "inference",
        (
            within(
                "population_1000",
                -0.003,
                0.003,
                "test accuracy, statistics of 1,020 examples (17 batches of 60) - of 20,040",
            ),
            below("population_60", -0.003, "the same, of 60 examples"),
        ),
        "What 60 examples cost is about the .3 points that the rule asks for.",
        figure="statistics",
    ),
    Claim(
        "shift-hurts",
        ("004",),
        "A network does badly on test data distributed otherwise than the training data.",
        "inference",
        (
            below(
                "contrast_loss",
                0,
                "test accuracy on images of gray levels .5 x + .3 - unchanged, x from 0 to 1",
            ),
            below("rotation_loss", 0, "test accuracy on images rotated by 30 degrees - unchanged"),
        ),
        figure="shift",
    ),
    Claim(
        "shift-mended",
        ("later",),
        "Statistics estimated again on the shifted data win accuracy back.",
        "inference",
        (
            above(
                "contrast_recovered",
                0,
                "test accuracy won back by statistics of other test images shifted alike, contrast and brightness",
            ),
            above("rotation_recovered", 0, "the same, rotation"),
        ),
        figure="shift",
    ),
)
