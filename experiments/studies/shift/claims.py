"""Claims that the study `shift` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below, within

CLAIMS = (
    Claim(
        "reduces-shift",
        ("000", "001", "002", "004", "paper"),
        "BN reduces internal covariate shift.",
        "shift",
        (
            below(
                "drift",
                0,
                "drift from step 1,000 on of the medians of the last hidden layer's inputs, BN - without",
            ),
            below(
                "gradient_shift",
                0,
                "relative change of a layer's gradient once the layers before it took their step, mean over layers and training, BN - without",
            ),
        ),
        "By the first measure; by that of Santurkar et al. (2018) it need not. That BN solves it is disputed.",
        figure="shift",
    ),
    Claim(
        "noisy-bn",
        ("later",),
        "With noise added after BN, more shift than without BN, training stays as good (Santurkar et al., 2018).",
        "shift",
        (
            above("noisy_gain", 0, "test accuracy, noisy BN - without BN"),
            above(
                "noisy_drift",
                0,
                "drift of the medians from step 1,000 on, noise included, noisy BN - without BN",
            ),
        ),
        figure="shift",
    ),
    Claim(
        "smoother",
        ("later",),
        "BN makes the loss smoother along the gradient (Santurkar et al., 2018).",
        "shift",
        (
            below(
                "loss_range",
                1,
                "range of the loss from half a step to four along the gradient, same rate, BN / without",
            ),
            below(
                "gradient_change",
                1,
                "largest change of the gradient there, relative to its length, BN / without",
            ),
        ),
        figure="landscape",
    ),
    Claim(
        "mini-batches-cause-shift",
        ("004",),
        "Training in mini-batches is what causes internal covariate shift.",
        "shift",
        (
            below(
                "full_batch_drift",
                0.1,
                "drift from step 1,000 to 2,000 without BN, 500 examples, full batch / mini-batches of 60",
            ),
        ),
        "It comes from the layers before, which change at every step, whatever the batch.",
        figure="shift",
    ),
    Claim(
        "depth",
        ("000", "002"),
        "The trouble adds up with depth; ReLU, dropout and L2 only evade it, BN solves it.",
        "shift",
        (
            below(
                "sigmoid_depth",
                0,
                "test accuracy at 20 hidden layers - at 3 after 500 steps, sigmoid, without BN, best rate each",
            ),
            above("bn_over_relu", 0, "test accuracy at 20 layers, sigmoid with BN - ReLU without"),
            above("bn_over_dropout", 0, "the same - sigmoid with dropout"),
            above("bn_over_l2", 0, "the same - sigmoid with L2"),
            above("relu_bn_over_relu", 0, "test accuracy at 20 layers, ReLU with BN - without"),
        ),
        "Of ReLU networks of 20 layers those with BN are behind after so few steps.",
        figure="depth",
    ),
    Claim(
        "amplified",
        ("002", "004"),
        "Small changes of early layers are amplified on the way to the output; BN holds them down.",
        "shift",
        (
            above(
                "amplification",
                1,
                "relative change of the last W x, 20 layers / 2, W1 changed by 1 %, ReLU, He, untrained",
            ),
            below(
                "amplification_bn",
                1,
                "relative change of the last W x at 20 layers, untrained, BN / without",
            ),
        ),
        figure="untrained",
    ),
    Claim(
        "outlier-weights",
        ("001",),
        "A few large weights change the distribution from layer to layer.",
        "shift",
        (
            above(
                "outlier_growth",
                1.02,
                "growth per layer of (deviation of the nonlinearity's inputs with outliers / without), ReLU, untrained",
            ),
            within("outlier_bn", 0.9, 1.1, "deviation with outliers / without, last layer, BN"),
        ),
        figure="untrained",
    ),
    Claim(
        "variance-by-depth",
        ("004",),
        "BN lessens the growth of the variance with depth.",
        "shift",
        (
            above(
                "growth_without",
                1.1,
                "deviation of the inputs to the nonlinearity per layer, ReLU, weights 1.5 times He's",
            ),
            within("growth_with", 0.95, 1.05, "the same with BN"),
        ),
        figure="untrained",
    ),
)
