"""Training, evaluation and timing of a network of the study `compare`.

On a CPU, each step is a program of its own, since gradients of convolutions take ten times as long
in an XLA loop there. Elsewhere all steps between two evaluations are one program.
"""

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from experiments import sampling
from experiments.stats import selection
from experiments.studies.compare.config import Config
from experiments.studies.compare.models import make_model
from experiments.tasks.data import Dataset
from experiments.tasks.split import Examples, Split, sample_split
from experiments.training import networks, sweep
from experiments.training.networks import Network

SIDE = 32  # Side of CIFAR-10 images in pixels; smaller images are padded to it.
Arrays = dict[str, np.ndarray]


# ---- Images --------------------------------------------------------------------------------------


def colors(images: UInt8[np.ndarray, "N ..."], shrink: int) -> Float[np.ndarray, "N H W 3"]:
    """Pad images to a side of 32, give gray ones three colors, and average squares of pixels."""
    images = images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1)
    missing = SIDE - images.shape[1]
    margin = missing // 2, missing - missing // 2
    padded = np.pad(images, ((0, 0), margin, margin, (0, 0))).astype(np.float32)
    side = SIDE // shrink
    return padded.reshape(len(images), side, shrink, side, shrink, 3).mean((2, 4))


def sample_images(config: Config, dataset: Dataset) -> Split:
    """Draw training, validation and test images, all standardized by the training images."""
    split = sample_split(
        dataset,
        functools.partial(colors, shrink=config.shrink),
        validation=config.validation,
        train=config.train,
        test=config.test,
    )
    mean, std = split.train[0].mean(), split.train[0].std()
    return Split(*(((images - mean) / std, labels) for images, labels in split))


def for_model(model: str, split: Split) -> Split:
    """Put images on the device in the shape a network takes; an MLP takes one row per image."""
    rows = (
        (images.reshape(len(images), -1) if model == "mlp" else images, labels)
        for images, labels in split
    )
    return jax.device_put(Split(*rows))


# ---- Programs ------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def advance(
    model: nn.Module,
    network: Network,
    batches: Int[Array, "steps batch"],
    rates: Float[Array, "steps"],
    examples: Examples,
) -> Network:
    """Take one step for each row of `batches`, each at its own rate."""

    def step(network: Network, at: tuple[Array, Array]) -> tuple[Network, None]:
        rows, rate = at
        x, labels = (part[rows] for part in examples)
        return networks.train_step(model, make_optimizer(rate), network, x, labels), None

    if len(batches) == 1:
        return step(network, (batches[0], rates[0]))[0]
    return jax.lax.scan(step, network, (batches, rates))[0]


@functools.partial(jax.jit, static_argnums=0)
def evaluate(model: nn.Module, variables: Any, examples: Examples) -> Array:
    """Compute the accuracy; weights that diverged to NaN predict one class for all images."""
    return networks.accuracy(model, variables, *examples)


def make_optimizer(rate: Any) -> optax.GradientTransformation:
    """Make the optimizer of all networks."""
    return optax.sgd(rate, momentum=0.9)


def steps_at_once(config: Config, size: int) -> int:
    """Return the number of steps in one program."""
    between = config.examples // size // config.evaluations
    return 1 if jax.default_backend() == "cpu" else between


def decay(rate: float, steps: int) -> Float[np.ndarray, "steps"]:
    """Return the rate at each step, decaying to 0 along a cosine."""
    return (rate * np.cos(np.pi / 2 * np.arange(steps) / steps) ** 2).astype(np.float32)


# ---- A network -----------------------------------------------------------------------------------


class Trained(NamedTuple):
    """A network to be trained at one batch size, and the images of all data sets."""

    config: Config
    name: str
    size: int
    splits: Mapping[str, Split]

    @property
    def steps(self) -> int:
        """Return the number of training steps."""
        return self.config.examples // self.size

    @property
    def rates(self) -> list[float]:
        """Return the initial rates to choose from."""
        return [rate * (self.size / 128) ** 0.5 for rate in self.config.rates]

    def model(self, norm: str) -> nn.Module:
        """Make the network with a norm."""
        return make_model(self.config, self.name, norm, self.size)

    def evaluated(self, norm: str) -> nn.Module:
        """Make the network for evaluation, the same at all batch sizes so that it compiles once."""
        return make_model(self.config, self.name, norm, self.config.batch_sizes[0])

    def start(self, norm: str) -> list[Network]:
        """Initialize one network per seed."""
        (images, _), *_ = next(iter(self.splits.values()))
        stacked = sweep.start(self.evaluated(norm), self.config.seeds, images)
        optimizer = make_optimizer(0.0)
        each = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(self.config.seeds)]
        return [one._replace(opt_state=optimizer.init(one.params)) for one in each]

    def warm_up(self, norm: str) -> None:
        """Compile the training and evaluation programs."""
        split, network = next(iter(self.splits.values())), self.start(norm)[0]
        batches = np.zeros((steps_at_once(self.config, self.size), self.size), np.int32)
        rates = np.zeros(len(batches), np.float32)
        jax.block_until_ready(advance(self.model(norm), network, batches, rates, split.train))
        for examples in split[1:]:
            jax.block_until_ready(evaluate(self.evaluated(norm), network.variables, examples))

    def train(
        self, norm: str, network: Network, seed: int, rate: float, examples: Examples
    ) -> list[dict[str, Any]]:
        """Train the network; return its variables at each evaluation."""
        config, model = self.config, self.model(norm)
        batches = sampling.batch_indices(seed, 0, self.steps, self.size, config.train)
        rates, once = decay(rate, self.steps), steps_at_once(config, self.size)
        between, snapshots = self.steps // config.evaluations, []
        for i in range(0, self.steps, once):
            network = advance(model, network, batches[i : i + once], rates[i : i + once], examples)
            if (i + once) % between == 0:
                snapshots.append(jax.block_until_ready(network.variables))
        return snapshots


def at_best_rate(trained: Trained, norm: str) -> Arrays:
    """Train with a norm on every data set, at the best rate for each.

    Returns:
      for each data set, test accuracies, (seeds, evaluations); final validation accuracies,
      (rates, seeds for choosing); and the rate.
    """
    config, starts, evaluated = trained.config, trained.start(norm), trained.evaluated(norm)

    def train(dataset: str, seed: int, rate: float) -> list[dict[str, Any]]:
        return trained.train(norm, starts[seed], seed, rate, trained.splits[dataset].train)

    def tested(dataset: str, snapshots: list[dict[str, Any]]) -> list[float]:
        return [
            float(evaluate(evaluated, each, trained.splits[dataset].test)) for each in snapshots
        ]

    choosing = [
        (dataset, seed, rate)
        for dataset in trained.splits
        for rate in trained.rates
        for seed in range(config.choosing)
    ]
    swept = dict(zip(choosing, side_by_side(lambda run: train(*run), choosing), strict=True))
    results: Arrays = {}
    for dataset, split in trained.splits.items():
        scores = np.array(
            [
                [
                    float(evaluate(evaluated, swept[dataset, seed, rate][-1], split.validation))
                    for seed in range(config.choosing)
                ]
                for rate in trained.rates
            ]
        )
        results[f"{dataset}_validation"] = scores
        results[f"{dataset}_rate"] = np.array(trained.rates[selection.best(scores, "highest")])
    every = [
        (dataset, seed, float(results[f"{dataset}_rate"]))
        for dataset in trained.splits
        for seed in range(config.seeds)
    ]
    tests = side_by_side(lambda run: tested(run[0], swept.get(run) or train(*run)), every)
    for dataset in trained.splits:
        rows = [row for run, row in zip(every, tests, strict=True) if run[0] == dataset]
        results[f"{dataset}_test"] = np.array(rows)
    return results


def step_seconds(trained: Trained, norms: Iterable[str]) -> Arrays:
    """Time a step with each norm in turn, while nothing else runs: seconds, (rounds,)."""
    config, once = trained.config, steps_at_once(trained.config, trained.size)
    examples = next(iter(trained.splits.values())).train
    steps = max(1, config.timed_examples // (trained.size * once)) * once
    batches = sampling.batch_indices(0, 0, steps, trained.size, config.train)
    rates = np.zeros(steps, np.float32)
    networks_of = {norm: trained.start(norm)[0] for norm in norms}
    seconds: dict[str, list[float]] = {norm: [] for norm in networks_of}
    for _ in range(config.rounds):
        for norm, network in networks_of.items():
            model, began = trained.model(norm), time.perf_counter()
            for i in range(0, steps, once):
                network = advance(
                    model, network, batches[i : i + once], rates[i : i + once], examples
                )
            jax.block_until_ready(network)
            seconds[norm].append((time.perf_counter() - began) / steps)
    return {norm: np.array(taken) for norm, taken in seconds.items()}


def side_by_side(do: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Map `do` over items, in threads on a CPU.

    One small network keeps an accelerator busy, but not all cores of a CPU.
    """
    cores = os.cpu_count() if jax.default_backend() == "cpu" else 1
    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(do, items))
