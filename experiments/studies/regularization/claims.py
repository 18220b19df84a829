"""Claims that the study `regularization` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below

CLAIMS = (
    Claim(
        "bn-regularizes",
        ("000", "001", "002", "paper"),
        "BN regularizes.",
        "regularization",
        (
            below(
                "gap_bn",
                0,
                "gap between training and test accuracy, BN - without, small training set",
            ),
            above("test_gain_bn", 0, "test accuracy, BN - without"),
        ),
        "Not shown at this size; where every network fits its training images, both numbers are one. On a first, coarser grid of rates it held, because the network without BN had no rate near its best.",
        figure="regularizers",
    ),
    Claim(
        "dropout-unneeded",
        ("000", "001", "002"),
        "With BN, dropout is not needed.",
        "regularization",
        (
            below(
                "dropout_gain_bn",
                0.005,
                "test accuracy gained by the best dropout (.05, .1, .4), with BN",
            ),
            above("bn_minus_dropout", 0, "test accuracy, BN without dropout - dropout without BN"),
        ),
        "The paper says removed or reduced.",
        figure="regularizers",
    ),
    Claim(
        "remedies",
        ("001",),
        "L1, L2 and dropout are remedies against overfitting.",
        "regularization",
        (
            below("gap_l1", 0, "gap, with the best L1 by validation - without, no BN"),
            below("gap_l2", 0, "the same, L2"),
            below("gap_dropout", 0, "the same, dropout"),
            above(
                "sparsity_l1",
                0.1,
                "share of weights below .001 in size, with the best L1 - without",
            ),
            below("norm_l2", 1, "norm of the weights, with L2 / without"),
        ),
        figure="regularizers",
    ),
    Claim(
        "width-overfits",
        ("001",),
        "Too many units overfit.",
        "regularization",
        (
            above("gap_wide", 0, "gap, widest - narrowest network"),
            below("test_wide", 0, "test accuracy, widest - narrowest network"),
        ),
        figure="noise",
    ),
    Claim(
        "batch-noise",
        ("001", "later"),
        "BN regularizes by the noise of its batches.",
        "regularization",
        (
            below(
                "gap_small_batch",
                0,
                "gap of BN with statistics of 16 - of 256 examples, gradient batches of 256",
            ),
            above(
                "gap_noise_free",
                0,
                "gap of noise-free BN (statistics of all 512 training images) - of BN, batches of 64",
            ),
            below("test_noise_free", 0, "test accuracy of noise-free BN - of BN"),
        ),
        figure="noise",
    ),
    Claim(
        "bad-data",
        ("001",),
        "On bad data a model only fits noise.",
        "regularization",
        (
            above(
                "flipped_fitted",
                0.5,
                "share of flipped training labels that the network learns, 40 % flipped, without BN",
            ),
            below("test_flipped", 0, "test accuracy, 40 % flipped - clean"),
            below("test_flipped_level", 0.5, "test accuracy at 40 % flipped labels"),
        ),
        figure="noise",
    ),
)
