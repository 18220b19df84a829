"""Measurements of the study `inception`."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from experiments import sampling
from experiments.plotting import describe_data, describe_runs
from experiments.stats import estimates, selection
from experiments.studies.inception.config import Config
from experiments.studies.inception.figures import CHANGES, LINES, plot_changes, plot_variants
from experiments.studies.inception.miniature import Miniature, distort
from experiments.study import Study
from experiments.training import networks
from experiments.training.networks import Network

# ---- Variants ------------------------------------------------------------------------------------


class Settings(NamedTuple):
    """The numbers of a variant, traced so that variants of the same `norm` share a compilation."""

    rate: float
    decay: float  # Number of times the rate falls by the factor `rate_left` over the run.
    l2: float
    dropout: float
    lrn: float
    distortion: float
    sigmoid: bool = False


class Variant(NamedTuple):
    """A row of the paper's table, or one of our own."""

    norm: bool
    shuffled: bool  # New batches in every epoch.
    settings: Settings


def make_variants(config: Config) -> dict[str, Variant]:
    """Make all variants, by name; `with_...` and the like are BN-x5 with one change undone."""
    strong, weak = config.distortion
    original = Settings(config.rate, 1, config.l2, config.dropout, config.lrn, strong)
    changed = Settings(5 * config.rate, 6, config.l2 / 5, 0.0, 0.0, weak)
    return {
        "inception": Variant(False, False, original),
        "baseline": Variant(True, False, original),
        "x5": Variant(True, True, changed),
        "x30": Variant(True, True, changed._replace(rate=30 * config.rate)),
        "plain_x5": Variant(False, False, original._replace(rate=5 * config.rate)),
        "sigmoid_with": Variant(True, True, changed._replace(sigmoid=True)),
        "sigmoid_without": Variant(False, False, original._replace(sigmoid=True)),
        "without_rate": Variant(True, True, changed._replace(rate=config.rate)),
        "with_dropout": Variant(True, True, changed._replace(dropout=config.dropout)),
        "with_l2": Variant(True, True, changed._replace(l2=config.l2)),
        "slow_decay": Variant(True, True, changed._replace(decay=1)),
        "with_lrn": Variant(True, True, changed._replace(lrn=config.lrn)),
        "fixed_batches": Variant(True, False, changed),
        "strong_distortion": Variant(True, True, changed._replace(distortion=strong)),
    }


def sample_batches(variant: Variant, config: Config, seed: int) -> Int32[np.ndarray, "steps batch"]:
    """Draw the batches: anew in every epoch, or those of the first epoch again and again."""
    count = config.steps if variant.shuffled else config.train_examples // config.batch_size
    batches = sampling.batch_indices(seed, 0, count, config.batch_size, config.train_examples)
    return np.resize(batches, (config.steps, config.batch_size))  # Repeats the first ones.


# ---- Training ------------------------------------------------------------------------------------


class Keys(NamedTuple):
    """One key for each use of randomness in training, except the batches."""

    weights: PRNGKeyArray
    distortion: PRNGKeyArray
    dropout: PRNGKeyArray


class Examples(NamedTuple):
    """Images, with pixels from 0 to 1, and labels."""

    images: Float[Array, "N H W C"]
    labels: Int[Array, "N"]


def load(config: Config, study: Study) -> tuple[Examples, Examples]:
    """Load training and test examples, in the number and size that the options say."""
    dataset = study.dataset(config.dataset)
    train = shrink(dataset.train_images[: config.train_examples], config.shrink)
    test = shrink(dataset.test_images[: config.test_examples], config.shrink)
    return (
        Examples(train, jnp.asarray(dataset.train_labels[: len(train)], jnp.int32)),
        Examples(test, jnp.asarray(dataset.test_labels[: len(test)], jnp.int32)),
    )


def shrink(images: np.ndarray, by: int) -> Float[Array, "N H W C"]:
    """Scale pixels to the range 0 to 1, and average squares of `by` x `by` pixels."""
    n, height, width = images.shape[:3]
    squares = images.reshape(n, height // by, by, width // by, by, -1)
    return jnp.asarray(squares.mean((2, 4)) / 255, jnp.float32)


def train(
    config: Config,
    norm: bool,
    train_examples: Examples,
    test_examples: Examples,
    keys: Keys,
    batches: Int[Array, "steps batch"],
    settings: Settings,
) -> Float[Array, "evaluations"]:
    """Train one network; return its test accuracy before the first step and at each evaluation.

    Evaluation uses running statistics, which are good enough for it. A network that diverged gives
    NaN, for which argmax returns the first class: chance.
    """
    model = Miniature(
        config.blocks, config.width, norm, settings.lrn, settings.dropout, settings.sigmoid
    )
    mean, std = jnp.mean(train_examples.images), jnp.std(train_examples.images)
    test = (test_examples.images - mean) / std

    def rate(step: Any) -> Array:
        return settings.rate * config.rate_left ** (settings.decay * step / config.steps)

    def penalty(params: Any) -> Array:
        squares = [jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
        return settings.l2 / 2 * jnp.sum(jnp.stack(squares))

    optimizer = optax.sgd(rate, momentum=0.9)

    def step(network: Network, batch: Examples, i: Array) -> Network:
        distorting = jax.random.fold_in(keys.distortion, i)
        x = (distort(distorting, batch.images, settings.distortion) - mean) / std
        rngs = {"dropout": jax.random.fold_in(keys.dropout, i)}
        y = batch.labels
        return networks.train_step(model, optimizer, network, x, y, penalty=penalty, rngs=rngs)

    def observe(network: Network) -> Array:
        return networks.accuracy(model, network.variables, test, test_examples.labels)

    network = networks.init(model, optimizer, keys.weights, test[:1])
    every = config.watch_every
    return networks.fit(step, network, train_examples, batches, observe=observe, every=every)[1]


def make_train_seeds(config: Config, study: Study) -> Callable[[Variant], dict[str, np.ndarray]]:
    """Make a function from a variant to the accuracy of all seeds.

    It loads examples and compiles only when it is first called.
    """

    @functools.cache
    def examples() -> tuple[Examples, Examples]:
        return load(config, study)

    def arguments(variant: Variant, seed: int) -> tuple[Any, ...]:
        batches = jnp.asarray(sample_batches(variant, config, seed))
        settings = jax.tree.map(jnp.asarray, variant.settings)
        # This generator compiles several times faster than the default.
        keys = Keys(*(sampling.keys([seed], use, impl="rbg")[0] for use in Keys._fields))
        return *examples(), keys, batches, settings

    @functools.cache
    def compiled() -> dict[bool, Callable[..., Array]]:
        like = arguments(make_variants(config)["inception"], 0)

        def compile(norm: bool) -> Callable[..., Array]:
            return jax.jit(functools.partial(train, config, norm)).lower(*like).compile()

        with ThreadPoolExecutor() as pool:
            return dict(zip((False, True), pool.map(compile, (False, True)), strict=True))

    def train_seeds(variant: Variant) -> dict[str, np.ndarray]:
        run = compiled()[variant.norm]
        # One network does not keep two cores busy, so seeds train in threads.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            seeds = pool.map(
                lambda seed: np.asarray(run(*arguments(variant, seed))), range(config.seeds)
            )
            return {"accuracy": np.stack(list(seeds))}

    return train_seeds


# ---- The study -----------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Train all variants, report comparisons paired by seed, and plot."""
    train_seeds = make_train_seeds(config, study)
    variants = make_variants(config)
    accuracy = {
        name: study.part(name, functools.partial(train_seeds, variant))["accuracy"]
        for name, variant in variants.items()
    }
    best = {name: runs.max(1) for name, runs in accuracy.items()}
    evaluations = np.arange(config.watch_every, config.steps + 1, config.watch_every)
    steps = {  # The evaluation before the first step does not count.
        name: selection.steps_to(best["inception"], runs[:, 1:], evaluations)
        for name, runs in accuracy.items()
    }
    for name in ("baseline", "x5"):
        study.report(f"{name}_steps", estimates.ratio(steps[name] / steps["inception"]))
        study.report(f"{name}_gain", estimates.paired(best[name], best["inception"]))
    study.report("x30_steps", estimates.ratio(steps["x30"] / steps["x5"]))
    study.report("x30_gain", estimates.paired(best["x30"], best["x5"]))
    last = accuracy["plain_x5"][:, -1], accuracy["inception"][:, -1]
    study.report("plain_x5", estimates.paired(*last))
    for name in ("sigmoid_with", "sigmoid_without"):
        study.report(name, estimates.mean(best[name]))
    for name in CHANGES:
        study.report(name, estimates.paired(best[name], best["x5"]))

    data = describe_data(study.dataset(config.dataset).name)
    about = f"{data}, a miniature of Inception of {sum(config.blocks)} blocks."
    study.figure(
        "variants",
        lambda: plot_variants(config, accuracy),
        title="Accuracy while the variants train",
        caption=f"{about} {describe_runs(config.seeds)}",
        alt="Test accuracy against training steps, a line for each variant. "
        "Left: the original, with BN alone, and with all changes at 5 and 30 times "
        "the rate. Right: without BN at 5 times the rate, and sigmoids with and without BN. Best "
        "accuracies, mean: "
        + ", ".join(f"{name.label} {best[key].mean():.2f}" for key, name in LINES.items())
        + ".",
    )
    study.figure(
        "changes",
        lambda: plot_changes({name: best[name] - best["x5"] for name in CHANGES}),
        title="What each of the seven changes gives",
        caption=f"{about} Differences seed by seed. "
        + describe_runs(config.seeds, "Points", "bars"),
        alt="For each change of section 4.2.1, the best accuracy of BN-x5 without this change "
        "minus that with all; a dot for each seed, the mean and its 95 % interval. Left of zero "
        "the change helps. Means in points: "
        + ", ".join(
            f"{label} {100 * np.mean(best[name] - best['x5']):+.1f}"
            for name, label in CHANGES.items()
        )
        + ".",
    )
