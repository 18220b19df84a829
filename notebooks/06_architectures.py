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
# # Which normalization for an MLP, a CNN and a ResNet?
#
# We train three networks from `jbn.models` on the 1,797 small digits that come with scikit-learn,
# each without a norm and with batch, layer and group normalization. All accept the norm as an
# argument, and their initial weights are the same whatever the norm. How fast do they learn at two
# learning rates?

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
import itertools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import jbn
from jbn.linen import BatchNorm, GroupNorm
from jbn.models import CNN, MLP, ResNet

QUICK = "JBN_NOTEBOOKS_QUICK" in os.environ  # For the test suite: fewer settings.
EVERY, EVALUATIONS, BATCH = 5, 12, 32

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = jnp.asarray(digits.images[order, ..., None] / 16, jnp.float32)
labels = jnp.asarray(digits.target[order])
train_x, train_y, test_x, test_y = images[:1400], labels[:1400], images[1400:], labels[1400:]

# %% [markdown]
# ## Networks and norms

# %%
NETWORKS = {
    "MLP": functools.partial(
        MLP, hidden=(64,) * 4, activation=nn.relu, kernel_init=nn.initializers.he_normal()
    ),
    "CNN": functools.partial(CNN, widths=(8, 16)),
    "ResNet": functools.partial(ResNet, blocks=(1, 1), widths=(8, 16)),
}
NORMS = {
    "none": None,
    "batch": functools.partial(BatchNorm, momentum=jbn.debiased(0.9)),
    "layer": "layer",
    "group": functools.partial(GroupNorm, groups=4),
}


def count(network, norm):
    """Return the number of parameters without computing them."""
    x = images[:1].reshape(1, -1) if network == "MLP" else images[:1]
    init = functools.partial(NETWORKS[network](norm=NORMS[norm]).init, training=False)
    variables = jax.eval_shape(init, jax.random.key(0), x)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


parameters = {name: {norm: count(name, norm) for norm in NORMS} for name in NETWORKS}
for name, counts in parameters.items():
    print(f"{name:6} parameters:", counts)

# %% [markdown]
# The counts differ for two reasons: each norm has a scale and a bias per feature, and with batch
# norm the layer before it has no bias, because batch norm would cancel it.
#
# ## Training
#
# We use plain SGD, batches of 32, 60 steps and two seeds. The learning rate is traced, so each
# combination of network and norm is compiled once for all rates. The training loop is a Python
# loop: within `lax.scan`, XLA runs convolutions on a single CPU core.


# %%
def shaped(x, network):
    return x.reshape(len(x), -1) if network == "MLP" else x


@functools.partial(jax.jit, static_argnames=("network", "norm"))
def init(seed, *, network, norm):
    model = NETWORKS[network](norm=NORMS[norm])
    return model.init(jax.random.key(seed), shaped(images[:2], network), training=False)


@functools.partial(jax.jit, static_argnames=("network", "norm"))
def advance(variables, rows, rate, *, network, norm):
    """Take one training step."""
    model, x = NETWORKS[network](norm=NORMS[norm]), shaped(train_x[rows], network)

    def loss(params):
        logits, new = model.apply(
            {**variables, "params": params}, x, training=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, train_y[rows])
        return jnp.mean(losses), new

    gradient, new = jax.grad(loss, has_aux=True)(variables["params"])
    params = jax.tree.map(lambda p, g: p - rate * g, variables["params"], gradient)
    return {**variables, **new, "params": params}


@functools.partial(jax.jit, static_argnames=("network", "norm"))
def test_accuracy(variables, *, network, norm):
    logits = NETWORKS[network](norm=NORMS[norm]).apply(
        variables, shaped(test_x, network), training=False
    )
    return jnp.mean(logits.argmax(-1) == test_y)


def train(rate, seed, **which):
    """Return test accuracies every 5 steps."""
    variables, found = init(seed, **which), []
    rows = np.random.default_rng(seed).integers(1400, size=(EVALUATIONS * EVERY, BATCH))
    for step, batch in enumerate(rows, 1):
        variables = advance(variables, batch, rate, **which)
        if step % EVERY == 0:
            found.append(test_accuracy(variables, **which))
    return np.array(found)


rates = (0.1,) if QUICK else (0.1, 1.0)
seeds = (0,) if QUICK else (0, 1)
compared = ("none", "batch") if QUICK else tuple(NORMS)
networks = ("MLP",) if QUICK else tuple(NETWORKS)
curves = {
    (network, norm): np.array(
        [[train(rate, seed, network=network, norm=norm) for seed in seeds] for rate in rates]
    )
    for network in networks
    for norm in compared
}

# %%
STYLES = dict(zip(NORMS, (":", "-", "--", "-."), strict=True))
steps = EVERY * np.arange(1, EVALUATIONS + 1)
figure, axes = plt.subplots(
    len(rates), len(networks), figsize=(10, 5.5), layout="constrained", sharey=True, squeeze=False
)
for (row, rate), (column, network) in itertools.product(enumerate(rates), enumerate(networks)):
    panel = axes[row, column]
    for norm in compared:
        panel.plot(steps, curves[network, norm][row].mean(0), STYLES[norm], label=norm)
    panel.set(title=f"{network}, rate {rate}", xlabel="steps", ylim=(0, 1.02))
    panel.set_ylabel("" if column else "test accuracy")
axes[0, 0].legend()
plt.show()

last = {key: values[:, :, -2:].mean((1, 2)) for key, values in curves.items()}
for (row, rate), network in itertools.product(enumerate(rates), networks):
    by_norm = {norm: round(float(last[network, norm][row]), 2) for norm in compared}
    print(f"{network:6} test accuracy at the end, rate {rate}:", by_norm)

# %% [markdown]
# In so few steps, batch norm is ahead in all three networks, by more in the CNN and the ResNet than
# in the MLP. At ten times the rate, only batch norm learns well. This compares speed, with batches
# of 32 and easy images. docs/guides/choosing_a_norm.md shows what was measured at other batch
# sizes, with each norm at its own best rate.
#
# ## Exercises
#
# 1. Batch norm adds fewer parameters than layer norm. How many fewer, and where did they go?
# 2. Multiply the initial kernels of all convolutions of the CNN by ten, in inference and in
#    training mode. What changes in its outputs without a norm, and with batch norm?
#
# ## Answers
#
# <details>
# <summary>Open</summary>
#
# 1. One fewer per feature of each normalized layer, 48 in the CNN: the biases of the convolutions,
#    which would cancel when the mean of the batch is subtracted.
# 2. Without a norm, each of the four convolutions makes the outputs ten times as large, 10,000
#    times in all. With batch norm in training mode, the scale cancels, BN(aWu) = BN(Wu), and
#    nothing changes, up to epsilon. In inference mode, the outputs would change: the running
#    statistics are still those of the old weights.
#
# </details>

# %%
saved = parameters["CNN"]["layer"] - parameters["CNN"]["batch"]
print("parameters saved in the CNN:", saved)


def ratio_of_outputs(norm):
    """Return the factor by which outputs grow if all convolution kernels are ten times as large."""
    model = CNN(widths=(8, 16), norm=norm)

    @jax.jit
    def outputs(factor):
        variables = model.init(jax.random.key(0), images[:64], training=False)
        params = {
            name: {**layer, "kernel": factor * layer["kernel"]} if "conv" in name else layer
            for name, layer in variables["params"].items()
        }
        variables = {**variables, "params": params}
        return model.apply(variables, images[:64], training=True, mutable=["batch_stats"])[0]

    return float(jnp.linalg.norm(outputs(10.0)) / jnp.linalg.norm(outputs(1.0)))


ratios = {name: ratio_of_outputs(NORMS[name]) for name in ("none", "batch")}
print("outputs grow by a factor of", {name: round(value, 2) for name, value in ratios.items()})

# %% [markdown]
# ## Answer
#
# Batch norm, in all three networks here. The models accept a norm by name, so trying another one
# means changing one word.

# %%
assert saved == 48
assert abs(ratios["none"] / 1e4 - 1) < 1e-3
assert abs(ratios["batch"] - 1) < 0.05
for network in networks:
    assert last[network, "batch"][0] > last[network, "none"][0] + 0.1
    assert last[network, "batch"].max() >= max(last[network, norm].max() for norm in compared)
