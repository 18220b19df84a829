"""What the study `transfer` measures."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jaxtyping import Array, Float, UInt8

from experiments import sampling
from experiments.plotting import describe_data, describe_layers, describe_runs
from experiments.stats import estimates, selection
from experiments.studies.transfer.config import Config
from experiments.studies.transfer.figures import plot_race, plot_ways
from experiments.studies.transfer.ways import WAYS
from experiments.study import Study
from experiments.tasks.split import Split, sample_split, spread
from experiments.training import networks, sweep
from experiments.training.networks import Network
from jbn.models import MLP

# ---- Data and networks ---------------------------------------------------------------------------


def gray(images: UInt8[np.ndarray, "N H W"]) -> Float[np.ndarray, "N pixels"]:
    """Return gray levels from 0 to 1, one row per image."""
    return images.reshape(len(images), -1) / 255


def permuted(images: UInt8[np.ndarray, "N H W"]) -> Float[np.ndarray, "N pixels"]:
    """Return gray levels, with the pixels of all images permuted in the same way."""
    rows = gray(images)
    return rows[:, sampling.rng(0, "pixels").permutation(rows.shape[1])]


class Held(MLP):
    """The network, but normalizing with its running statistics even in training."""

    def __call__(
        self, x: Float[Array, "N F"], *, training: bool, mask: Array | None = None
    ) -> Float[Array, "N outputs"]:
        return super().__call__(x, training=False, mask=mask)


def make(config: Config, network: type[MLP] = MLP) -> MLP:
    """Make the network."""
    return network(config.hidden, 10, nn.relu, nn.initializers.normal(config.sigma), "batch")


def starts(config: Config, target: Split, pretrained: dict[str, np.ndarray]) -> dict[str, Network]:
    """Make the starting points of the ways, all with the same new last layer."""
    scratch = sweep.start(make(config), config.seeds, target.train[0])
    old = traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, pretrained), sep="/")
    params = {**old["params"], "output": scratch.params["output"]}
    moved = Network(params, old["batch_stats"], None)
    absorb = functools.partial(sweep.for_test, make(config), x=target.train[0][: config.statistics])
    return {
        "scratch": scratch._replace(opt_state=None),
        "pretrained": moved,
        "estimated again": jax.jit(jax.vmap(lambda network: absorb(network=network)))(moved),
    }


# ---- Training ------------------------------------------------------------------------------------


def pretrain(config: Config, source: Split) -> dict[str, np.ndarray]:
    """Train on the source; return variables, (seeds, ...), and test accuracy."""
    model = make(config)

    def observe(model: nn.Module, network: Network, source: Split) -> dict[str, Any]:
        ready = sweep.for_test(model, network, source.train[0][: config.statistics])
        return {
            **ready.variables,
            "test": networks.accuracy(model, ready.variables, *source.test),
        }

    history = sweep.train(
        lambda rate: (model, optax.sgd(rate)),
        jnp.array([config.pretraining_rate]),
        source,
        sweep.start(model, config.seeds, source.train[0]),
        steps=config.pretraining_steps,
        batch_size=config.batch_size,
        observe=observe,
    )
    last: dict[str, Any] = jax.tree.map(lambda x: x[0, :, -1], history)
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(last, sep="/"))
    return flat


def adapt(
    config: Config, ways: tuple[str, ...], target: Split, begin: dict[str, Network]
) -> dict[str, np.ndarray]:
    """Train some ways to the end at every rate; return accuracies, (ways, rates, seeds, 1)."""
    moving = any(WAYS[name].scale_bias for name in ways)
    statistics = config.statistics if moving else None
    observe = functools.partial(sweep.accuracies, statistics=statistics)
    return take(config, ways, target, begin, observe, config.steps)


def race(config: Config, target: Split, begin: dict[str, Network]) -> dict[str, np.ndarray]:
    """Train two ways, evaluated often on fewer images; return (2, rates, seeds, evaluations)."""
    rows = [spread(len(labels), config.race_images) for _, labels in target[1:]]
    parts = zip(target[1:], rows, strict=True)
    few = Split(target.train, *((x[some], labels[some]) for (x, labels), some in parts))
    observe = functools.partial(sweep.accuracies, statistics=config.race_images)
    evaluations = config.race_steps // config.race_every
    return take(
        config, ("scratch", "pretrained"), few, begin, observe, config.race_steps, evaluations
    )


def take(
    config: Config,
    ways: tuple[str, ...],
    target: Split,
    begin: dict[str, Network],
    observe: Callable[[nn.Module, Network, Split], Any],
    steps: int,
    evaluations: int = 1,
) -> dict[str, np.ndarray]:
    """Train some ways at every rate; return observations, (ways, rates, seeds, evaluations)."""
    taken = [WAYS[name] for name in ways]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(begin[way.start] for way in taken))
    weights = jnp.array([float(way.weights) for way in taken])
    scale_bias = jnp.array([float(way.scale_bias) for way in taken])
    # If gamma and beta are not trained, the statistics must not move either.
    model = make(config, MLP if any(way.scale_bias for way in taken) else Held)

    def build(setting: dict[str, Array]) -> tuple[nn.Module, optax.GradientTransformation]:
        way = setting["way"]
        return model, optax.chain(
            optax.sgd(setting["rate"]),
            sweep.scaled("dense", weights[way]),
            sweep.scaled("norm", scale_bias[way]),
        )

    history = sweep.train(
        build,
        sweep.grid(way=range(len(ways)), rate=config.learning_rates),
        target,
        lambda setting: jax.tree.map(lambda leaf: leaf[setting["way"]], stacked),
        steps=steps,
        batch_size=config.batch_size,
        observe=observe,
        evaluations=evaluations,
    )
    return {name: x.reshape(len(ways), -1, *x.shape[1:]) for name, x in history.items()}


# ---- The experiment ------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Measure, report and plot."""
    source = jax.device_put(
        sample_split(study.dataset(config.source), gray, validation=config.validation)
    )
    pixels = permuted if config.source == config.target else gray
    target = jax.device_put(
        sample_split(study.dataset(config.target), pixels, validation=config.validation)
    )
    pretrained = study.part("pretrained", lambda: pretrain(config, source))
    study.report("pretrained_accuracy", estimates.mean(pretrained.pop("test")))
    begin = starts(config, target, pretrained)

    names = [describe_data(study.dataset(of).name) for of in (config.source, config.target)]
    hidden = describe_layers(config.hidden, "ReLUs")
    about = f"From {names[0]} to {names[1]}, {hidden} with BN."

    # ---- The race
    raced = study.part("race", lambda: race(config, target, begin))
    steps, curves = {}, {}
    evaluations = np.arange(config.race_every, config.race_steps + 1, config.race_every)
    for i, name in enumerate(("scratch", "pretrained")):
        taken = selection.steps_to(config.goal, raced["validation"][i], evaluations)
        curves[name] = raced["test"][i, selection.best(taken, "lowest")]
        steps[name] = selection.steps_to(config.goal, curves[name], evaluations)
        study.report(f"steps_{name}", estimates.mean(steps[name]))
    study.report("steps_ratio", estimates.ratio(steps["pretrained"] / steps["scratch"]))
    took = {name: estimates.format_estimate(study.estimates[f"steps_{name}"]) for name in steps}
    study.figure(
        "race",
        functools.partial(plot_race, config, curves),
        title=f"The race to {config.goal:.0%}, pretrained and from scratch",
        caption=f"{about} {describe_runs(config.seeds)}",
        alt="Test accuracy on the target against the training step, "
        "each at its best rate. The goal takes {pretrained} steps pretrained, {scratch} from "
        "scratch.".format(**took),
    )

    # ---- To the end
    tested = {}
    for part, ways in (
        ("all", ("scratch", "pretrained", "scale_bias")),
        ("last_layer", ("frozen", "reestimated")),
    ):
        results = study.part(part, functools.partial(adapt, config, ways, target, begin))
        for i, name in enumerate(ways):
            best = selection.at_best({key: values[i] for key, values in results.items()})
            tested[name] = best["test"][:, -1]
    tested = {name: tested[name] for name in WAYS}
    for metric, ours, theirs in (
        ("last_gain", "pretrained", "scratch"),
        ("reestimated_gain", "reestimated", "frozen"),
        ("trained_gain", "scale_bias", "reestimated"),
    ):
        study.report(metric, estimates.paired(tested[ours], tested[theirs]))
    study.figure(
        "ways",
        functools.partial(plot_ways, tested),
        title="Ways from one data set to another, and where they end",
        caption=f"{about} {describe_runs(config.seeds, 'Points', 'bars')}",
        alt="Last test accuracy on the target, of every seed and on average: "
        + ", ".join(f"{WAYS[name].label} {x.mean():.3f}" for name, x in tested.items())
        + ".",
    )
