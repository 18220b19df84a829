"""Deep networks of equal width, plain or residual, and their gradients at initialization.

The blocks are one scan over stacked weights, so that compiling takes as long at any depth.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from experiments import sampling
from experiments.training.networks import cross_entropy
from jbn.models.units import Activation, Norm, cancels_bias, make_norm

# ---- The network ---------------------------------------------------------------------------------


class Deep(nn.Module):
    """A dense network of `depth` weight layers: the first, blocks of two, the last.

    From block to block go the sums that enter a nonlinearity, normalized before it:
    h -> skip h + W2 f(norm(W1 f(norm(h)))). Parameters are stacked over blocks.

    Attributes:
      depth: number of weight layers, even, as in the 20 and 56 layers of He et al.
      width: of every hidden layer.
      outputs: number of outputs.
      activation: the nonlinearity f.
      norm: see `jbn.models.units.unit`; None for none.
      skip: 1 adds a block's input to its output, a residual network; 0 does not, a plain one. May
        be traced.

    The sums, (N, width) of the first layer and (blocks, N, width), are sown in `intermediates` as
    `sum` and `blocks/sum`, and are `perturbations` that one can differentiate by: see `by_sum`.

    References: He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", 2016.
    """

    depth: int = 20
    width: int = 100
    outputs: int = 10
    activation: Activation = nn.relu
    norm: Norm = None
    skip: float | Array = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "N F"], *, training: bool) -> Float[Array, "N outputs"]:
        """Compute the outputs."""
        if self.depth < 4 or self.depth % 2:
            raise ValueError(
                f"Expected an even `depth` of at least 4, got {self.depth}: the first, blocks of "
                "two, the last."
            )
        x = nn.Dense(self.width, use_bias=not cancels_bias(self.norm), name="first")(x)
        x = self.perturb("sum", x)
        self.sow("intermediates", "sum", x)
        stacked = ("params", "batch_stats", "intermediates", "perturbations")
        blocks = nn.scan(
            _Block,
            variable_axes=dict.fromkeys(stacked, 0),
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth // 2 - 1,
        )(self.width, self.activation, self.norm, self.skip, name="blocks")
        x, _ = blocks(x, training)
        x = _enter(x, "norm", self.norm, self.activation, training)
        return nn.Dense(self.outputs, name="output")(x)


class _Block(nn.Module):
    width: int
    activation: Activation
    norm: Norm
    skip: float | Array

    @nn.compact
    def __call__(self, x: Array, training: bool) -> tuple[Array, None]:
        """Compute the block's output; None is what a scan wants besides."""
        y, bias = x, not cancels_bias(self.norm)
        for i in range(2):
            y = _enter(y, f"norm_{i}", self.norm, self.activation, training)
            y = nn.Dense(self.width, use_bias=bias, name=f"dense_{i}")(y)
        y = self.perturb("sum", self.skip * x + y)
        self.sow("intermediates", "sum", y)
        return y, None


def _enter(x: Array, name: str, norm: Norm, activation: Activation, training: bool) -> Array:
    """Normalize by the module `name`, where there is a norm, and apply the nonlinearity."""
    make = make_norm(norm)
    if make is not None:
        x = make(use_running_average=not training, name=name)(x)
    return activation(x)


def draw(
    model: nn.Module, x: Float[ArrayLike, "N F"], seeds: Iterable[int]
) -> Iterator[dict[str, Any]]:
    """Draw the variables of a network for each seed; kernels are Gaussian of variance 1 / fan-in.

    By NumPy, as XLA takes seconds to compile random numbers in a scan. The kernels of a seed are
    the same whatever the normalization.

    Returns: Flax collections of float64, one after the other: see `stack`.
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
    """Stack pytrees of one structure, leaf by leaf."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def scale(params: Mapping[str, Any], gain: ArrayLike) -> dict[str, Any]:
    """Multiply the kernels between hidden layers by a gain: see `GAINS`."""

    def leaf(path: tuple[Any, ...], value: Array) -> Array:
        return value * gain if path[-1].key == "kernel" else value

    return {**params, "blocks": jax.tree_util.tree_map_with_path(leaf, params["blocks"])}


def by_sum(
    model: Deep, variables: Any, x: Float[Array, "N F"], loss: Callable[[Array], Array]
) -> tuple[Float[Array, "L N width"], Float[Array, "L N width"]]:
    """Compute the sums that go from block to block, in training, and the gradient by each.

    Args: variables: from `model.init` with an input of x's shape. loss: of the outputs, `()`.
    Returns: both for the first layer and for the last of each block: L = depth / 2.
    """

    def objective(perturbations: Any) -> tuple[Array, Any]:
        outputs, made = model.apply(
            {**variables, "perturbations": perturbations},
            x,
            training=True,
            mutable=["batch_stats", "intermediates"],
        )
        return loss(outputs), made["intermediates"]

    gradient, made = jax.grad(objective, has_aux=True)(variables["perturbations"])
    (first,), (others,) = made["sum"], made["blocks"]["sum"]
    sums = jnp.concatenate([first[None], others])
    return sums, jnp.concatenate([gradient["sum"][None], gradient["blocks"]["sum"]])


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
# Standard deviation of the initial weights in units of 1 / sqrt(fan-in), which is Xavier's between
# layers of equal width; None stands for .01, whatever the width.
GAINS = {
    "zero": 0.0,
    "small": None,
    "Xavier": 1.0,
    "He": 2**0.5,
    "twice He": 2 * 2**0.5,
    "He / 10": 0.1 * 2**0.5,
    "10 He": 10 * 2**0.5,
}
INITS = tuple(GAINS)


def choose(index: ArrayLike) -> Callable[[Array], Array]:
    """Make the nonlinearity of this place in `ACTIVATIONS`, which may be traced."""
    return lambda x: jax.lax.switch(index, list(ACTIVATIONS.values()), x)


def profiles(
    kinds: Iterable[tuple[str, str]], depth: int, width: int, *, seeds: int, batch_size: int
) -> dict[str, Float[np.ndarray, "inits seeds L"]]:
    """Measure gradients and sums of networks that were not trained, in float64.

    Inputs are Gaussian and labels random, so that nothing but the weights matters. The weights of a
    seed are the same random numbers in every kind and with all of `GAINS`.

    Args: kinds: keys of `ACTIVATIONS` and `ARCHITECTURES`.
    Returns: "relu_batch_gradient", the L2 norm of the cross-entropy's gradient by the sums of each
      layer, "relu_batch_square", the mean square of these sums, and so on.
    """
    kinds, found = list(kinds), {}
    x = sampling.rng(0, "inputs").normal(size=(batch_size, width))
    labels = sampling.rng(0, "labels").integers(0, 10, batch_size)
    gains = np.array([0.01 * width**0.5 if gain is None else gain for gain in GAINS.values()])
    with jax.enable_x64(True):  # Fifty sigmoid layers leave 1e-35: no square of it in float32.
        for norm in (None, "batch"):
            here = [kind for kind in kinds if ARCHITECTURES[kind[1]][0] == norm]
            if not here:
                continue
            indices = np.array([list(ACTIVATIONS).index(activation) for activation, _ in here])
            skips = np.array([ARCHITECTURES[architecture][1] for _, architecture in here])
            model = Deep(depth, width, norm=norm)
            variables = stack(draw(model, x, range(seeds)))
            made = _profile(model, (indices, skips), gains, variables, x, labels)
            for (activation, architecture), gradient, square in zip(here, *made, strict=True):
                found[f"{activation}_{architecture}_gradient"] = np.asarray(gradient)
                found[f"{activation}_{architecture}_square"] = np.asarray(square)
    return found


@functools.partial(jax.jit, static_argnames="model")
def _profile(
    model: Deep, kinds: Any, gains: Array, variables: Any, x: Array, labels: Array
) -> tuple[Float[Array, "kinds gains seeds L"], Float[Array, "kinds gains seeds L"]]:
    def one(kind: tuple[Array, Array], gain: Array, variables: Any) -> tuple[Array, Array]:
        index, skip = kind
        scaled = {**variables, "params": scale(variables["params"], gain)}
        sums, gradient = by_sum(
            model.clone(activation=choose(index), skip=skip),
            scaled,
            x,
            lambda y: cross_entropy(y, labels).mean(),
        )
        return jnp.linalg.norm(gradient, axis=(1, 2)), jnp.mean(sums**2, (1, 2))

    def of_gain(kind: tuple[Array, Array], gain: Array) -> tuple[Array, Array]:
        return jax.vmap(lambda variables: one(kind, gain, variables))(variables)

    # One after the other: only so does a switch compute nothing but the branch taken.
    return jax.lax.map(lambda kind: jax.lax.map(lambda gain: of_gain(kind, gain), gains), kinds)


def of_init(found: np.ndarray, init: str) -> np.ndarray:
    """Take the networks with these initial weights: (seeds, L)."""
    return found[INITS.index(init)]


def layers_between(found: np.ndarray) -> int:
    """Count the layers from the first sums to the last: blocks are two."""
    return 2 * (found.shape[-1] - 1)


def mean_field(model: Deep, *, seeds: int, batch_size: int) -> Float[np.ndarray, "seeds L"]:
    """Measure the squared gradient by the sums of each layer, for a Gaussian one by the outputs.

    The theory wants wide networks, and the mean of the squares over many of them.

    References: Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz, "A Mean Field Theory of Batch
      Normalization", 2019.
    """

    @jax.jit
    def one(variables: Any, x: Array, upstream: Array) -> Array:
        _, gradient = by_sum(model, variables, x, lambda y: jnp.sum(y * upstream))
        return jnp.sum(gradient**2, (1, 2))

    squares = []
    like = np.ones((batch_size, model.width))
    for seed, variables in enumerate(draw(model, like, range(seeds))):
        x = sampling.rng(seed, "inputs").normal(size=like.shape)
        upstream = sampling.rng(seed, "upstream").normal(size=(batch_size, model.outputs))
        squares.append(one(variables, x, upstream))
    return np.asarray(squares)


def factor(first: ArrayLike, last: ArrayLike, layers: int) -> np.ndarray:
    """Compute by what each of `layers` multiplies what becomes `first` out of `last`.

    Example:
      >>> from experiments.studies.gradients.deep import factor
      >>> round(float(factor(1.0, 8.0, 3)), 3)
      0.5
    """
    return (np.asarray(first) / np.asarray(last)) ** (1 / layers)


def mean_factor(squared: Float[np.ndarray, "seeds L"], groups: int) -> Float[np.ndarray, "groups"]:
    """Compute the factor per layer of the mean squared gradient, one for each group of networks.

    Mean first, ratio then. Near either end the distribution has not settled: two sums there do not
    count, where there are more than six.
    """
    away = 2 if squared.shape[1] > 6 else 0
    means = np.stack([group.mean(0) for group in np.array_split(squared, groups)])
    means = means[:, away : means.shape[1] - away]
    return factor(means[:, 0], means[:, -1], 2 * (means.shape[1] - 1))
