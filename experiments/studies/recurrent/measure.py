"""What the study `recurrent` measures, its options and presets."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import expit

from experiments import plotting, sampling
from experiments.stats import estimates, selection
from experiments.study import Study
from experiments.training import networks
from experiments.training.networks import Network
from jbn.models.recurrent import Recurrent

CHANCE = 1 / 6  # Variance of the sum of two values of U(0, 1).
LENGTHS = 50, 100, 200  # Of the adding problem.
FORGET_BIASES = 0, 1, 5
STEPS_BACK, LOOK_EVERY = 200, 10  # Of the Jacobian.


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    jacobian_seeds: int = 8
    """networks and input sequences whose Jacobian is taken"""
    jacobian_hidden: int = 50
    """their state's width"""
    jacobian_inputs: int = 10
    """their inputs' width"""
    seeds: int = 5
    """networks of each kind and rate in the adding problem"""
    hidden: int = 32
    """their state's width"""
    batch_size: int = 32
    """sequences in a batch, fresh in every step"""
    steps: int = 700
    """training steps"""
    looks: int = 20
    """evaluations over training, a divisor of `steps`"""
    rates: tuple[float, ...] = (0.003, 0.01)
    """learning rates of Adam, of which each kind takes its best"""
    held_out: int = 250
    """sequences to choose the rate on, and as many to report"""
    clip: float = 1.0
    """largest norm of the gradient of all parameters, where it is clipped"""
    clip_seeds: int = 16
    """runs with clipping and without"""
    clip_gain: float = 2.0
    """the recurrent weights there are orthogonal times this"""
    clip_length: int = 50
    """length of the adding problem there"""
    clip_steps: int = 300
    """training steps there"""
    clip_rate: float = 0.05
    """of plain gradient descent there"""
    clip_bound: float = 10 * CHANCE
    """a run whose error in the end is above this, or not finite, has diverged"""


PRESETS = {
    "smoke": Config(
        jacobian_seeds=2,
        jacobian_hidden=8,
        seeds=2,
        hidden=4,
        batch_size=4,
        steps=4,
        looks=1,
        held_out=4,
        clip_seeds=2,
        clip_length=10,
        clip_steps=10,
    ),
    "quick": Config(),
    "paper": Config(jacobian_seeds=32, seeds=10, steps=2000, clip_seeds=64, clip_steps=1000),
}


# ---- Jacobian ------------------------------------------------------------------------------------


def jacobian(
    move: Callable[[Array, Array], Array],
    start: Float[Array, "S"],
    inputs: Float[Array, "T F"],
    *,
    every: int,
) -> tuple[Float[Array, "looks"], Float[Array, "looks S S"]]:
    """Compute d state_T / d state_0 for T = 0, every, 2 every, ... as exp(logarithm) * matrix.

    The product of the steps' Jacobians is divided by its norm at every step, and the logarithm
    kept: left alone it would soon be 0 in float32.

    `move` goes from state and input to the next state; `every` divides the number of inputs.
    """

    def step(at: Any, x: Array, _: Array) -> Any:
        state, product, log = at
        state, push = jax.linearize(lambda state: move(state, x[0]), state)
        product = jax.vmap(push, in_axes=1, out_axes=1)(product)
        norm = jnp.linalg.norm(product)
        return state, product / norm, log + jnp.log(norm)

    begin, rows = (start, jnp.eye(len(start)), jnp.zeros(())), np.arange(len(inputs))[:, None]
    _, seen = networks.fit(step, begin, inputs, rows, observe=lambda at: at[:0:-1], every=every)
    return seen


def log_norms(
    config: Config, cell: nn.RNNCellBase, part: slice, forget_biases: tuple[int, ...] = (0,)
) -> list[Float[np.ndarray, "biases seeds looks"]]:
    """Compute ln of the spectral norm of a Flax cell's Jacobian, by forget bias and seed.

    Returns: of the whole state, and of a part of it: its rows and columns.
    """
    shape = config.jacobian_seeds, STEPS_BACK, config.jacobian_inputs
    inputs = sampling.rng(0, "inputs").normal(size=shape).astype(np.float32)
    keys = sampling.keys(range(len(inputs)), "weights")
    carry: Any = cell.initialize_carry(keys[0], inputs[0, 0].shape)  # Zeros, whatever the key.
    start, unravel = ravel_pytree(carry)
    params: Any = jax.vmap(lambda key: cell.init(key, carry, inputs[0, 0])["params"])(keys)

    def one(bias: Array, params: Any, inputs: Array) -> tuple[Array, Array]:
        if "hf" in params:  # An LSTM's forget gate.
            gate = params["hf"]
            params = {**params, "hf": {**gate, "bias": gate["bias"] + bias}}

        def move(state: Array, x: Array) -> Array:
            return ravel_pytree(cell.apply({"params": params}, unravel(state), x)[0])[0]

        return jacobian(move, start, inputs, every=LOOK_EVERY)

    every = jax.jit(jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None)))
    log, product = map(np.asarray, every(jnp.asarray(forget_biases), params, inputs))
    blocks = product, product[..., part, part]
    return [log + np.log(np.linalg.norm(block, 2, axis=(-2, -1))) for block in blocks]


def jacobians(config: Config) -> dict[str, ArrayLike]:
    """Measure every cell, from the same seeds and on the same inputs."""
    size, whole = config.jacobian_hidden, slice(None)
    memory = slice(size)  # An LSTM's carry is (c, h).
    lstm, of_memory = log_norms(config, nn.OptimizedLSTMCell(size), memory, FORGET_BIASES)
    rnn, gru = (log_norms(config, cell(size), whole)[0][0] for cell in (nn.SimpleCell, nn.GRUCell))
    return {"rnn": rnn, "gru": gru, "state": lstm, "memory": of_memory}


# ---- The adding problem --------------------------------------------------------------------------


def adding(
    seed: int, sequences: int, length: int
) -> tuple[Float[np.ndarray, "N T 2"], Float[np.ndarray, "N"]]:
    """Draw sequences of values and markers, one in each half, and the sums of those marked."""
    draw, rows = sampling.rng(seed, "sequences"), np.arange(sequences)
    x = np.zeros((sequences, length, 2), np.float32)
    x[..., 0] = draw.random((sequences, length))
    x[rows, draw.integers(0, length // 2, sequences), 1] = 1
    x[rows, draw.integers(length // 2, length, sequences), 1] = 1
    return x, x.prod(2).sum(1)


def sequences(
    config: Config, seeds: int, steps: int, length: int
) -> tuple[Any, Any, Int[np.ndarray, "steps batch"]]:
    """Draw for every seed its examples, each seen once, and held-out ones; and the batches."""
    count = steps * config.batch_size
    drawn = [adding(seed, count + 2 * config.held_out, length) for seed in range(seeds)]
    x, y = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
    batches = np.arange(count, dtype=np.int32).reshape(steps, -1)
    return (x[:, :count], y[:, :count]), (x[:, count:], y[:, count:]), batches


def squared_error(outputs: Any, target: Float[Array, "N"]) -> Float[Array, "N"]:
    """Compute the loss of each sequence."""
    return (outputs[:, 0] - target) ** 2


def set_gates(params: Any, key: PRNGKeyArray, kind: str, length: int) -> Any:
    """Set the biases of an LSTM's gates; with "lstm", memories last from 1 to `length` steps."""
    layer = params["input"]
    size = layer["bias"].shape[0] // 4  # Of the gates i, f, g, o.
    chrono = jnp.log(jax.random.uniform(key, (size,), minval=1.0, maxval=length - 1.0))
    inward, forget = (-chrono, chrono) if kind == "lstm" else (0.0, 1.0)
    bias = layer["bias"].at[:size].set(inward).at[size : 2 * size].set(forget)
    return {**params, "input": {**layer, "bias": bias}}


def learn(config: Config, kinds: tuple[str, ...], length: int) -> dict[str, ArrayLike]:
    """Train networks at every rate: "rnn", or "lstm" (chrono), "lstm_1" (forget bias 1).

    Returns: kind -> errors on two sets of held-out sequences, (rates, seeds, looks, 2).
    """
    cell: Any = "rnn" if "rnn" in kinds else "lstm"
    model = Recurrent(cell=cell, hidden=config.hidden, outputs=1)
    examples, held_out, batches = sequences(config, config.seeds, config.steps, length)

    def init(weights: PRNGKeyArray, gates: PRNGKeyArray, kind: str) -> Any:
        params = model.init(weights, jnp.ones((1, 1, 2)), training=False)["params"]
        return params if kind == "rnn" else set_gates(params, gates, kind, length)

    def one(rate: Array, params: Any, examples: Any, held_out: Any) -> Array:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate))
        network = Network(params, {}, optimizer.init(params))

        def step(network: Network, batch: tuple[Array, Array], _: Array) -> Network:
            return networks.train_step(model, optimizer, network, *batch, loss=squared_error)

        def observe(network: Network) -> Array:
            x, y = held_out
            errors = squared_error(model.apply(network.variables, x, training=False), y)
            return errors.reshape(2, -1).mean(1)

        every = config.steps // config.looks
        return networks.fit(step, network, examples, batches, observe=observe, every=every)[1]

    keys = [sampling.keys(range(config.seeds), purpose) for purpose in ("weights", "gates")]
    grid = jax.jit(jax.vmap(jax.vmap(one, (None, 0, 0, 0)), (0, None, None, None)))
    found: dict[str, ArrayLike] = {}
    for kind in kinds:
        params = jax.vmap(functools.partial(init, kind=kind))(*keys)
        found[kind] = grid(jnp.asarray(config.rates), params, examples, held_out)
    return found


def at_best_rate(errors: Float[np.ndarray, "rates seeds looks 2"]) -> Float[np.ndarray, "..."]:
    """Choose the rate by the last errors on the first held-out set; return those on the second.

    A run that diverged counts as one that answers 1 always.
    """
    errors = np.where(np.isfinite(errors), errors, CHANCE)
    return errors[selection.best(errors[:, :, -1, 0], "lowest"), :, :, 1]


# ---- Clipping ------------------------------------------------------------------------------------


def clipping(config: Config) -> dict[str, ArrayLike]:
    """Train RNNs of large recurrent weights by gradient descent, without clipping and with.

    Returns: last errors of each seed on held-out sequences; the same weights and batches in both.
    """
    steps, length = config.clip_steps, config.clip_length
    examples, held_out, batches = sequences(config, config.clip_seeds, steps, length)
    orthogonal = nn.initializers.orthogonal(config.clip_gain)
    model = Recurrent(hidden=config.hidden, outputs=1, recurrent_init=orthogonal)

    def one(clip: Array, key: PRNGKeyArray, examples: Any, held_out: Any) -> Array:
        optimizer = optax.chain(optax.clip_by_global_norm(clip), optax.sgd(config.clip_rate))
        x, y = held_out
        network = networks.init(model, optimizer, key, x[:1])

        def step(network: Network, batch: tuple[Array, Array], _: Array) -> Network:
            return networks.train_step(model, optimizer, network, *batch, loss=squared_error)

        network, _ = networks.fit(step, network, examples, batches)
        return squared_error(model.apply(network.variables, x, training=False), y).mean()

    grid = jax.jit(jax.vmap(jax.vmap(one, (None, 0, 0, 0)), (0, None, None, None)))
    clips = jnp.asarray([jnp.inf, config.clip])  # No norm is above infinity.
    keys = sampling.keys(range(config.clip_seeds), "weights")
    unclipped, clipped = grid(clips, keys, examples, held_out)
    return {"unclipped": unclipped, "clipped": clipped}


# ---- Figures -------------------------------------------------------------------------------------


def lines(axes: Axes, x: ArrayLike, logs: Float[np.ndarray, "runs X"], **look: Any) -> None:
    """Draw the geometric mean over runs, given their logarithms, and their range as a band."""
    axes.plot(x, np.exp(logs.mean(0)), **look)
    low, high = np.exp(logs.min(0)), np.exp(logs.max(0))
    axes.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0)


def draw_memory(found: dict[str, np.ndarray]) -> Figure:
    """Draw the Jacobian against T: by cell, and for LSTMs by forget bias."""
    made = plotting.figure(2)
    runs = {**found, "state": found["state"][FORGET_BIASES.index(1)]}
    cells, biases = made.axes
    steps = np.arange(0, STEPS_BACK + 1, LOOK_EVERY)
    for method, key in (("lstm", "state"), ("gru", "gru"), ("rnn", "rnn")):
        look = plotting.METHODS[method]
        lines(cells, steps, runs[key], color=look.color, linestyle=look.linestyle, label=look.label)
    cells.set(title="whole state, forget bias of the LSTM 1", ylabel="|d state$_T$ / d state$_0$|")
    colors = plotting.VERMILION, plotting.BLUE, plotting.GREEN
    for bias, color, logs in zip(FORGET_BIASES, colors, found["memory"], strict=True):
        lines(biases, steps, logs, color=color, label=f"forget bias {bias}")
        biases.plot(steps, expit(float(bias)) ** steps, color=color, linestyle=":")
    biases.plot([], [], color=plotting.BLACK, linestyle=":", label="$\\sigma$(bias)$^T$")
    biases.set(title="LSTM, memory alone", ylabel="|d c$_T$ / d c$_0$|")
    for axes in made.axes:
        axes.set(xlabel="T, steps", yscale="log")
        axes.legend()
    return made


def draw_adding(config: Config, found: dict[tuple[str, int], np.ndarray]) -> Figure:
    """Draw the error over training, a panel for each length."""
    made = plotting.figure(len(LENGTHS), width=3.7)
    looks = {
        "rnn": {"color": plotting.VERMILION, "linestyle": "--", "label": "RNN"},
        "lstm": {"color": plotting.BLUE, "label": "LSTM, chrono"},
        "lstm_1": {"color": plotting.SKY, "linestyle": "-.", "label": "LSTM, forget bias 1"},
    }
    steps = np.linspace(0, config.steps, config.looks + 1)
    for axes, length in zip(made.axes, LENGTHS, strict=True):
        axes.axhline(CHANCE, color=plotting.BLACK, linestyle=":", linewidth=1, label="chance")
        for kind in ("rnn", "lstm", "lstm_1"):
            if (kind, length) in found:
                lines(axes, steps, np.log(found[kind, length]), **looks[kind])
        axes.set(title=f"T = {length}", xlabel="training steps", yscale="log", ylim=(5e-4, 3))
        axes.legend(loc="upper right", fontsize=8)
    made.axes[0].set_ylabel("mean squared error")
    return made


# ---- The experiment ------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Measure, report and draw."""
    # ---- What a state remembers
    found = study.part("jacobian", lambda: jacobians(config))
    at = 100 // LOOK_EVERY
    rnn, state, memory = (found[name][..., at] for name in ("rnn", "state", "memory"))
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
        lambda: draw_memory(found),
        title="A plain RNN forgets; what an LSTM keeps hangs on its forget bias",
        alt="Spectral norm of the Jacobian of the state at step T with respect to the first, mean "
        "over networks with their range. Left: RNN, GRU and LSTM. Right: the LSTM's memory for "
        "several forget biases, sigmoid(bias) to the power T dotted.",
    )

    # ---- The adding problem
    errors = {}
    for length in LENGTHS:
        # A forget bias of 1 for comparison: at the longest alone, as it is dear.
        lstms = ("lstm", "lstm_1") if length == LENGTHS[-1] else ("lstm",)
        for kinds in (("rnn",), lstms):
            work = functools.partial(learn, config, kinds, length)
            for kind, runs in study.part(f"{kinds[0]}_{length}", work).items():
                errors[kind, length] = at_best_rate(runs)
                ends = errors[kind, length][:, -1]
                study.report(f"adding_{kind}_{length}", estimates.mean(ends))
    study.figure(
        "adding",
        lambda: draw_adding(config, errors),
        title="The adding problem, each network at its best rate",
        alt="Mean squared error on held-out sequences over training: an RNN, an LSTM with chrono "
        "initialization, for the longest sequences one with forget bias 1. Chance is dotted.",
    )

    # ---- Clipping
    for name, last in study.part("clipping", lambda: clipping(config)).items():
        diverged = ~(last <= config.clip_bound)  # Not finite is not below it.
        study.report(f"diverged_{name}", estimates.share(diverged))
