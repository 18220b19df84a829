"""Claims that the study `gradients` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below, within

CLAIMS = (
    Claim(
        "vanishing",
        ("000", "002", "003"),
        "Sigmoid and tanh make gradients vanish, the more the deeper.",
        "gradients",
        (
            below(
                "sigmoid_factor",
                0.9,
                "gradient by a layer's pre-activations, factor of its norm per layer backwards, sigmoid, Xavier, 20 layers",
                expected=0.236,
            ),
            below(
                "tanh_factor",
                0.99,
                "the same, tanh, Xavier",
                expected=0.93,
            ),
            below(
                "sigmoid_ends",
                1e-3,
                "gradient norm at the first layer / at the last, sigmoid, Xavier, 20 layers",
            ),
        ),
        figure="depth",
    ),
    Claim(
        "relu-and-initialization",
        ("000", "002", "003"),
        "ReLU and a careful initialization keep the gradient.",
        "gradients",
        (
            within(
                "relu_he_factor",
                0.95,
                1.05,
                "gradient by a layer's pre-activations, factor of its norm per layer backwards, ReLU, He",
                expected=0.999,
            ),
            above("relu_over_sigmoid", 1, "factor of ReLU / of sigmoid, both Xavier", expected=3.0),
            within(
                "relu_xavier_factor",
                0.95,
                1.05,
                "the same, ReLU, Xavier",
                expected=0.707,
            ),
        ),
        "ReLU needs He's variance: with Xavier's it loses the factor .707 per layer.",
        figure="layers",
    ),
    Claim(
        "exploding",
        ("000", "003"),
        "Gradients can explode instead, when the weights are too large.",
        "gradients",
        (
            above(
                "relu_large_factor",
                1.2,
                "gradient by a layer's pre-activations, factor of its norm per layer backwards, ReLU, weights twice He's",
                expected=2.0,
            ),
        ),
        figure="layers",
    ),
    Claim(
        "bn-keeps-gradients",
        ("000", "003"),
        "BN prevents vanishing and exploding gradients.",
        "gradients",
        (
            within(
                "bn_sigmoid_factor",
                0.5,
                2,
                "gradient by a layer's pre-activations, factor of its norm per layer backwards, sigmoid, BN",
            ),
            within("bn_relu_factor", 0.5, 2, "the same, ReLU, BN", expected=1.211),
            within(
                "bn_factor_by_scale", 0.9, 1.1, "factor with weights times 10 / times .1, ReLU, BN"
            ),
            below(
                "bn_relu_growth_50",
                10,
                "gradient norm 50 layers before the last / at the last, ReLU, BN, 56 layers",
            ),
        ),
        "Whatever the scale of the weights; but with ReLU it grows by 21 % a layer at initialization.",
        figure="depth",
    ),
    Claim(
        "bn-relu-growth",
        ("later",),
        "At initialization the squared gradient of ReLU with BN grows by pi/(pi-1) per layer (Yang et al., 2019).",
        "gradients",
        (
            within(
                "bn_relu_squared",
                1.40,
                1.54,
                "mean squared gradient, factor per layer, ReLU, BN, width 256, batches of 128",
                expected=1.467,
            ),
            within(
                "bn_linear_squared", 1.25, 1.42, "the same, linear, batches of 6", expected=1.333
            ),
        ),
        figure="depth",
    ),
    Claim(
        "early-layers",
        ("003",),
        "The first layers learn least.",
        "gradients",
        (
            below(
                "first_update",
                0.1,
                "relative update |dW|/|W| of the first layer between hidden ones / of the last, sigmoid, Xavier, 20 layers, 100 steps",
            ),
            below("first_update_relu", 1, "the same, ReLU, He"),
        ),
        figure="depth",
    ),
    Claim(
        "chain-rule",
        ("003",),
        "The downstream gradient is the upstream gradient times the local one.",
        "gradients",
        (
            below(
                "backprop_error",
                1e-6,
                "largest |hand-written backpropagation - jax.grad|, relative",
            ),
        ),
    ),
    Claim(
        "relu-slope",
        ("003",),
        "ReLU's slope is one, however large the input, so it does not become zero.",
        "gradients",
        (
            within("relu_slope_right", 0.999, 1.001, "ReLU's slope at 100"),
            above("relu_slope_left", 0, "ReLU's slope at -1"),
        ),
        "One to the right, zero to the left.",
        figure="dying",
    ),
    Claim(
        "dying-relu",
        ("003",),
        "ReLU units die and do not come back; leaky ReLU mends that.",
        "gradients",
        (
            above(
                "dead_relu",
                0.1,
                "share of ReLU units dead on all images, at the highest rate at which every ReLU network stays finite",
            ),
            below("dead_leaky", 0.001, "share of leaky units with zero gradient on all images"),
            above("leaky_gain", 0, "test accuracy of leaky - ReLU at that rate"),
        ),
        figure="dying",
    ),
    Claim(
        "residual",
        ("003",),
        "Adding the input, x + F(x), keeps the gradient in deep networks.",
        "gradients",
        (
            above(
                "residual_gain_20",
                1,
                "gradient by the first layer's pre-activations, residual / plain, ReLU, Xavier, 20 layers",
            ),
            above("residual_gain_56", 1, "the same, 56 layers"),
            above(
                "residual_accuracy_56",
                0,
                "test accuracy, residual - plain, 56 layers without BN, each at its best rate, 150 steps",
            ),
        ),
        figure="residual",
    ),
    Claim(
        "variance-kept",
        ("003",),
        "The right initial weights keep the variance from layer to layer.",
        "gradients",
        (
            within(
                "he_variance",
                0.9,
                1.1,
                "mean square of a layer's pre-activations, factor per layer, ReLU, He, 20 layers",
                expected=1,
            ),
            within("xavier_variance", 0.9, 1.1, "the same, linear, Xavier", expected=1),
            within("xavier_tanh_variance", 0.9, 1.1, "the same, tanh, Xavier"),
        ),
        figure="layers",
    ),
    Claim(
        "clipping",
        ("003", "later"),
        "Gradient clipping bounds the gradient's norm and prevents its explosion.",
        "gradients",
        (
            below("clipped_norm", 1.0001, "largest clipped norm / threshold"),
            above(
                "diverged_unclipped",
                0.5,
                "share of 20-layer ReLU networks with weights twice He's whose loss is not finite after 100 steps at rate .01",
            ),
            below("diverged_clipped", 0.5, "the same with clipping"),
        ),
    ),
)
