"""Descriptions of TPU v5e and H100 machines, to compile for without having one.

XLA's compilers for TPU and GPU run on any machine and need no device: a topology provides devices
for a mesh, which is all that `jax.jit(f).lower(...).compile()` needs.
"""

import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from experiments.checks import did_you_mean

# What XLA needs to know of a GPU to compile for it: an H100 SXM, by its data sheet and cuDNN 9.10.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 device_address_bits: 64 ecc_enabled: true
  cuda_compute_capability { major: 9 }
  name: "NVIDIA H100 80GB HBM3" device_vendor: "NVIDIA Corporation"
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Target(NamedTuple):
    """A machine to compile for: arguments of `get_topology_desc`, compiler module, pip extra."""

    platform: str
    options: dict[str, str]
    module: str
    extra: str


TARGETS = {
    "v5e": Target("tpu", {"topology_name": "v5e:2x2"}, "libtpu", "tpu-compile"),
    "h100": Target(
        "cuda",
        {"topology_name": "", "topology": "1x1x1", "target_config": H100},
        "jax_cuda12_plugin",
        "gpu-compile",
    ),
}


EXAMPLES = {"v5e": "v5e:16x16", "h100": "h100:1x8, hosts and cards of each"}


def look_for_no_device() -> None:
    """Keep JAX from looking for accelerators; call before it does, as the plugins would wait."""
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # Without these two, libtpu prints errors. They do not affect what is compiled.
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    jax.config.update("jax_platforms", "cpu")


def split_name(name: str) -> tuple[str, tuple[int, int]]:
    """Split the name of a machine into its target and shape.

    Raises:
      ValueError: an unknown target, or no shape.

    Example:
      >>> from experiments.training.machines import split_name
      >>> split_name("v5e:16x16")
      ('v5e', (16, 16))
    """
    target, _, shape = name.partition(":")
    if target not in TARGETS:
        hint = did_you_mean(target, TARGETS)
        raise ValueError(
            f"Expected a {' or '.join(TARGETS)} machine, such as v5e:16x16 or h100:1x8, got "
            f"{name!r}.{hint}"
        )
    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", shape)
    if not found:
        raise ValueError(
            f"Expected the shape of a machine as well, such as {EXAMPLES[target]}, got {name!r}."
        )
    return target, (int(found[1]), int(found[2]))


def devices_named(name: str) -> list[Any]:
    """List the devices of a machine: v5e:16x16, or h100:1x8, hosts by GPUs per host.

    Raises:
      ValueError: there is no such machine, or its compiler is not installed.
    """
    target, (first, second) = split_name(name)
    shape = {"topology_name": name} if target == "v5e" else {"topology": f"1x{first}x{second}"}
    try:
        return devices_of(target, **shape)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"Expected a {target} machine that its compiler knows, got {name!r}: {reason}"
        ) from None


def devices_of(target: str, **options: str) -> list[Any]:
    """List the devices of a machine, which need not be present.

    Args:
      target: a key of `TARGETS`.
      options: arguments of `get_topology_desc` that override the target's.

    Raises:
      ValueError: its compiler is not installed.
    """
    platform, given, module, extra = TARGETS[target]
    if not installed(module):
        raise ValueError(
            f"Expected the compiler for {target}, got no module {module}. Install it with "
            f"pip install 'jbn[{extra}]'."
        )
    return topologies.get_topology_desc(platform=platform, **given | options).devices


def installed(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None
