"""What the study `inference` measures, its options and presets."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8
from scipy import ndimage

import jbn
from experiments import sampling
from experiments.stats import estimates
from experiments.studies.inference import figures as inference_figures
from experiments.study import Study
from experiments.tasks.data import Dataset
from experiments.training import networks
from experiments.training.networks import Network
from jbn._schedules import Schedule
from jbn.diagnostics import effective_batches, train_eval_gap
from jbn.linen import BatchNorm
from jbn.models import MLP

WINDOW = 100  # Batches in the simple moving average.
POPULATION_EXAMPLES = 60, 300, 1000, 10_000, 20_000  # Rounded up to whole batches.
TEST_BATCHES = 2, 8, 32, 500  # Or as many examples as there are.


@dataclass(frozen=True)
class Config:
    """What the measurements depend on."""

    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    """digits are the small ones inside scikit-learn"""
    seeds: int = 10
    """networks, each from its own weights and batches"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer, of sigmoid units"""
    steps: int = 6000
    """training steps"""
    batch_size: int = 60
    """examples in a training batch, and in one of Algorithm 2"""
    learning_rate: float = 0.5
    """of plain SGD"""
    contrast: float = 0.5
    """what gray levels of 0 to 1 are multiplied by, in shifted images"""
    brightness: float = 0.3
    """what is added to them then"""
    degrees: float = 30.0
    """by how much images are rotated"""

    def __post_init__(self) -> None:
        """Refuse a run that never fills the window."""
        if self.steps < WINDOW:
            raise ValueError(f"Expected `steps` of at least {WINDOW}, got {self.steps}.")


PRESETS = {
    "smoke": Config(dataset="digits", seeds=2, hidden=(20,), steps=100),
    "quick": Config(),
    "paper": Config(seeds=20, steps=30_000),
}
MOMENTA: dict[str, float | Schedule] = {
    "exponential_0.9": 0.9,
    "exponential_0.99": 0.99,
    "exponential_0.999": 0.999,
    "debiased": jbn.debiased(0.99),
    "cumulative": jbn.cumulative,
}


class Data(NamedTuple):
    """Images as rows of gray levels from 0 to 1, and which of them make up a batch.

    - drawn: training batches for population statistics, other ones for each seed.
    - test_batches: name -> batches of test images, mixed or of a single class each.
    - shifted: name -> all test images, shifted.
    """

    train: Float[Array, "N features"]
    drawn: Int[Array, "seeds K batch"]
    test: Float[Array, "M features"]
    labels: UInt8[Array, "M"]
    test_batches: dict[str, Int[Array, "K size"]]
    shifted: dict[str, Float[Array, "M features"]]


def prepare(config: Config, dataset: Dataset) -> Data:
    """Draw all batches, and shift the test images."""
    train, test = (x.astype(np.float32) / 255 for x in (dataset.train_images, dataset.test_images))
    shape = (max(population_batches(config).values()), config.batch_size, len(train))
    drawn = [
        sampling.batch_indices(seed, 0, *shape, purpose="population")
        for seed in range(config.seeds)
    ]
    shifted = {
        "unchanged": test,
        "contrast": config.contrast * test + config.brightness,
        "rotation": ndimage.rotate(test, config.degrees, axes=(1, 2), reshape=False, order=1),
    }
    arrays: Any = {
        "train": train.reshape(len(train), -1),
        "drawn": np.stack(drawn),
        "test": test.reshape(len(test), -1),
        "labels": dataset.test_labels,
        "test_batches": cut_test_batches(dataset.test_labels),
        "shifted": {name: images.reshape(len(images), -1) for name, images in shifted.items()},
    }
    return Data(**jax.device_put(arrays))


def cut_test_batches(labels: UInt8[np.ndarray, "M"]) -> dict[str, Int[np.ndarray, "K size"]]:
    """Cut the test images into whole batches: mixed as they are, or of a single class each."""
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    batches = {}
    for kind, groups in {"mixed": [np.arange(len(labels))], "sorted": classes}.items():
        for wanted in TEST_BATCHES:
            size = min(wanted, *map(len, groups))
            cut = [rows[: len(rows) // size * size].reshape(-1, size) for rows in groups]
            batches[f"{kind}_{wanted}"] = np.concatenate(cut)
    return batches


def population_batches(config: Config) -> dict[int, int]:
    """Count the batches for each number of examples."""
    return {size: math.ceil(size / config.batch_size) for size in POPULATION_EXAMPLES}


# ---- Training ------------------------------------------------------------------------------------


class State(NamedTuple):
    """A network in training, and what is averaged: see `seen`."""

    network: Network
    averages: dict[str, Any]  # By the names in `MOMENTA`.
    ring: Any  # The last ones, for the simple moving average.


def make_model(config: Config) -> MLP:
    """Make the network; its `batch_stats` are those of the last batch alone."""
    return MLP(config.hidden, norm=functools.partial(BatchNorm, momentum=0.0, unbiased=True))


def seen(network: Network) -> dict[str, Any]:
    """Take what is averaged: statistics, and the normalizing layers' parameters."""
    affine = {name: layer for name, layer in network.params.items() if "scale" in layer}
    return {"statistics": network.batch_stats, "affine": affine}


def begin(network: Network) -> State:
    """Begin all averages where a layer does: mean 0, var 1, and the initial gamma and beta."""
    now = seen(network)
    ring = jax.tree.map(lambda leaf: jnp.zeros((WINDOW, *leaf.shape)), now)
    return State(network, dict.fromkeys(MOMENTA, now), ring)


def follow(state: State, network: Network, i: Int[Array, ""]) -> State:
    """Let every average absorb what step i gave."""
    now = seen(network)
    averages = {}
    for name, momentum in MOMENTA.items():
        weight = momentum(i) if callable(momentum) else momentum
        averages[name] = optax.incremental_update(now, state.averages[name], 1 - weight)
    ring = jax.tree.map(lambda ring, new: ring.at[i % WINDOW].set(new), state.ring, now)
    return State(network, averages, ring)


def train(config: Config, dataset: Dataset, data: Data) -> dict[str, Any]:
    """Train all seeds; return the last weights, the averages, and the population statistics."""
    model, optimizer = make_model(config), optax.sgd(config.learning_rate)
    seeds, shape = range(config.seeds), (config.batch_size, len(data.train))
    batches = sampling.all_batches(seeds, config.steps, *shape)
    whole = sampling.batch_indices(
        0, 0, len(data.train) // config.batch_size, *shape, purpose="whole population"
    )

    def step(state: State, batch: tuple[Array, Array], i: Array) -> State:
        return follow(state, networks.train_step(model, optimizer, state.network, *batch), i)

    def one(key: PRNGKeyArray, batches: Array, images: Array, labels: Array) -> dict[str, Any]:
        first = networks.init(model, optimizer, key, images[:1])
        state, _ = networks.fit(step, begin(first), (images, labels), batches)
        window = jax.tree.map(lambda ring: ring.mean(0), state.ring)
        return {
            "params": state.network.params,
            "averages": {**state.averages, "window": window},
            "population": networks.population(model, state.network, images[whole]),
        }

    run = jax.jit(jax.vmap(one, in_axes=(0, 0, None, None)))
    return run(sampling.keys(seeds, "weights"), batches, data.train, dataset.train_labels)


# ---- What is measured of one network -------------------------------------------------------------


def variables_of(kept: dict[str, Any]) -> dict[str, Any]:
    """Put together what `model.apply` takes: the last weights and the population statistics."""
    return {"params": kept["params"], "batch_stats": kept["population"]}


def estimated(config: Config, variables: dict[str, Any], batches: Float[Array, "K N F"]) -> Any:
    """Return the variables with population statistics of these batches."""
    network = Network(variables["params"], variables["batch_stats"], ())
    stats = networks.population(make_model(config), network, batches)
    return {**variables, "batch_stats": stats}


def each(measure: Callable[[Any], Any], variants: dict[str, Any]) -> dict[str, Any]:
    """Measure variants of the same structure, compiled once for all."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variants.values())
    measured = jax.lax.map(measure, stacked)
    return {name: jax.tree.map(itemgetter(i), measured) for i, name in enumerate(variants)}


def compare_statistics(config: Config, kept: Any, drawn: Array, data: Data) -> dict[str, Any]:
    """Compare all kinds of statistics with those of the population.

    Returns: name -> their error, that of the worst mean of all units, in true standard deviations,
      and test accuracy.
    """
    truth = variables_of(kept)
    candidates = {"population": truth}
    for name, average in kept["averages"].items():
        candidates[name] = {**truth, "batch_stats": average["statistics"]}
    for size, count in population_batches(config).items():
        candidates[f"population_{size}"] = estimated(config, truth, data.train[drawn[:count]])

    def compare(variables: dict[str, Any]) -> dict[str, Array]:
        gaps = train_eval_gap(variables["batch_stats"], truth["batch_stats"]).values()
        accuracy = networks.accuracy(make_model(config), variables, data.test, data.labels)
        return {"error": jnp.stack([gap.mean for gap in gaps]).max(), "accuracy": accuracy}

    return each(compare, candidates)


def vary_batch(config: Config, kept: Any, drawn: Array, data: Data) -> dict[str, Any]:
    """Measure by how much an image's outputs depend on the images beside it."""
    size = config.batch_size
    batch, others = data.test[:size], data.test[size : 2 * size - 1]
    apply = functools.partial(make_model(config).apply, variables_of(kept), mutable="batch_stats")

    def difference(training: bool) -> Array:
        beside = (batch, jnp.concatenate([batch[:1], others]))
        here, there = (apply(images, training=training)[0][0] for images in beside)
        return jnp.abs(here - there).max()

    together, _ = apply(batch, training=False)
    alone = jax.lax.map(lambda image: apply(image[None], training=False)[0][0], batch)
    return {
        "training_difference": difference(True),
        "inference_difference": difference(False),
        "one_by_one": jnp.abs(alone - together).max(),
    }


def judge_test_batches(config: Config, kept: Any, drawn: Array, data: Data) -> dict[str, Any]:
    """Measure test accuracy by the statistics of test batches.

    Returns: name -> accuracy by the batches, and on the same images by the population; "alone" ->
      image by image, by the formula.
    """
    model, variables = make_model(config), variables_of(kept)
    outputs: Any = model.apply(variables, data.test, training=False)
    right, found = outputs.argmax(-1) == data.labels, {}
    for name, rows in data.test_batches.items():
        judge = functools.partial(networks.accuracy, model, variables, training=True)
        by_batch = jax.vmap(judge)(data.test[rows], data.labels[rows])
        found[name] = {"batch": by_batch.mean(), "population": right[rows].mean()}

    def alone(image: Array) -> Array:
        # Under a mask jbn takes one value for a batch, of variance 0; else it refuses.
        mode: Any = {"training": True, "mask": jnp.ones(1, bool), "mutable": "batch_stats"}
        return model.apply(variables, image[None], **mode)[0][0].argmax()

    return {**found, "alone": jnp.mean(jax.vmap(alone)(data.test) == data.labels)}


def average_affine(config: Config, kept: Any, drawn: Array, data: Data) -> dict[str, Any]:
    """Measure test accuracy with the last gamma and beta and with averaged ones.

    All other weights are the last; population statistics are made for each, of the same examples.
    """
    last = variables_of(kept)
    affines = {name: average["affine"] for name, average in kept["averages"].items()}
    params = {"last": last["params"], **{k: last["params"] | v for k, v in affines.items()}}

    def judge(params: Any) -> Array:
        variables = estimated(config, {**last, "params": params}, data.train[drawn])
        return networks.accuracy(make_model(config), variables, data.test, data.labels)

    return each(judge, params)


def judge_shifted(config: Config, kept: Any, drawn: Array, data: Data) -> dict[str, Any]:
    """Measure accuracy on every other test image, shifted.

    Returns: shift -> accuracy by statistics of training images, and by those of the images between,
      shifted alike, whose labels are not used.
    """
    trained, size = variables_of(kept), config.batch_size

    def judge(images: Array) -> dict[str, Array]:
        between = images[1::2]
        batches = between[: len(between) // size * size].reshape(-1, size, images.shape[1])
        accuracy = functools.partial(
            networks.accuracy, make_model(config), x=images[::2], labels=data.labels[::2]
        )
        adapted = estimated(config, trained, batches)
        return {"trained": accuracy(trained), "estimated": accuracy(adapted)}

    return each(judge, data.shifted)


# ---- The experiment ------------------------------------------------------------------------------

PARTS = {
    "statistics": compare_statistics,
    "modes": vary_batch,
    "test_batches": judge_test_batches,
    "affine": average_affine,
    "shift": judge_shifted,
}


def measure(config: Config, study: Study) -> None:
    """Train, measure each part seed by seed, report and draw."""
    dataset = study.dataset(config.dataset)
    data = prepare(config, dataset)

    def part(name: str, measured: Callable[[], Any]) -> dict[str, Any]:
        def flat() -> dict[Any, Any]:
            return dict(flatten_dict(measured(), sep="/"))

        return unflatten_dict(study.part(name, flat), sep="/")

    def over_seeds(one: Callable[..., Any]) -> Any:
        # One after the other: the data are large, and inference is then as users run it.
        run = jax.jit(lambda seeds, data: jax.lax.map(lambda s: one(config, *s, data), seeds))
        return run((kept, data.drawn), data)

    kept = part("training", lambda: train(config, dataset, data))
    found = {name: part(name, lambda one=one: over_seeds(one)) for name, one in PARTS.items()}
    report(config, found, study)
    inference_figures.draw(study, found, examples_behind(config), TEST_BATCHES)


def examples_behind(config: Config) -> dict[str, float]:
    """Count the examples that each kind of statistics rests on, were they weighed alike."""
    decays = {name: decay for name, decay in MOMENTA.items() if not callable(decay)}
    batches = {name: effective_batches(config.steps, decay) for name, decay in decays.items()}
    batches |= {"window": WINDOW, "cumulative": config.steps}
    batches |= {f"population_{size}": count for size, count in population_batches(config).items()}
    return {name: float(count) * config.batch_size for name, count in batches.items()}


def report(config: Config, found: dict[str, Any], study: Study) -> None:
    """Report the numbers; every difference is paired by seed."""
    for name, differences in found["modes"].items():
        study.report(name, estimates.mean(differences))
    batches, by = found["test_batches"], found["statistics"]
    named = {f"batch_{size}": f"mixed_{size}" for size in TEST_BATCHES}
    for metric, name in {**named, "batch_sorted": "sorted_32"}.items():
        study.report(metric, estimates.paired(batches[name]["batch"], batches[name]["population"]))
    study.report("mode_1", estimates.mean(batches["alone"]))
    averages = {"exponential": "exponential_0.99"}
    for metric in ("exponential", "debiased", "window", "cumulative"):
        of = by[averages.get(metric, metric)]
        study.report(metric, estimates.paired(of["accuracy"], by["population"]["accuracy"]))
        study.report(f"{metric}_error", estimates.mean(of["error"]))
    most = by[f"population_{max(POPULATION_EXAMPLES)}"]["accuracy"]
    for size in POPULATION_EXAMPLES[:-1]:
        accuracy = by[f"population_{size}"]["accuracy"]
        study.report(f"population_{size}", estimates.paired(accuracy, most))
    affine = found["affine"]
    study.report("averaged", estimates.paired(affine["cumulative"], affine["last"]))
    study.report("averaged_exponential", estimates.paired(affine["debiased"], affine["last"]))

    shift = found["shift"]
    for name in ("contrast", "rotation"):
        trained, adapted = shift[name]["trained"], shift[name]["estimated"]
        study.report(f"{name}_loss", estimates.paired(trained, shift["unchanged"]["trained"]))
        study.report(f"{name}_recovered", estimates.paired(adapted, trained))
