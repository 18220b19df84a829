"""What moves while a network trains: inputs of its layers, their gradients, the loss on the way."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from experiments import sampling
from experiments.stats.drift import PERCENTILES, settled_from
from experiments.tasks.split import Examples, Split
from experiments.training import networks
from experiments.training.networks import Network, cross_entropy
from jbn import diagnostics
from jbn.linen import BatchNorm
from jbn.models import MLP

ALONG = np.linspace(0.5, 4, 8)  # Where the loss is looked at, in steps, as Santurkar et al. do.
PROBE = 500  # Examples that the inputs are looked at with, the same all the time.


# ---- Examples ------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Binary images in rows, uint8, and batches of those to train on for population statistics."""

    split: Split
    population: UInt8[Array, "K N F"]


def draw(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seeds: Sequence[int],
    features: int,
    deviation: Callable[[int, int], float],
) -> Network:
    """Make a network for each seed, with a leading axis of seeds.

    Kernels are drawn by NumPy, from the seed and the kernel's place alone, whatever the norm: XLA
    would need longer to compile `model.init` than to compile all the training.

    Args: deviation: (inputs, outputs) of a kernel -> deviation of its weights.
    """
    init = functools.partial(model.init, training=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, features)))
    places = itertools.count()

    def fill(path: tuple[Any, ...], leaf: Any) -> Array:
        name, shape = path[-1].key, (len(seeds), *leaf.shape)
        if name != "kernel":
            return jax.device_put(np.full(shape, name in ("scale", "var"), leaf.dtype))
        place, scale = next(places), deviation(*leaf.shape[-2:])
        rngs = [sampling.rng(seed, f"weights {place}") for seed in seeds]
        drawn = [rng.normal(0, scale, shape[1:]) for rng in rngs]
        return jax.device_put(np.stack(drawn).astype(leaf.dtype))

    made = jax.tree_util.tree_map_with_path(fill, shapes)
    params = made["params"]
    return Network(params, made.get("batch_stats", {}), jax.vmap(optimizer.init)(params))


def glorot(inputs: int, outputs: int) -> float:
    """Compute the deviation that keeps the variance of values and gradients, on average."""
    return (2 / (inputs + outputs)) ** 0.5


def he(inputs: int, outputs: int) -> float:
    """Compute the deviation that keeps the variance of values through ReLU."""
    del outputs
    return (2 / inputs) ** 0.5


def judge(model: nn.Module, network: Network, data: Data) -> tuple[Array, Array]:
    """Compute the accuracy in inference, on validation and test set; without noise.

    BN by population statistics. What diverged has outputs of NaN, whose argmax is class 0: it
    counts as chance.
    """
    variables = network.variables
    if network.batch_stats:
        batches = data.population.astype(jnp.float32)
        population = networks.population(model, network, batches)
        variables = {**variables, "batch_stats": population}

    def accuracy(of: Examples) -> Array:
        x, labels = of
        return networks.accuracy(model, variables, x.astype(jnp.float32), labels)

    return accuracy(data.split.validation), accuracy(data.split.test)


# ---- Noise after BN ------------------------------------------------------------------------------


class NoisyBatchNorm(BatchNorm):
    """BatchNorm, and after it noise of another distribution at every step and for every feature.

    y + m + s z: z ~ N(0, 1) anew for every value, m ~ U(-noise, noise) and s ~ U(0, noise) for
    every feature, all of the collection `noise` of random numbers. Without that collection, and
    outside training, there is none.

    Attributes: noise: the largest mean, and the largest deviation.

    References: Santurkar et al., "How Does Batch Normalization Help Optimization?", 2018,
      section 2.2.
    """

    noise: float = 0.5

    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> Array:
        """Normalize x, and add the noise."""
        y = super().__call__(x, use_running_average, mask=mask)
        average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        if average or not self.has_rng("noise"):
            return y
        of_mean, of_deviation, of_values = jax.random.split(self.make_rng("noise"), 3)
        one = (1,) * (y.ndim - 1) + y.shape[-1:]
        mean = jax.random.uniform(of_mean, one, y.dtype, -self.noise, self.noise)
        deviation = jax.random.uniform(of_deviation, one, y.dtype, 0, self.noise)
        return y + mean + deviation * jax.random.normal(of_values, y.shape, y.dtype)


# ---- Shift and landscape while a network trains --------------------------------------------------


@functools.partial(jax.jit, static_argnames=("model", "rate", "every", "gradients"))
def while_training(
    model: MLP,
    rate: float,
    data: Data,
    start: Network,
    keys: PRNGKeyArray,
    batches: Int[Array, "seeds steps+1 batch"],
    *,
    every: int,
    gradients: bool,
) -> dict[str, Array]:
    """Train by plain gradient descent, and look on.

    Args:
      model: without BN or with it.
      rate: learning rate.
      data: examples.
      start, keys, batches: of every seed. The keys are for noise; a look takes the batch that comes
        next, so there is one more than there are steps.
      every: steps between looks.
      gradients: look at gradients and landscape too, not at the inputs alone.

    Returns: arrays with a leading axis of seeds: `accuracy` on the test set; `percentiles`,
      (looks, 3, units), of the last nonlinearity's inputs in training mode, so that with noise they
      are those that training sees; with `gradients`, what `looks_along` gives, for each look.
    """
    optimizer, train = optax.sgd(rate), data.split.train

    def fit(start: Network, key: PRNGKeyArray, rows: Array) -> tuple[Network, Network]:
        def step(network: Network, batch: Examples, i: Array) -> Network:
            x, labels = batch
            x, rngs = x.astype(jnp.float32), {"noise": jax.random.fold_in(key, i)}
            return networks.train_step(model, optimizer, network, x, labels, rngs=rngs)

        return networks.fit(step, start, train, rows[:-1], observe=lambda now: now, every=every)

    def look(at: tuple[Network, PRNGKeyArray, Array]) -> dict[str, Array]:
        network, key, rows = at
        rngs = {"noise": key}
        probe = train[0][:PROBE].astype(jnp.float32)
        inputs = last_inputs(model, network, probe, rngs)
        seen = {"percentiles": diagnostics.percentiles(inputs, PERCENTILES)}
        if gradients:
            batch = jax.tree.map(lambda leaf: leaf[rows], train)
            loss = loss_on(model, network, batch, rngs)
            seen |= looks_along(loss, network.params, rate)
        return seen

    def look_on(at: tuple[Network, PRNGKeyArray, Array]) -> dict[str, Array]:
        kept, key, rows = at
        following = rows[::every]
        later = jax.random.split(jax.random.fold_in(key, len(rows)), len(following))
        return jax.lax.map(look, (kept, later, following))

    last, kept = jax.vmap(fit)(start, keys, batches)
    _, accuracy = jax.vmap(lambda network: judge(model, network, data))(last)
    return {"accuracy": accuracy, **jax.lax.map(look_on, (kept, keys, batches))}


def last_inputs(model: MLP, network: Network, x: Array, rngs: Any) -> Float[Array, "N units"]:
    """Compute what enters the last hidden layer's nonlinearity, in training mode."""
    collections = ["intermediates", "batch_stats"]
    _, sown = model.apply(network.variables, x, training=True, mutable=collections, rngs=rngs)
    (inputs,) = sown["intermediates"][f"activation_input_{len(model.hidden) - 1}"]
    return inputs


def loss_on(
    model: nn.Module, network: Network, batch: Examples, rngs: Any
) -> Callable[[Any], Array]:
    """Make params -> loss on a batch in training mode; the noise, too, is the same every time."""
    x, labels = batch[0].astype(jnp.float32), batch[1]

    def loss(params: Any) -> Array:
        variables = {"params": params, "batch_stats": network.batch_stats}
        outputs, _ = model.apply(variables, x, training=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.mean(cross_entropy(outputs, labels))

    return loss


def looks_along(loss: Callable[[Any], Array], params: Any, rate: float) -> dict[str, Array]:
    """Look at one step of gradient descent: how it shifts gradients, how the loss goes along it.

    Returns: gradient_shift: relative change of the gradient of a layer when all before it have
      moved, mean over those that have any before; loss_range: largest - smallest loss from half a
      step to four; gradient_change: the largest on the way, relative to the gradient.
    """
    gradient = jax.grad(loss)(params)
    moved = jax.tree.map(lambda p, g: p - rate * g, params, gradient)

    def loss_by_layer(layers: Any) -> Array:
        return loss({name: own for layer in layers.values() for name, own in layer.items()})

    layers = by_layer(params)
    shifts = diagnostics.gradient_shift(loss_by_layer, layers, by_layer(moved), list(layers))
    relative = jnp.stack([shift.relative for shift in shifts.values()])
    seen = diagnostics.landscape(loss, params, rate * ALONG)
    return {
        "gradient_shift": jnp.mean(relative[1:]),
        "loss_range": jnp.max(seen.loss) - jnp.min(seen.loss),
        "gradient_change": jnp.max(seen.gradient_change) / optax.tree.norm(gradient),
    }


def by_layer(params: Any) -> dict[str, Any]:
    """Put each dense layer of an `MLP` with its normalization, from the input to the output."""
    numbers = sorted({name.rpartition("_")[2] for name in params if name != "output"}, key=int)
    layers = {i: {n: own for n, own in params.items() if n.endswith(f"_{i}")} for i in numbers}
    return {**layers, "output": {"output": params["output"]}}


def from_settled(
    over_training: Float[np.ndarray, "seeds looks ..."], every: int
) -> tuple[Int[np.ndarray, "L"], Float[np.ndarray, "seeds L ..."]]:
    """Leave out the first 1,000 steps, or half of fewer than 2,000: there, all is drift.

    Returns: the numbers of the steps, and what is left.
    """
    steps = every * np.arange(over_training.shape[1])
    settled = steps >= settled_from(steps[-1])
    return steps[settled], over_training[:, settled]


def drifts(percentiles: Float[np.ndarray, "seeds looks 3 units"], every: int) -> np.ndarray:
    """Compute the drift of the medians for each seed, once training has settled."""
    _, settled = from_settled(percentiles, every)
    return np.asarray([diagnostics.drift(of_seed).median for of_seed in settled])
