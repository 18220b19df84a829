"""What the study `whitening` measures."""

import collections
import functools
import timeit
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, UInt8
from threadpoolctl import threadpool_limits

import jbn
from experiments import sampling
from experiments.plotting import counted, describe_data, describe_layers, describe_runs
from experiments.stats import estimates, selection
from experiments.studies.whitening.config import BATCH, Config
from experiments.studies.whitening.figures import plot_descent, plot_outside, plot_time
from experiments.study import Study
from experiments.training import networks, sweep
from experiments.training.networks import Network
from jbn.models import MLP

INPUTS = "raw", "standardized", "whitened"
OUTSIDE_STEPS, OUTSIDE_RATE = 1000, 0.1  # Together they give the expected bias of 100.
TIMED_EXAMPLES = 1024
# For the networks that may get stuck: hidden layers, and margin above the lowest loss in nats.
HIDDEN, MARGIN = (10, 10), 0.5


# ---- Inputs --------------------------------------------------------------------------------------


def pixels(images: UInt8[np.ndarray, "N H W"]) -> Float[np.ndarray, "N d"]:
    """Average blocks of 4x4 pixels, scaled to [0, 1]; drop partial and almost constant blocks."""
    count, height, width = len(images), images.shape[1] // 4, images.shape[2] // 4
    whole = images[:, : 4 * height, : 4 * width].reshape(count, height, 4, width, 4)
    x = whole.mean((2, 4)).reshape(count, -1) / 255
    var = x.var(0)
    return x[:, var > 0.01 * var.max()].astype(np.float32)


def sample_subsets(config: Config, study: Study, seeds: int) -> tuple[Array, Array]:
    """Draw random examples and labels for the seeds that choose rates, then for `seeds` more."""
    dataset = study.dataset(config.dataset)
    x, labels = pixels(dataset.train_images), dataset.train_labels.astype(np.int32)
    rngs = [sampling.rng(seed, "subset") for seed in range(config.choosing_seeds + seeds)]
    rows = np.stack([rng.permutation(len(x))[: config.examples] for rng in rngs])
    return jnp.asarray(x[rows]), jnp.asarray(labels[rows])


def standardize(x: Float[ArrayLike, "N d"]) -> Float[Array, "N d"]:
    """Normalize every feature separately, as BN does."""
    return jbn.batch_norm(x, *jbn.init(jnp.shape(x)[-1]), training=True)[0]


def transform(x: Float[Array, "seeds N d"], kind: str) -> Float[Array, "seeds N d"]:
    """Transform every subset to one of the kinds in `INPUTS`."""
    transforms = {
        "raw": lambda x: x,
        "standardized": standardize,
        "whitened": lambda x: jbn.whiten(x)[0],
    }
    return jax.vmap(transforms[kind])(x)


# ---- Decorrelation -------------------------------------------------------------------------------


def decorrelation(x: Float[Array, "seeds N d"]) -> dict[str, ArrayLike]:
    """Whiten each subset in float64, normalize it with BN, and whiten a batch of d / 2 examples."""
    results: dict[str, list[float]] = collections.defaultdict(list)
    for subset in np.asarray(x, np.float64):
        d, few = subset.shape[1], subset[: subset.shape[1] // 2]
        with jax.enable_x64(True):
            transformed = (
                jbn.whiten(subset, epsilon=0.0)[0],
                standardize(subset),
                jbn.whiten(few)[0],
            )
        whitened, normalized, of_few = (np.cov(np.asarray(x).T, bias=True) for x in transformed)
        eigenvalues, left = map(np.linalg.eigvalsh, (np.cov(few.T, bias=True), of_few))
        results["zca"].append(np.abs(whitened - np.eye(d)).max())
        results["bn"].append(np.abs(np.triu(normalized, 1)).max())
        results["smallest"].append(max(eigenvalues[0], 0) / eigenvalues[-1])
        # A direction with variance lambda in the batch keeps lambda / (lambda + epsilon), near 1.
        results["lost"].append(float(np.mean(left < 0.01)))
        # Condition number of E[xx^T], standardized / raw: the square of that of x.
        results["condition"].append((np.linalg.cond(transformed[1]) / np.linalg.cond(subset)) ** 2)
    return {name: np.array(runs) for name, runs in results.items()}


# ---- Time ----------------------------------------------------------------------------------------


def timing(config: Config) -> Mapping[str, ArrayLike]:
    """Time ZCA and BN in turn; each entry (repetitions, features) is the median of five calls.

    LAPACK gets one thread: on a busy machine, several threads wait for one another a thousand times
    longer than a small matrix takes.
    """
    methods = {"zca": jax.jit(lambda x: jbn.whiten(x)[0]), "bn": jax.jit(standardize)}
    taken = {name: np.empty((config.repetitions, len(config.features))) for name in methods}
    for column, d in enumerate(config.features):
        x = jax.random.normal(sampling.keys([d], "timing")[0], (TIMED_EXAMPLES, d))
        for repetition in range(config.repetitions):
            for name, run in methods.items():
                with threadpool_limits(1, user_api="blas"):
                    call = functools.partial(lambda run, x: run(x).block_until_ready(), run, x)
                    _, *seconds = timeit.repeat(call, number=1, repeat=6)  # The first compiles.
                taken[name][repetition, column] = np.median(seconds)
    return taken


# ---- Outside the gradient step -------------------------------------------------------------------


def centered(x: Float[Array, "N"]) -> Float[Array, "N"]:
    """Subtract the mean, treated as a constant."""
    return x - jax.lax.stop_gradient(x.mean())


def scaled(x: Float[Array, "N"]) -> Float[Array, "N"]:
    """Center, and divide by the standard deviation, both treated as constants."""
    return centered(x) / jax.lax.stop_gradient(x.std())


def inside(x: Float[Array, "N"]) -> Float[Array, "N"]:
    """Normalize with BN, with gradients through its statistics."""
    return standardize(x[:, None])[:, 0]


def descend(
    xhat: Callable[[Array], Float[Array, "N"]], target: Float[Array, "N"], start: Array
) -> Float[Array, "steps 2"]:
    """Minimize half the squared error; return |w| and loss at the start and after each step."""

    def loss(w: Array) -> Array:
        return jnp.mean((xhat(w) - target) ** 2) / 2

    def step(w: Array, _: Any) -> tuple[Array, Array]:
        value, gradient = jax.value_and_grad(loss)(w)
        return w - OUTSIDE_RATE * gradient, jnp.stack([jnp.sqrt(jnp.sum(w**2)), value])

    return jax.lax.scan(step, start, None, OUTSIDE_STEPS + 1)[1]


def outside(config: Config) -> dict[str, ArrayLike]:
    """Run `descend` for each seed in float64, with the statistics as constants and with BN."""

    def one(u: Array, start: Array, teacher: Array) -> dict[str, Array]:
        first, none, target = u[:, 0], jnp.zeros(()), 2 * inside(u @ teacher)
        return {
            "bias_outside": descend(lambda b: centered(first + b), first + 1, none),
            "bias_inside": descend(lambda b: inside(first + b), first + 1, none),
            "scale_outside": descend(lambda w: scaled(u @ w), target, start),
            "scale_inside": descend(lambda w: inside(u @ w), target, start),
        }

    u = sampling.rng(0, "inputs").normal(size=(config.seeds, 100, 10))
    u -= u.mean(1, keepdims=True)  # With E[u] = 0, the bias grows by the rate at every step.
    start, teacher = (
        sampling.rng(0, use).normal(size=(config.seeds, 10)) for use in ("weights", "teacher")
    )
    with jax.enable_x64(True):
        results = jax.jit(jax.vmap(one))(u, start, teacher)
        return {name: np.asarray(runs) for name, runs in results.items()}


# ---- Raw, standardized and whitened inputs -------------------------------------------------------


@functools.cache
def trainer(hidden: tuple[int, ...], every: int) -> Callable[..., Any]:
    """Make the program that trains sigmoid networks, compiled once for all inputs.

    Without hidden layers, the networks are logistic regressions.

    Returns:
      `(rates, (keys, x, labels, batches), ())` -> loss on all examples of a seed, before the first
      step and after every `every` steps, (rates, seeds, evaluations).
    """
    model = MLP(hidden=hidden, kernel_init=nn.initializers.xavier_normal())

    def one(rate: Array, of_seed: tuple[Array, ...], _: Any) -> Array:
        key, x, labels, batches = of_seed
        optimizer = optax.sgd(rate)
        network = networks.init(model, optimizer, key, x[:1])

        def step(network: Network, batch: tuple[Array, Array], _: Array) -> Network:
            return networks.train_step(model, optimizer, network, *batch)

        def observe(network: Network) -> Array:
            outputs: Any = model.apply(network.variables, x, training=False)
            return networks.cross_entropy(outputs, labels).mean()

        examples = x, labels
        return networks.fit(step, network, examples, batches, observe=observe, every=every)[1]

    return sweep.program(one)


# ---- The experiment ------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Measure, report and plot."""
    # ---- Decorrelation
    x, labels = sample_subsets(config, study, config.seeds)
    choosing, own = slice(config.choosing_seeds), slice(config.choosing_seeds, None)
    results = study.part("decorrelation", lambda: decorrelation(x[own]))
    study.report("covariance_error", estimates.exact(results["zca"].max()))
    study.report("covariance_bn", estimates.mean(results["bn"]))
    study.report("smallest_eigenvalue", estimates.mean(results["smallest"]))
    study.report("lost_directions", estimates.mean(results["lost"]))
    study.report("condition_ratio", estimates.ratio(results["condition"]))

    # ---- Time
    taken = study.part("time", lambda: timing(config))
    study.report("time_ratio", estimates.ratio(taken["zca"][:, -1] / taken["bn"][:, -1]))
    for name, metric in (("zca", "time_exponent"), ("bn", "time_exponent_bn")):
        powers, _ = np.polyfit(np.log(config.features), np.log(taken[name]).T, 1)
        study.report(metric, estimates.mean(powers))
    study.figure(
        "time",
        lambda: plot_time(config, taken),
        title="Whitening takes longer than BN, and the more so the more features",
        caption=f"Gaussian inputs, {TIMED_EXAMPLES:,} examples, LAPACK on one thread. "
        + describe_runs(len(taken["zca"]), of="repetition", mean="geometric means"),
        alt=f"Time of ZCA and of BN on {TIMED_EXAMPLES} examples against the number of features.",
    )

    # ---- Outside the gradient step
    grown = study.part("outside", lambda: outside(config))
    bias, losses = np.moveaxis(grown["bias_outside"], -1, 0)
    study.report("bias_after_1000", estimates.mean(bias[:, -1]))
    study.report("loss_change", estimates.exact(np.abs(losses - losses[:, :1]).max()))
    study.report("bias_inside", estimates.exact(grown["bias_inside"][..., 0].max()))
    for metric, key in (("scale_growth", "outside"), ("scale_growth_inside", "inside")):
        lengths = grown[f"scale_{key}"][..., 0]
        study.report(metric, estimates.ratio(lengths[:, -1] / lengths[:, 0]))
    study.figure(
        "outside",
        lambda: plot_outside(grown),
        title="Normalized outside the gradient step, bias and weights grow for nothing",
        caption="Gaussian inputs, one linear unit of 10 inputs, 100 examples. "
        + describe_runs(config.seeds),
        alt="Bias, length of weights, loss over training: statistics as constants; BN inside.",
    )

    # ---- Raw, standardized and whitened inputs
    inputs = {kind: transform(x, kind) for kind in INPUTS}
    rates, everything = jnp.asarray(config.rates), np.arange(config.examples)
    keys = sampling.keys(range(len(x)), "weights")
    full = jnp.asarray(np.broadcast_to(everything, (len(x), config.descent_steps, len(everything))))
    evaluations, curves, steps = np.arange(config.descent_steps + 1), {}, {}
    for kind in INPUTS:
        work = functools.partial(trainer((), 1), rates, (keys, inputs[kind], labels, full), ())
        runs = study.part(f"descent_{kind}", lambda work=work: {"loss": work()})["loss"]
        needed = selection.steps_to(config.target_loss, runs, evaluations, falling=True)
        rate = selection.best(needed[:, choosing], "lowest")
        curves[kind], steps[kind] = runs[rate, own], needed[rate, own]
        study.report(f"steps_of_{kind}", estimates.ratio(steps[kind]))
    study.report("steps_standardized", estimates.ratio(steps["standardized"] / steps["raw"]))
    study.report("steps_whitened", estimates.ratio(steps["whitened"] / steps["standardized"]))

    # ---- Stuck
    x, labels = sample_subsets(config, study, config.stuck_seeds)
    count = config.stuck_steps
    keys = sampling.keys(range(len(x)), "weights")
    batches = jnp.asarray(sampling.all_batches(range(len(x)), count, BATCH, config.examples))
    rates, last = jnp.asarray(config.stuck_rates), {}
    for kind in INPUTS[:2]:
        levels = transform(255 * x, kind)
        work = functools.partial(trainer(HIDDEN, count), rates, (keys, levels, labels, batches), ())
        runs = study.part(f"stuck_{kind}", lambda work=work: {"loss": work()})["loss"][..., -1]
        ends = np.where(np.isfinite(runs), runs, np.inf)  # Diverged networks count as stuck.
        last[kind] = ends[selection.best(ends[:, choosing], "lowest"), own]
    bound = min(ends.min() for ends in last.values()) + MARGIN
    stuck = {kind: ends > bound for kind, ends in last.items()}
    study.report("stuck_difference", estimates.paired(stuck["raw"], stuck["standardized"]))
    for kind, outcomes in stuck.items():
        study.report(f"stuck_{kind}", estimates.share(outcomes))
    study.figure(
        "descent",
        lambda: plot_descent(curves, config.target_loss, last, bound),
        title="Descent on raw, standardized and whitened pixels, each at its best rate",
        caption=f"{counted(config.examples, 'image')} of "
        f"{describe_data(study.dataset(config.dataset).name)}. Left: "
        f"{describe_runs(config.seeds, 'lines', mean='geometric means')} Others: "
        f"{describe_layers(HIDDEN, 'sigmoids')}, {counted(config.stuck_seeds, 'seed')}; share of "
        "runs, bars: 95 % intervals (Wilson).",
        alt="Left: training loss of logistic regression over the steps; the loss to reach is "
        f"dotted. Middle: the last training loss of every small network; {MARGIN:g} nats above the "
        "lowest it counts as stuck. Right: what share is stuck, "
        + ", ".join(f"{kind} {outcomes.mean():.2f}" for kind, outcomes in stuck.items())
        + ".",
    )
