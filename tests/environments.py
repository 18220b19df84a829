"""The environment of processes that tests start, and their shared compilation cache."""

import contextlib
import os
from collections.abc import Generator

import jax
from jax.experimental.compilation_cache import compilation_cache

# For a process whose programs no other process needs: writing them to the cache takes 5 % longer.
UNCACHED = {"JAX_ENABLE_COMPILATION_CACHE": "false"}


def own_environment(**more: str) -> dict[str, str]:
    """Return this environment without JBN_DATA and the eight devices; other XLA flags stay."""
    words = os.environ.get("XLA_FLAGS", "").split()
    flags = [word for word in words if "host_platform_device_count" not in word]
    inherited = {name: value for name, value in os.environ.items() if name != "JBN_DATA"}
    return {**inherited, "XLA_FLAGS": " ".join(flags), **more}


@contextlib.contextmanager
def programs_on_disk() -> Generator[None]:
    """Enable the cache in this process, too: a repeated run creates its jitted functions anew."""

    def enable(is_enabled: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", is_enabled)
        compilation_cache.reset_cache()

    enable(True)
    try:
        yield
    finally:
        enable(False)
