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
# # What breaks with batches of one to four, and what helps?
#
# Batch normalization (BN) estimates a mean and a variance from the m values that a feature has in a
# batch. At m = 1, nothing is left of the input. At m = 2, all that is left is which of the two
# values is larger. At m = 4, the variance is typically off by 80 %. Here we see why, and what it
# costs in a small network. We compare two other norms, batch renormalization
# ([Ioffe, 2017](https://arxiv.org/abs/1702.03275)) and layer normalization
# ([Ba et al., 2016](https://arxiv.org/abs/1607.06450)), and end with ghost batches
# ([Hoffer et al., 2017](https://arxiv.org/abs/1705.08741)), which add such noise on purpose.

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
import functools
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import jbn
from jbn.linen import BatchNorm, BatchRenorm
from jbn.models import MLP

QUICK = "JBN_NOTEBOOKS_QUICK" in os.environ  # For the test suite: fewer settings.
params, state = jbn.init(1)

# %% [markdown]
# ## One value and two values
#
# With one value, the mean is the value itself and the variance is 0. The output y would be the
# bias, whatever the input x is, and no gradient would pass. `jbn` raises an error. With two values,
# the smaller becomes -1 and the larger 1, however far apart they are (unless they are so close that
# epsilon matters), and again almost no gradient passes to x.

# %%
try:
    jbn.batch_norm(jnp.array([[3.0]]), params, state, training=True)
    refused = ""
except ValueError as error:
    refused = str(error)
print(refused)


def normalized(x):
    return jbn.batch_norm(x, params, state, training=True)[0]


pairs = jnp.array([[[0.0], [1.0]], [[0.0], [100.0]], [[-7.0], [5.0]]])
of_two = jax.vmap(normalized)(pairs)
_, backward = jax.vjp(jax.vmap(normalized), pairs)
# The gradient that arrives at y is 1 for the first value and -2 for the second.
(gradient_of_two,) = backward(jnp.ones_like(pairs) * jnp.array([[1.0], [-2.0]]))
for pair, y, g in zip(pairs[..., 0], of_two[..., 0], gradient_of_two[..., 0], strict=True):
    print(f"{pair} -> {np.round(y, 3)}, gradient {np.round(g, 4)}")

# %% [markdown]
# ## The noise
#
# The unbiased variance of m normal values has a standard deviation of sqrt(2 / (m - 1)) times the
# true variance, and training divides by the square root of such an estimate. So the same x gives a
# different output in every batch, while inference always divides by the same number. The two differ
# most when m is small. The figure below shows, on the left, what becomes of x = 1 among m - 1 other
# values from N(0, 1), in 4,000 batches for each m. In inference, the output would be 1 (the dotted
# line). At m = 2, nearly all outputs are -1 or 1, and the peak at 1 is taller than the figure.

# %%
sizes = (2, 4, 32)
draws = {m: jax.random.normal(jax.random.key(m), (4000, m, 1)) for m in sizes}
outputs = {m: jax.vmap(normalized)(draws[m].at[:, 0].set(1.0))[:, 0, 0] for m in sizes}
spread = {m: float(jax.vmap(jbn.moments)(draws[m]).var.std() * m / (m - 1)) for m in sizes}

figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for m in sizes:
    axes[0].hist(
        outputs[m], bins=np.linspace(-2, 3, 60), density=True, histtype="step", label=f"m = {m}"
    )
axes[0].axvline(1, color="gray", linestyle=":")
axes[0].set(xlabel="y of x = 1", ylabel="density", ylim=(0, 4))
axes[0].set_title("Outputs for the same value in training")
axes[0].legend()
axes[1].loglog(sizes, list(spread.values()), "o", label="measured")
axes[1].loglog(sizes, [(2 / (m - 1)) ** 0.5 for m in sizes], "-", label="sqrt(2 / (m - 1))")
axes[1].set(xlabel="m, values in a batch", ylabel="standard deviation / true variance")
axes[1].set_title("Spread of the batch variance")
axes[1].set_xticks(sizes, sizes)
axes[1].set_yticks((0.25, 0.5, 1.0, 1.5), (0.25, 0.5, 1.0, 1.5))
for one_axis in (axes[1].xaxis, axes[1].yaxis):
    one_axis.set_ticks([], minor=True)
axes[1].legend()
plt.show()
share_of_ones = float(jnp.mean(jnp.abs(jnp.abs(outputs[2]) - 1) < 0.01))
print(f"at m = 2, {share_of_ones:.0%} of all y are -1 or 1")

# %% [markdown]
# ## What it costs
#
# A network with two hidden layers of 32 ReLUs learns the digits that come with scikit-learn. At
# every batch size it sees the same examples, one pass over 1,200 images, so smaller batches mean
# more steps. For each norm and batch size, the best of three learning rates is chosen on 200
# images, and the error is measured on the other 397. The figure shows the mean of three seeds, with
# bars from the lowest to the highest.
#
# Batch renorm corrects the batch statistics toward the running ones, so that training computes what
# inference will compute. For the first 100 examples it is plain batch norm, until the running
# statistics are good enough. Layer norm computes its statistics over the features of a single
# example, independently of the batch.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = jnp.asarray(digits.data[order] / 16, jnp.float32)
labels = jnp.asarray(digits.target[order])
train_x, train_y = images[:1200], labels[:1200]
RATES, SEEDS = jnp.array([0.02, 0.1, 0.5]), jnp.arange(3)


def norms(size):
    """Return the layers to compare; running statistics forget after about 500 examples."""
    momentum = jbn.debiased(1 - size / 500)
    warmup = 100 // size
    return {
        "batch norm": functools.partial(BatchNorm, momentum=momentum),
        "renorm": functools.partial(BatchRenorm, momentum=momentum, warmup_steps=warmup),
        "layer norm": "layer",
    }


def errors(norm, size):
    """Return validation and test errors of every rate and seed, (2, rates, seeds)."""
    model = MLP(
        hidden=(32, 32),
        norm=norm,
        activation=jax.nn.relu,
        kernel_init=jax.nn.initializers.he_normal(),
    )

    def run(rate, seed):
        of_init, of_rows = jax.random.split(jax.random.key(seed))
        variables = {"batch_stats": {}, **model.init(of_init, train_x[:2], training=False)}
        variables = {name: variables[name] for name in ("params", "batch_stats")}
        rows = jax.random.permutation(of_rows, 1200)[: 1200 // size * size].reshape(-1, size)

        def loss(params, variables, rows):
            logits, new = model.apply(
                {**variables, "params": params},
                train_x[rows],
                training=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, train_y[rows])
            return jnp.mean(losses), new

        def step(variables, rows):
            gradient, new = jax.grad(loss, has_aux=True)(variables["params"], variables, rows)
            new_params = jax.tree.map(lambda p, g: p - rate * g, variables["params"], gradient)
            return {**variables, **new, "params": new_params}, None

        variables, _ = jax.lax.scan(step, variables, rows)
        wrong = model.apply(variables, images[1200:], training=False).argmax(-1) != labels[1200:]
        return jnp.stack([jnp.mean(wrong[:200]), jnp.mean(wrong[200:])])

    over_seeds = jax.vmap(run, in_axes=(None, 0), out_axes=1)
    return np.asarray(jax.jit(jax.vmap(over_seeds, in_axes=(0, None), out_axes=1))(RATES, SEEDS))


compared = (2,) if QUICK else (2, 4, 32)
results = {}
for size in compared:
    for name, norm in norms(size).items():
        validation, test = errors(norm, size)
        results.setdefault(name, []).append(test[validation.mean(-1).argmin()])
results = {name: np.stack(values) for name, values in results.items()}

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for (name, values), style, shift in zip(
    results.items(), ("o-", "s--", "D-."), (0.96, 1, 1.04), strict=True
):
    mean = values.mean(1)
    axes.errorbar(
        shift * np.array(compared),
        mean,
        (mean - values.min(1), values.max(1) - mean),
        fmt=style,
        label=name,
    )
axes.set(xlabel="examples in a batch", ylabel="test error", xscale="log", ylim=(0, None))
axes.set_title("Digits, one pass over 1,200 images, three seeds")
axes.set_xticks(compared, compared)
axes.set_xticks([], minor=True)
axes.legend()
plt.show()
for name, values in results.items():
    by_size = {m: round(float(v), 3) for m, v in zip(compared, values.mean(1), strict=True)}
    print(f"{name:10} test error by batch size:", by_size)

# %% [markdown]
# From batches of four to batches of two, batch norm loses the most, renorm loses less, and layer
# norm almost nothing. At four, renorm is the best, and batch norm is about as good as layer norm.
# Layer norm does not depend on the batch; what it lacks at 32 is steps, 37 instead of 600. In
# sixteen passes, not run here, its error falls to 0.03.
#
# ## Renorm, exactly
#
# Batch renorm computes y = xhat r + d, where xhat is x normalized by the batch statistics,
# r = batch std / running std, and d = (batch mean - running mean) / running std. To keep training
# stable, r is clipped to [1 / r_max, r_max] and d to [-d_max, d_max], and no gradient flows through
# them. Without clipping, training gives the same result as inference, even with a batch of two.
# With r_max = 1 and d_max = 0, it is batch norm. In the paper, the limits grow from these values to
# r_max = 3 and d_max = 5, the limits used above.

# %%
x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 1))
settled = jbn.BatchNormState(mean=jnp.array([3.0]), var=jnp.array([4.0]), count=jnp.int32(1000))
inference, _ = jbn.batch_norm(x, params, settled, training=False)
free, _ = jbn.batch_renorm(x, params, settled, training=True, r_max=1e6, d_max=1e6)
bound, _ = jbn.batch_renorm(x, params, settled, training=True, r_max=1.0, d_max=0.0)
renorm_free = float(jnp.abs(free - inference).max())
renorm_bound = float(jnp.abs(bound - normalized(x)).max())
print("without limits it is inference, to 1e-4:", renorm_free < 1e-4)
print("with r_max=1, d_max=0 it is batch norm, to 1e-4:", renorm_bound < 1e-4)

# %% [markdown]
# ## Ghost batches
#
# The statistics of a large batch have little noise, and Hoffer et al. (2017) find that networks
# trained this way generalize worse. Ghost batch norm brings the noise back: the batch is split into
# groups, here of 32, and each group is normalized by itself, as a small batch would be. The running
# statistics are those of the whole batch.

# %%
batch = jax.random.normal(jax.random.key(1), (512, 1))
ghost, ghost_state = jbn.ghost_batch_norm(batch, params, state, training=True, batch_size=32)
plain, plain_state = jbn.batch_norm(batch, params, state, training=True)
ghost_first = float(jnp.abs(ghost[:32] - normalized(batch[:32])).max())
ghost_stats = float(jnp.abs(ghost_state.var - plain_state.var).max())
noise = {"ghosts of 32": float((ghost - batch).std()), "all 512": float((plain - batch).std())}
print("the first ghost is what a batch of its own gives, to 1e-5:", ghost_first < 1e-5)
print("the running variance is batch norm's, to 1e-5:", ghost_stats < 1e-5)
for name, value in noise.items():
    print(f"standard deviation of y - x, {name}: {value:.3f}")

# %% [markdown]
# ## Exercises
#
# 1. A convolution has many values per feature even in a batch of one image. How many, if its output
#    has 8 x 8 positions, and why is that not as good as a batch of 64 examples?
# 2. With a batch of two, almost no gradient passes through the norm to x, yet the network above
#    learned something with batches of two: its error is below 0.9, that of guessing. Which part of
#    it learned?
#
# ## Answers
#
# <details>
# <summary>Open</summary>
#
# 1. It has 64 values, so there is no error, and the outputs are not all ±1. But neighboring
#    positions in one image are similar, and the mean of one image is not the mean of all images. In
#    the smooth images of the next cell, the mean over 64 positions is as noisy as the mean of two
#    independent values.
# 2. The part after the norm: scale, bias and the next layers learn from y = ±1, that is, from which
#    of the two values is larger. The weights before the norm get almost no gradient, as the next
#    cell shows, unless two values are so close that epsilon matters.
#
# </details>

# %%
noise_images = jax.random.normal(jax.random.key(2), (2000, 8, 8, 1))
blur = jax.scipy.stats.norm.pdf(jnp.arange(8.0)[:, None] - jnp.arange(8.0)[None], scale=2.0)
smooth = jnp.einsum("ai,nijc,bj->nabc", blur, noise_images, blur)
one_image, _ = jbn.batch_norm(smooth[:1], params, state, training=True)  # 64 values: no error.
of_means = float(jnp.var(jnp.mean(smooth, (1, 2, 3))) / jnp.var(smooth))
print(f"64 positions of a smooth image are worth {1 / of_means:.1f} independent values")

x8, w = images[:2], jax.random.normal(jax.random.key(3), (64, 8)) / 8
wide_params, wide_state = jbn.init(8)


def loss_of_two(w, scale):
    layer = wide_params._replace(scale=scale)
    y, _ = jbn.batch_norm(x8 @ w, layer, wide_state, training=True)
    return jnp.sum(jnp.tanh(y) * jnp.array([[1.0], [-2.0]]))


g_w, g_scale = jax.grad(loss_of_two, (0, 1))(w, wide_params.scale)
of_w, of_scale = (float(jnp.median(jnp.abs(g[g != 0]))) for g in (g_w, g_scale))
print(f"median gradients: {of_w:.4f} of the weights before, {of_scale:.2f} of the scales")

# %% [markdown]
# ## Answer
#
# With one value per feature, the input is lost. With two, all that is left is which is larger. With
# four, training and inference still disagree. Here, a norm that does not mix the examples helps at
# two, and renorm helps at four. docs/guides/choosing_a_norm.md shows what was measured with other
# networks and data.

# %%
assert "more than one value per feature" in refused
assert np.allclose(jnp.abs(of_two), 1, atol=1e-3)
assert float(jnp.abs(gradient_of_two).max()) < 1e-3
assert share_of_ones > 0.95
assert all(abs(spread[m] / (2 / (m - 1)) ** 0.5 - 1) < 0.15 for m in sizes)
at_two = {name: float(values[0].mean()) for name, values in results.items()}
assert at_two["batch norm"] > 1.3 * at_two["layer norm"]
assert at_two["layer norm"] < at_two["renorm"] < at_two["batch norm"] < 0.8
assert QUICK or results["renorm"][1].mean() < 0.8 * results["batch norm"][1].mean()
assert QUICK or results["layer norm"][-1].mean() > 2 * results["batch norm"][-1].mean()
assert results["batch norm"][0].mean() >= results["batch norm"][-1].mean()
assert renorm_free < 1e-4
assert renorm_bound < 1e-4
assert ghost_first < 1e-5
assert ghost_stats < 1e-5
assert noise["ghosts of 32"] > 2 * noise["all 512"]
assert 1 / of_means < 16
assert of_w < 0.01 * of_scale
