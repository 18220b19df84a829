# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Is batch normalization what its formula says?
#
# Algorithm 1 of [Ioffe & Szegedy, 2015](https://arxiv.org/abs/1502.03167), for each feature of a
# batch of $m$ values:
#
# $$\mu = \frac1m\sum_i x_i,\quad \sigma^2 = \frac1m\sum_i (x_i-\mu)^2,\quad
# \hat x_i = \frac{x_i-\mu}{\sqrt{\sigma^2+\epsilon}},\quad y_i = \gamma \hat x_i + \beta$$
#
# This notebook writes it down in NumPy, and asks whether `jbn` gives the same: the values, the
# gradient, and where the formula itself gets into trouble.

# %%
# Where jbn is not installed, as on Colab: from its repository, or a wheel or clone of it nearby.
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("jbn") is None:
    REPOSITORY = ""  # The address of jbn's repository. If it is empty here, fill it in on Colab.
    places = [p / "jbn" / "__init__.py" for p in (Path.cwd(), *Path.cwd().parents)]
    places += [*Path.cwd().glob("*/jbn/__init__.py"), *Path.cwd().glob("jbn-*.whl")]
    nearby = [p.parents[1] if p.name == "__init__.py" else p for p in places if p.is_file()]
    if not (REPOSITORY or nearby):
        raise ImportError("Expected jbn, got none. Set REPOSITORY, or put its wheel or clone here.")
    source = f"jbn[flax,export] @ git+{REPOSITORY}" if REPOSITORY else f"{nearby[0]}[flax,export]"
    print(f"installing {source}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, source, "ipywidgets", "matplotlib", "scikit-learn"], check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jbn

# %% [markdown]
# ## The formula
#
# In float64, feature by feature (columns). `jbn` has the parameters `scale` ($\gamma$) and `bias`
# ($\beta$) in one pytree, the running statistics in another: nothing is hidden.


# %%
def formula(x, scale, bias, epsilon=1e-5):
    x = np.asarray(x, np.float64)
    mean, var = x.mean(0), x.var(0)
    return scale * (x - mean) / np.sqrt(var + epsilon) + bias


x = 3 + 2 * jax.random.normal(jax.random.key(0), (60, 4))
params, state = jbn.init(4)
params = jbn.BatchNormParams(scale=jnp.array([1.0, 2.0, 0.5, 1.0]), bias=jnp.arange(4.0))

y, state = jbn.batch_norm(x, params, state, training=True)
error_of_values = float(np.abs(y - formula(x, params.scale, params.bias)).max())
print(f"largest difference: {error_of_values:.1e}")
print("mean", np.round(y.mean(0), 3), "= beta; std", np.round(y.std(0), 3), "= gamma")

# %% [markdown]
# ## The gradient
#
# Mean and variance depend on every value, so the gradient flows through them:
#
# $$\frac{\partial L}{\partial x} = \frac{\gamma}{\sqrt{\sigma^2+\epsilon}}\Big(g - \overline{g} -
# \hat x\,\overline{g \hat x}\Big), \qquad g = \frac{\partial L}{\partial y}$$

# %%
g = jax.random.normal(jax.random.key(1), x.shape)
_, backward = jax.vjp(lambda x: jbn.batch_norm(x, params, state, training=True)[0], x)
(ours,) = backward(g)

xhat, g64 = formula(x, 1, 0), np.asarray(g, np.float64)
std = np.sqrt(np.asarray(x, np.float64).var(0) + 1e-5)
closed_form = params.scale / std * (g64 - g64.mean(0) - xhat * (g64 * xhat).mean(0))
error_of_gradient = float(np.abs(ours - closed_form).max())
print(f"largest difference: {error_of_gradient:.1e}")
print("and it sums to", np.round(np.asarray(ours.sum(0)), 6), ": a bias before BN would not learn")

# %% [markdown]
# ## Where the formula gets into trouble
#
# Many libraries compute the variance as mean(x^2) - mean(x)^2, in one pass. In float32 that cancels
# when the mean is large beside the deviation. Features as raw as a year or a price are like that.


# %%
def one_pass(x, epsilon=1e-5):
    mean = x.mean(0)
    return (x - mean[None]) / jnp.sqrt((x * x).mean(0) - mean**2 + epsilon)[None]


offsets = 10.0 ** np.arange(0, 6)
errors = {"one pass: mean(x²) - mean(x)²": [], "jbn": []}
for offset in offsets:
    far = jnp.asarray(offset + jax.random.normal(jax.random.key(2), (256, 1)), jnp.float32)
    exact = formula(far, 1, 0)
    plain, own_state = jbn.init(1)
    ways = (one_pass(far), jbn.batch_norm(far, plain, own_state, training=True)[0])
    for errors_of_way, got in zip(errors.values(), ways, strict=True):
        errors_of_way.append(float(np.abs(got - exact).max()))

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for (name, values), look in zip(errors.items(), ("s--", "o-"), strict=True):
    axes.loglog(offsets, values, look, label=name)
axes.set(
    xlabel="mean / standard deviation of the input", ylabel="largest error of y", title="float32"
)
axes.legend()
plt.show()
print({name: [f"{value:.0e}" for value in values] for name, values in errors.items()})

# %% [markdown]
# At 1e4 the variance is all rounding: an output of order one is off by more than itself, and where
# the variance comes out negative it is NaN. `jbn` takes its sums about a pivot near the mean where
# those about 0 would lose digits. On a CPU it looks first: where mean² is more than twice the
# variance, it takes the sums again, about the mean. On a TPU the pivot is the running mean, with
# the same second look; on a GPU, where looking costs more than a pass, it is a median of nine
# values of the batch.
#
# ## Images
#
# In a convolution the statistics of a feature map are over the batch and all positions, m p q
# values: the same as the dense form on the reshape.

# %%
images = jax.random.normal(jax.random.key(3), (8, 5, 6, 4))
image_params, image_state = jbn.init(4)
maps, _ = jbn.batch_norm(images, image_params, image_state, training=True)
flat, _ = jbn.batch_norm(images.reshape(-1, 4), image_params, image_state, training=True)
error_of_maps = float(jnp.abs(maps.reshape(-1, 4) - flat).max())
print(f"largest difference: {error_of_maps:.1e}")

# %% [markdown]
# ## Answer
#
# Yes, to the rounding of float32; and also where the usual way to compute it is not.

# %%
assert error_of_values < 2e-6
assert error_of_gradient < 2e-6
assert error_of_maps < 1e-6
assert max(errors["jbn"]) < 1e-5
assert not np.nanmax(errors["one pass: mean(x²) - mean(x)²"][2:]) < 1e-3
