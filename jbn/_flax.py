"""Imported before Flax: says what to install if Flax is missing."""

try:
    import flax as flax
except ModuleNotFoundError as error:
    if error.name != "flax":  # Flax is installed, but one of its dependencies is not.
        raise
    raise ImportError(
        "Expected Flax for its layers in jbn.linen, jbn.nnx and jbn.models, got none installed. "
        "Install it: pip install 'jbn[flax]'."
    ) from error
