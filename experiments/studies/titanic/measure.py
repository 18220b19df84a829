"""What the study `titanic` measures, its options and presets."""

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression

from experiments import plotting, sampling
from experiments.stats import estimates
from experiments.stats.estimates import Estimate
from experiments.study import Study
from experiments.tasks import titanic as titanic_data
from experiments.tasks.titanic import Passengers
from experiments.training import networks
from experiments.training.networks import Network
from jbn.models import MLP


@dataclass(frozen=True)
class Config:
    """What the run depends on, and nothing else."""

    source: Literal["titanic", "synthetic"] = "titanic"
    """synthetic is a table made up by a rule, see `titanic_data.make_up`: it needs no file"""
    seeds: int = 10
    """repetitions of the cross-validation"""
    folds: int = 10
    """of the cross-validation"""
    epochs: int = 200
    """after which networks are compared"""
    more: int = 1000
    """epochs after which they are looked at again; a multiple of `epochs`"""
    watched: int = 100
    """epochs, the last of `epochs`, over which unsteadiness is measured"""
    batch_size: int = 32
    """examples in a batch"""
    learning_rate: float = 0.01
    """of SGD"""
    momentum: float = 0.9
    """of SGD"""
    hidden: tuple[int, ...] = (16, 16)
    """width of each hidden layer"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.more % self.epochs:
            raise ValueError(f"Expected `more` to be a multiple of {self.epochs}, got {self.more}.")
        if not 1 < self.watched <= self.epochs:
            raise ValueError(f"Expected `watched` of 2 to {self.epochs}, got {self.watched}.")


PRESETS = {
    "smoke": Config(source="synthetic", seeds=2, folds=3, epochs=4, more=8, watched=3),
    "quick": Config(),
    "paper": Config(seeds=50),
}
ACTIVATIONS = {"relu": nn.relu, "sigmoid": nn.sigmoid}
SCALINGS = ("raw", "standardized")
METHODS = {"none": None, "batch": "batch"}


# ---- Training ------------------------------------------------------------------------------------


def loss(outputs: Float[Array, "N 1"], labels: Int[Array, "N"]) -> Float[Array, "N"]:
    """Compute the cross-entropy of the log-odds."""
    return optax.sigmoid_binary_cross_entropy(outputs[:, 0], labels)


def right(outputs: Float[Array, "N 1"], labels: Int[Array, "N"]) -> Float[Array, "N"]:
    """Tell where the likelier outcome is the true one.

    A network that diverged gives NaN, which is not above 0: it counts as one that foretells death
    to all, which is the majority's accuracy.
    """
    return (outputs[:, 0] > 0) == (labels > 0)


def curves(
    config: Config, activation: str, passengers: Passengers
) -> dict[str, Float[np.ndarray, "seeds folds scalings epochs"]]:
    """Measure the test accuracy after each epoch, without and with BN.

    An epoch is as many whole batches as the smallest training part has. Batches are cut from
    permutations laid end to end, so that none is ragged and nobody is left out.
    """
    splits = titanic_data.split(passengers.survived, seeds=config.seeds, folds=config.folds)
    labels = jnp.asarray(passengers.survived)
    steps = min(len(train) for train, _ in splits) // config.batch_size
    optimizer = optax.sgd(config.learning_rate, momentum=config.momentum)
    models = {
        name: MLP(
            config.hidden,
            outputs=1,
            activation=ACTIVATIONS[activation],
            kernel_init=nn.initializers.glorot_uniform(),
            norm=norm,
        )
        for name, norm in METHODS.items()
    }

    def init(key: PRNGKeyArray, x: Array) -> dict[str, Network]:
        return {name: networks.init(m, optimizer, key, x[:1]) for name, m in models.items()}

    def step(state: dict[str, Network], batch: tuple[Array, Array], i: Array) -> Any:
        return {
            name: networks.train_step(model, optimizer, state[name], *batch, loss=loss)
            for name, model in models.items()
        }

    def go_on(state: Any, x: Array, test: Array, weight: Array, batches: Array) -> Any:
        def observe(state: dict[str, Network]) -> dict[str, Array]:
            seen = {}
            for name, model in models.items():
                outputs: Any = model.apply(state[name].variables, x[test], training=False)
                seen[name] = jnp.sum(weight * right(outputs, labels[test])) / jnp.sum(weight)
            return seen

        state, seen = networks.fit(step, state, (x, labels), batches, observe=observe, every=steps)
        return state, {name: accuracy[1:] for name, accuracy in seen.items()}

    # All folds of all seeds, and both scalings of each, train at once.
    init_all = jax.jit(jax.vmap(jax.vmap(init, (None, 0))))
    go_on_all = jax.jit(jax.vmap(jax.vmap(go_on, (0, 0, None, None, None))))
    split = jax.device_put(titanic_data.prepare(passengers, splits))
    state = init_all(sampling.keys(range(len(splits)), "weights"), split.x)
    found: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for epoch in range(0, config.more, config.epochs):  # Piecewise: the batches take much memory.
        span = epoch * steps, (epoch + config.epochs) * steps
        batches = np.stack(
            [
                train[sampling.batch_indices(i, *span, config.batch_size, len(train))].astype(
                    np.int16
                )
                for i, (train, _) in enumerate(splits)
            ]
        )
        state, seen = go_on_all(state, *split, batches)
        for name, accuracy in seen.items():
            found[name].append(np.asarray(accuracy))
    shape = config.seeds, config.folds, len(SCALINGS), config.more
    return {name: np.concatenate(parts, -1).reshape(shape) for name, parts in found.items()}


def references(config: Config, passengers: Passengers) -> dict[str, np.ndarray]:
    """Measure logistic regression on the same splits, by seed; and the majority's share."""
    accuracy = []
    splits = titanic_data.split(passengers.survived, seeds=config.seeds, folds=config.folds)
    for train, test in splits:
        x, y = titanic_data.scalings(passengers.features, train)[1], passengers.survived
        accuracy.append(LogisticRegression().fit(x[train], y[train]).score(x[test], y[test]))
    dead = 1 - passengers.survived.mean()
    return {
        "logistic": np.reshape(accuracy, (config.seeds, config.folds)).mean(1),
        "majority": np.array(max(dead, 1 - dead)),
    }


# ---- Numbers -------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """What one kind of input and nonlinearity gave, for each method by seed: means over folds.

    - accuracy: after `epochs`; later: after `more`; every: after each epoch.
    - deviation: of the accuracy on one fold over the watched epochs.
    """

    accuracy: dict[str, Float[np.ndarray, "seeds"]]
    later: dict[str, Float[np.ndarray, "seeds"]]
    every: dict[str, Float[np.ndarray, "epochs seeds"]]
    deviation: dict[str, Float[np.ndarray, "seeds"]]


def settle(config: Config, found: Mapping[str, np.ndarray], scaling: int) -> Setting:
    """Take the numbers of one scaling out of the curves of one nonlinearity."""
    every = {name: found[name][:, :, scaling] for name in METHODS}
    last = slice(config.epochs - config.watched, config.epochs)
    return Setting(
        {name: curve[..., config.epochs - 1].mean(1) for name, curve in every.items()},
        {name: curve[..., -1].mean(1) for name, curve in every.items()},
        {name: curve.mean(1).T for name, curve in every.items()},
        {name: curve[..., last].std(-1).mean(1) for name, curve in every.items()},
    )


def steadiness(setting: Setting) -> Estimate:
    """Compare deviations, BN / without; a network that never changes deviates by a hair, not 0."""
    floor = 1e-6
    with_bn, without = (np.maximum(setting.deviation[name], floor) for name in ("batch", "none"))
    return estimates.ratio(with_bn / without)


def measure(config: Config, study: Study) -> None:
    """Train, compare, draw."""
    if config.source == "synthetic":
        print("titanic: a table made up by a rule, not the passengers", file=sys.stderr)
        passengers = titanic_data.make_up()
    else:
        passengers = titanic_data.load(data_dir=study.data_dir)
    study.describe_data("titanic", passengers.describe())

    known = study.part("references", lambda: references(config, passengers))
    study.report("logistic", estimates.mean(known["logistic"]))
    study.report("majority", estimates.exact(known["majority"]))
    settings, one = {}, {}
    for activation in ACTIVATIONS:
        found = study.part(activation, functools.partial(curves, config, activation, passengers))
        for i, scaling in enumerate(SCALINGS):
            name = f"{scaling}_{activation}"
            if name == "raw_relu":
                one = {method: found[method][0, 0, i] for method in METHODS}
            setting = settings[name] = settle(config, found, i)
            none, batch = setting.accuracy["none"], setting.accuracy["batch"]
            study.report(f"accuracy_without_{name}", estimates.mean(none))
            study.report(f"accuracy_with_{name}", estimates.mean(batch))
            study.report(f"gain_{name}", estimates.paired(batch, none))
            study.report(f"unsteadiness_{name}", steadiness(setting))
            study.report(f"gain_epochs_{name}", estimates.paired(setting.later["batch"], batch))

    study.figure(
        "accuracy",
        lambda: draw_accuracy(
            config, settings, float(known["logistic"].mean()), float(known["majority"])
        ),
        title="What BN gains, from raw and from standardized inputs",
        alt="Test accuracy for raw and standardized inputs, ReLU and sigmoid, without and with BN, "
        "beside logistic regression and the majority; and what BN gains, by paired difference. "
        + told(settings),
    )
    study.figure(
        "epochs",
        lambda: draw_epochs(config, settings),
        title="More epochs: accuracy over training",
        alt="Test accuracy over epochs, mean of folds with the range of seeds, one panel for each "
        "kind of input and nonlinearity, without and with BN.",
    )
    study.figure(
        "steadiness",
        lambda: draw_steadiness(config, settings, one),
        title="Steadiness from epoch to epoch",
        alt="Test accuracy on one fold over the last epochs, without and with BN; and the standard "
        "deviation over those epochs in every setting, mean of folds with its interval over seeds.",
    )


def told(settings: Mapping[str, Setting]) -> str:
    """Tell what BN gains in each setting."""
    gains = {
        name: 100 * (setting.accuracy["batch"] - setting.accuracy["none"]).mean()
        for name, setting in settings.items()
    }
    parts = [f"{name.replace('_', ', ')} {gain:+.1f}" for name, gain in gains.items()]
    return f"BN gains, in points: {'; '.join(parts)}."


# ---- Figures -------------------------------------------------------------------------------------
def label(name: str) -> str:
    """Name a setting below an axis."""
    scaling, activation = name.split("_")
    return f"{scaling}\n{plotting.METHODS[activation].label}"


def points(
    axes: Any, runs: Mapping[str, Mapping[str, Float[np.ndarray, "seeds"]]], scale: float
) -> None:
    """Draw mean and interval of each method, setting by setting."""
    for shift, method in ((-0.12, "none"), (0.12, "batch")):
        look = plotting.METHODS[method]
        for at, by_method in enumerate(runs.values()):
            seen = estimates.mean(scale * by_method[method])
            axes.errorbar(
                at + shift,
                seen.value,
                [[seen.value - seen.low], [seen.high - seen.value]],
                color=look.color,
                marker=look.marker,
                capsize=3,
                linestyle="none",
                label=look.label if at == 0 else None,
            )
    axes.set_xticks(range(len(runs)), [label(name) for name in runs])


def draw_accuracy(
    config: Config, settings: dict[str, Setting], logistic: float, majority: float
) -> Figure:
    """Draw the accuracy after `epochs`, and what BN gains then and later."""
    made = plotting.figure(2, width=5.4)
    left, right = made.axes
    points(left, {name: setting.accuracy for name, setting in settings.items()}, 100)
    left.axhline(100 * logistic, color=plotting.BLACK, linewidth=1, linestyle="-.")
    left.text(2.5, 100 * logistic, "logistic regression", ha="center", va="bottom", fontsize=8)
    left.axhline(100 * majority, color=plotting.GRAY, linewidth=1, linestyle=":")
    left.text(2.5, 100 * majority, "all died", ha="center", va="bottom", fontsize=8)
    left.set(ylabel="test accuracy / %", title=f"Accuracy after {config.epochs:,} epochs")
    left.legend(loc="lower right", bbox_to_anchor=(1, 0.1))
    spans = ((-0.12, "accuracy", config.epochs, "o"), (0.12, "later", config.more, "^"))
    for shift, when, epochs, marker in spans:
        for at, setting in enumerate(settings.values()):
            accuracy = getattr(setting, when)
            seen = estimates.paired(100 * accuracy["batch"], 100 * accuracy["none"])
            right.errorbar(
                at + shift,
                seen.value,
                [[seen.value - seen.low], [seen.high - seen.value]],
                color=plotting.BLUE if when == "accuracy" else plotting.GREEN,
                marker=marker,
                capsize=3,
                linestyle="none",
                label=f"after {epochs:,} epochs" if at == 0 else None,
            )
    right.axhline(0, color=plotting.GRAY, linewidth=1)
    right.set_xticks(range(len(settings)), [label(name) for name in settings])
    right.set(ylabel="accuracy gained / points", title="With BN - without, paired by seed")
    right.legend()
    return made


def draw_epochs(config: Config, settings: dict[str, Setting]) -> Figure:
    """Draw the accuracy over epochs."""
    made = plotting.figure(len(settings), width=3.4, height=3.4)
    every = np.array([list(setting.every.values()) for setting in settings.values()])
    low, high = every.mean(-1).min(), every.max()
    for axes, (name, setting) in zip(made.axes, settings.items(), strict=True):
        for method, curve in setting.every.items():
            plotting.band(axes, np.arange(config.more) + 1, 100 * curve, method)
        axes.axvline(config.epochs, color=plotting.GRAY, linewidth=1, linestyle=":")
        axes.set(xlabel="epochs", xscale="log", title=label(name).replace("\n", ", "))
        axes.set_ylim(100 * low - 1, 100 * high + 1)
    made.axes[0].set_ylabel("test accuracy, mean of folds / %")
    made.axes[0].legend(loc="lower right")
    return made


def draw_steadiness(
    config: Config, settings: dict[str, Setting], one: Mapping[str, Float[np.ndarray, "epochs"]]
) -> Figure:
    """Draw one fold's accuracy over the watched epochs, and its deviation in every setting."""
    made = plotting.figure(2, width=5.4)
    left, right = made.axes
    epochs = np.arange(config.epochs - config.watched, config.epochs)
    for method, curve in one.items():
        look = plotting.METHODS[method]
        left.plot(
            epochs + 1, 100 * curve[epochs], color=look.color, ls=look.linestyle, label=look.label
        )
    left.set(xlabel="epochs", ylabel="test accuracy / %", title="One fold of one seed, raw, ReLU")
    left.legend()
    points(right, {name: setting.deviation for name, setting in settings.items()}, 100)
    right.set(
        ylabel="standard deviation / points",
        title=f"Over the last {config.watched} of {config.epochs} epochs",
    )
    right.set_ylim(0, None)
    return made
