"""What the study `regularization` measures."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments import sampling
from experiments.plotting import METHODS, describe_data, describe_layers, describe_runs
from experiments.stats import estimates, selection
from experiments.studies.regularization.config import Config
from experiments.studies.regularization.figures import Line, Results, gap, plot_combined, plot_lines
from experiments.study import Study
from experiments.tasks.data import Dataset, binary
from experiments.tasks.split import Examples, sample_splits
from experiments.training import networks, sweep
from jbn.linen import GhostBatchNorm
from jbn.models import MLP

HE = nn.initializers.he_normal()


# ---- Images --------------------------------------------------------------------------------------


class Images(NamedTuple):
    """Training data of one seed; for several seeds, arrays have one more leading axis.

    - x, labels: training images and their true labels.
    - wrong: another label for each image.
    - luck: uniform random numbers; the wrong label is given where it is below the share of flips.
    - validation: images and labels to choose rates and strengths by.
    """

    x: Float[Array, "N F"]
    labels: Int[Array, "N"]
    wrong: Int[Array, "N"]
    luck: Float[Array, "N"]
    validation: tuple[Float[Array, "V F"], Int[Array, "V"]]


def sample_images(config: Config, dataset: Dataset) -> tuple[Images, Examples]:
    """Draw the images of all seeds and their wrong labels, and return them with the test images."""
    seeds, n = range(config.seeds), config.train
    (x, labels), validation, test = sample_splits(
        dataset, binary, seeds, validation=config.validation, train=n, test=config.test
    )
    random = [sampling.rng(seed, "labels") for seed in seeds]
    others = np.stack([rng.integers(1, 10, n, dtype=np.int32) for rng in random])
    luck = jnp.asarray([rng.random(n, dtype=np.float32) for rng in random])
    return jax.device_put((Images(x, labels, (labels + others) % 10, luck, validation), test))


def given_labels(images: Images, flips: float) -> Int[Array, "N"]:
    """Replace a share of the labels; a larger share includes the labels of a smaller one."""
    return jnp.where(images.luck < flips, images.wrong, images.labels)


# ---- Networks and training -----------------------------------------------------------------------


class Kind(NamedTuple):
    """What each compiled program is specialized to: a network and its batches.

    - statistics: number of examples in a batch that share statistics; "all" for those of all
      training images; None for no BN.
    """

    width: int
    batch_size: int
    steps: int
    statistics: int | Literal["all"] | None


class Setting(NamedTuple):
    """What is passed to a compiled program: the learning rate and the regularizers."""

    rate: float
    dropout: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    flips: float = 0.0


class Dropout(nn.Module):
    """Inverted dropout at a rate that may be traced, unlike that of `nn.Dropout`."""

    rate: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Drop each value independently and scale up the others."""
        mask = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape)
        return jnp.where(mask, x / (1 - self.rate), 0)


def kernels(params: Any) -> Float[Array, "weights"]:
    """Return all regularized weights: those of the dense layers, without biases."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return jnp.concatenate([leaf.ravel() for path, leaf in leaves if path[-1].key == "kernel"])


@functools.cache
def make_model(config: Config, kind: Kind) -> MLP:
    """Make the network; BN over all training images is ghost BN with groups of that size."""
    size = kind.statistics if isinstance(kind.statistics, int) else config.train
    bn = functools.partial(GhostBatchNorm, batch_size=size, unbiased=True)
    norm = None if kind.statistics is None else bn
    return MLP(hidden=(kind.width,) * config.depth, activation=nn.relu, kernel_init=HE, norm=norm)


@functools.partial(jax.jit, static_argnums=0)
def start(model: MLP, keys: PRNGKeyArray, x: Array) -> networks.Network:
    """Initialize the networks of all seeds."""
    # Plain SGD has no state, so the rate does not matter.
    return jax.vmap(lambda key: networks.init(model, optax.sgd(1.0), key, x))(keys)


def make_step(
    config: Config, kind: Kind, setting: Setting, images: Images, key: PRNGKeyArray
) -> Callable[[networks.Network, Array, Array], networks.Network]:
    """Make the training step of one seed, `(network, rows of the batch, number) -> network`.

    Dropout masks are drawn from the key and the number of the step.
    """
    labels = given_labels(images, setting.flips)
    model = make_model(config, kind)
    dropping = model.clone(activation=lambda x: Dropout(setting.dropout)(nn.relu(x)))

    def penalty(params: Any) -> Array:
        w = kernels(params)
        return setting.l1 * jnp.abs(w).sum() + setting.l2 * jnp.square(w).sum()

    def step(network: networks.Network, rows: Array, i: Array) -> networks.Network:
        rngs = {"dropout": jax.random.fold_in(key, i)}
        advance = functools.partial(
            networks.train_step,
            dropping,
            optax.sgd(setting.rate),
            network,
            penalty=penalty,
            rngs=rngs,
        )
        if kind.statistics != "all":
            return advance(images.x[rows], labels[rows])
        # All images are normalized together, but only those of the batch contribute to the loss.
        weight = jnp.zeros(config.train).at[rows].add(config.train / kind.batch_size)
        return advance(
            images.x, labels, loss=lambda out, true: weight * networks.cross_entropy(out, true)
        )

    return step


class OfSeed(NamedTuple):
    """Initial network, data and batches of one seed, and its key for dropout."""

    start: networks.Network
    images: Images
    batches: Int[Array, "steps batch"]
    key: PRNGKeyArray


def learn(
    config: Config, kind: Kind, setting: Setting, of_seed: OfSeed, test: Examples
) -> dict[str, Array]:
    """Train one network of one seed, and evaluate it."""
    network, images, batches, key = of_seed
    model, step = make_model(config, kind), make_step(config, kind, setting, images, key)
    network, _ = networks.fit(step, network, jnp.arange(config.train), batches)
    if kind.statistics is not None:
        # Without dropout, as in inference: its noise would inflate the variances.
        size = config.train if kind.statistics == "all" else kind.batch_size
        together = images.x.reshape(-1, size, images.x.shape[-1])
        network = network._replace(batch_stats=networks.population(model, network, together))

    accuracy = functools.partial(networks.accuracy, model, network.variables)
    labels, flipped = given_labels(images, setting.flips), images.luck < setting.flips
    outputs: Any = model.apply(network.variables, images.x, training=False)
    predicted = outputs.argmax(-1)
    weights = kernels(network.params)
    # A diverged network predicts a single class, and so counts as chance.
    return {
        "train": jnp.mean(predicted == labels),
        "validation": accuracy(*images.validation),
        "test": accuracy(*test),
        "fitted": jnp.sum(flipped & (predicted == labels)) / jnp.maximum(flipped.sum(), 1),
        "near_zero": jnp.mean(jnp.abs(weights) < config.near_zero),
        "norm": jnp.sqrt(jnp.square(weights).sum()),
    }


Trainer = Callable[[Sequence[Kind], Sequence[Setting]], Results]


def make_trainer(config: Config, dataset: Dataset) -> Trainer:
    """Make the function that trains every kind in every setting, all seeds at once."""
    images, test = sample_images(config, dataset)
    seeds = range(config.seeds)
    weights, dropout = (sampling.keys(seeds, purpose) for purpose in ("weights", "dropout"))

    @functools.cache
    def compiled(kind: Kind) -> Callable[[Setting], Results]:
        # All kinds of BN have the same variables, so they share one start.
        like = Kind(kind.width, 0, 0, kind.statistics and "all")
        initial = start(make_model(config, like), weights, test[0][:1])
        rows = sampling.all_batches(seeds, kind.steps, kind.batch_size, config.train)
        of_seeds = OfSeed(initial, images, jnp.asarray(rows), dropout)
        run = sweep.program(functools.partial(learn, config, kind))

        def train_with(setting: Setting) -> Results:
            # One at a time, since every other number of settings would be compiled anew.
            return run(jax.tree.map(lambda value: np.array([value]), setting), of_seeds, test)

        return train_with

    def train(kinds: Sequence[Kind], settings: Sequence[Setting]) -> Results:
        rows = [compiled(kind)(setting) for kind in kinds for setting in settings]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    return train


# ---- The measurement -----------------------------------------------------------------------------


def at(results: Results, i: int) -> Results:
    """Return the results of one setting."""
    return {name: rows[i] for name, rows in results.items()}


def measure(config: Config, study: Study) -> None:
    """Train, report, plot."""
    train = make_trainer(config, study.dataset(config.dataset))

    def part(name: str, kinds: Sequence[Kind], *settings: Setting) -> Results:
        return study.part(name, lambda: train(kinds, settings))

    plain = Kind(config.width, config.batch_size, config.steps, None)
    kinds = {"none": plain, "batch": plain._replace(statistics=config.batch_size)}
    rates, lines = {}, {}
    for method, kind in kinds.items():
        results = part(f"rates_{method}", [kind], *map(Setting, config.rates))
        chosen = int(selection.best(results["validation"], "highest"))
        rates[method] = config.rates[chosen]
        for what in ("dropout", "l1", "l2", "flips"):
            values = getattr(config, what)
            settings = [Setting(rates[method], **{what: value}) for value in values]
            more = part(f"{what}_{method}", [kind], *settings)
            both = {key: np.vstack([results[key][chosen][None], more[key]]) for key in more}
            lines[what, method] = Line((0.0, *values), both, METHODS[method].label)

    widths = [plain._replace(width=width) for width in config.widths]
    wide = part("width", widths, Setting(rates["none"]))
    lines["width", "none"] = Line(config.widths, wide, METHODS["none"].label)
    large = Kind(config.width, config.large_batch, config.large_steps, None)
    groups = (*config.ghosts, config.large_batch)
    for method, kind, sizes in (("ghost", large, groups), ("batch", plain, (config.batch_size,))):
        statistics = [kind._replace(statistics=n) for n in (*sizes, "all")]
        results = part(f"statistics_{method}", statistics, Setting(rates["batch"]))
        label = f"BN, batches of {kind.batch_size}"
        lines["statistics", method] = Line((*sizes, config.train), results, label)

    chosen = list(itertools.product(*((0.0, value) for value in config.combined)))
    combined = {
        method: part(f"combined_{method}", [kind], *(Setting(rates[method], *on) for on in chosen))
        for method, kind in kinds.items()
    }
    regularizers = np.array(["dropout", "L1", "L2"])
    names = [" + ".join(regularizers[np.array(on) > 0]) or "none" for on in chosen]

    report(config, study, {key: line.results for key, line in lines.items()})
    for i, name in enumerate(names):
        gained = estimates.paired(combined["batch"]["test"][i], combined["none"]["test"][i])
        study.report(f"test_gain_bn_with_{name.lower().replace(' + ', '_')}", gained)
    data = describe_data(study.dataset(config.dataset).name)
    hidden = describe_layers((config.width,) * config.depth, "ReLUs")
    about = f"{config.train:,} training images of {data}, {hidden}. "
    about += describe_runs(config.seeds, "Points", "bars")
    study.figure(
        "combined",
        functools.partial(plot_combined, names, combined),
        title="Dropout, L1 and L2, each with each, without and with BN",
        caption=about,
        alt="Test accuracy, left, and training - test accuracy, right, for all eight combinations "
        "of dropout, L1 and L2, without and with BN.",
    )
    shown = "Test accuracy, above, and training - test accuracy, below,"
    study.figure(
        "regularizers",
        functools.partial(plot_lines, ("dropout", "l1", "l2"), lines),
        title="What dropout, L1 and L2 do to the gap, without and with BN",
        caption=about,
        alt=f"{shown} against the strength of dropout, L1 and L2, without and with BN.",
    )
    study.figure(
        "noise",
        functools.partial(plot_lines, ("statistics", "flips", "width"), lines),
        title="What the noise of BN, wrong labels and the width do to the gap",
        caption=about,
        alt=f"{shown} against the number of examples that share BN's statistics, up to "
        "all training images, which is BN without noise; against the share of flipped training "
        "labels, without and with BN; and against the width, without BN.",
    )


def report(config: Config, study: Study, results: dict[tuple[str, str], Results]) -> None:
    """Report the numbers behind the claims."""

    def chosen(what: str, method: str) -> Results:  # The best strength above 0.
        strengths = {name: rows[1:] for name, rows in results[what, method].items()}
        return at(strengths, int(selection.best(strengths["validation"], "highest")))

    none, batch = at(results["dropout", "none"], 0), at(results["dropout", "batch"], 0)
    dropout, l1, l2 = (chosen(what, "none") for what in ("dropout", "l1", "l2"))
    flipped = at(results["flips", "none"], 1 + config.flips.index(0.4))
    narrow, wide = (at(results["width", "none"], i) for i in (0, -1))
    ghost, whole = (at(results["statistics", "ghost"], i) for i in (0, -2))
    noisy, free = (at(results["statistics", "batch"], i) for i in (0, 1))
    differences = {
        "gap_bn": (gap(batch), gap(none)),
        "test_gain_bn": (batch["test"], none["test"]),
        "dropout_gain_bn": (chosen("dropout", "batch")["test"], batch["test"]),
        "bn_minus_dropout": (batch["test"], dropout["test"]),
        "gap_l1": (gap(l1), gap(none)),
        "gap_l2": (gap(l2), gap(none)),
        "gap_dropout": (gap(dropout), gap(none)),
        "sparsity_l1": (l1["near_zero"], none["near_zero"]),
        "gap_wide": (gap(wide), gap(narrow)),
        "test_wide": (wide["test"], narrow["test"]),
        "gap_small_batch": (gap(ghost), gap(whole)),
        "gap_noise_free": (gap(free), gap(noisy)),
        "test_noise_free": (free["test"], noisy["test"]),
        "test_flipped": (flipped["test"], none["test"]),
    }
    for metric, (ours, theirs) in differences.items():
        study.report(metric, estimates.paired(ours, theirs))
    study.report("norm_l2", estimates.ratio(l2["norm"] / none["norm"]))
    study.report("flipped_fitted", estimates.mean(flipped["fitted"]))
    study.report("test_flipped_level", estimates.mean(flipped["test"]))
