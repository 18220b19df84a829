"""Claims that the study `recurrent` measures, and the rules of their verdicts."""

from experiments.stats.rules import Claim, above, below

CLAIMS = (
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
        figure="clipping",
    ),
)
