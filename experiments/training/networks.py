"""Initialize, train and evaluate networks by pure functions, for use with vmap and scan.

To train many seeds and settings at once, write the training of one network as a function of its
key, learning rate and so on, and `jax.vmap` it. A learning rate may be traced: `optax.sgd(rate)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

import jbn
from experiments.training.devices import BatchShard

Loss = Callable[[Array, Array], Array]
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Network(NamedTuple):
    """One network in training: Flax collections and the optimizer's state."""

    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """Return the collections, as `model.apply` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init(
    model: nn.Module, optimizer: optax.GradientTransformation, key: PRNGKeyArray, x: Array
) -> Network:
    """Initialize a network for inputs like `x`."""
    variables = model.init(key, x, training=False)
    params = variables["params"]
    return Network(params, variables.get("batch_stats", {}), optimizer.init(params))


def train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    network: Network,
    x: Array,
    labels: Array,
    *,
    loss: Loss = cross_entropy,
    penalty: Callable[[Any], Array] | None = None,
    rngs: dict[str, PRNGKeyArray] | None = None,
    share: BatchShard | None = None,
) -> Network:
    """Take one training step.

    Args:
      model: called as `model(x, training=True)`, with `mask` if the share of the batch has one.
      optimizer: an optax optimizer.
      network: the network before the step.
      x: input, (N, ...).
      labels: (N, ...).
      loss: `(outputs, labels) -> (N,)`.
      penalty: params -> term added to the mean loss.
      rngs: for dropout and the like.
      share: this device's share of a batch; None for a whole batch on one device.
    """
    share = share or BatchShard(len(x))
    masked: dict[str, Any] = {} if share.mask is None else {"mask": share.mask}

    def objective(params: Any) -> tuple[Array, Any]:
        variables = {"params": params, "batch_stats": network.batch_stats}
        outputs, updated = model.apply(
            variables, x, training=True, mutable=["batch_stats"], rngs=rngs, **masked
        )
        value = share.mean(loss(outputs, labels))
        if penalty is not None:
            value = value + penalty(params)
        return value, updated.get("batch_stats", {})

    gradient, batch_stats = share.gradient(objective, network.params)
    updates, opt_state = optimizer.update(gradient, network.opt_state, network.params)
    return Network(optax.apply_updates(network.params, updates), batch_stats, opt_state)


def fit(
    step: Callable[[Any, Any, Array], Any],
    state: Any,
    examples: Any,
    batches: Int[ArrayLike, "steps batch"],
    *,
    observe: Callable[[Any], Any] = lambda state: (),
    every: int | None = None,
) -> tuple[Any, Any]:
    """Take one step for each row of `batches`, as one scan.

    Args:
      step: `(state, batch, i) -> state`, where i is the number of the step.
      state: before the first step, any pytree.
      examples: pytree of arrays with a leading axis of examples; a batch is rows of each.
      batches: row indices, from `experiments.sampling.batch_indices`.
      observe: state -> what to record of it.
      every: steps between observations, a divisor of the number of steps; None observes only
        before the first step and after the last.

    Returns:
      state after the last step, and the stacked observations: one before the first step and one
      after each `every` steps.

    Raises:
      ValueError: `every` does not divide the number of steps.
    """
    batches = jnp.asarray(batches)
    steps = len(batches)
    every = every or steps
    if steps % every:
        raise ValueError(f"Expected `every` to divide {steps} steps, got {every}.")

    def one(state: Any, at: tuple[Array, Array]) -> tuple[Any, None]:
        rows, i = at
        return step(state, jax.tree.map(lambda leaf: leaf[rows], examples), i), None

    def chunk(state: Any, at: tuple[Array, Array]) -> tuple[Any, Any]:
        state, _ = jax.lax.scan(one, state, at)
        return state, observe(state)

    first = observe(state)
    numbers = jnp.arange(steps)
    if every == steps:  # Saves tracing and compiling an outer loop of one iteration.
        state, last = chunk(state, (batches, numbers))
        return state, jax.tree.map(lambda a, b: jnp.stack([a, b]), first, last)
    chunks = batches.reshape(-1, every, *batches.shape[1:])
    state, observed = jax.lax.scan(chunk, state, (chunks, numbers.reshape(-1, every)))
    return state, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, observed)


def accuracy(
    model: nn.Module, variables: Any, x: Array, labels: Int[Array, "N"], *, training: bool = False
) -> Float[Array, ""]:
    """Compute the share of examples whose largest output is that of their label.

    With `training`, x is normalized by its batch statistics.
    """
    outputs, _ = model.apply(variables, x, training=training, mutable=["batch_stats"])
    return jnp.mean(outputs.argmax(-1) == labels)


def population(model: nn.Module, network: Network, batches: Float[Array, "K N ..."]) -> Any:
    """Compute the batch_stats of Algorithm 2: averages over `batches` with fixed parameters."""

    def absorb(batch_stats: Any, x: Array) -> Any:
        variables = {"params": network.params, "batch_stats": batch_stats}
        _, updated = model.apply(variables, x, training=True, mutable=["batch_stats"])
        return updated["batch_stats"]

    return jbn.population(absorb, network.batch_stats, batches)
