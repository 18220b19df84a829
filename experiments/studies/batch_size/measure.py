"""What the study `batch_size` measures, its options and presets."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

import jbn
from experiments import sampling
from experiments.stats import estimates, selection
from experiments.studies.batch_size.degenerate_batches import degenerate_batches
from experiments.studies.batch_size.figures import Results, draw_huge, draw_sizes
from experiments.study import Study
from experiments.tasks.data import Dataset, binary
from experiments.tasks.split import Examples, Split, sample_splits
from experiments.training import networks
from jbn.linen import BatchNorm, BatchRenorm, GhostBatchNorm, GroupNorm
from jbn.models import MLP

Found = dict[str, np.ndarray]


@dataclass(frozen=True)
class Config:
    """What the measurement depends on."""

    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    """digits are the small ones inside scikit-learn"""
    seeds: int = 5
    """how many seeds"""
    train: int = 20_000
    """training images of a seed"""
    validation: int = 2000
    """training images of a seed, drawn at random, to choose rates on"""
    hidden: tuple[int, ...] = (100, 100, 100)
    """width of each hidden layer"""
    ghost: int = 64
    """examples that share statistics in ghost BN"""
    rates: tuple[float, ...] = (0.06, 0.12, 0.25, 0.5, 1.0)
    """learning rates of plain SGD to choose from at batches of 32"""
    top_rates: tuple[float, ...] = (0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
    """those to choose from at the largest size; the choice is also the cap at lesser sizes"""
    small: tuple[int, ...] = (1, 2, 4, 8)
    """sizes of batches below 32; the claims are about 2 and 4"""
    small_examples: int = 16_384
    """seen by each network in batches of up to 32"""
    small_methods: tuple[str, ...] = ("none", "batch", "renorm", "layer", "group", "weight")
    """what is trained in small batches"""
    huge: tuple[int, ...] = (64, 256, 1024, 4096)
    """sizes of large batches, of which the first and the last are compared"""
    huge_examples: int = 163_840
    """seen by each network in large batches"""
    huge_methods: tuple[str, ...] = (
        "none", "batch", "ghost", "renorm", "layer", "group", "weight",
    )  # fmt: skip
    """what is trained in large batches"""
    equal_steps: int = 300
    """steps of the first and the last of the large sizes at an equal rate"""
    population: int = 4096
    """training images that population statistics are averaged over"""
    descent: int = 1024
    """training images in full-batch descent"""
    descent_epochs: int = 80
    """how long mini-batches, and full batches, may take to reach the loss"""
    descent_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    """learning rates that both choose from"""
    descent_loss: float = 0.3
    """the training loss to reach"""


PRESETS = {
    "smoke": Config(
        dataset="digits", seeds=2, train=128, validation=40, hidden=(20,), ghost=16,
        rates=(0.1,), top_rates=(0.1,), small=(2, 4), small_examples=128, huge=(4, 32),
        huge_examples=128, huge_methods=("none", "batch", "ghost"), equal_steps=4, population=128,
        descent=128, descent_epochs=4, descent_rates=(0.1,),
    ),
    "quick": Config(),
    "paper": Config(seeds=10, train=50_000, small_examples=60_000, huge_examples=655_360),
}  # fmt: skip


# ---- Networks and training -----------------------------------------------------------------------


def draw_images(config: Config, dataset: Dataset) -> Split:
    """Draw images to train on and to choose rates on, for all seeds, and take the test images."""
    parts = sample_splits(
        dataset,
        binary,
        range(config.seeds),
        validation=config.validation,
        train=config.train,
        dtype=np.uint8,
    )
    return jax.device_put(parts)


@functools.cache
def make_model(config: Config, method: str, steps: int | None = None) -> MLP:
    """Make the network of a method; what limits renorm depends on the number of steps.

    Ioffe (2017) relaxes r to 3 over steps 5k to 40k of 160k, and d to 5 over 5k to 25k.
    """

    def limit(first: float, last: float, until: float) -> Callable[[Array], Array]:
        at = np.array([5.0, until]) / 160 * (steps or 160)
        return lambda count: jnp.interp(count, jnp.asarray(at), jnp.array([first, last]))

    # The variance of a batch of two is, without Bessel's correction, half the truth.
    bn: dict[str, Any] = {"unbiased": True}
    norms: dict[str, Callable[..., nn.Module]] = {
        "batch": functools.partial(BatchNorm, **bn),
        "ghost": functools.partial(GhostBatchNorm, batch_size=config.ghost, **bn),
        "group": functools.partial(GroupNorm, groups=10),
        "renorm": functools.partial(
            BatchRenorm,
            momentum=jbn.debiased(0.99),
            r_max=limit(1.0, 3.0, until=40),
            d_max=limit(0.0, 5.0, until=25),
            **bn,
        ),
    }
    return MLP(
        hidden=config.hidden,
        activation=nn.relu,
        kernel_init=nn.initializers.he_normal(),
        norm=norms.get(method, method),
    )


# Jitted apart, so that each is compiled as seldom as it can be: all but `train` once a method.


def start(model: MLP, seeds: int, features: int) -> networks.Network:
    """Initialize the networks of all seeds; not jitted, as all methods draw the same shapes."""
    # Plain SGD has no state, so any rate will do.
    begin = functools.partial(networks.init, model, optax.sgd(1.0), x=jnp.ones((1, features)))
    made = [begin(key=key) for key in sampling.keys(range(seeds), "weights")]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)


@functools.partial(jax.jit, static_argnums=(0, 5))
def train(
    model: MLP,
    rate: float,
    network: networks.Network,
    examples: Examples,
    batches: Int[Array, "seeds steps batch"],
    every: int | None = None,
) -> tuple[networks.Network, Float[Array, "seeds looks"]]:
    """Train the networks of all seeds; see the loss of all examples, if `every` so many steps."""

    def step(network: networks.Network, batch: Examples, i: Array) -> networks.Network:
        x, labels = batch
        return networks.train_step(model, optax.sgd(rate), network, x.astype(jnp.float32), labels)

    def one(
        network: networks.Network, examples: Examples, batches: Array
    ) -> tuple[networks.Network, Array]:
        def loss(network: networks.Network) -> Array:
            if every is None:
                return jnp.zeros(())
            x, labels = examples
            outputs: Any = model.apply(network.variables, x.astype(jnp.float32), training=False)
            return networks.cross_entropy(outputs, labels).mean()

        return networks.fit(step, network, examples, batches, observe=loss, every=every)

    return jax.vmap(one)(network, examples, batches)


@functools.partial(jax.jit, static_argnums=0)
def with_population(
    model: MLP, network: networks.Network, x: UInt8[Array, "seeds K N F"]
) -> networks.Network:
    """Give the networks of all seeds the statistics of Algorithm 2."""
    batches = x.astype(jnp.float32)
    found = jax.vmap(functools.partial(networks.population, model))(network, batches)
    return network._replace(batch_stats=found)


@functools.partial(jax.jit, static_argnums=0)
def accuracies(
    model: MLP, network: networks.Network, validation: Examples, test: Examples
) -> dict[str, Float[Array, "seeds"]]:
    """Compute accuracy of the networks of all seeds on validation and test images.

    One that diverged predicts one class, which is chance. Also "modes": the largest difference
    between outputs in training and in inference.
    """

    def one(network: networks.Network, validation: Examples) -> dict[str, Array]:
        (seen, labels), (x, truth) = validation, test
        seen, x = seen.astype(jnp.float32), x.astype(jnp.float32)
        apply = functools.partial(model.apply, network.variables, seen, mutable=["batch_stats"])
        (trained, _), (outputs, _) = (apply(training=training) for training in (True, False))
        return {
            "validation": jnp.mean(outputs.argmax(-1) == labels),
            "test": networks.accuracy(model, network.variables, x, truth),
            "modes": jnp.abs(trained - outputs).max(),
        }

    return jax.vmap(one, in_axes=(0, 0))(network, validation)


# ---- The measurement -----------------------------------------------------------------------------


def examples_until(
    losses: Float[np.ndarray, "... looks"], target: float, each: int
) -> Int[np.ndarray, "..."]:
    """Count examples until a loss of the target, looked for at the start and after every `each`.

    All of them where it is never reached; NaN does not reach it.
    """
    seen = np.arange(losses.shape[-1]) * each
    return selection.steps_to(target, losses, seen, falling=True)


def measure(config: Config, study: Study) -> None:
    """Train, report, draw."""
    few = study.part("degenerate_batches", degenerate_batches)
    training, validation, test = draw_images(config, study.dataset(config.dataset))
    images, _ = training
    seeds = range(config.seeds)

    @functools.cache
    def started(method: str) -> networks.Network:
        return start(make_model(config, method), config.seeds, images.shape[-1])

    def accuracy(method: str, size: int, steps: int, rates: Sequence[float]) -> Found:
        rows, found = sampling.all_batches(seeds, steps, size, config.train), []
        for rate in rates:
            model = make_model(config, method, steps if method == "renorm" else None)
            network, _ = train(model, rate, started(method), training, rows)
            if method in ("batch", "ghost"):
                count = max(config.population // size, 1)
                some = images[:, : count * size].reshape(config.seeds, count, size, -1)
                network = with_population(model, network, some)
            found.append(accuracies(make_model(config, method), network, validation, test))
        return {name: np.stack([one[name] for one in found]) for name in found[0]}

    def choose(
        name: str, method: str, size: int, examples: int, rates: Sequence[float]
    ) -> tuple[float, Found]:
        part = functools.partial(accuracy, method, size, examples // size, rates)
        found = study.part(f"{name}_{method}", part)
        best = int(selection.best(found["validation"], "highest"))
        return rates[best], {key: values[best] for key, values in found.items()}

    def sweep(method: str, sizes: Sequence[int], examples: int, top: float) -> Found:
        least = {"batch": 2, "renorm": 2, "ghost": config.ghost + 1}.get(method, 1)
        rates = {n: min(base[method] * n / 32, top) for n in sizes if n >= least}
        return {
            f"{n}": accuracy(method, n, examples // n, [rate])["test"][0]
            for n, rate in rates.items()
        }

    base, small, huge = {}, {}, {}
    for method in config.small_methods:
        base[method], found = choose("rates", method, 32, config.small_examples, config.rates)
        part = functools.partial(sweep, method, config.small, config.small_examples, np.inf)
        small[method] = {**study.part(f"small_{method}", part), "32": found["test"]}
        if method in ("layer", "weight"):
            study.report(f"{method}_modes", estimates.exact(found["modes"].max()))
    base["ghost"] = base["batch"]  # The same at batches of 32.
    *sizes, largest = config.huge
    for method in config.huge_methods:
        top, found = choose("top", method, largest, config.huge_examples, config.top_rates)
        part = functools.partial(sweep, method, sizes, config.huge_examples, top)
        huge[method] = {**study.part(f"huge_{method}", part), f"{largest}": found["test"]}

    def at_equal_steps() -> Found:
        rate, steps = [base["batch"]], config.equal_steps
        return {f"{n}": accuracy("batch", n, steps, rate)["test"][0] for n in (sizes[0], largest)}

    def descend(size: int, every: int) -> np.ndarray:
        model, n = make_model(config, "none"), config.descent
        rows = sampling.all_batches(seeds, config.descent_epochs * n // size, size, n)
        first = jax.tree.map(lambda array: array[:, :n], training)
        seen = [
            train(model, r, started("none"), first, rows, every)[1] for r in config.descent_rates
        ]
        return np.stack(seen)

    equal = study.part("equal_steps", at_equal_steps)
    kinds = {"mini": (sizes[0], config.descent // sizes[0] // 2), "full": (config.descent, 1)}
    losses = study.part("descent", lambda: {kind: descend(*how) for kind, how in kinds.items()})
    fastest, seen = {}, {}
    for kind, (size, every) in kinds.items():
        counts = examples_until(losses[kind], config.descent_loss, size * every)
        best = selection.best(np.log(counts), "lowest")
        fastest[kind], seen[kind] = (losses[kind][best], size * every), counts[best]

    results = Results(small, huge, equal, fastest)
    study.report("examples_ratio", estimates.ratio(seen["mini"] / seen["full"]))
    report(config, study, few, results)
    study.figure(
        "sizes",
        lambda: draw_sizes(results, config.small_examples, config.huge_examples),
        title="Test error by the size of the batch, at equal examples seen",
        alt="Test error against the number of examples in a batch, small batches and large ones "
        "in a panel each, a line for each normalization; mean and range over seeds.",
    )
    study.figure(
        "huge",
        lambda: draw_huge(results, config.descent_loss),
        title="Huge batches at equal examples and at equal steps, and full-batch descent",
        alt="Left: test accuracy in the largest batches - in the smallest of the large ones, at "
        "equal examples without BN, with BN and with ghost BN, at equal steps with BN; mean and 95 "
        "% interval. Right: training loss against examples seen, in mini-batches and full batches, "
        "each at its best rate.",
    )


def report(config: Config, study: Study, few: Found, results: Results) -> None:
    """Report the numbers that the claims are about."""
    small, huge, equal, _ = results
    bn, none = small["batch"], small["none"]
    first, last = f"{config.huge[0]}", f"{config.huge[-1]}"
    lost, lost_without = (huge[name][last] - huge[name][first] for name in ("batch", "none"))
    differences = {
        "bn_2": (bn["2"], bn["32"]),
        "bn_4": (bn["4"], bn["32"]),
        "bn_excess_2": (bn["2"] - bn["32"], none["2"] - none["32"]),
        "layer_minus_bn_2": (small["layer"]["2"], bn["2"]),
        "group_minus_bn_2": (small["group"]["2"], bn["2"]),
        "weight_minus_bn_2": (small["weight"]["2"], bn["2"]),
        "renorm_gain_2": (small["renorm"]["2"], bn["2"]),
        "layer_minus_bn_32": (small["layer"]["32"], bn["32"]),
        "huge_examples": (huge["batch"][last], huge["batch"][first]),
        "huge_excess": (lost, lost_without),
        "huge_steps": (equal[last], equal[first]),
        "ghost_gain": (huge["ghost"][last], huge["batch"][last]),
    }
    for metric, (ours, theirs) in differences.items():
        study.report(metric, estimates.paired(ours, theirs))
    for name in ("one_output", "one_gradient", "one_float32_output", "one_float32_gradient"):
        study.report(name, estimates.exact(few[name].max()))
    farthest = np.abs(few["two"] - 1).argmax()
    study.report("two_output", estimates.exact(few["two"].flat[farthest]))
