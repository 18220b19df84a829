"""Claims that the study `identities` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below, within

CLAIMS = (
    Claim(
        "bias-redundant",
        ("000", "002", "paper"),
        "A bias before BN has no effect: subtracting the mean removes it, and beta takes its place.",
        "identities",
        (
            below("bias_effect", 1e-6, "largest |BN(Wu + b) - BN(Wu)|"),
            below("bias_gradient", 1e-6, "largest |dL/db|, relative to |dL/dbeta|"),
        ),
        figure="errors",
    ),
    Claim(
        "epsilon",
        ("000", "001"),
        "Epsilon keeps the division from being by zero.",
        "identities",
        (
            above(
                "finite_with_epsilon", 0.5, "1 if a constant batch gives finite values with epsilon"
            ),
            below("finite_without_epsilon", 0.5, "1 if it does with epsilon 0, by the formula"),
        ),
    ),
    Claim(
        "moving-average",
        ("000",),
        "The moving average of length 2 of 100, 110, 130, 120, 140 is 100, 105, 120, 125, 130.",
        "identities",
        (below("moving_average_error", 1e-6, "largest error"),),
    ),
    Claim(
        "bessel",
        ("000", "002", "paper"),
        "The mean of the batch variances times m/(m-1) estimates the variance without bias.",
        "identities",
        (
            within(
                "corrected_2", 0.97, 1.03, "corrected / true variance, batches of 2", expected=1.0
            ),
            within(
                "corrected_60", 0.97, 1.03, "corrected / true variance, batches of 60", expected=1.0
            ),
            below("uncorrected_2", 0.97, "uncorrected / true variance, batches of 2", expected=0.5),
        ),
        "The factor is 2, 1.25, 1.032, 1.017 at m = 2, 5, 32, 60.",
        figure="bessel",
    ),
    Claim(
        "convolution",
        ("000", "002", "paper"),
        "In a convolution each of n maps has one gamma and beta, and statistics over m p q values.",
        "identities",
        (
            below(
                "convolution_difference", 1e-5, "largest difference to the dense form on (m p q, n)"
            ),
            within("parameters_per_map", 1.99, 2.01, "parameters per feature map", expected=2),
        ),
        figure="errors",
    ),
    Claim(
        "scale-invariance",
        ("000", "001", "paper"),
        "The scale of the weights does not matter: BN((aW)u) = BN(Wu), and gradients do not grow with a.",
        "identities",
        (
            below("scaled_output", 1e-6, "largest |BN((aW)u) - BN(Wu)|, a = .1, 10, 100"),
            below("scaled_gradient", 1e-6, "largest |a dL/d(aW) - dL/dW|, relative"),
            below("radial_gradient", 1e-6, "|<W, dL/dW>|, relative"),
        ),
        figure="errors",
    ),
    Claim(
        "extra-layer",
        ("001", "000", "paper"),
        "BN with gamma and beta is one more layer, which backpropagation trains like any other.",
        "identities",
        (
            below("closed_form_error", 1e-6, "largest |jbn's gradient - closed form|, float64"),
            below(
                "difference_error", 1e-6, "largest |jbn's gradient - finite differences|, float64"
            ),
        ),
        figure="errors",
    ),
    Claim(
        "identity-map",
        ("001", "002", "paper"),
        "With gamma = the standard deviation and beta = the mean, BN gives back its input.",
        "identities",
        (
            below("identity_error", 1e-6, "largest |y - x| with gamma = sqrt(var + epsilon)"),
            below(
                "identity_error_std",
                1e-6,
                "largest |y - x| with gamma = the standard deviation itself",
            ),
        ),
        "Exactly so only with gamma = sqrt(var + epsilon); with the deviation itself, up to epsilon / (2 var).",
        figure="errors",
    ),
    Claim(
        "products",
        ("003",),
        "Repeated factors below 1 vanish, repeated factors above 1 explode.",
        "identities",
        (
            below("product_09", 1e-3, "0.9 to the 100th", expected=2.656e-5),
            above("product_15", 1e3, "1.5 to the 100th", expected=4.066e17),
        ),
    ),
    Claim(
        "sigmoid-slope",
        ("003",),
        "The slope of the sigmoid is 1/4 at most, at 0; a few layers make it almost nothing.",
        "identities",
        (
            within("sigmoid_slope", 0.2499, 0.2501, "largest slope", expected=0.25),
            below("sigmoid_slope_10", 1e-6, "the largest, to the 10th", expected=9.54e-7),
        ),
    ),
    Claim(
        "glorot-he",
        ("003",),
        "Glorot's and He's initialization draw weights of variance 2/(fan in + fan out), and 2/fan in.",
        "identities",
        (
            within(
                "glorot_normal", 0.98, 1.02, "variance / its formula, Glorot normal", expected=1
            ),
            within(
                "glorot_uniform", 0.98, 1.02, "variance / its formula, Glorot uniform", expected=1
            ),
            within("he_normal", 0.98, 1.02, "variance / its formula, He normal", expected=1),
        ),
    ),
    Claim(
        "xavier-not-glorot",
        ("003",),
        "Xavier (normal) and Glorot (uniform) are different techniques.",
        "identities",
        (above("variance_difference", 0.05, "variance / its formula, uniform - normal"),),
        "They are one, named after Xavier Glorot, in a normal and a uniform variant of equal variance.",
    ),
    Claim(
        "divide-by-batch",
        ("004",),
        "Dividing by B, the gradient of a mini-batch stands for that of all the data: their mean is it.",
        "identities",
        (
            below(
                "mean_of_gradients",
                1e-5,
                "|mean of mini-batch gradients - full gradient|, relative, without BN",
            ),
        ),
        "Not with BN, where an example's loss depends on the others in its batch.",
        figure="errors",
    ),
)
