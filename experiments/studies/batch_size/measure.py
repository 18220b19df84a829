"""Measurements of the study `batch_size`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

import jbn
from experiments import sampling
from experiments.plotting import describe_data, describe_layers, describe_runs
from experiments.stats import estimates, selection
from experiments.studies.batch_size.config import Config
from experiments.studies.batch_size.degenerate_batches import degenerate_batches
from experiments.studies.batch_size.figures import Accuracies, Results, plot_huge, plot_sizes
from experiments.study import Study
from experiments.tasks.data import Dataset, binary
from experiments.tasks.split import Examples, Split, sample_splits
from experiments.training import networks, sweep
from jbn.linen import BatchNorm, BatchRenorm, GhostBatchNorm, GroupNorm
from jbn.models import MLP

# ---- Networks and training -----------------------------------------------------------------------


def sample_images(config: Config, dataset: Dataset) -> Split:
    """Draw training and validation images for every seed; all seeds share the test images."""
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
    """Make the network of a method; the limits of renorm depend on the number of steps.

    Ioffe (2017) relaxes r to 3 over steps 5k to 40k of 160k, and d to 5 over 5k to 25k.
    """

    def limit(first: float, last: float, until: float) -> Callable[[Array], Array]:
        at = np.array([5.0, until]) / 160 * (steps or 160)
        return lambda count: jnp.interp(count, jnp.asarray(at), jnp.array([first, last]))

    # Without Bessel's correction, the variance of a batch of two is half the true one on average.
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


# Separate functions, so that each compiles as rarely as possible: `accuracies` once per method.


def train(
    model: MLP,
    rates: Sequence[float],
    starts: networks.Network,
    examples: Examples,
    batches: Int[np.ndarray, "seeds steps batch"],
    every: int | None = None,
) -> tuple[networks.Network, Float[np.ndarray, "rates seeds evaluations"]]:
    """Train every seed's network at every rate.

    Returns:
      networks, (rates, seeds, ...), and their loss over all examples every `every` steps, or 0
      if `every` is None.
    """

    def one(
        rate: Array, of_seed: tuple[networks.Network, Examples, Array], shared: tuple[()]
    ) -> tuple[networks.Network, Array]:
        (network, examples, batches), optimizer = of_seed, optax.sgd(rate)

        def step(network: networks.Network, batch: Examples, i: Array) -> networks.Network:
            x, labels = batch
            return networks.train_step(model, optimizer, network, x.astype(jnp.float32), labels)

        def loss(network: networks.Network) -> Array:
            if every is None:
                return jnp.zeros(())
            x, labels = examples
            outputs: Any = model.apply(network.variables, x.astype(jnp.float32), training=False)
            return networks.cross_entropy(outputs, labels).mean()

        first = network._replace(opt_state=optimizer.init(network.params))
        return networks.fit(step, first, examples, batches, observe=loss, every=every)

    of_seeds = starts, examples, batches
    return sweep.each(one, jnp.asarray(rates), of_seeds, sequential="settings")


@functools.partial(jax.jit, static_argnums=0)
def with_population(
    model: MLP, network: networks.Network, x: UInt8[Array, "seeds K N F"]
) -> networks.Network:
    """Give the networks of all seeds population statistics (Algorithm 2)."""
    batches = x.astype(jnp.float32)
    batch_stats = jax.vmap(functools.partial(networks.population, model))(network, batches)
    return network._replace(batch_stats=batch_stats)


@functools.partial(jax.jit, static_argnums=0)
def accuracies(
    model: MLP, network: networks.Network, validation: Examples, test: Examples
) -> dict[str, Float[Array, "seeds"]]:
    """Compute validation and test accuracy of the networks of all seeds.

    A network that diverged predicts one class for all images, so its accuracy is chance. "modes" is
    the largest difference between outputs in training and in inference mode.
    """

    def one(network: networks.Network, validation: Examples) -> dict[str, Array]:
        x, x_test = (images.astype(jnp.float32) for images, _ in (validation, test))
        apply = functools.partial(model.apply, network.variables, x, mutable=["batch_stats"])
        (trained, _), (outputs, _) = (apply(training=training) for training in (True, False))
        return {
            "validation": jnp.mean(outputs.argmax(-1) == validation[1]),
            "test": networks.accuracy(model, network.variables, x_test, test[1]),
            "modes": jnp.abs(trained - outputs).max(),
        }

    return jax.vmap(one)(network, validation)


# ---- The measurement -----------------------------------------------------------------------------


def examples_until(
    losses: Float[np.ndarray, "... evaluations"], target: float, each: int
) -> Int[np.ndarray, "..."]:
    """Count the examples seen until the loss reaches the target.

    Losses were evaluated at the start and after every `each` examples. All examples are counted if
    the target is never reached; NaN does not reach it.
    """
    examples = np.arange(losses.shape[-1]) * each
    return selection.steps_to(target, losses, examples, falling=True)


def measure(config: Config, study: Study) -> None:
    """Train, report, plot."""
    few = study.part("degenerate_batches", degenerate_batches)
    training, validation, test = sample_images(config, study.dataset(config.dataset))
    images, _ = training
    seeds = range(config.seeds)

    @functools.cache
    def started(method: str) -> networks.Network:
        return sweep.start(
            make_model(config, method), config.seeds, jnp.zeros((1, images.shape[-1]))
        )

    def accuracy(method: str, size: int, steps: int, rates: Sequence[float]) -> Accuracies:
        rows, metrics = sampling.all_batches(seeds, steps, size, config.train), []
        model = make_model(config, method, steps if method == "renorm" else None)
        trained, _ = train(model, rates, started(method), training, rows)
        for i in range(len(rates)):
            network = jax.tree.map(lambda leaf, i=i: leaf[i], trained)
            if method in ("batch", "ghost"):
                count = max(config.population // size, 1)
                some = images[:, : count * size].reshape(config.seeds, count, size, -1)
                network = with_population(model, network, some)
            metrics.append(accuracies(make_model(config, method), network, validation, test))
        return {name: np.stack([one[name] for one in metrics]) for name in metrics[0]}

    def choose(
        name: str, method: str, size: int, examples: int, rates: Sequence[float]
    ) -> tuple[float, Accuracies]:
        part = functools.partial(accuracy, method, size, examples // size, rates)
        metrics = study.part(f"{name}_{method}", part)
        best = int(selection.best(metrics["validation"], "highest"))
        return rates[best], {key: values[best] for key, values in metrics.items()}

    def by_size(
        name: str, method: str, sizes: Sequence[int], examples: int, top: float
    ) -> Accuracies:
        least = {"batch": 2, "renorm": 2, "ghost": config.ghost + 1}.get(method, 1)
        rates = {n: min(base[method] * n / 32, top) for n in sizes if n >= least}

        def train_each() -> Accuracies:
            return {
                f"{n}": accuracy(method, n, examples // n, [rate])["test"][0]
                for n, rate in rates.items()
            }

        # A part without any array would count as damaged.
        return study.part(f"{name}_{method}", train_each) if rates else {}

    base, small, huge = {}, {}, {}
    for method in config.small_methods:
        base[method], metrics = choose("rates", method, 32, config.small_examples, config.rates)
        others = by_size("small", method, config.small, config.small_examples, np.inf)
        small[method] = {**others, "32": metrics["test"]}
        if method in ("layer", "weight"):
            study.report(f"{method}_modes", estimates.exact(metrics["modes"].max()))
    base["ghost"] = base["batch"]  # The same at batches of 32, for ghosts of 32 or more.
    *sizes, largest = config.huge
    for method in config.huge_methods:
        top, metrics = choose("top", method, largest, config.huge_examples, config.top_rates)
        others = by_size("huge", method, sizes, config.huge_examples, top)
        huge[method] = {**others, f"{largest}": metrics["test"]}

    def at_equal_steps() -> Accuracies:
        rate, steps = [base["batch"]], config.equal_steps
        return {f"{n}": accuracy("batch", n, steps, rate)["test"][0] for n in (sizes[0], largest)}

    def descend(size: int, every: int) -> np.ndarray:
        model, n = make_model(config, "none"), config.descent
        rows = sampling.all_batches(seeds, config.descent_epochs * n // size, size, n)
        first = jax.tree.map(lambda array: array[:, :n], training)
        return train(model, config.descent_rates, started("none"), first, rows, every)[1]

    equal = study.part("equal_steps", at_equal_steps)
    kinds = {"mini": (sizes[0], config.descent // sizes[0] // 2), "full": (config.descent, 1)}
    losses = study.part("descent", lambda: {kind: descend(*how) for kind, how in kinds.items()})
    fastest, examples = {}, {}
    for kind, (size, every) in kinds.items():
        counts = examples_until(losses[kind], config.descent_loss, size * every)
        best = selection.best(counts, "lowest")
        fastest[kind], examples[kind] = (losses[kind][best], size * every), counts[best]

    results = Results(small, huge, equal, fastest)
    data = describe_data(study.dataset(config.dataset).name)
    about = f"{data}, {describe_layers(config.hidden, 'ReLUs')}."
    study.report("examples_ratio", estimates.ratio(examples["mini"] / examples["full"]))
    report(config, study, few, results)
    study.figure(
        "sizes",
        lambda: plot_sizes(results, config.small_examples, config.huge_examples),
        title="Test error by the size of the batch, at equal examples seen",
        caption=f"{about} {describe_runs(config.seeds)}",
        alt="Test error against the number of examples in a batch, small batches and large ones "
        "in a panel each, a line for each normalization.",
    )
    study.figure(
        "huge",
        lambda: plot_huge(results, config.descent_loss),
        title="Huge batches at equal examples and at equal steps, and full-batch descent",
        caption=f"{about} Left: differences seed by seed. "
        + describe_runs(config.seeds, "Points and lines", "bars and bands"),
        alt="Left: test accuracy in the largest batches - in the smallest of the large ones, at "
        "equal examples without BN, with BN and with ghost BN, at equal steps with BN. Right: "
        "training loss against examples seen, in mini-batches and full batches, each at its best "
        "rate.",
    )


def report(config: Config, study: Study, few: Accuracies, results: Results) -> None:
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
