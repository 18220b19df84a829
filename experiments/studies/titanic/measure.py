"""What the study `titanic` measures."""

import functools
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from sklearn.linear_model import LogisticRegression

from experiments import sampling
from experiments.plotting import describe_data, describe_layers, describe_runs
from experiments.stats import estimates
from experiments.stats.estimates import Estimate
from experiments.studies.titanic.config import Config
from experiments.studies.titanic.figures import (
    Results,
    plot_accuracy,
    plot_epochs,
    plot_steadiness,
)
from experiments.study import Study
from experiments.tasks import titanic as titanic_data
from experiments.tasks.titanic import Fold, Passengers
from experiments.training import networks, sweep
from experiments.training.networks import Network
from jbn.models import MLP

ACTIVATIONS = {"relu": nn.relu, "sigmoid": nn.sigmoid}
SCALINGS = ("raw", "standardized")
METHODS = {"none": None, "batch": "batch"}


# ---- Training ------------------------------------------------------------------------------------


def loss(outputs: Float[Array, "N 1"], labels: Int[Array, "N"]) -> Float[Array, "N"]:
    """Compute the cross-entropy from log-odds."""
    return optax.sigmoid_binary_cross_entropy(outputs[:, 0], labels)


def correct(outputs: Float[Array, "N 1"], labels: Int[Array, "N"]) -> Float[Array, "N"]:
    """Return where the likelier outcome is the true one.

    A diverged network outputs NaN, which is not above 0, so it counts as predicting death for all
    and gets the accuracy of the majority class.
    """
    return (outputs[:, 0] > 0) == (labels > 0)


def curves(
    config: Config, activation: str, passengers: Passengers
) -> dict[str, Float[np.ndarray, "seeds folds scalings epochs"]]:
    """Measure the test accuracy after each epoch, without and with BN.

    An epoch has as many batches as fit into the smallest training part. Batches are taken from
    permutations laid end to end, so that all are full and no passenger is left out.
    """
    splits = titanic_data.sample_folds(passengers.survived, seeds=config.seeds, folds=config.folds)
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

    def step(state: dict[str, Network], batch: tuple[Array, Array], i: Array) -> Any:
        return {
            name: networks.train_step(model, optimizer, state[name], *batch, loss=loss)
            for name, model in models.items()
        }

    def one(scaling: Array, of_fold: tuple[PRNGKeyArray, Fold, Array], shared: Any) -> Any:
        key, fold, batches = of_fold
        x, tested = fold.x[scaling], labels[fold.test]

        def observe(state: dict[str, Network]) -> dict[str, Array]:
            outputs: dict[str, Any] = {
                name: model.apply(state[name].variables, x[fold.test], training=False)
                for name, model in models.items()
            }
            return {
                name: jnp.sum(fold.weight * correct(of, tested)) / jnp.sum(fold.weight)
                for name, of in outputs.items()
            }

        start = {name: networks.init(m, optimizer, key, x[:1]) for name, m in models.items()}
        _, history = networks.fit(step, start, (x, labels), batches, observe=observe, every=steps)
        return {name: accuracy[1:] for name, accuracy in history.items()}

    batches = [
        train.astype(np.int16)[
            sampling.batch_indices(i, 0, config.more * steps, config.batch_size, len(train))
        ]
        for i, (train, _) in enumerate(splits)
    ]
    keys = sampling.keys(range(len(splits)), "weights")
    of_folds = keys, titanic_data.stack_folds(passengers, splits), np.stack(batches)
    accuracies = sweep.each(one, np.arange(len(SCALINGS)), of_folds)
    shape = len(SCALINGS), config.seeds, config.folds, config.more
    return {name: np.moveaxis(of.reshape(shape), 0, 2) for name, of in accuracies.items()}


def references(config: Config, passengers: Passengers) -> dict[str, np.ndarray]:
    """Measure logistic regression on the same splits, by seed, and the majority's share."""
    accuracy = []
    splits = titanic_data.sample_folds(passengers.survived, seeds=config.seeds, folds=config.folds)
    for train, test in splits:
        x, y = titanic_data.raw_and_standardized(passengers.features, train)[1], passengers.survived
        accuracy.append(LogisticRegression().fit(x[train], y[train]).score(x[test], y[test]))
    dead = 1 - passengers.survived.mean()
    return {
        "logistic": np.reshape(accuracy, (config.seeds, config.folds)).mean(1),
        "majority": np.array(max(dead, 1 - dead)),
    }


# ---- Numbers -------------------------------------------------------------------------------------


def summarize(config: Config, accuracies: Mapping[str, np.ndarray], scaling: int) -> Results:
    """Summarize the curves of one nonlinearity for one scaling of inputs."""
    every = {name: accuracies[name][:, :, scaling] for name in METHODS}
    last = slice(config.epochs - config.watched, config.epochs)
    return Results(
        {name: curve[..., config.epochs - 1].mean(1) for name, curve in every.items()},
        {name: curve[..., -1].mean(1) for name, curve in every.items()},
        {name: curve.mean(1).T for name, curve in every.items()},
        {name: curve[..., last].std(-1).mean(1) for name, curve in every.items()},
    )


def steadiness(results: Results) -> Estimate:
    """Compare deviations, BN / without; those of 0 are raised to a tiny floor."""
    floor = 1e-6
    with_bn, without = (np.maximum(results.deviation[name], floor) for name in ("batch", "none"))
    return estimates.ratio(with_bn / without)


def measure(config: Config, study: Study) -> None:
    """Train, compare and plot."""
    if config.source == "synthetic":
        print("titanic: a synthetic table, not the real passengers", file=sys.stderr)
        study.add_dataset("titanic", titanic_data.sample_passengers())
    passengers = study.dataset("titanic")

    known = study.part("references", lambda: references(config, passengers))
    study.report("logistic", estimates.mean(known["logistic"]))
    study.report("majority", estimates.exact(known["majority"]))
    by_setting, one = {}, {}
    for activation in ACTIVATIONS:
        accuracies = study.part(
            activation, functools.partial(curves, config, activation, passengers)
        )
        for i, scaling in enumerate(SCALINGS):
            name = f"{scaling}_{activation}"
            if name == "raw_relu":
                one = {method: accuracies[method][0, 0, i] for method in METHODS}
            results = by_setting[name] = summarize(config, accuracies, i)
            none, batch = results.accuracy["none"], results.accuracy["batch"]
            study.report(f"accuracy_without_{name}", estimates.mean(none))
            study.report(f"accuracy_with_{name}", estimates.mean(batch))
            study.report(f"gain_{name}", estimates.paired(batch, none))
            study.report(f"unsteadiness_{name}", steadiness(results))
            study.report(f"gain_epochs_{name}", estimates.paired(results.later["batch"], batch))

    data, hidden = describe_data(passengers.name), describe_layers(config.hidden)
    about = f"{data}, {hidden}, {config.folds}-fold cross-validation."
    points = f"{describe_runs(config.seeds, 'Points', 'bars')} A seed is the mean of its folds."
    study.figure(
        "accuracy",
        lambda: plot_accuracy(
            config, by_setting, float(known["logistic"].mean()), float(known["majority"])
        ),
        title="What BN gains, from raw and from standardized inputs",
        caption=f"{about} {points}",
        alt="Test accuracy for raw and standardized inputs, ReLU and sigmoid, without and with BN, "
        "beside logistic regression and the majority; and what BN gains, by paired difference. "
        + describe_gains(by_setting),
    )
    study.figure(
        "epochs",
        lambda: plot_epochs(config, by_setting),
        title="More epochs: accuracy over training",
        caption=f"{about} {describe_runs(config.seeds)}",
        alt="Test accuracy over epochs, mean of folds, one panel for each "
        "kind of input and nonlinearity, without and with BN.",
    )
    study.figure(
        "steadiness",
        lambda: plot_steadiness(config, by_setting, one),
        title="Steadiness from epoch to epoch",
        caption=f"{about} Left: one fold of the first seed. Right: {points}",
        alt="Test accuracy on one fold over the last epochs, without and with BN; and the standard "
        "deviation over those epochs in every setting.",
    )


def describe_gains(by_setting: Mapping[str, Results]) -> str:
    """Describe what BN gains in each setting."""
    gains = {
        name: 100 * (results.accuracy["batch"] - results.accuracy["none"]).mean()
        for name, results in by_setting.items()
    }
    parts = [f"{name.replace('_', ', ')} {gain:+.1f}" for name, gain in gains.items()]
    return f"BN gains, in points: {'; '.join(parts)}."
