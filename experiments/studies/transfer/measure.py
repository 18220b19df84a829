"""What the study `transfer` measures, its options and presets."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jaxtyping import Array, Float, UInt8
from matplotlib.figure import Figure

from experiments import plotting, sampling
from experiments.plotting import METHODS
from experiments.stats import estimates, selection
from experiments.study import Study
from experiments.tasks.split import Split, sample_split
from experiments.training import networks, sweep
from experiments.training.networks import Network
from jbn.models import MLP

Name = Literal["mnist", "fashion_mnist", "digits"]


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    source: Name = "mnist"
    """what networks are pretrained on"""
    target: Name = "fashion_mnist"
    """what they are adapted to; with permuted pixels where it is the source"""
    seeds: int = 5
    """how many seeds"""
    batch_size: int = 60
    """examples in a batch"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer"""
    sigma: float = 0.1
    """standard deviation of the initial weights"""
    validation: int = 5_000
    """training images, drawn at random, to choose the rate on"""
    statistics: int = 5_000
    """training images that population statistics are computed from"""
    pretraining_steps: int = 2_000
    """training steps on the source"""
    pretraining_rate: float = 0.2
    """learning rate there"""
    learning_rates: tuple[float, ...] = (0.05, 0.2, 0.8, 3.2)
    """grid of rates on the target"""
    goal: float = 0.8
    """test accuracy to race to"""
    race_steps: int = 500
    """training steps of the race; who does not arrive counts as arriving after the last"""
    race_every: int = 10
    """steps from look to look, a divisor of `race_steps`"""
    race_images: int = 2_000
    """for validation, testing and statistics, at each look"""
    steps: int = 1_500
    """training steps of every way, to the end"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.race_steps % self.race_every:
            raise ValueError(
                f"Expected `race_every` to divide {self.race_steps}, got {self.race_every}."
            )


PRESETS = {
    "smoke": Config(
        source="digits",
        target="digits",
        seeds=2,
        hidden=(20,),
        validation=300,
        statistics=500,
        pretraining_steps=50,
        learning_rates=(0.2,),
        race_steps=100,
        race_every=20,
        race_images=300,
        steps=50,
    ),
    "quick": Config(),
    "paper": Config(seeds=10, pretraining_steps=10_000, steps=5_000),
}


class Way(NamedTuple):
    """A way to the target: what it starts from, and what is trained besides the last layer."""

    start: Literal["scratch", "pretrained", "estimated again"]
    weights: bool
    scale_bias: bool
    label: str


WAYS = {
    "scratch": Way("scratch", True, True, "from scratch"),
    "pretrained": Way("pretrained", True, True, "pretrained, all trained on"),
    "frozen": Way("pretrained", False, False, "last layer; statistics frozen"),
    "reestimated": Way("estimated again", False, False, "last layer; statistics estimated again"),
    "scale_bias": Way("estimated again", False, True, "the same, gamma and beta trained"),
}


# ---- Data and networks ---------------------------------------------------------------------------


def gray(images: UInt8[np.ndarray, "N H W"]) -> Float[np.ndarray, "N pixels"]:
    """Take gray levels from 0 to 1, a row for each image."""
    return images.reshape(len(images), -1) / 255


def permuted(images: UInt8[np.ndarray, "N H W"]) -> Float[np.ndarray, "N pixels"]:
    """Take gray levels, and permute the pixels, of all images alike."""
    rows = gray(images)
    return rows[:, sampling.rng(0, "pixels").permutation(rows.shape[1])]


class Held(MLP):
    """The network, but normalizing by the statistics that it has in training too."""

    def __call__(
        self, x: Float[Array, "N F"], *, training: bool, mask: Array | None = None
    ) -> Float[Array, "N outputs"]:
        return super().__call__(x, training=False, mask=mask)


def make(config: Config, network: type[MLP] = MLP) -> MLP:
    """Make the network."""
    return network(config.hidden, 10, nn.relu, nn.initializers.normal(config.sigma), "batch")


def starts(config: Config, target: Split, pretrained: dict[str, np.ndarray]) -> dict[str, Network]:
    """Make what the ways start from; all have the same, new last layer."""
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
    """Train on the source; return the variables, (seeds, ...), and test accuracy."""
    model = make(config)

    def observe(model: nn.Module, network: Network, source: Split) -> dict[str, Any]:
        ready = sweep.for_test(model, network, source.train[0][: config.statistics])
        return {
            **ready.variables,
            "test": networks.accuracy(model, ready.variables, *source.test),
        }

    seen = sweep.train(
        lambda rate: (model, optax.sgd(rate)),
        jnp.array([config.pretraining_rate]),
        source,
        sweep.start(model, config.seeds, source.train[0]),
        steps=config.pretraining_steps,
        batch_size=config.batch_size,
        observe=observe,
    )
    last: dict[str, Any] = jax.tree.map(lambda x: x[0, :, -1], seen)
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(last, sep="/"))
    return flat


def adapt(
    config: Config, ways: tuple[str, ...], target: Split, begin: dict[str, Network]
) -> dict[str, np.ndarray]:
    """Take some ways to the end, at every rate: accuracies, (ways, rates, seeds, 1)."""
    moving = any(WAYS[name].scale_bias for name in ways)
    statistics = config.statistics if moving else None
    observe = functools.partial(sweep.accuracies, statistics=statistics)
    return take(config, ways, target, begin, observe, config.steps)


def race(config: Config, target: Split, begin: dict[str, Network]) -> dict[str, np.ndarray]:
    """Take two ways, looking often, at fewer images: (2, rates, seeds, looks)."""
    images = config.race_images
    few = Split(target.train, *((x[:images], labels[:images]) for x, labels in target[1:]))
    observe = functools.partial(sweep.accuracies, statistics=images)
    looks = config.race_steps // config.race_every
    return take(config, ("scratch", "pretrained"), few, begin, observe, config.race_steps, looks)


def take(
    config: Config,
    ways: tuple[str, ...],
    target: Split,
    begin: dict[str, Network],
    observe: Callable[[nn.Module, Network, Split], Any],
    steps: int,
    looks: int = 1,
) -> dict[str, np.ndarray]:
    """Take ways at every rate: what is observed, (ways, rates, seeds, looks)."""
    taken = [WAYS[name] for name in ways]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(begin[way.start] for way in taken))
    weights = jnp.array([float(way.weights) for way in taken])
    scale_bias = jnp.array([float(way.scale_bias) for way in taken])
    # A way that trains neither must not move the statistics either.
    model = make(config, MLP if any(way.scale_bias for way in taken) else Held)

    def build(setting: dict[str, Array]) -> tuple[nn.Module, optax.GradientTransformation]:
        way = setting["way"]
        return model, optax.chain(
            optax.sgd(setting["rate"]),
            sweep.scaled("dense", weights[way]),
            sweep.scaled("norm", scale_bias[way]),
        )

    seen = sweep.train(
        build,
        sweep.grid(way=range(len(ways)), rate=config.learning_rates),
        target,
        lambda setting: jax.tree.map(lambda leaf: leaf[setting["way"]], stacked),
        steps=steps,
        batch_size=config.batch_size,
        observe=observe,
        looks=looks,
    )
    return {name: x.reshape(len(ways), -1, *x.shape[1:]) for name, x in seen.items()}


# ---- Figures -------------------------------------------------------------------------------------


def draw_race(config: Config, curves: dict[str, np.ndarray]) -> Figure:
    """Draw test accuracy over the race, each way at the rate that arrives first."""
    made = plotting.figure()
    (axes,) = made.axes
    steps = (1 + np.arange(curves["scratch"].shape[1])) * config.race_every
    for name, method in (("scratch", "none"), ("pretrained", "batch")):
        color, linestyle = METHODS[method].color, METHODS[method].linestyle
        runs = curves[name]
        axes.plot(steps, runs.mean(0), color=color, linestyle=linestyle, label=WAYS[name].label)
        axes.fill_between(steps, runs.min(0), runs.max(0), color=color, alpha=0.2, linewidth=0)
    axes.axhline(config.goal, color=plotting.BLACK, linewidth=0.8)
    axes.set(xlabel="training step on the target", ylabel="test accuracy")
    axes.legend(loc="lower right")
    return made


def draw_ways(tested: dict[str, np.ndarray]) -> Figure:
    """Draw the last test accuracy of every way and seed."""
    made = plotting.figure(width=7.0, height=3.0)
    (axes,) = made.axes
    for i, (name, accuracy) in enumerate(reversed(tested.items())):
        color = plotting.GRAY if name == "scratch" else plotting.BLUE
        axes.plot(accuracy, np.full(len(accuracy), i), "o", color=color, alpha=0.5)
        axes.plot(accuracy.mean(), i, "|", color=plotting.BLACK, markersize=18)
    axes.set_yticks(range(len(tested)), [WAYS[name].label for name in reversed(tested)])
    axes.set(xlabel="test accuracy on the target", ylim=(-0.6, len(tested) - 0.4))
    return made


# ---- The experiment ------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Measure, report, draw."""
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

    # ---- The race
    raced = study.part("race", lambda: race(config, target, begin))
    steps, curves = {}, {}
    looks = np.arange(config.race_every, config.race_steps + 1, config.race_every)
    for i, name in enumerate(("scratch", "pretrained")):
        taken = selection.steps_to(config.goal, raced["validation"][i], looks)
        curves[name] = raced["test"][i, selection.best(taken, "lowest")]
        steps[name] = selection.steps_to(config.goal, curves[name], looks)
        study.report(f"steps_{name}", estimates.mean(steps[name]))
    study.report("steps_ratio", estimates.ratio(steps["pretrained"] / steps["scratch"]))
    took = {name: estimates.words(study.estimates[f"steps_{name}"]) for name in steps}
    study.figure(
        "race",
        functools.partial(draw_race, config, curves),
        title=f"The race to {config.goal:.0%}, pretrained and from scratch",
        alt="Test accuracy on the target against the training step, mean and range over seeds, "
        "each at its best rate. The goal takes {pretrained} steps pretrained, {scratch} from "
        "scratch.".format(**took),
    )

    # ---- To the end
    tested = {}
    for part, ways in (
        ("all", ("scratch", "pretrained", "scale_bias")),
        ("last_layer", ("frozen", "reestimated")),
    ):
        found = study.part(part, functools.partial(adapt, config, ways, target, begin))
        for i, name in enumerate(ways):
            seen = selection.at_best({key: values[i] for key, values in found.items()})
            tested[name] = seen["test"][:, -1]
    tested = {name: tested[name] for name in WAYS}
    for metric, ours, theirs in (
        ("last_gain", "pretrained", "scratch"),
        ("reestimated_gain", "reestimated", "frozen"),
        ("trained_gain", "scale_bias", "reestimated"),
    ):
        study.report(metric, estimates.paired(tested[ours], tested[theirs]))
    study.figure(
        "ways",
        functools.partial(draw_ways, tested),
        title="Ways from one data set to another, and where they end",
        alt="Last test accuracy on the target, of every seed and on average: "
        + ", ".join(f"{WAYS[name].label} {x.mean():.3f}" for name, x in tested.items())
        + ".",
    )
