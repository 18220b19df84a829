"""Measurements of the study `batches`."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

import jbn
from experiments import sampling
from experiments.plotting import describe_data, describe_layers, describe_runs
from experiments.stats import estimates
from experiments.studies.batches.config import EVALUATIONS, ORDERS, Config
from experiments.studies.batches.figures import plot_means, plot_orders
from experiments.study import Study
from experiments.tasks.data import Dataset, WrongData
from experiments.training import networks, sweep
from experiments.training.networks import Network, cross_entropy
from jbn.linen import BatchNorm, BatchRenorm
from jbn.models import MLP

# Schedule of batch renorm, in fractions of all steps: plain BN until the first, d_max 5 from the
# second, and r_max 3 from the third. Ioffe (2017) has them at 5,000, 25,000 and 40,000 steps; these
# are fractions of 100,000.
RENORM = 0.05, 0.25, 0.4


# ---- Batches -------------------------------------------------------------------------------------


def sample_batches(
    config: Config, labels: UInt8[np.ndarray, "N"], seed: int
) -> dict[str, Int[np.ndarray, "steps batch"]]:
    """Draw the batches of a seed in each of `ORDERS`, from the same examples."""
    rows = sample_examples(config.examples, labels, seed)
    half, second = config.batch_size // 2, np.sort(np.bincount(labels[rows], minlength=2))[-2]
    if second < half:  # No batch of two classes could be formed.
        raise WrongData(
            f"Expected {half} images of each of two classes among {len(rows):,} `examples`, got "
            f"{second} of the second most frequent. Use smaller batches or more examples."
        )
    rng = sampling.rng(seed, "order")
    together = rows.reshape(-1, config.batch_size)
    fixed, by_class = [], []
    # Epochs of sorted batches are shorter: what one class of a pair has more of is left out.
    while sum(map(len, by_class)) < config.steps:
        fixed.append(rng.permutation(together))
        by_class.append(sample_sorted_epoch(rows, labels, config.batch_size, rng))
    shuffled = sampling.batch_indices(seed, 0, config.steps, config.batch_size, len(rows))
    return {
        "shuffled": rows[shuffled],
        "fixed": np.concatenate(fixed)[: config.steps],
        "sorted": np.concatenate(by_class)[: config.steps],
    }


def sample_population_batches(
    config: Config, labels: UInt8[np.ndarray, "N"], seed: int
) -> Int[np.ndarray, "K batch"]:
    """Draw well-mixed batches in which each training example of a seed occurs once."""
    rows, size = sample_examples(config.examples, labels, seed), config.batch_size
    return rows[
        sampling.batch_indices(seed, 0, len(rows) // size, size, len(rows), purpose="population")
    ]


def sample_examples(
    count: int, labels: UInt8[np.ndarray, "N"], seed: int
) -> Int[np.ndarray, "count"]:
    """Draw the training examples of a seed."""
    return sampling.rng(seed, "subset").permutation(len(labels))[:count]


def sample_sorted_epoch(
    rows: Int[np.ndarray, "N"],
    labels: UInt8[np.ndarray, "all"],
    batch_size: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "K batch"]:
    """Draw batches that are half of one class and half of another, in random pairs of classes.

    If the number of classes is odd, one of them is left out of the epoch.
    """
    half, epoch = batch_size // 2, []
    classes = rng.permutation(np.unique(labels))
    for pair in classes[: len(classes) // 2 * 2].reshape(-1, 2):
        halves = [rng.permutation(rows[labels[rows] == label]) for label in pair]
        count = min(map(len, halves)) // half
        epoch.append(np.hstack([rows[: count * half].reshape(-1, half) for rows in halves]))
    return rng.permutation(np.concatenate(epoch))


# ---- Training ------------------------------------------------------------------------------------


def make_models(config: Config) -> dict[str, MLP]:
    """Make the networks, which start from the same weights."""
    start, d_end, r_end = (share * config.steps for share in RENORM)
    renorm = functools.partial(
        BatchRenorm,
        momentum=jbn.debiased(0.99),  # A schedule, so that the layer counts its batches.
        r_max=lambda count: jnp.interp(count, jnp.array([start, r_end]), jnp.array([1.0, 3.0])),
        d_max=lambda count: jnp.interp(count, jnp.array([start, d_end]), jnp.array([0.0, 5.0])),
        unbiased=True,
    )
    batch = functools.partial(BatchNorm, unbiased=True)
    norms = {"none": None, "batch": batch, "renorm": renorm}
    return {name: MLP(config.hidden, norm=norm) for name, norm in norms.items()}


def decaying(config: Config, steps: int) -> optax.GradientTransformation:
    """Make an SGD optimizer whose rate decays linearly to 0."""
    return optax.sgd(optax.linear_schedule(config.learning_rate, 0.0, steps))


def gray(images: UInt8[np.ndarray, "N H W"]) -> Float[np.ndarray, "N features"]:
    """Convert bytes to gray levels from 0 to 1, one row per image."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def population_variables(
    config: Config, network: Network, batches: Float[Array, "K N F"]
) -> dict[str, Any]:
    """Return the variables with population statistics, computed by plain BN for all methods.

    Batch renorm would correct the batches by the very running statistics that are being replaced.
    """
    stats = {name: {"mean": s["mean"], "var": s["var"]} for name, s in network.batch_stats.items()}
    if stats:
        plain = network._replace(batch_stats=stats)
        stats = networks.population(make_models(config)["batch"], plain, batches)
    return {"params": network.params, "batch_stats": stats}


def train_all(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Train every network with every order of batches.

    Returns:
      "accuracy" -> method -> order -> test accuracy, (seeds,); "variables" -> those of the
      networks with BN and shuffled batches.
    """
    labels, seeds = dataset.train_labels, range(config.seeds)
    samples = [sample_batches(config, labels, seed) for seed in seeds]
    batches = np.stack([np.stack([of[name] for name in ORDERS]) for of in samples])
    mixed = np.stack([sample_population_batches(config, labels, seed) for seed in seeds])
    data = jax.device_put((gray(dataset.train_images), labels))
    test = jax.device_put((gray(dataset.test_images), dataset.test_labels))
    optimizer = decaying(config, config.steps)

    def one(
        model: nn.Module, order: Array, of_seed: Any, shared: tuple[Any, Any]
    ) -> tuple[Array, Any]:
        (key, batches, mixed), (data, test) = of_seed, shared

        def step(network: Network, batch: tuple[Array, Array], _: Array) -> Network:
            return networks.train_step(model, optimizer, network, *batch)

        first = networks.init(model, optimizer, key, data[0][:1])
        last, _ = networks.fit(step, first, data, batches[order])
        variables = population_variables(config, last, data[0][mixed])
        # A network that diverged always predicts class 0, so its accuracy is chance.
        return networks.accuracy(model, variables, *test), variables

    of_seeds, numbers = (sampling.keys(seeds, "weights"), batches, mixed), np.arange(len(ORDERS))
    accuracy, variables = {}, {}
    for name, model in make_models(config).items():
        reached, trained = sweep.each(
            functools.partial(one, model), numbers, of_seeds, (data, test), sequential="settings"
        )
        accuracy[name] = dict(zip(ORDERS, reached, strict=True))
        if name == "batch":
            variables = jax.tree.map(lambda leaf: leaf[list(ORDERS).index("shuffled")], trained)
    return {"accuracy": accuracy, "variables": variables}


# ---- The mean of a batch -------------------------------------------------------------------------


def mean_errors(config: Config, dataset: Dataset, variables: Any) -> dict[str, Any]:
    """Measure how far batch means are from the mean of all data, at the last nonlinearity's inputs.

    Returns:
      "error" -> (seeds, sizes), mean over batches and units, in standard deviations of each unit.
    """
    model = make_models(config)["batch"]
    images = gray(dataset.train_images)
    rows = np.stack(
        [sample_examples(config.examples, dataset.train_labels, s) for s in range(config.seeds)]
    )
    keys = sampling.keys(range(config.seeds), "means")

    def one(variables: Any, x: Array, key: PRNGKeyArray) -> Array:
        _, sown = model.apply(variables, x, training=False, mutable="intermediates")
        # In inference, BN only scales and shifts its input, which does not matter here.
        (inputs,) = sown["intermediates"][f"activation_input_{len(config.hidden) - 1}"]
        return jnp.stack([mean_error(inputs, size, config.draws, key) for size in config.sizes])

    run = jax.jit(lambda of_seeds: jax.lax.map(lambda of_one: one(*of_one), of_seeds))
    return {"error": run((variables, images[rows], keys))}


def mean_error(
    inputs: Float[Array, "N units"], size: int, draws: int, key: PRNGKeyArray
) -> Float[Array, ""]:
    """Compute |mean of a batch - mean| / standard deviation, averaged over batches and units."""
    values = (inputs - inputs.mean(0)[None]) / inputs.std(0)[None]
    # With replacement; otherwise the error of large batches would fall faster than a power law.
    rows = jax.random.randint(key, (draws, size), 0, len(values))
    return jnp.abs(jax.lax.map(lambda batch: values[batch].mean(0), rows)).mean()


def exponents(sizes: Int[np.ndarray, "S"], error: Float[np.ndarray, "seeds S"]) -> np.ndarray:
    """Fit error = c size^p by least squares in logarithms for each seed; return p."""
    return np.polyfit(np.log(sizes), np.log(error).T, 1)[0]


# ---- Statistics of all the data ------------------------------------------------------------------


def normalize_by_all(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Train with statistics of the batch, and with statistics of all training data.

    Returns:
      "batch" and "all" -> test accuracy, (seeds, evaluations + 1). Each is tested with the kind
      of statistics it was trained with: averages over all batches, or those of all data.
    """
    model, optimizer = make_models(config)["batch"], decaying(config, config.whole_steps)
    count, size, seeds = config.whole_examples, config.batch_size, range(config.seeds)
    rows = np.stack([sample_examples(count, dataset.train_labels, seed) for seed in seeds])
    batches = sampling.all_batches(seeds, config.whole_steps, size, count)
    images, test_images = gray(dataset.train_images)[rows], gray(dataset.test_images)

    def one(of_seed: Any, test: tuple[Array, Array]) -> dict[str, Array]:
        key, batches, images, labels = of_seed
        first = networks.init(model, optimizer, key, images[:1])
        advance = functools.partial(networks.train_step, model, optimizer)

        def by_batch(network: Network, rows: Array, _: Array) -> Network:
            return advance(network, images[rows], labels[rows])

        def by_all(network: Network, rows: Array, _: Array) -> Network:
            return advance(network, images, labels, loss=loss_of(rows, count))

        def run(step: Any, population: Array) -> Array:
            def accuracy(network: Network) -> Array:
                return networks.accuracy(
                    model, population_variables(config, network, population), *test
                )

            every = config.whole_steps // EVALUATIONS
            return networks.fit(
                step, first, jnp.arange(count), batches, observe=accuracy, every=every
            )[1]

        in_batches = images.reshape(-1, size, images.shape[1])
        return {"batch": run(by_batch, in_batches), "all": run(by_all, images[None])}

    over_seeds = jax.jit(lambda seeds, test: jax.lax.map(lambda s: one(s, test), seeds))
    keys = sampling.keys(seeds, "weights")
    of_seeds = keys, batches, images, dataset.train_labels[rows]
    return over_seeds(of_seeds, (test_images, dataset.test_labels))


def loss_of(rows: Int[Array, "batch"], count: int) -> networks.Loss:
    """Make a loss whose mean over all `count` examples is the mean over the given rows only."""
    weight = jnp.zeros(count).at[rows].add(count / len(rows))
    return lambda outputs, labels: weight * cross_entropy(outputs, labels)


# ---- The experiment ------------------------------------------------------------------------------


def measure(config: Config, study: Study) -> None:
    """Train, report comparisons paired by seed, and plot."""
    dataset = study.dataset(config.dataset)
    flat = study.part("orders", lambda: dict(flatten_dict(train_all(config, dataset), sep="/")))
    trained = unflatten_dict(flat, sep="/")
    means = study.part("means", lambda: mean_errors(config, dataset, trained["variables"]))
    whole = study.part("whole", lambda: normalize_by_all(config, dataset))
    of = trained["accuracy"]
    lost = {name: of[name]["sorted"] - of[name]["shuffled"] for name in of}
    study.report("sorted", estimates.mean(lost["batch"]))
    study.report("sorted_without", estimates.mean(lost["none"]))
    study.report("sorted_renorm", estimates.mean(lost["renorm"]))
    study.report("sorted_excess", estimates.paired(lost["batch"], lost["none"]))
    study.report("fixed", estimates.paired(of["batch"]["fixed"], of["batch"]["shuffled"]))
    study.report("renorm_gain", estimates.paired(of["renorm"]["sorted"], of["batch"]["sorted"]))
    powers = exponents(np.array(config.sizes), means["error"])
    study.report("mean_exponent", estimates.mean(powers))
    study.report("all_data_gain", estimates.paired(whole["all"][:, -1], whole["batch"][:, -1]))

    about = f"{describe_data(dataset.name)}, {describe_layers(config.hidden, 'sigmoids')}."
    study.figure(
        "orders",
        lambda: plot_orders(of),
        title="Test error by how training batches are drawn",
        caption=f"{about} Small points: each seed. {describe_runs(config.seeds, 'Points', 'bars')}",
        alt="Test error of networks without BN, with BN and with batch renorm, a point a seed, "
        "for batches shuffled anew, always the same, and of two classes each.",
    )
    study.figure(
        "means",
        lambda: plot_means(config, means["error"], whole),
        title="How far the mean of a batch is from that of all data, and what all the data gain",
        caption=f"{about} Right: {config.whole_examples:,} training images, differences seed by "
        f"seed. {describe_runs(config.seeds)} Left the means are geometric.",
        alt="Left: error of a batch's mean against its size, on logarithmic axes, and slope -1/2. "
        "Right: difference of test accuracy over training on a small set, normalized by all of it "
        "or by the batch: each seed, and the mean.",
    )
