"""Deep networks of equal width, plain or residual, and their gradients at initialization."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from experiments import sampling
from experiments.studies.gradients.config import GAINS
from experiments.training import sweep
from experiments.training.deep_mlp import DeepMLP
from experiments.training.networks import cross_entropy
from jbn.models.units import Norm

# ---- Gradients with respect to pre-activations ---------------------------------------------------


def of_depth(depth: int, width: int, **attributes: Any) -> DeepMLP:
    """Make a network of `depth` weight layers, including the output layer, in blocks of two.

    Raises:
      ValueError: an odd depth, or one below 4; raised when the network is called.
    """
    return DeepMLP(depth - 1, width, layers_per_block=2, **attributes)


def sample_weights(
    model: nn.Module, x: Float[ArrayLike, "N F"], seeds: Iterable[int]
) -> Iterator[dict[str, Any]]:
    """Sample the variables of a network for each seed; kernels are Gaussian of variance 1 / fan-in.

    NumPy draws them, since XLA takes seconds to compile random numbers in a scan. A seed's kernels
    are the same with any normalization.

    Returns:
      iterator over Flax collections of float64; `stack` combines them.
    """
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(x), training=True))
    for seed in seeds:
        rng = sampling.rng(seed, "weights")

        def leaf(path: tuple[Any, ...], like: Any, rng: np.random.Generator = rng) -> np.ndarray:
            name = path[-1].key
            if name == "kernel":
                return rng.normal(scale=like.shape[-2] ** -0.5, size=like.shape)
            return np.full(like.shape, float(name in ("scale", "var")))

        yield jax.tree_util.tree_map_with_path(leaf, shapes)


def stack(trees: Iterable[Any]) -> Any:
    """Stack pytrees of the same structure, leaf by leaf."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def scale(params: Mapping[str, Any], gain: ArrayLike) -> dict[str, Any]:
    """Multiply the kernels between hidden layers by a gain (see `GAINS`)."""

    def leaf(path: tuple[Any, ...], value: Array) -> Array:
        return value * gain if path[-1].key == "kernel" else value

    return {**params, "blocks": jax.tree_util.tree_map_with_path(leaf, params["blocks"])}


def by_preactivation(
    model: DeepMLP, variables: Any, x: Float[Array, "N F"], loss: Callable[[Array], Array]
) -> tuple[Float[Array, "L N width"], Float[Array, "L N width"]]:
    """Compute the pre-activations between blocks, in training mode, and their gradients.

    Args:
      model: the network.
      variables: from `model.init` with an input of x's shape.
      x: inputs.
      loss: function of the outputs; returns a scalar.

    Returns:
      pre-activations and gradients, of the first layer and of the last layer of each block:
      L = depth / 2.
    """

    def objective(perturbations: Any) -> tuple[Array, Any]:
        outputs, updated = model.apply(
            {**variables, "perturbations": perturbations},
            x,
            training=True,
            mutable=["batch_stats", "intermediates"],
        )
        return loss(outputs), updated["intermediates"]

    gradient, sown = jax.grad(objective, has_aux=True)(variables["perturbations"])

    def all_layers(first: Array, others: Array) -> Array:
        return jnp.concatenate([first[None], others])

    (first,), (others,) = sown["preactivation"], sown["blocks"]["preactivation"]
    by_first, by_others = gradient["preactivation"], gradient["blocks"]["preactivation"]
    return all_layers(first, others), all_layers(by_first, by_others)


# ---- At initialization ---------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "leaky": nn.leaky_relu,
    "linear": lambda x: x,
}
ARCHITECTURES: dict[str, tuple[Norm, float]] = {  # norm and skip
    "none": (None, 0.0),
    "batch": ("batch", 0.0),
    "residual": (None, 1.0),
}


def profiles(
    kinds: Iterable[tuple[str, str]], depth: int, width: int, *, seeds: int, batch_size: int
) -> dict[str, Float[np.ndarray, "inits seeds L"]]:
    """Measure gradients and pre-activations of untrained networks, in float64.

    Inputs are Gaussian and labels random, so that only the weights matter. A seed's weights are the
    same random numbers in every kind and with all of `GAINS`.

    Args:
      kinds: pairs of keys of `ACTIVATIONS` and `ARCHITECTURES`.

    Returns:
      "relu_batch_gradient", the L2 norm of the cross-entropy's gradient with respect to each
      layer's pre-activations; "relu_batch_square", their mean square; and so on.
    """
    kinds, results = list(kinds), {}
    x = sampling.rng(0, "inputs").normal(size=(batch_size, width))
    labels = sampling.rng(0, "labels").integers(0, 10, batch_size)
    gains = np.array([0.01 * width**0.5 if gain is None else gain for gain in GAINS.values()])
    with jax.enable_x64(True):  # After 50 sigmoid layers, 1e-35, whose square is 0 in float32.
        for norm in (None, "batch"):
            here = [kind for kind in kinds if ARCHITECTURES[kind[1]][0] == norm]
            if not here:
                continue
            settings = [
                (list(ACTIVATIONS).index(activation), ARCHITECTURES[architecture][1], gain)
                for activation, architecture in here
                for gain in gains
            ]
            model = of_depth(depth, width, norm=norm)
            # One setting after another, so that a switch computes only the branch taken.
            gradients, squares = sweep.each(
                functools.partial(_profile, model),
                [np.array(values) for values in zip(*settings, strict=True)],
                stack(sample_weights(model, x, range(seeds))),
                (x, labels),
                sequential="settings",
            )
            for i, (activation, architecture) in enumerate(here):
                of_kind = slice(i * len(gains), (i + 1) * len(gains))
                results[f"{activation}_{architecture}_gradient"] = gradients[of_kind]
                results[f"{activation}_{architecture}_square"] = squares[of_kind]
    return results


def _profile(
    model: DeepMLP,
    setting: tuple[Array, Array, Array],
    variables: Any,
    examples: tuple[Array, Array],
) -> tuple[Float[Array, "L"], Float[Array, "L"]]:
    (index, skip, gain), (x, labels) = setting, examples
    preactivations, gradient = by_preactivation(
        model.clone(activation=sweep.one_of(list(ACTIVATIONS.values()), index), skip=skip),
        {**variables, "params": scale(variables["params"], gain)},
        x,
        lambda y: cross_entropy(y, labels).mean(),
    )
    return jnp.linalg.norm(gradient, axis=(1, 2)), jnp.mean(preactivations**2, (1, 2))


def mean_field(model: DeepMLP, *, seeds: int, batch_size: int) -> Float[np.ndarray, "seeds L"]:
    """Measure each layer's squared gradient, where the gradient at the outputs is Gaussian.

    Gradients are with respect to pre-activations. The theory assumes wide networks, and predicts
    the mean of the squares over many of them.

    References:
      Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz, "A Mean Field Theory of Batch
      Normalization", 2019.
    """

    @jax.jit
    def one(variables: Any, x: Array, upstream: Array) -> Array:
        _, gradient = by_preactivation(model, variables, x, lambda y: jnp.sum(y * upstream))
        return jnp.sum(gradient**2, (1, 2))

    squares = []
    like = np.ones((batch_size, model.width))
    for seed, variables in enumerate(sample_weights(model, like, range(seeds))):
        x = sampling.rng(seed, "inputs").normal(size=like.shape)
        upstream = sampling.rng(seed, "upstream").normal(size=(batch_size, model.outputs))
        squares.append(one(variables, x, upstream))
    return np.asarray(squares)
