"""One training loop on one device or many: how state, examples and batches are distributed.

The batch is split evenly over the devices; state and examples are replicated. A batch that does not
divide evenly is padded and the padding masked, so any number of devices takes the same steps as one
device, up to rounding.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int32

AXIS = "devices"
WAYS = ("shard_map", "jit", "pmap")

Chunk = Callable[[Any, Any, Int32[np.ndarray, "steps seeds batch"]], Any]


class BatchShard(NamedTuple):
    """A device's share of a batch, as a training step sees it.

    `mask` marks the rows that are examples, None for all of them; `axis_name` is the name of the
    device axis, None for one device; `batch_size` is that of the whole batch.
    """

    batch_size: int
    axis_name: str | None = None
    mask: Bool[Array, "N"] | None = None

    def mean(self, values: Float[Array, "N"]) -> Float[Array, ""]:
        """Return this device's contribution to the batch mean; over all devices they add up."""
        if self.mask is not None:
            values = jnp.where(self.mask, values, 0)
        return jnp.sum(values) / self.batch_size

    def gradient(self, loss: Callable[[Any], tuple[Array, Any]], params: Any) -> tuple[Any, Any]:
        """Differentiate `loss`, `params -> (this share's part, aux)`; return gradient and aux.

        The gradient is that of the whole loss, equal on all devices, from a single collective.
        """
        if self.axis_name is None:
            return jax.grad(loss, has_aux=True)(params)
        # By a device-varying copy: for replicated params, shard_map would sum leaf by leaf.
        own = jax.lax.pcast(params, self.axis_name, to="varying")
        gradient, more = jax.grad(loss, has_aux=True)(own)
        return jax.lax.psum(gradient, self.axis_name), more


Step = Callable[[Any, Any, BatchShard], Any]


class Devices:
    """The devices of a run, including those of other hosts: `Devices(8, "shard_map")`."""

    def __init__(self, count: int = 1, way: str = "shard_map"):
        """Use the first `count` devices; `way` is one of `WAYS`.

        Raises:
          ValueError: there are fewer devices, or several hosts would not use all of theirs.
        """
        if way not in WAYS:
            raise ValueError(f"Expected one of {', '.join(WAYS)} to run devices with, got {way!r}.")
        have, hosts = jax.devices(), jax.process_count()
        if not 1 <= count <= len(have) or (hosts > 1 and count != len(have)):
            raise ValueError(
                f"Expected --devices {'of 1 to ' if hosts == 1 else ''}{len(have)}, which is what "
                f"JAX sees on {f'{hosts} hosts' if hosts > 1 else 'this host'}, got {count}."
            )
        self.count, self.way = count, way
        self.mesh = Mesh(np.array(have[:count]), AXIS)

    def __str__(self) -> str:
        """Describe the number of devices and how they are run."""
        if self.count == 1:
            return "1 device"
        hosts = jax.process_count()
        return f"{self.count} devices" + f" on {hosts} hosts" * (hosts > 1) + f", {self.way}"

    def replicate(self, tree: Any) -> Any:
        """Put a copy of every array, the same on all hosts, on every device."""
        if self.count == 1:
            return jax.device_put(tree)
        tree = jax.tree.map(np.asarray, tree)
        if self.way == "pmap":
            local = len(self.mesh.local_devices)
            copies = jax.tree.map(lambda a: np.broadcast_to(a, (local, *a.shape)), tree)
            return jax.pmap(lambda tree: tree, devices=self._of_pmap())(copies)
        return jax.device_put(tree, NamedSharding(self.mesh, P()))

    def one(self, tree: Any) -> Any:
        """Return the copy on this host's first device."""
        if self.count == 1:
            return tree
        first = jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
        return jax.tree.map(lambda leaf: leaf[0], first) if self.way == "pmap" else first

    def compile(self, step: Step, batch_size: int) -> Chunk:
        """Compile a function `(state, examples, indices) -> state`, one step per row of indices.

        Args:
          step: `(state, batch, share) -> state` of one seed, to be traced.
          batch_size: size of the whole batch, the last axis of indices.
        """
        if self.count == 1:
            return jax.jit(functools.partial(scan_steps, step, BatchShard(batch_size)))
        width = math.ceil(batch_size / self.count)
        padding = width * self.count - batch_size

        def run(state: Any, examples: Any, indices: Int32[Array, "steps seeds width"]) -> Any:
            first = jax.lax.axis_index(AXIS) * width
            mask = first + jnp.arange(width) < batch_size if padding else None
            return scan_steps(step, BatchShard(batch_size, AXIS, mask), state, examples, indices)

        def run_whole(state: Any, examples: Any, indices: Int32[Array, "steps seeds batch"]) -> Any:
            mask = jnp.arange(indices.shape[-1]) < batch_size if padding else None
            return scan_steps(step, BatchShard(batch_size, None, mask), state, examples, indices)

        if self.way == "pmap":
            compiled = jax.pmap(run, axis_name=AXIS, devices=self._of_pmap())
        elif self.way == "jit":
            compiled = jax.jit(run_whole, out_shardings=NamedSharding(self.mesh, P()))
        else:
            batch = P(None, None, AXIS)
            spread = jax.shard_map(run, mesh=self.mesh, in_specs=(P(), P(), batch), out_specs=P())
            compiled = jax.jit(spread)

        def chunk(
            state: Any, examples: Any, indices: Int32[np.ndarray, "steps seeds batch"]
        ) -> Any:
            padded = np.pad(indices, ((0, 0), (0, 0), (0, padding)))
            return compiled(state, examples, self._split(padded, width))

        return chunk

    def _of_pmap(self) -> list[jax.Device]:
        return list(self.mesh.devices.flat)

    def _split(
        self, indices: Int32[np.ndarray, "steps seeds batch"], width: int
    ) -> Array | np.ndarray:
        """Give each device its slice of every batch."""
        if self.way == "pmap":
            slices = indices.reshape(*indices.shape[:2], self.count, width)
            mine = [i for i, device in enumerate(self.mesh.devices.flat) if self._is_local(device)]
            return np.moveaxis(slices, 2, 0)[mine]
        sharding = NamedSharding(self.mesh, P(None, None, AXIS))
        return jax.make_array_from_callback(indices.shape, sharding, lambda at: indices[at])

    def _is_local(self, device: jax.Device) -> bool:
        return device.process_index == jax.process_index()


def scan_steps(
    step: Step,
    share: BatchShard,
    state: Any,
    examples: Any,
    indices: Int32[Array, "steps seeds batch"],
) -> Any:
    """Take one step per row of indices, for all seeds at once."""
    seeds = indices.shape[1]

    def one_step(state: Any, batch: Any) -> Any:
        return step(state, batch, share)

    def body(state: Any, rows: Int32[Array, "seeds batch"]) -> tuple[Any, None]:
        if seeds > 1:
            batch = jax.tree.map(lambda values: values[rows], examples)
            return jax.vmap(one_step)(state, batch), None
        # XLA's batched matrix product is slower than the plain one, even for a batch of one.
        batch = jax.tree.map(lambda values: values[rows[0]], examples)
        one = one_step(jax.tree.map(lambda leaf: leaf[0], state), batch)
        return jax.tree.map(lambda leaf: leaf[None], one), None

    return jax.lax.scan(body, state, indices)[0]
