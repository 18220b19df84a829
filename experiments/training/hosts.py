"""Several hosts, one process each, on JAX's distributed runtime.

Every process runs the same program. Values that must agree are either computed by all from the same
input or broadcast from the first process, which alone writes files. JAX ends every process when one
has been gone for `HEARTBEAT_SECONDS`, as collectives would wait for it forever.
"""

import contextlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

HEARTBEAT_SECONDS = 30
CONNECT_SECONDS = 120

Result = TypeVar("Result")


class Hosts(NamedTuple):
    """The processes of a run: how many, the first one's address, and this one's number.

    The last two are None if JAX finds them.
    """

    processes: int
    coordinator: str | None = None
    process_id: int | None = None


def expected(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Hosts:
    """Return the processes of a run, according to the options, or else to the launcher.

    Raises:
      ValueError: only some of the three options are given, or one is out of range.
    """
    if coordinator is None and num_processes is None and process_id is None:
        return Hosts(processes_of_launcher(os.environ))
    if coordinator is None or num_processes is None or process_id is None:
        given = {"coordinator": coordinator, "num-processes": num_processes}
        given["process-id"] = process_id
        missing = [f"--{name}" for name, value in given.items() if value is None]
        raise ValueError(
            f"Expected --coordinator, --num-processes and --process-id, got no {missing[0]}. Start "
            "one process on every host, with all three; --process-id counts from 0."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"Expected --coordinator HOST:PORT, got {coordinator!r}.")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"Expected --process-id from 0 to {num_processes - 1}, as --num-processes says, got "
            f"{process_id}."
        )
    return Hosts(num_processes, coordinator, process_id)


def connect(wanted: Hosts, devices: int | None = None) -> None:
    """Connect the processes; do nothing if there is only one. Call before using JAX.

    JAX ends this process if the others have not connected after `CONNECT_SECONDS`.

    Args:
      wanted: from `expected`.
      devices: number of devices of the run on all hosts; on CPU, virtual ones are created.

    Raises:
      ValueError: the processes cannot share the devices evenly.
    """
    processes, coordinator, process_id = wanted
    if devices is not None:
        if devices % processes:
            raise ValueError(
                f"Expected --devices that {processes} processes can share evenly, got {devices}."
            )
        # A RuntimeError means that JAX is already initialized: it keeps its devices.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", devices // processes)
    on_tpu = processes == 1 and coordinator is None and may_have_tpu()
    if processes == 1 and not on_tpu:
        return
    # JAX's SIGTERM handler would replace that of `signals`; `largest` tells all hosts of a signal.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes if coordinator else None,
            process_id,
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError:
        if not on_tpu:  # Without a TPU, or with one on a single host, JAX finds no coordinator.
            raise


def processes_of_launcher(environment: Mapping[str, str]) -> int:
    """Return the number of processes that Slurm or Open MPI started, else 1."""
    for count, rank in (
        ("SLURM_NTASKS", "SLURM_PROCID"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ):
        if rank in environment and count in environment:
            return int(environment[count])
    return 1


def may_have_tpu() -> bool:
    """Tell whether JAX may find a TPU here, and through it perhaps other hosts."""
    platforms = os.environ.get("JAX_PLATFORMS") or "tpu"
    return "tpu" in platforms and importlib.util.find_spec("libtpu") is not None


def count() -> int:
    """Return the number of hosts, P."""
    return jax.process_count()


def default_devices() -> int:
    """Return the default number of devices: 1 on one host, all of them on several."""
    return 1 if count() == 1 else jax.device_count()


def is_first() -> bool:
    """Tell whether this process is the one that writes."""
    return jax.process_index() == 0


def largest(value: int) -> int:
    """Return the largest of all hosts' values, on every host."""
    return value if count() == 1 else int(multihost_utils.process_allgather(np.int32(value)).max())


@contextlib.contextmanager
def end_with_the_others() -> Generator[None]:
    """On an error inside the block, end this process at once if there are others.

    An orderly exit would wait for the others. If another host is lost, a collective raises an error
    or JAX itself ends the process.
    """
    try:
        yield
    except Exception as error:
        if count() == 1:
            raise
        if isinstance(error, jax.errors.JaxRuntimeError):
            print(f"lost another host: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def run_on_all(function: Callable[[], Result]) -> Result:
    """Call a function on every host; if it raises on one, raise on all.

    Raises:
      ValueError: raised by this host's call, or naming another host whose call failed.
    """
    if count() == 1:
        return function()
    error = result = None
    try:
        result = function()
    except (ValueError, FileNotFoundError) as raised:
        error = raised
    failed = multihost_utils.process_allgather(np.array(error is not None))
    if error is not None:
        raise error
    if failed.any():
        raise ValueError(
            f"stopped because process {int(np.argmax(failed))} failed: see its own message."
        )
    return result  # type: ignore[return-value]


def on_first(function: Callable[[], Result]) -> Result | None:
    """Call a function on the first host only; if it raises, raise on all."""
    return run_on_all(lambda: function() if is_first() else None)


def broadcast_from_first(value: Any) -> Any:
    """Return the first host's value, which must be JSON-serializable, on every host."""
    if count() == 1:
        return value
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    padded = np.resize(data, size)  # On the other hosts, whose own value may differ in size.
    return json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())


def check_same(what: str, value: Any) -> None:
    """Raise on every host if a value differs from the first host's on any of them."""
    first = broadcast_from_first(value)

    def check() -> None:
        if value != first:
            raise ValueError(
                f"Expected the same {what} on every host, got others here than on process 0. Use "
                "the same files and options on every host."
            )

    run_on_all(check)


def arrays_of_first(tree: Any) -> Any:
    """Return the first host's arrays, bit for bit, on every host; shapes are the same on all."""
    if count() == 1:
        return tree
    # Sent as bytes: broadcasting adds zeros, and -0. + 0. would become 0.
    leaves, treedef = jax.tree.flatten(tree)
    leaves = [np.asarray(leaf) for leaf in leaves]
    flat = np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8)
    data = multihost_utils.broadcast_one_to_all(flat).tobytes()
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    return treedef.unflatten(
        np.frombuffer(data[end - leaf.nbytes : end], leaf.dtype).reshape(leaf.shape)
        for leaf, end in zip(leaves, ends, strict=True)
    )
