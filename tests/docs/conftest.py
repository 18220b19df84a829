"""The modules that Sphinx imports when it makes the pages, and Keras on JAX."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "docs" / "_extensions"))
os.environ.setdefault("KERAS_BACKEND", "jax")
