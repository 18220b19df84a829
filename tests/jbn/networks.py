"""Initialization of the networks of `jbn.models` on small inputs, for their tests."""

import functools

import jax
import numpy as np

DIGIT, COLOR, PHOTO, SEQUENCE = (28, 28, 1), (32, 32, 3), (224, 224, 3), (7, 3)
KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def output_and_variables(model, x):
    return jax.eval_shape(functools.partial(model.init_with_output, training=False), KEYS, x)


def initial(model, x):
    """Draw variables like `model.init`, which would compile a program for each array's shape."""
    rng = np.random.default_rng(1)

    def draw(path, like):
        name = path[-1].key
        if name in ("scale", "var") or like.ndim < 2:
            return np.full(like.shape, name in ("scale", "var"), like.dtype)
        return rng.normal(0, np.prod(like.shape[:-1]) ** -0.5, like.shape).astype(like.dtype)

    return jax.tree.map_with_path(draw, output_and_variables(model, x)[1])


def batch(shape, n=8):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, *shape)).astype(np.float32), rng.integers(0, 3, n, np.int32)
