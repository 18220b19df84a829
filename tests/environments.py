"""The environment of processes that the tests start."""

import os


def own_environment(**more: str) -> dict[str, str]:
    """Return this one without the suite's eight devices and without JBN_DATA; XLA's flags stay."""
    words = os.environ.get("XLA_FLAGS", "").split()
    flags = [word for word in words if "host_platform_device_count" not in word]
    inherited = {name: value for name, value in os.environ.items() if name != "JBN_DATA"}
    return {**inherited, "XLA_FLAGS": " ".join(flags), **more}
