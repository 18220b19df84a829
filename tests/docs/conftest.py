"""Make Sphinx's extension modules importable, and run Keras on JAX."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "docs" / "_extensions"))
os.environ.setdefault("KERAS_BACKEND", "jax")
