"""Claims that the study `saturation` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below, within

CLAIMS = (
    Claim(
        "linear-zone",
        ("000", "paper"),
        "Of N(0, 1), 95 % lie within 1.96, where the sigmoid is linear.",
        "saturation",
        (
            within("within_196", 0.9495, 0.9505, "share within 1.96", expected=0.95),
            above("line_r2", 0.95, "R2 of the best line there", expected=0.984),
            above("slope_ratio", 0.75, "slope at 1.96 / at 0", expected=0.432),
        ),
        "A line explains it well, but the slope falls to less than half.",
        figure="zone",
    ),
    Claim(
        "minus-one-to-one",
        ("002",),
        "Normalized values lie between -1 and 1.",
        "saturation",
        (
            below(
                "outside_one",
                0.01,
                "share of normalized Gaussian values beyond -1..1",
                expected=0.317,
            ),
            below(
                "largest_possible", 1.01, "largest possible |xhat| in a batch of 60", expected=7.68
            ),
        ),
        "Mean 0 and variance 1; a batch of m reaches sqrt(m - 1).",
        figure="zone",
    ),
    Claim(
        "no-saturation",
        ("000", "paper"),
        "As the range is fixed, saturating nonlinearities do not saturate.",
        "saturation",
        (
            below(
                "saturated_unit",
                1e-4,
                "share of units with slope < .01, inputs N(0, 1)",
                expected=7e-6,
            ),
            below(
                "saturated_difference",
                0,
                "share saturated after training, BN - without, initial weights of standard deviation 1, rate .1",
            ),
            below("saturated_scale_10", 0.05, "share saturated with gamma 10", expected=0.65),
        ),
        "Two moments are fixed, not the range; gamma and beta can saturate again.",
        figure="saturated",
    ),
    Claim(
        "gamma-beta-restore",
        ("000", "002", "paper"),
        "Gamma and beta restore what normalization takes from the nonlinearity.",
        "saturation",
        (
            above(
                "gain_scale_bias",
                0,
                "test accuracy, gamma and beta learned - neither, sigmoid, each at its best rate",
            ),
            above("gain_scale_bias_relu", 0, "the same, ReLU"),
            above(
                "slope_range",
                0,
                "1 - R2 of the best line to the sigmoids over their inputs, mean over units, learned - neither",
            ),
        ),
        figure="learned",
    ),
    Claim(
        "gamma-beta-choose",
        ("004", "000"),
        "The network learns which distribution is best, by gamma and beta.",
        "saturation",
        (
            above("scale_spread", 0.05, "standard deviation of the learned gammas, sigmoid"),
            above("bias_spread", 0.05, "standard deviation of the learned betas, sigmoid"),
        ),
        figure="learned",
    ),
    Claim(
        "relu-half",
        ("004",),
        "Gamma and beta keep ReLU from zeroing all that was negative, half of everything.",
        "saturation",
        (
            within("active_first", 0.48, 0.52, "share of active ReLUs at the start", expected=0.5),
            below("active_error", 0.05, "mean |active share - Phi(beta / |gamma|)| after training"),
            above("active_last", 0.52, "share of active ReLUs after training"),
        ),
        figure="learned",
    ),
    Claim(
        "gaussian",
        ("004",),
        "Normalization makes the values a Gaussian of mean zero.",
        "saturation",
        (
            below("moment_error", 1e-3, "largest |mean| and |std - 1| after normalization"),
            below(
                "skew_after",
                0.1,
                "skewness of exponential values after normalization",
                expected=2.0,
            ),
            below("kurtosis_after", 0.1, "their excess kurtosis after normalization", expected=6.0),
        ),
        "The shape stays as it was: skewness and kurtosis do not change.",
        figure="zone",
    ),
)
