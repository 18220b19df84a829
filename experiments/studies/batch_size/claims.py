"""Claims that the study `batch_size` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below, within

CLAIMS = (
    Claim(
        "batch-of-one",
        ("004",),
        "A batch of one cannot be normalized: its variance is zero.",
        "batch_size",
        (
            below("one_output", 1e-6, "largest |y - beta| for a batch of one"),
            below("one_gradient", 1e-6, "largest |dL/dW| for a batch of one, float64"),
            within(
                "two_output",
                0.999,
                1.001,
                "|xhat| for a batch of two, the farthest from 1, epsilon 1e-20",
                expected=1.0,
            ),
        ),
    ),
    Claim(
        "small-batches",
        ("004", "later"),
        "BN works badly with small batches.",
        "batch_size",
        (
            below("bn_2", 0, "test accuracy of BN, batches of 2 - of 32, equal examples seen"),
            below("bn_4", 0, "the same, batches of 4"),
            below("bn_excess_2", 0, "that loss at 2, beyond the loss without BN"),
        ),
        figure="sizes",
    ),
    Claim(
        "alternatives",
        ("004", "later"),
        "Layer norm and weight norm do not depend on the batch, and can stand in for BN.",
        "batch_size",
        (
            above("layer_minus_bn_2", 0, "test accuracy at batches of 2, layer norm - BN"),
            above("group_minus_bn_2", 0, "the same, group norm - BN"),
            above("weight_minus_bn_2", 0, "the same, weight norm - BN"),
            below(
                "layer_modes", 1e-7, "largest difference of layer norm in training and inference"
            ),
            below("weight_modes", 1e-7, "the same, weight norm"),
            above("layer_minus_bn_32", -0.005, "test accuracy at batches of 32, layer norm - BN"),
        ),
        figure="sizes",
    ),
    Claim(
        "huge-batches",
        ("004",),
        "BN works badly with huge batches, whose distribution is a mixture of many.",
        "batch_size",
        (
            below(
                "huge_examples",
                0,
                "test accuracy of BN, batches of 4096 - of 64, equal examples seen",
            ),
            below("huge_excess", 0, "that loss beyond the loss without BN"),
            below(
                "huge_steps",
                0,
                "test accuracy of BN, batches of 4096 - of 64, equal steps and rate",
            ),
        ),
        "Fewer steps explain the loss, not the mixture: with equal steps it should vanish.",
        figure="huge",
    ),
    Claim(
        "ghost-batches",
        ("later",),
        "Statistics of small parts of a large batch close its gap (Hoffer et al., 2017).",
        "batch_size",
        (above("ghost_gain", 0, "test accuracy at batches of 4096, ghost BN of 64 - BN"),),
        figure="huge",
    ),
    Claim(
        "mini-batches",
        ("004",),
        "Updating after every mini-batch instead of all data makes training go faster.",
        "batch_size",
        (
            below(
                "examples_ratio",
                1,
                "examples seen until a training loss of .3, batches of 64 / all 1,024 images, without BN, each at its best rate",
            ),
        ),
        figure="huge",
    ),
    Claim(
        "renorm-small",
        ("later",),
        "Batch renormalization mends small batches (Ioffe, 2017).",
        "batch_size",
        (
            above(
                "renorm_gain_2",
                0,
                "test accuracy at batches of 2, renorm (running statistics) - BN (population statistics)",
            ),
        ),
        figure="sizes",
    ),
)
