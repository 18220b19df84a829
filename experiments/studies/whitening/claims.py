"""Claims that the study `whitening` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below, within

CLAIMS = (
    Claim(
        "whitening-decorrelates",
        ("000", "002"),
        "Whitening makes features uncorrelated, each of variance one.",
        "whitening",
        (
            below("covariance_error", 1e-5, "largest |covariance - identity| after ZCA, float64"),
            above("covariance_bn", 0.1, "largest correlation left by BN on the same pixels"),
        ),
        "BN does the second alone, at a fraction of the cost: it is no whitening.",
    ),
    Claim(
        "whitening-costly",
        ("000", "paper"),
        "Whitening costs much: a covariance matrix and its inverse root.",
        "whitening",
        (
            above(
                "time_ratio",
                10,
                "time of ZCA / of BN, forward, 512 features, 1,024 examples, LAPACK on one thread",
            ),
            above(
                "time_exponent", 1.5, "power of d that ZCA's time grows with, 128 to 512 features"
            ),
            below("time_exponent_bn", 1.5, "power of d that BN's time grows with"),
        ),
        figure="time",
    ),
    Claim(
        "whitening-singular",
        ("later",),
        "Whitening fails where the batch has fewer examples than features.",
        "whitening",
        (
            below(
                "smallest_eigenvalue",
                1e-6,
                "smallest / largest eigenvalue of the covariance, m = d/2",
            ),
            above(
                "lost_directions", 0.4, "share of directions without variance after ZCA, m = d/2"
            ),
        ),
    ),
    Claim(
        "bias-grows",
        ("000", "002", "paper"),
        "Normalizing outside the gradient step, a bias grows without end while the loss stays.",
        "whitening",
        (
            within(
                "bias_after_1000", 99.9, 100.1, "bias after 1,000 steps of rate .1", expected=100.0
            ),
            below("loss_change", 1e-6, "change of the loss meanwhile"),
            below("bias_inside", 1e-6, "|bias| after as many steps with BN inside the gradient"),
        ),
        figure="outside",
    ),
    Claim(
        "scale-grows",
        ("000", "paper"),
        "It gets worse when the scale is normalized as well.",
        "whitening",
        (
            above(
                "scale_growth", 2, "|W| after 1,000 steps / before, normalized outside the gradient"
            ),
            below("scale_growth_inside", 2, "the same with BN inside the gradient"),
        ),
        figure="outside",
    ),
    Claim(
        "normalized-inputs",
        ("000",),
        "Normalized inputs train faster and get stuck in local optima less.",
        "whitening",
        (
            below("condition_ratio", 1, "condition number of E[xx^T], standardized / raw"),
            below(
                "steps_standardized",
                1,
                "steps to the same loss, standardized / raw, each at its best rate",
            ),
            above(
                "stuck_difference",
                0,
                "share of runs that end more than .5 nats above the lowest training loss, raw - standardized",
            ),
        ),
        "What is stuck hangs on the margin: at equal steps raw inputs end worse, which proves no local optimum.",
        figure="descent",
    ),
    Claim(
        "whitened-faster",
        ("001", "paper"),
        "Whitened inputs converge faster still.",
        "whitening",
        (
            below(
                "steps_whitened",
                1,
                "steps to the same loss, whitened / standardized, each at its best rate",
            ),
        ),
        figure="descent",
    ),
)
