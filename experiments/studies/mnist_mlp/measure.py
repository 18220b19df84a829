"""Measurements of the study `mnist_mlp`: two networks, trained side by side."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from experiments import sampling
from experiments.stats.drift import PERCENTILES
from experiments.studies.mnist_mlp import fig1
from experiments.studies.mnist_mlp.config import Config
from experiments.study import Study
from experiments.tasks.data import binary
from experiments.training import networks
from experiments.training.devices import BatchShard, Step
from experiments.training.loop import train
from experiments.training.networks import Network
from jbn.linen import BatchNorm
from jbn.models import MLP

# ---- Networks and training -----------------------------------------------------------------------


def models(config: Config, axis_name: str | None = None) -> dict[str, MLP]:
    """Make the two networks; in training, statistics are pooled over the devices of an axis."""
    norm = functools.partial(
        BatchNorm, momentum=config.momentum, unbiased=True, axis_name=axis_name
    )
    make = functools.partial(
        MLP, hidden=config.hidden, kernel_init=nn.initializers.normal(config.sigma)
    )
    return {"without": make(), "with": make(norm=norm)}


def init(config: Config, key: PRNGKeyArray, features: int) -> dict[str, Network]:
    """Initialize both networks from the same random numbers, hence with the same weights."""
    optimizer, x = optax.sgd(config.learning_rate), jnp.ones((1, features))
    return {name: networks.init(model, optimizer, key, x) for name, model in models(config).items()}


def make_step(config: Config) -> Step:
    """Make the training step of one seed: all networks in the state train on the same batch."""
    optimizer = optax.sgd(config.learning_rate)

    def step(
        state: dict[str, Network], batch: tuple[Array, Array], share: BatchShard
    ) -> dict[str, Network]:
        images, labels = batch
        x = images.astype(jnp.float32)
        return {
            name: networks.train_step(model, optimizer, state[name], x, labels, share=share)
            for name, model in models(config, share.axis_name).items()
            if name in state
        }

    return step


# ---- Evaluation ----------------------------------------------------------------------------------


def make_evaluate(
    config: Config,
    population: UInt8[Array, "K batch features"],
    test: tuple[UInt8[Array, "N features"], UInt8[Array, "N"]],
) -> Callable[[dict[str, Network]], dict[str, Any]]:
    """Make a function from the state of all seeds to a row of metrics."""
    mlps = models(config)
    last = f"activation_input_{len(config.hidden) - 1}"

    def measure(state: dict[str, Network], population: Array, test: tuple[Array, Array]) -> Any:
        images, labels = test
        x = images.astype(jnp.float32)

        def apply(name: str, batch_stats: Any) -> tuple[Array, Array]:
            variables = {"params": state[name].params, "batch_stats": batch_stats}
            logits, sown = mlps[name].apply(variables, x, training=False, mutable=["intermediates"])
            (inputs,) = sown["intermediates"][last]
            return jnp.mean(logits.argmax(-1) == labels), inputs

        exponential = state["with"].batch_stats
        batches = population.astype(jnp.float32)
        both = jax.tree.map(
            lambda *leaves: jnp.stack(leaves),
            networks.population(mlps["with"], state["with"], batches),
            exponential,
        )
        without, inputs_without = apply("without", {})
        # One vmap over both statistics, so that the product with the pixels is computed once.
        with_bn, inputs_with = jax.vmap(functools.partial(apply, "with"))(both)
        accuracy = {
            "without": without,
            "with_population": with_bn[0],
            "with_exponential": with_bn[1],
        }
        return accuracy, {"without": inputs_without, "with": inputs_with[0]}

    measure_seeds = jax.jit(jax.vmap(measure, in_axes=(0, None, None)))

    def evaluate(state: dict[str, Network]) -> dict[str, Any]:
        accuracy, inputs = measure_seeds(state, population, test)
        return {
            "accuracy": {
                name: np.asarray(values).astype(float).round(6).tolist()
                for name, values in accuracy.items()
            },
            "percentiles": {
                name: percentiles(np.asarray(values)).astype(float).round(4).tolist()
                for name, values in inputs.items()
            },
        }

    return evaluate


def percentiles(inputs: Float[np.ndarray, "seeds N units"]) -> Float[np.ndarray, "seeds 3 units"]:
    """Take the 15th, 50th and 85th percentile over examples, by nearest rank.

    Computed by NumPy on the host, whose sort is many times faster than XLA's on a CPU.
    """
    ordered = np.sort(np.ascontiguousarray(np.moveaxis(inputs, 1, 2)), axis=-1)
    ranks = np.ceil(np.array(PERCENTILES) / 100 * inputs.shape[1]).astype(int) - 1
    return np.moveaxis(ordered[..., ranks], 1, 2)


# ---- The experiment ------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Train, evaluate, report, plot."""
    dataset = study.dataset(config.dataset)
    examples = binary(dataset.train_images), dataset.train_labels
    test = jax.device_put((binary(dataset.test_images), dataset.test_labels))
    shape = config.population_batches, config.batch_size, len(examples[1])
    rows = sampling.batch_indices(0, 0, *shape, purpose="population")
    keys = sampling.keys(range(config.seeds), "weights")
    state = jax.jit(jax.vmap(lambda key: init(config, key, examples[0].shape[1])))(keys)

    def note(row: dict[str, Any]) -> str:
        means = {name: np.mean(row["accuracy"][name]) for name in ("without", "with_population")}
        return "accuracy {without:.3f} without BN, {with_population:.3f} with".format(**means)

    train(
        study.run if study.has_run else None,
        state,
        step=make_step(config),
        evaluate=make_evaluate(config, jax.device_put(examples[0][rows]), test),
        examples=examples,
        seeds=config.seeds,
        steps=config.steps,
        batch_size=config.batch_size,
        evaluate_every=config.evaluate_every,
        execution=study.execution,
        note=note,
    )
    if study.has_run:
        fig1.report(config, study)
