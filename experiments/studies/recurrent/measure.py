"""What the study `recurrent` measures and reports."""

import functools

import numpy as np
from scipy.special import expit

from experiments.plotting import counted, describe_runs
from experiments.stats import estimates
from experiments.studies.recurrent.adding import at_best_rate, clipping, learn
from experiments.studies.recurrent.config import EVALUATE_EVERY, FORGET_BIASES, LENGTHS, Config
from experiments.studies.recurrent.figures import plot_adding, plot_clipping, plot_memory
from experiments.studies.recurrent.jacobian import jacobians
from experiments.study import Study


def measure(config: Config, study: Study) -> None:
    """Measure, report and plot."""
    # ---- What a state remembers
    log_norms = study.part("jacobian", lambda: jacobians(config))
    at = 100 // EVALUATE_EVERY
    rnn, state, memory = (log_norms[name][..., at] for name in ("rnn", "state", "memory"))
    one, five = FORGET_BIASES.index(1), FORGET_BIASES.index(5)
    study.report("rnn_factor", estimates.ratio(np.exp(rnn / 100)))
    study.report("rnn_gradient_100", estimates.ratio(np.exp(rnn)))
    study.report("lstm_over_rnn_100", estimates.ratio(np.exp(state[one] - rnn)))
    study.report("bias_5_over_1", estimates.ratio(np.exp(memory[five] - memory[one])))
    for bias, logs in zip(FORGET_BIASES, memory, strict=True):
        study.report(f"kept_bias_{bias}", estimates.exact(expit(float(bias)) ** 100))
        study.report(f"memory_bias_{bias}", estimates.ratio(np.exp(logs)))
    study.figure(
        "memory",
        lambda: plot_memory(log_norms),
        title="A plain RNN forgets; what an LSTM keeps hangs on its forget bias",
        caption=f"Gaussian inputs, untrained networks of {config.jacobian_hidden} units. "
        + describe_runs(config.jacobian_seeds, mean="geometric means"),
        alt="Spectral norm of the Jacobian of the state at step T with respect to the first, mean "
        "over networks. Left: RNN, GRU and LSTM. Right: the LSTM's memory for "
        "several forget biases, sigmoid(bias) to the power T dotted.",
    )

    # ---- The adding problem
    errors = {}
    for length in LENGTHS:
        # A forget bias of 1 for comparison, only at the largest length, as it is expensive.
        lstms = ("lstm", "lstm_1") if length == LENGTHS[-1] else ("lstm",)
        for kinds in (("rnn",), lstms):
            work = functools.partial(learn, config, kinds, length)
            for kind, runs in study.part(f"{kinds[0]}_{length}", work).items():
                errors[kind, length] = at_best_rate(runs)
                ends = errors[kind, length][:, -1]
                study.report(f"adding_{kind}_{length}", estimates.mean(ends))
    study.figure(
        "adding",
        lambda: plot_adding(config, errors),
        title="The adding problem, each network at its best rate",
        caption=f"Sequences of T values, networks of {config.hidden} units. "
        + describe_runs(config.seeds, mean="geometric means"),
        alt="Mean squared error on held-out sequences over training: an RNN, an LSTM with chrono "
        "initialization, for the longest sequences one with forget bias 1. Chance is dotted.",
    )

    # ---- Clipping
    ends = study.part("clipping", lambda: clipping(config))
    diverged = {name: ~(last <= config.clip_bound) for name, last in ends.items()}  # NaN too.
    for name, outcomes in diverged.items():
        study.report(f"diverged_{name}", estimates.share(outcomes))
    study.figure(
        "clipping",
        lambda: plot_clipping(config, ends),
        title="RNNs with large weights, without clipping of the gradient and with",
        caption=f"The adding problem, T = {config.clip_length}, RNNs of {config.hidden} units, "
        f"{counted(config.clip_seeds, 'seed')}. Right: share of runs; bars: 95 % intervals "
        "(Wilson).",
        alt="Left: the last error of every run on held-out sequences, on a logarithmic axis, with "
        "a line above which a run has diverged. Right: the share that diverged, "
        f"{diverged['unclipped'].mean():.2f} without clipping, {diverged['clipped'].mean():.2f} "
        "with.",
    )
