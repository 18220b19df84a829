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
# # Does jbn match the formula of batch normalization?
#
# Algorithm 1 of [Ioffe & Szegedy, 2015](https://arxiv.org/abs/1502.03167) normalizes each feature
# of a batch of $m$ values:
#
# $$\mu = \frac1m\sum_i x_i,\quad \sigma^2 = \frac1m\sum_i (x_i-\mu)^2,\quad
# \hat x_i = \frac{x_i-\mu}{\sqrt{\sigma^2+\epsilon}},\quad y_i = \gamma \hat x_i + \beta$$
#
# This notebook implements the formula in NumPy, checks that `jbn` gives the same values and the
# same gradient, and shows where the formula itself gets into trouble.

# %%
# Install jbn if it is missing (as on Colab) from its repository, or from a wheel or clone nearby.
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("jbn") is None:
    REPOSITORY = ""  # The URL of jbn's repository. On Colab, fill it in if it is empty.
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
# Here it is in float64, applied to each feature (column). `jbn` keeps the parameters `scale`
# ($\gamma$) and `bias` ($\beta$) in one pytree and the running statistics in another. Nothing is
# hidden.


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
# The mean and the variance depend on every value of the batch, so the gradient flows through them,
# too:
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
# Many libraries compute the variance in one pass, as mean(x^2) - mean(x)^2. In float32, this
# suffers from cancellation when the mean is large compared to the standard deviation, as in raw
# features such as years or prices.


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
# At a ratio of 1e4, the variance is pure rounding error: outputs of order one have errors larger
# than themselves, and are NaN where the variance comes out negative. Where sums about 0 would lose
# digits, `jbn` takes them about a pivot near the mean instead. On a CPU, it checks first: where
# mean² is more than twice the variance, it takes the sums again, about the mean. On a TPU, the
# pivot is the running mean, followed by the same check. On a GPU, where the check would cost more
# than another pass over the data, the pivot is a median of nine values of the batch.
#
# ## Images
#
# In a convolution, the statistics of a feature map are computed over the whole batch and all
# positions: m p q values, for m images with p x q positions. The result is the same as reshaping
# the batch to one row per position and normalizing the columns.

# %%
images = jax.random.normal(jax.random.key(3), (8, 5, 6, 4))
image_params, image_state = jbn.init(4)
maps, _ = jbn.batch_norm(images, image_params, image_state, training=True)
flat, _ = jbn.batch_norm(images.reshape(-1, 4), image_params, image_state, training=True)
error_of_maps = float(jnp.abs(maps.reshape(-1, 4) - flat).max())
print(f"largest difference: {error_of_maps:.1e}")

# %% [markdown]
# ## Exercises
#
# 1. What happens to y, and to the gradient with respect to x, if x is multiplied by 10? By 0.001?
#    And if 1000 is added to it?
# 2. One value in a batch of 60 is a mistake: it is a million, while the others are near 3. What
#    does normalization turn it into, and what happens to the other 59? How large can a normalized
#    value be at all?
#
# ## Answers
#
# <details>
# <summary>Open</summary>
#
# 1. Multiplying x by 10 gives the same y and a tenth of the gradient. So if the weights before a
#    norm have grown tenfold, they get a tenth of the gradient. Multiplying x by 0.001 does not give
#    the same y: the variance, about 4e-6, is then less than epsilon, and the standard deviation of
#    y is only about half of $\gamma$. A smaller epsilon fixes that. Adding 1000 changes y by a few
#    1e-5, but the norm is not the cause: near 1000, float32 numbers are 6e-5 apart, so x itself was
#    rounded.
# 2. Without scale and bias, the mistake becomes 7.68, and a billion becomes the same: no normalized
#    value in a batch of m can be larger than $\sqrt{m-1}$, because the values sum to 0 and their
#    squares to m. All others become -0.13, to within 1e-4. So a single value ruins the feature for
#    the whole batch. With m = 2, every batch is like that: any two different values become 1 and
#    -1, as long as epsilon is negligible.
#
# The next cell computes both.
#
# </details>


# %%
def y_and_gradient(x, epsilon=1e-5):
    y, backward = jax.vjp(
        lambda x: jbn.batch_norm(x, params, state, training=True, epsilon=epsilon)[0], x
    )
    return y, backward(g)[0]


changes = {"10 x": 10 * x, "0.001 x": 0.001 * x, "x + 1000": x + 1000}
after = {name: y_and_gradient(changed) for name, changed in changes.items()}
after["0.001 x, epsilon 1e-12"] = y_and_gradient(0.001 * x, epsilon=1e-12)
change_of_y = {name: float(jnp.abs(got - y).max()) for name, (got, _) in after.items()}
width = {name: float((got.std(0) / params.scale).mean()) for name, (got, _) in after.items()}
ratio = {
    name: float(jnp.linalg.norm(got) / jnp.linalg.norm(ours)) for name, (_, got) in after.items()
}
for name in after:
    print(
        f"{name:23} y changes by {change_of_y[name]:.0e}, "
        f"its standard deviation is {width[name]:.2f} gamma, the gradient {ratio[name]:.2g} times"
    )

plain, own_state = jbn.init(4)
normalized = {}
for mistake in (1e6, 1e9):
    batch = x.at[0].set(mistake)
    normalized[mistake], _ = jbn.batch_norm(batch, plain, own_state, training=True)
    of_mistake, of_others = normalized[mistake][0, 0], normalized[mistake][1:, 0]
    print(
        f"{mistake:.0e} becomes {of_mistake:.4f}, "
        f"the others {of_others.min():.5f} to {of_others.max():.5f}"
    )
of_two, _ = jbn.batch_norm(x[:2], plain, own_state, training=True, epsilon=1e-12)
print("two values become", np.round(of_two[:, 0], 3))

# %% [markdown]
# ## Answer
#
# Yes, up to float32 rounding, even where the usual way of computing the variance fails.

# %%
assert error_of_values < 2e-6
assert error_of_gradient < 2e-6
assert error_of_maps < 1e-6
assert max(errors["jbn"]) < 1e-5
assert not np.nanmax(errors["one pass: mean(x²) - mean(x)²"][2:]) < 1e-3
assert change_of_y["10 x"] < 1e-4
assert abs(ratio["10 x"] - 0.1) < 1e-4
assert 0.4 < width["0.001 x"] < 0.6
assert change_of_y["0.001 x, epsilon 1e-12"] < 1e-4
assert change_of_y["x + 1000"] < 1e-4
assert all(np.allclose(of[0], 59**0.5, atol=1e-3) for of in normalized.values())
assert all(np.allclose(of[1:], -(59**-0.5), atol=1e-4) for of in normalized.values())
assert np.allclose(np.abs(of_two), 1, atol=1e-3)
