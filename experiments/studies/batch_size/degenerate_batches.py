"""Batches of one example, which BN reduces to its bias, and of two, which it reduces to a sign."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import jbn
from experiments import sampling


def batch_of_one(
    x: Array, kernel: Array, params: jbn.BatchNormParams, dy: Array
) -> tuple[Array, Array]:
    """Normalize W x of a single example; return the largest |y - beta| and |dL/dW|.

    `jbn.batch_norm` rejects a batch of one. With a mask, it cannot know the number of
    examples beforehand: a mask that keeps the only example gives the result of the formula.
    """
    _, state = jbn.init(kernel.shape[1], param_dtype=kernel.dtype)
    mask = jnp.ones((1, 1, 1), bool)

    def normalized(kernel: Array) -> Array:
        return jbn.batch_norm(x @ kernel, params, state, training=True, mask=mask)[0]

    y, pull = jax.vjp(normalized, kernel)
    (gradient,) = pull(dy)
    return jnp.abs(y - jnp.asarray(params.bias)[None, None]).max(), jnp.abs(gradient).max()


def batch_of_two(pair: Float[Array, "2 features"]) -> Float[Array, "2 features"]:
    """Compute |xhat| of two examples, with a tiny epsilon."""
    params, state = jbn.init(pair.shape[1])
    return jnp.abs(jbn.batch_norm(pair, params, state, training=True, epsilon=1e-20)[0])


def degenerate_batches() -> dict[str, np.ndarray]:
    """Measure a hundred batches of one, in float64 and float32, and pairs at scales 1e-2 to 1e4.

    By the formula, the gradient for a batch of one is 0. Compiled code leaves a rounding error,
    which is multiplied by 1 / sqrt(epsilon), since the variance is 0. So float64 tests the formula,
    and float32 shows the rounding error.
    """
    random = sampling.rng(0, "degenerate batches")
    x, kernel, dy = (
        random.normal(size=(100, *shape)) for shape in ((1, 1, 20), (20, 10), (1, 1, 10))
    )
    params = jbn.BatchNormParams(*random.normal(size=(2, 100, 10)))
    pairs = random.normal(size=(2, 700)) * np.repeat(10.0 ** np.arange(-2, 5), 100)
    results = {"two": np.asarray(batch_of_two(jnp.asarray(pairs, jnp.float32)))}
    with jax.enable_x64(True):
        for name, dtype in (("one", np.float64), ("one_float32", np.float32)):
            given = jax.tree.map(operator.methodcaller("astype", dtype), (x, kernel, params, dy))
            output, gradient = map(np.asarray, jax.jit(jax.vmap(batch_of_one))(*given))
            results |= {f"{name}_output": output, f"{name}_gradient": gradient}
    return results
