"""Claims that the study `batches` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below, within

CLAIMS = (
    Claim(
        "representative",
        ("002", "paper"),
        "Mini-batches must be well mixed, so that each stands for all the data.",
        "batches",
        (
            below(
                "sorted",
                0,
                "test accuracy with BN, batches of two classes (paired anew every epoch) - shuffled",
            ),
            below("sorted_excess", 0, "that difference - the same without BN"),
            below(
                "fixed",
                0,
                "test accuracy with BN, the same batches every epoch in new order - shuffled anew",
            ),
        ),
        "Without BN, at the same rate, batches of two classes do far more harm.",
        figure="orders",
    ),
    Claim(
        "all-data-ideal",
        ("002",),
        "Statistics of all the data would be best; a batch only estimates them.",
        "batches",
        (
            within(
                "mean_exponent",
                -0.55,
                -0.45,
                "power of m that |mean of the batch - mean| goes with, batches drawn with replacement",
                expected=-0.5,
            ),
            above(
                "all_data_gain",
                0,
                "test accuracy, normalized by all 1,020 training images (with gradient) - by the batch of 60",
            ),
        ),
        figure="means",
    ),
    Claim(
        "renorm-rescues",
        ("later",),
        "Batch renormalization rescues batches that are not well mixed (Ioffe, 2017).",
        "batches",
        (
            above(
                "renorm_gain",
                0,
                "test accuracy, renorm (r_max to 3, d_max to 5, Ioffe's schedule scaled to the run) - BN, batches of two classes",
            ),
        ),
        figure="orders",
    ),
)
