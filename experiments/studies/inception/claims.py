"""Claims that the study `inception` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below

CLAIMS = (
    Claim(
        "bn-baseline",
        ("002", "paper"),
        "Inception with BN alone matches the original in less than half the steps.",
        "inception",
        (
            below(
                "baseline_steps",
                0.5,
                "steps to the original's best accuracy, BN-Baseline / Inception, looked at every 40 steps",
                expected=0.43,
            ),
            above(
                "baseline_gain", 0, "best test accuracy, BN-Baseline - Inception", expected=0.005
            ),
        ),
        figure="variants",
    ),
    Claim(
        "bn-x5",
        ("002", "paper"),
        "With five times the rate and all seven changes it is 14 times faster.",
        "inception",
        (
            below(
                "x5_steps",
                0.2,
                "steps to the original's best accuracy, BN-x5 / Inception, looked at every 40 steps",
                expected=0.068,
            ),
            above("x5_gain", 0, "best test accuracy, BN-x5 - Inception", expected=0.008),
        ),
        "A miniature of 1,280 steps cannot show 14 times; the rule asks for 5.",
        figure="variants",
    ),
    Claim(
        "bn-x30",
        ("002", "paper"),
        "With thirty times the rate it learns a little slower at first, and ends best.",
        "inception",
        (
            above(
                "x30_steps",
                1,
                "steps to the original's best accuracy, BN-x30 / BN-x5",
                expected=1.29,
            ),
            above("x30_gain", 0, "best test accuracy, BN-x30 - BN-x5", expected=0.018),
        ),
        "11.5 times faster than Inception to 72.2 %, not 6 times.",
        figure="variants",
    ),
    Claim(
        "inception-x5",
        ("paper",),
        "Inception without BN cannot bear five times the rate.",
        "inception",
        (below("plain_x5", 0, "last test accuracy, Inception at 5 times the rate - at its own"),),
        figure="variants",
    ),
    Claim(
        "sigmoid-trains",
        ("002", "000", "paper"),
        "With BN even a deep network of sigmoids trains; without, it stays at chance.",
        "inception",
        (
            above("sigmoid_with", 0.25, "best test accuracy of BN-x5 with sigmoids (chance: .1)"),
            below(
                "sigmoid_without",
                0.15,
                "best test accuracy of the original with sigmoids, without BN",
            ),
        ),
        figure="variants",
    ),
    Claim(
        "seven-changes",
        ("002", "paper"),
        "BN needs the changes that go with it: each of them helps.",
        "inception",
        (
            below(
                "without_rate",
                0,
                "best test accuracy of BN-x5 with the original's rate - of BN-x5",
            ),
            below("with_dropout", 0, "the same, with dropout kept"),
            below("with_l2", 0, "the same, with L2 not reduced"),
            below("slow_decay", 0, "the same, with the original's decay"),
            below("with_lrn", 0, "the same, with LRN kept"),
            below("fixed_batches", 0, "the same, with the same batches in every epoch"),
            below("strong_distortion", 0, "the same, with strong distortion"),
        ),
        figure="changes",
    ),
)
