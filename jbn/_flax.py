"""Imported ahead of Flax by whatever needs it: says what to install if it is not there."""

try:
    import flax as flax
except ModuleNotFoundError as error:
    if error.name != "flax":  # Flax is there, and misses something itself.
        raise
    raise ImportError(
        "Expected Flax for its layers in jbn.linen, jbn.nnx and jbn.models, got none installed. "
        "Install it: pip install 'jbn[flax]'."
    ) from error
