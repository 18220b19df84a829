"""The registry: every claim, which experiment measures it, and the rule its verdict follows from.

The rules were written before the measurements; `git log` of this file tells when each changed, and
why. Sources: five study notes on batch normalization, "000" to "004", "paper" for Ioffe & Szegedy,
2015, "later" for what others found since. Many claims repeat the paper; some are known to be false
as stated, and stand here as they are made.
"""

from experiments.stats.rules import Claim, above, below, within

MNIST_MLP = (
    Claim(
        "fig1-faster",
        ("002", "001", "paper"),
        "On MNIST, the network with batch normalization learns much faster and ends better.",
        "mnist_mlp",
        (
            above(
                "accuracy_gain_early", 0.1, "test accuracy gained after 1,000 steps", expected=0.373
            ),
            above(
                "accuracy_gain_last", 0, "test accuracy gained after the last step", expected=0.016
            ),
            below(
                "share_of_steps",
                0.5,
                "share of all steps in which BN reaches the other's last accuracy",
            ),
        ),
        "Once the rate is good, the last difference is a point or less: the gain is speed.",
        figure="fig1",
    ),
    Claim(
        "fig1-stable-inputs",
        ("002", "000", "paper"),
        "With BN the inputs of a sigmoid keep their distribution over training; without it they swing.",
        "mnist_mlp",
        (
            above("drift_difference", 0, "drift of the median, without BN - with", expected=0.4),
            above(
                "spread_without",
                2,
                "largest / smallest spread over training, without BN",
                expected=5.0,
            ),
            below(
                "spread_with", 2, "largest / smallest spread over training, with BN", expected=1.56
            ),
        ),
        figure="fig1",
    ),
)

IDENTITIES = (
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
        (
            above(
                "variance_difference", 0.05, "relative difference of the variances that they draw"
            ),
        ),
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

GRADIENTS = (
    Claim(
        "vanishing",
        ("000", "002", "003"),
        "Sigmoid and tanh make gradients vanish, the more the deeper.",
        "gradients",
        (
            below(
                "sigmoid_factor",
                0.9,
                "gradient by a layer's sums, factor of its norm per layer backwards, sigmoid, Xavier, 20 layers",
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
                "gradient by a layer's sums, factor of its norm per layer backwards, ReLU, He",
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
                "gradient by a layer's sums, factor of its norm per layer backwards, ReLU, weights twice He's",
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
                "gradient by a layer's sums, factor of its norm per layer backwards, sigmoid, BN",
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
                "gradient by the first layer's sums, residual / plain, ReLU, Xavier, 20 layers",
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
                "mean square of a layer's sums, factor per layer, ReLU, He, 20 layers",
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

RECURRENT = (
    Claim(
        "rnn-forgets",
        ("003",),
        "A recurrent network loses the influence of earlier states.",
        "recurrent",
        (
            below(
                "rnn_factor",
                0.98,
                "|dh_T/dh_0| per step over 100 steps, spectral norm, RNN, tanh, at initialization",
            ),
            below("rnn_gradient_100", 1e-3, "|dh_100/dh_0|, RNN, at initialization"),
            above(
                "adding_rnn_200",
                0.1,
                "mean squared error in the adding problem, T = 200, RNN (chance: .167)",
            ),
        ),
        figure="memory",
    ),
    Claim(
        "lstm-preserves",
        ("003",),
        "LSTM keeps long dependencies, by its gates and memory cell.",
        "recurrent",
        (
            above(
                "lstm_over_rnn_100",
                10,
                "|d(state)_100/d(state)_0| at initialization, LSTM / RNN, forget bias 1",
            ),
            below(
                "adding_lstm_50",
                0.05,
                "mean squared error in the adding problem, T = 50, LSTM, chrono initialization (chance: .167)",
            ),
            below("adding_lstm_100", 0.05, "the same, T = 100"),
            below("adding_lstm_200", 0.05, "the same, T = 200"),
        ),
        figure="adding",
    ),
    Claim(
        "forget-bias",
        ("later", "003"),
        "What an LSTM keeps hangs on its forget bias: f to the power of T.",
        "recurrent",
        (
            below("kept_bias_1", 1e-10, "sigmoid(1) to the 100th", expected=2.5e-14),
            above("kept_bias_5", 0.4, "sigmoid(5) to the 100th", expected=0.51),
            above("bias_5_over_1", 10, "|dc_100/dc_0| at initialization, forget bias 5 / with 1"),
        ),
        figure="memory",
    ),
    Claim(
        "clipping-recurrent",
        ("003", "later"),
        "Clipping keeps recurrent networks with large weights from diverging.",
        "recurrent",
        (
            above(
                "diverged_unclipped",
                0.5,
                "share of runs whose error is not finite or above 10 times chance, without clipping",
            ),
            below("diverged_clipped", 0.5, "the same with clipping"),
        ),
        "No clipped run of the quick preset is non-finite: those that count end above the bound of the error.",
    ),
)

WHITENING = (
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

TITANIC = (
    Claim(
        "titanic-accuracy",
        ("001",),
        "On the Titanic, from class, fare and age, BN lifts the accuracy from 69 to 71 %.",
        "titanic",
        (
            above(
                "gain_raw_relu",
                0,
                "accuracy after 200 epochs gained by BN, raw inputs, ReLU",
                expected=0.063,
            ),
            above("gain_raw_sigmoid", 0, "the same, sigmoid", expected=0.012),
            above(
                "gain_standardized_relu",
                0,
                "accuracy gained by BN, standardized inputs, ReLU",
                expected=0.002,
            ),
            above("gain_standardized_sigmoid", 0, "the same, sigmoid", expected=-0.003),
        ),
        "Scaling the inputs does as much or more; one split of 179 has a standard error of 3.4 points.",
        figure="accuracy",
    ),
    Claim(
        "titanic-steadier",
        ("001",),
        "With BN the accuracy is steadier from epoch to epoch.",
        "titanic",
        (
            below(
                "unsteadiness_raw_relu",
                1,
                "deviation of a fold's accuracy over the last 100 of 200 epochs, BN / without, raw, ReLU",
            ),
            below("unsteadiness_standardized_relu", 1, "the same, standardized inputs"),
        ),
        figure="steadiness",
    ),
    Claim(
        "titanic-epochs",
        ("001",),
        "More epochs would give a better result.",
        "titanic",
        (
            above(
                "gain_epochs_raw_relu", 0, "accuracy after 1,000 epochs - after 200, BN, raw, ReLU"
            ),
            above("gain_epochs_standardized_relu", 0, "the same, standardized inputs"),
        ),
        figure="epochs",
    ),
)

LEARNING_RATE = (
    Claim(
        "plateau",
        ("000",),
        "Where the gradient stalls, the error stays where it is.",
        "learning_rate",
        (
            above(
                "chance_without",
                5_000,
                "steps until test accuracy .2 without BN, sigma .05, rate .01, of at most 20,000",
                expected=20_000,
            ),
            below("chance_with", 1_000, "the same with BN, looked at every 50 steps"),
        ),
        figure="plateau",
    ),
    Claim(
        "small-rate",
        ("000",),
        "A small learning rate is a remedy against exploding gradients.",
        "learning_rate",
        (
            below(
                "diverged_small",
                0.5,
                "share of runs below .2 after 500 steps at rate .0001, ReLU, sigma .5, without BN",
            ),
            above("diverged_large", 0.5, "the same at rate 1"),
        ),
        figure="grid",
    ),
    Claim(
        "higher-rate",
        ("000", "001", "002", "paper"),
        "BN allows a higher learning rate.",
        "learning_rate",
        (
            above(
                "rate_ratio_relu",
                1,
                "largest rate of the grid (to 30) that reaches 90 % in 1,500 steps at sigma .05, BN / without, ReLU",
            ),
            above(
                "rate_ratio_sigmoid",
                1,
                "the same, sigmoid: at least, as BN reaches the end of the grid",
            ),
        ),
        figure="grid",
    ),
    Claim(
        "less-care",
        ("000", "003", "paper"),
        "With BN one can be less careful about initialization and learning rate.",
        "learning_rate",
        (
            above(
                "grid_gain",
                0,
                "share of 24 cells (rate .01 to 30, sigma .05 to 5) at 90 % after 1,500 steps, BN - without, sigmoid",
            ),
            above("grid_gain_relu", 0, "the same, ReLU"),
            above(
                "gain_sigma_5",
                0.1,
                "test accuracy gained after 1,500 steps at sigma 5, rate .01, sigmoid",
                expected=0.466,
            ),
        ),
        figure="grid",
    ),
    Claim(
        "faster",
        ("000", "001", "002", "004", "paper"),
        "BN speeds training up.",
        "learning_rate",
        (
            below(
                "steps_ratio_low", 1, "steps to 90 %, BN / without, at rate .1, sigmoid, sigma .1"
            ),
            below(
                "steps_ratio_best",
                1,
                "the same, each at its best rate of .1 to 3, chosen on held-out images",
            ),
        ),
        "At the best rates it hangs on the choice of BN's rate, which held-out images, easier than the test ones, leave open.",
        figure="speed",
    ),
    Claim(
        "low-rate-equal",
        ("later",),
        "At the same low rate BN ends no better; its gain comes from high rates (Bjorck et al., 2018).",
        "learning_rate",
        (
            within(
                "last_gain_low",
                -0.005,
                0.005,
                "test accuracy after 5,000 steps gained by BN at rate .1, ReLU, sigma .1",
            ),
            above(
                "gain_from_high_rate", 0, "the same network with BN, best rate of .1 to 3 - rate .1"
            ),
        ),
        figure="speed",
    ),
    Claim(
        "small-rates-slow",
        ("001", "004"),
        "Small learning rates make training slow.",
        "learning_rate",
        (
            above(
                "slowness_without",
                1,
                "steps to 90 %, rate .1 / rate 1, sigmoid, sigma .1, without BN",
            ),
            above("slowness_with", 1, "the same, with BN"),
        ),
        figure="speed",
    ),
    Claim(
        "slower-decay",
        ("000",),
        "With BN the learning rate may decay more slowly.",
        "learning_rate",
        (
            above(
                "slow_minus_fast",
                0,
                "test accuracy with BN after 5,000 steps from rate 1, half-life 3,000 - 83, sigmoid; no control without BN",
            ),
        ),
        "The paper decays it 6x faster, because the network trains faster.",
        figure="speed",
    ),
    Claim(
        "zero-initialization",
        ("003",),
        "Zero initial weights leave the hidden units alike, and the network linear in effect.",
        "learning_rate",
        (
            below(
                "zero_difference",
                1e-6,
                "largest difference between weights of hidden units of a layer after 500 steps, sigmoid, rate .1",
            ),
            below("zero_rank", 1.5, "rank of the weights after training"),
            below("zero_accuracy", 0.5, "test accuracy"),
        ),
    ),
)

REGULARIZATION = (
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
        "Not shown at this size. On a first, coarser grid of rates it held, because the network without BN had no rate near its best.",
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

BATCH_SIZE = (
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

INFERENCE = (
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

SHIFT = (
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
        "The comparisons with ReLU rest on rates chosen with one more seed, and are fragile.",
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

BATCHES = (
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

SATURATION = (
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

PLACEMENT = (
    Claim(
        "before-activation",
        ("002", "004", "paper"),
        "BN belongs before the nonlinearity.",
        "placement",
        (
            above(
                "before_sigmoid",
                0,
                "test accuracy, BN before - after the nonlinearity, sigmoid, each at its best rate",
            ),
            above("before_relu", 0, "the same, ReLU"),
            above("before_tanh", 0, "the same, tanh"),
        ),
        figure="order",
    ),
    Claim(
        "bias-left-out",
        ("000", "002", "paper"),
        "Nothing is lost by leaving the bias out before BN.",
        "placement",
        (
            within(
                "bias_gain",
                -0.002,
                0.002,
                "test accuracy gained by keeping the bias, mean of sigmoid, tanh and ReLU",
            ),
        ),
        figure="order",
    ),
    Claim(
        "lrn-unneeded",
        ("002", "paper"),
        "With BN, local response normalization is not needed.",
        "placement",
        (
            below(
                "lrn_gain_bn",
                0.005,
                "test accuracy gained by LRN after every ReLU of a small CNN, with BN",
            ),
            above("lrn_gain", 0, "the same, without BN"),
        ),
        figure="local_response",
    ),
)

TRANSFER = (
    Claim(
        "pretrained",
        ("003",),
        "A pretrained model, adapted, reaches the goal sooner.",
        "transfer",
        (
            below(
                "steps_ratio",
                1,
                "steps to 80 % on Fashion-MNIST (looked at every 10), pretrained on MNIST / from scratch",
            ),
            above("last_gain", 0, "last test accuracy, pretrained - from scratch"),
        ),
        figure="race",
    ),
    Claim(
        "statistics-transfer",
        ("later",),
        "On new data the statistics should be estimated again rather than frozen.",
        "transfer",
        (
            above(
                "reestimated_gain",
                0,
                "test accuracy of a new last layer, statistics estimated again - frozen",
            ),
            above(
                "trained_gain",
                0,
                "test accuracy of a new last layer, gamma and beta trained as well - statistics alone",
            ),
        ),
        figure="ways",
    ),
)

INCEPTION = (
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

CLAIMS: tuple[Claim, ...] = (
    *MNIST_MLP,
    *IDENTITIES,
    *GRADIENTS,
    *RECURRENT,
    *WHITENING,
    *TITANIC,
    *LEARNING_RATE,
    *REGULARIZATION,
    *BATCH_SIZE,
    *INFERENCE,
    *SHIFT,
    *BATCHES,
    *SATURATION,
    *PLACEMENT,
    *TRANSFER,
    *INCEPTION,
)
