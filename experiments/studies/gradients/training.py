"""Deep networks in training: how much each layer moves, dying ReLUs, clipping, residual networks.

Parts of the study `gradients`, on binary images; each trains all its seeds and rates at once.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from experiments import sampling
from experiments.stats import selection
from experiments.studies.gradients.config import GAINS, Training, name_of
from experiments.studies.gradients.deep import of_depth, sample_weights, scale, stack
from experiments.study import Study
from experiments.tasks.data import binary
from experiments.tasks.split import Split, sample_split
from experiments.training import networks, sweep
from experiments.training.networks import Network
from jbn import diagnostics
from jbn.models import MLP

# Training settings, stacked along a leading axis; and a function of one of them and of sampled
# parameters, which returns the model, its optimizer and its parameters.
Settings = Any
Make = Callable[[Any, Any], tuple[nn.Module, optax.GradientTransformation, Any]]


def sample_examples(config: Training, study: Study) -> Split:
    """Sample binary training, validation and test images, one row each."""
    split = sample_split(
        study.dataset(config.dataset),
        binary,
        validation=config.test_examples,
        train=config.train_examples,
        test=config.test_examples,
    )
    return jax.device_put(split)


def train(
    make: Make,
    settings: Settings,
    seeds: int,
    steps: int,
    batch_size: int,
    data: Split,
    probe: Callable[[nn.Module, Network, Split, Any], Any],
    *,
    observe: Callable[[Network], Any] | None = None,
) -> Any:
    """Train a network for each setting and seed, all at once.

    Args:
      probe: `(model, network, data, history)` -> what to keep; `history` is what `observe`
        returned after each step.

    Returns:
      what `probe` returned, as NumPy arrays with leading axes of settings and seeds. A seed has
      the same weights, up to scale, and the same batches in every setting and every call.
    """
    x, _ = data.train
    batches = sampling.all_batches(range(seeds), steps, batch_size, len(x))
    model, _, _ = make(jax.tree.map(lambda leaf: leaf[0], settings), {"blocks": {}})
    starts = jax.tree.map(np.float32, stack(sample_weights(model, x[:1], range(seeds))))

    def one(setting: Any, of_seed: tuple[Any, Array], data: Split) -> Any:
        variables, rows = of_seed
        model, optimizer, params = make(setting, variables["params"])
        network, history = networks.fit(
            lambda network, batch, i: networks.train_step(model, optimizer, network, *batch),
            Network(params, variables.get("batch_stats", {}), optimizer.init(params)),
            data.train,
            rows,
            observe=observe or (lambda network: ()),
            every=1 if observe else None,
        )
        return probe(model, network, data, jax.tree.map(lambda leaf: leaf[1:], history))

    return sweep.each(one, settings, (starts, batches), data)


def first_steps(config: Training, data: Split) -> dict[str, ArrayLike]:
    """Train deep networks for a few steps, without and with clipping.

    Returns:
      for each of "sigmoid" (Xavier's weights), "relu" (He's weights), "large" and "clipped" (ReLU
      with twice He's weights): "_updates", (seeds, layers), |dW| / |W| per step of the weights
      between hidden layers; "_norms", (seeds, steps), of the gradient after clipping; "_diverged",
      whether the loss is no longer finite; and "_accuracy".
    """
    kinds = {  # sigmoid instead of ReLU, gain of the weights, largest norm of the gradient
        "sigmoid": (True, GAINS["Xavier"], np.inf),
        "relu": (False, GAINS["He"], np.inf),
        "large": (False, GAINS["twice He"], np.inf),
        "clipped": (False, GAINS["twice He"], config.clip_norm),
    }
    settings = [np.array(values) for values in zip(*kinds.values(), strict=True)]

    def make(setting: Any, params: Any) -> tuple[nn.Module, optax.GradientTransformation, Any]:
        sigmoid, gain, norm = setting
        optimizer = optax.chain(
            optax.clip_by_global_norm(norm),
            optax.snapshot("norm", optax.tree.norm),
            optax.sgd(0.01),
            # From the update itself: rounding would hide it in the difference of weights.
            optax.snapshot("moved", by_layer),
        )
        model = of_depth(
            config.depth,
            config.width,
            activation=lambda x: jnp.where(sigmoid, nn.sigmoid(x), nn.relu(x)),
        )
        return model, optimizer, scale(params, gain)

    def by_layer(params: Any) -> Array:
        norms = jax.vmap(functools.partial(diagnostics.gradient_norms, depth=1))(
            {name: params["blocks"][name]["kernel"] for name in ("dense_0", "dense_1")}
        )
        return jnp.stack([norms["dense_0"], norms["dense_1"]], 1).ravel()  # In layer order.

    def observe(network: Network) -> tuple[Array, Array]:
        moved = optax.tree.get(network.opt_state, "moved") / by_layer(network.params)
        return moved, optax.tree.get(network.opt_state, "norm")

    def probe(model: nn.Module, network: Network, data: Split, history: Any) -> dict[str, Array]:
        outputs: Any = model.apply(network.variables, data.train[0], training=False)
        loss = networks.cross_entropy(outputs, data.train[1]).mean()
        return {
            "updates": history[0].mean(0),
            "norms": history[1],
            "diverged": ~jnp.isfinite(loss),
            "accuracy": networks.accuracy(model, network.variables, *data.test),
        }

    results = train(
        make,
        settings,
        config.seeds,
        config.first_steps,
        config.batch_size,
        data,
        probe,
        observe=observe,
    )
    return {
        f"{kind}_{what}": part
        for what, values in results.items()
        for kind, part in zip(kinds, values, strict=True)
    }


def dying(config: Training, data: Split) -> dict[str, ArrayLike]:
    """Train ReLU and leaky ReLU networks at several rates; count units dead on all images.

    Returns:
      "relu_dead", the share of dead units, (rates, seeds); "relu_accuracy"; "relu_finite", whether
      the outputs are finite; and the same for "leaky".
    """
    slopes = {"relu": 0.0, "leaky": 0.01}  # For x < 0.
    settings = [
        np.array(values).ravel()
        for values in np.meshgrid(list(slopes.values()), config.dying_rates, indexing="ij")
    ]

    def make(setting: Any, params: Any) -> tuple[nn.Module, optax.GradientTransformation, Any]:
        slope, rate = setting
        activation = functools.partial(nn.leaky_relu, negative_slope=slope)
        model = MLP(hidden=(config.width,) * 3, activation=activation)
        return model, optax.sgd(rate), jax.tree.map(lambda leaf: leaf * GAINS["He"], params)

    def probe(model: nn.Module, network: Network, data: Split, history: Any) -> dict[str, Array]:
        images = jnp.concatenate([data.train[0], data.test[0]])
        outputs, sown = model.apply(
            network.variables, images, training=False, mutable=["intermediates"]
        )
        # Units of a network that is no longer finite have no slope, and do not count as dead.
        inputs = [jnp.nan_to_num(x, nan=1.0) for (x,) in sown["intermediates"].values()]
        return {
            "dead": jnp.stack([diagnostics.dead_units(x, model.activation) for x in inputs]).mean(),
            # Chance if the network is not finite: it predicts one class for all images.
            "accuracy": networks.accuracy(model, network.variables, *data.test),
            "finite": jnp.all(jnp.isfinite(outputs)),
        }

    results = train(
        make,
        settings,
        config.seeds,
        config.dying_steps,
        config.batch_size,
        data,
        probe,
    )
    return {
        f"{name}_{what}": part
        for what, values in results.items()
        for name, part in zip(slopes, np.split(values, 2), strict=True)
    }


def residual(config: Training, data: Split) -> dict[str, ArrayLike]:
    """Train plain and residual networks with Xavier's weights, without and with BN, at every rate.

    Returns:
      validation and test accuracy, (rates, seeds, 2), by `name_of`. A network that is not finite
      predicts one class for all images, so its accuracy is chance.
    """
    results = {}
    settings = [
        np.array(values).ravel()
        for values in np.meshgrid([0.0, 1.0], config.residual_rates, indexing="ij")
    ]
    steady = sampling.batch_indices(
        0, 0, 20, config.batch_size, len(data.train[0]), purpose="population"
    )
    for depth in sorted({config.depth, config.residual_depth}):
        for norm in (None, "batch"):

            def make(
                setting: Any, params: Any, depth: int = depth, norm: str | None = norm
            ) -> tuple[nn.Module, optax.GradientTransformation, Any]:
                skip, rate = setting
                model = of_depth(depth, config.residual_width, norm=norm, skip=skip)
                return model, optax.sgd(rate), params

            def probe(model: nn.Module, network: Network, data: Split, history: Any) -> Array:
                if network.batch_stats:
                    stats = networks.population(model, network, data.train[0][steady])
                    network = network._replace(batch_stats=stats)
                return jnp.stack(
                    [
                        networks.accuracy(model, network.variables, *part)
                        for part in (data.validation, data.test)
                    ]
                )

            accuracy = train(
                make,
                settings,
                config.residual_seeds,
                config.residual_steps,
                config.batch_size,
                data,
                probe,
            )
            plain, skipping = np.split(accuracy, 2)
            results |= {name_of(depth, norm, False): plain, name_of(depth, norm, True): skipping}
    return results


def at_best_rate(accuracy: Float[np.ndarray, "rates seeds 2"]) -> Float[np.ndarray, "seeds"]:
    """Return the test accuracy at the rate with the highest mean validation accuracy."""
    return accuracy[selection.best(accuracy[:, :, 0], "highest"), :, 1]
