"""Measurements and reports of the study `inference`."""

import functools
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from experiments.plotting import describe_data, describe_layers, describe_runs
from experiments.stats import estimates
from experiments.studies.inference.averages import MOMENTA, make_model, train
from experiments.studies.inference.config import WINDOW, Config
from experiments.studies.inference.data import (
    POPULATION_EXAMPLES,
    TEST_BATCHES,
    Data,
    population_batches,
    prepare,
)
from experiments.studies.inference.figures import (
    DIFFERENCES,
    plot_shift,
    plot_statistics,
    plot_test_batches,
)
from experiments.study import Study
from experiments.training import networks
from experiments.training.networks import Network
from jbn.diagnostics import effective_batches, train_eval_gap

# ---- Measurements of one network -----------------------------------------------------------------


def variables_of(trained: dict[str, Any]) -> dict[str, Any]:
    """Return variables for `model.apply`: the last weights and the population statistics."""
    return {"params": trained["params"], "batch_stats": trained["population"]}


def estimated(config: Config, variables: dict[str, Any], batches: Float[Array, "K N F"]) -> Any:
    """Return the variables with population statistics of these batches."""
    network = Network(variables["params"], variables["batch_stats"], ())
    stats = networks.population(make_model(config), network, batches)
    return {**variables, "batch_stats": stats}


def over_variants(one: Callable[[Any], Any], variants: dict[str, Any]) -> dict[str, Any]:
    """Measure variants of the same structure, with a single compilation."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variants.values())
    measured = jax.lax.map(one, stacked)
    return {name: jax.tree.map(itemgetter(i), measured) for i, name in enumerate(variants)}


def compare_statistics(
    config: Config, trained: Any, population_rows: Array, data: Data
) -> dict[str, Any]:
    """Compare all kinds of statistics with those of the population.

    Returns:
      name -> "error", that of the worst mean of all units, in true standard deviations, and
      test "accuracy".
    """
    truth = variables_of(trained)
    candidates = {"population": truth}
    for name, average in trained["averages"].items():
        candidates[name] = {**truth, "batch_stats": average["statistics"]}
    for size, count in population_batches(config).items():
        candidates[f"population_{size}"] = estimated(
            config, truth, data.train[population_rows[:count]]
        )

    def compare(variables: dict[str, Any]) -> dict[str, Array]:
        gaps = train_eval_gap(variables["batch_stats"], truth["batch_stats"]).values()
        accuracy = networks.accuracy(make_model(config), variables, data.test, data.labels)
        return {"error": jnp.stack([gap.mean for gap in gaps]).max(), "accuracy": accuracy}

    return over_variants(compare, candidates)


def vary_batch(config: Config, trained: Any, population_rows: Array, data: Data) -> dict[str, Any]:
    """Measure how much an image's outputs depend on the other images in its batch."""
    size = config.batch_size
    batch, others = data.test[:size], data.test[size : 2 * size - 1]
    apply = functools.partial(
        make_model(config).apply, variables_of(trained), mutable="batch_stats"
    )

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


def accuracies_on_test_batches(
    config: Config, trained: Any, population_rows: Array, data: Data
) -> dict[str, Any]:
    """Measure test accuracy with the statistics of test batches.

    Returns:
      name -> accuracy with batch statistics, and with population statistics on the same images;
      "alone" -> accuracy in batches of one, by the formula.
    """
    model, variables = make_model(config), variables_of(trained)
    outputs: Any = model.apply(variables, data.test, training=False)
    right, results = outputs.argmax(-1) == data.labels, {}
    for name, rows in data.test_batches.items():
        accuracy = functools.partial(networks.accuracy, model, variables, training=True)
        by_batch = jax.vmap(accuracy)(data.test[rows], data.labels[rows])
        results[name] = {"batch": by_batch.mean(), "population": right[rows].mean()}

    def alone(image: Array) -> Array:
        # With a mask, jbn accepts a batch of one value, of variance 0; without, it raises.
        mode: Any = {"training": True, "mask": jnp.ones(1, bool), "mutable": "batch_stats"}
        return model.apply(variables, image[None], **mode)[0][0].argmax()

    return {**results, "alone": jnp.mean(jax.vmap(alone)(data.test) == data.labels)}


def average_affine(
    config: Config, trained: Any, population_rows: Array, data: Data
) -> dict[str, Any]:
    """Measure test accuracy with the last gamma and beta and with averaged ones.

    All other weights are the last ones. Population statistics are computed anew for each, from the
    same examples.
    """
    last = variables_of(trained)
    affines = {name: average["affine"] for name, average in trained["averages"].items()}
    params = {"last": last["params"], **{k: last["params"] | v for k, v in affines.items()}}

    def accuracy(params: Any) -> Array:
        variables = estimated(config, {**last, "params": params}, data.train[population_rows])
        return networks.accuracy(make_model(config), variables, data.test, data.labels)

    return over_variants(accuracy, params)


def accuracies_on_shifted(
    config: Config, trained: Any, population_rows: Array, data: Data
) -> dict[str, Any]:
    """Measure accuracy on every other test image, shifted.

    Returns:
      shift -> accuracy with statistics of training images, and with those of the other test
      images, shifted alike, whose labels are not used.
    """
    variables, size = variables_of(trained), config.batch_size

    def accuracies(images: Array) -> dict[str, Array]:
        between = images[1::2]
        batches = between[: len(between) // size * size].reshape(-1, size, images.shape[1])
        accuracy = functools.partial(
            networks.accuracy, make_model(config), x=images[::2], labels=data.labels[::2]
        )
        adapted = estimated(config, variables, batches)
        return {"trained": accuracy(variables), "estimated": accuracy(adapted)}

    return over_variants(accuracies, data.shifted)


# ---- The experiment ------------------------------------------------------------------------------

PARTS = {
    "statistics": compare_statistics,
    "modes": vary_batch,
    "test_batches": accuracies_on_test_batches,
    "affine": average_affine,
    "shift": accuracies_on_shifted,
}


def measure(config: Config, study: Study) -> None:
    """Train, measure each part for each seed, report and plot."""
    dataset = study.dataset(config.dataset)
    data = prepare(config, dataset)

    def part(name: str, measured: Callable[[], Any]) -> dict[str, Any]:
        def flat() -> dict[Any, Any]:
            return dict(flatten_dict(measured(), sep="/"))

        return unflatten_dict(study.part(name, flat), sep="/")

    def over_seeds(one: Callable[..., Any]) -> Any:
        # One seed after another: the data are large, and inference then runs as it does for users.
        run = jax.jit(lambda seeds, data: jax.lax.map(lambda s: one(config, *s, data), seeds))
        return run((trained, data.population_rows), data)

    trained = part("training", lambda: train(config, dataset, data))
    results = {name: part(name, lambda one=one: over_seeds(one)) for name, one in PARTS.items()}
    report(config, results, study)
    report_figures(config, results, study)


def examples_behind(config: Config) -> dict[str, float]:
    """Compute the effective number of examples behind each kind of statistics."""
    decays = {name: decay for name, decay in MOMENTA.items() if not callable(decay)}
    batches = {name: effective_batches(config.steps, decay) for name, decay in decays.items()}
    batches |= {"window": WINDOW, "cumulative": config.steps}
    batches["debiased"] = batches["exponential_0.99"]  # By the end, debiasing has no effect.
    batches |= {f"population_{size}": count for size, count in population_batches(config).items()}
    return {name: float(count) * config.batch_size for name, count in batches.items()}


def report(config: Config, results: dict[str, Any], study: Study) -> None:
    """Report the numbers; every difference is paired by seed."""
    for name, differences in results["modes"].items():
        study.report(name, estimates.mean(differences))
    batches, by = results["test_batches"], results["statistics"]
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
    affine = results["affine"]
    study.report("averaged", estimates.paired(affine["cumulative"], affine["last"]))
    study.report("averaged_exponential", estimates.paired(affine["debiased"], affine["last"]))

    shift = results["shift"]
    for name in ("contrast", "rotation"):
        trained, adapted = shift[name]["trained"], shift[name]["estimated"]
        study.report(f"{name}_loss", estimates.paired(trained, shift["unchanged"]["trained"]))
        study.report(f"{name}_recovered", estimates.paired(adapted, trained))


def report_figures(config: Config, results: dict[str, Any], study: Study) -> None:
    """Plot means over seeds with their intervals."""
    data = describe_data(study.dataset(config.dataset).name)
    about = f"{data}, {describe_layers(config.hidden, 'sigmoids')} with BN."
    points = describe_runs(config.seeds, "Points", "bars")
    study.figure(
        "statistics",
        lambda: plot_statistics(results["statistics"], examples_behind(config), results["affine"]),
        title="What statistics for inference rest on, and how good they are",
        caption=f"{about} Middle: differences to the mean accuracy; right: seed by seed. {points}",
        alt="Error of the worst mean, and test accuracy, of each kind of running average and of "
        "population statistics, against the number of examples that they rest on. More examples "
        "help as long as they were seen by the last weights. Right: test accuracy by gamma and "
        "beta averaged in these ways - by the last ones, population statistics made for each; "
        f"averaged over all steps {estimates.format_estimate(study.estimates['averaged'])}.",
    )
    study.figure(
        "test_batches",
        lambda: plot_test_batches(results["test_batches"], TEST_BATCHES, results["modes"]),
        title="Normalized by their own batch, test images depend on its size and mixture",
        caption=f"{about} {points}",
        alt="Left: test accuracy against the size of test batches, of mixed classes and of one "
        "class each, beside that by population statistics. A batch of one is at chance. Right: the "
        "largest difference of an image's outputs between two batches in training mode, between "
        "the same in inference, and between alone and in a batch in inference: "
        + ", ".join(estimates.format_estimate(study.estimates[name]) for name in DIFFERENCES)
        + ".",
    )
    study.figure(
        "shift",
        lambda: plot_shift(results["shift"]),
        title="Shifted test images, by the statistics of training and by their own",
        caption=f"{about} {describe_runs(config.seeds, 'Columns', 'bars')}",
        alt="Bars of test accuracy on images unchanged, of lower contrast and higher brightness, "
        "and rotated, by statistics of training images and of other images shifted alike.",
    )
