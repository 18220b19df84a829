"""Sweeps: train a network with every setting and every seed, as one program.

A seed has the same initial weights and batches for all settings and models, so that results can be
compared seed by seed.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int

from experiments import sampling
from experiments.tasks.split import Examples, Split
from experiments.training import networks
from experiments.training.networks import Network
from jbn.models.units import Activation

Build = Callable[[Any], tuple[nn.Module, optax.GradientTransformation]]


def program(
    one: Callable[[Any, Any, Any], Any], *, sequential: Literal["settings", "seeds"] | None = None
) -> Callable[[Any, Any, Any], Any]:
    """Make the program of `each`; keep it to compile only once for arrays of the same shapes.

    Returns:
      `(settings, of_seeds, shared)` -> pytree of arrays, (settings, seeds, ...).
    """

    @jax.jit
    def run(settings: Any, of_seeds: Any, shared: Any) -> Any:
        if sequential == "settings":
            every_seed = jax.vmap(one, (None, 0, None))
            return jax.lax.map(lambda setting: every_seed(setting, of_seeds, shared), settings)
        if sequential == "seeds":
            every_setting = jax.vmap(one, (0, None, None))
            results = jax.lax.map(lambda seed: every_setting(settings, seed, shared), of_seeds)
            return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), results)
        return jax.vmap(jax.vmap(one, (None, 0, None)), (0, None, None))(settings, of_seeds, shared)

    return run


def each(
    one: Callable[[Any, Any, Any], Any],
    settings: Any,
    of_seeds: Any,
    shared: Any = (),
    *,
    sequential: Literal["settings", "seeds"] | None = None,
) -> Any:
    """Compute `one(setting, of_seed, shared)` for every setting and every seed, as one program.

    Args:
      one: function of one setting and one seed, to be traced.
      settings: pytree of arrays, (settings, ...), such as learning rates.
      of_seeds: pytree of arrays, (seeds, ...), such as keys, batches, a seed's own examples.
      shared: pytree of arrays, such as images. Captured by `one`, they would be constants, which
        XLA takes long to fold.
      sequential: axis to compute one by one, if all at once take too much memory or time; None
        computes all in parallel.

    Returns:
      pytree of NumPy arrays, (settings, seeds, ...).
    """
    return jax.tree.map(np.asarray, program(one, sequential=sequential)(settings, of_seeds, shared))


def start(model: nn.Module, seeds: int, x: Float[Array, "N ..."]) -> Network:
    """Initialize one network per seed for inputs like x, without an optimizer state.

    This is done outside jit: random numbers take seconds to compile, and outside they are compiled
    once for all models with layers of the same shapes.
    """
    keys = sampling.keys(range(seeds), "weights")
    return jax.vmap(lambda key: networks.init(model, optax.identity(), key, x[:1]))(keys)


def train(
    build: Build,
    settings: Any,
    split: Split,
    starts: Network | Callable[[Any], Network],
    *,
    steps: int,
    batch_size: int,
    observe: Callable[[nn.Module, Network, Split], Any],
    evaluations: int = 1,
    before: bool = False,
) -> Any:
    """Train from every start with every setting.

    Args:
      build: setting -> model and optimizer.
      settings: pytree of arrays, (settings, ...), such as learning rates: one setting is traced.
      split: data set, trained on its training images.
      starts: networks, (seeds, ...), from `start`, or a function from setting to such networks;
        the i-th is trained on the batches of seed i.
      steps, batch_size: number of training steps and their batch size.
      observe: `(model, network, split)` -> pytree of arrays.
      evaluations: number of observations during training, the last one at the end.
      before: whether to observe before training as well.

    Returns:
      observations as NumPy arrays, (settings, seeds, evaluations, ...).
    """

    def begin(setting: Any) -> Network:
        _, optimizer = build(setting)
        given = starts if isinstance(starts, Network) else starts(setting)
        return given._replace(opt_state=jax.vmap(optimizer.init)(given.params))

    def chunk(
        setting: Any, network: Network, batches: Int[Array, "steps batch"], examples: Examples
    ) -> Network:
        model, optimizer = build(setting)

        def step(network: Network, batch: Examples, i: Array) -> Network:
            return networks.train_step(model, optimizer, network, *batch)

        return networks.fit(step, network, examples, batches)[0]

    def probe(setting: Any, network: Network, split: Split) -> Any:
        return observe(build(setting)[0], network, split)

    # One setting after another: evaluating the networks of all at once takes much memory. Images
    # are arguments: captured, they would be constants, which XLA takes long to fold.
    @jax.jit
    def advance(
        state: Network, batches: Int[Array, "seeds steps batch"], examples: Examples
    ) -> Network:
        each_seed = jax.vmap(chunk, in_axes=(None, 0, 0, None))
        return jax.lax.map(
            lambda each: each_seed(each[0], each[1], batches, examples), (settings, state)
        )

    @jax.jit
    def observe_all(state: Network, split: Split) -> Any:
        each_seed = jax.vmap(probe, in_axes=(None, 0, None))
        return jax.lax.map(lambda each: each_seed(each[0], each[1], split), (settings, state))

    state = jax.jit(jax.vmap(begin))(settings)
    seeds = jax.tree.leaves(state.params)[0].shape[1]
    all_batches = sampling.all_batches(range(seeds), steps, batch_size, len(split.train[1]))
    observed = [observe_all(state, split)] if before else []
    for batches in np.split(all_batches, evaluations, axis=1):
        state = advance(state, jnp.asarray(batches), split.train)
        observed.append(observe_all(state, split))
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=2), *observed)


def grid(**values: Sequence[float]) -> dict[str, np.ndarray]:
    """Combine values of several settings, each with each; the last setting changes fastest.

    Example:
      >>> from experiments.training import sweep
      >>> {name: x.tolist() for name, x in sweep.grid(kind=[0, 1], rate=[2, 4, 8]).items()}
      {'kind': [0, 0, 0, 1, 1, 1], 'rate': [2, 4, 8, 2, 4, 8]}
    """
    meshes = np.meshgrid(*values.values(), indexing="ij")
    kinds = {"i": np.int32, "f": np.float32}
    return {
        name: mesh.ravel().astype(kinds[mesh.dtype.kind])
        for name, mesh in zip(values, meshes, strict=True)
    }


def one_of(functions: Sequence[Activation], which: Int[Array, ""]) -> Activation:
    """Return the function with index `which`, which may be traced, such as a setting.

    One program for all functions compiles in a fraction of the time of one program for each.
    """
    return lambda x: jax.lax.switch(which, functions, x)


def scaled(names: str, by: ArrayLike) -> optax.GradientTransformation:
    """Scale the updates of layers whose names start with `names`; a scale of 0 freezes them."""

    def begins_so(params: Any) -> dict[str, bool]:
        return {name: name.startswith(names) for name in params}

    return optax.masked(optax.scale(by), begins_so)


def for_test(model: nn.Module, network: Network, x: Float[Array, "N ..."]) -> Network:
    """Set the network's statistics to those of x, one large batch of training images."""
    if not network.batch_stats:
        return network
    return network._replace(batch_stats=networks.population(model, network, x[None]))


def accuracies(
    model: nn.Module, network: Network, split: Split, *, statistics: int | None
) -> dict[str, Array]:
    """Compute accuracy on the validation and test images.

    Population statistics are those of the first `statistics` training images; None keeps the
    network's own. Weights that diverged to NaN give the accuracy of a constant prediction.
    """
    if statistics is not None:
        network = for_test(model, network, split.train[0][:statistics])
    return {
        "validation": networks.accuracy(model, network.variables, *split.validation),
        "test": networks.accuracy(model, network.variables, *split.test),
    }
