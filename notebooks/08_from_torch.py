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
# # Is a network imported from torch healthy, and how do you export it?
#
# Somebody gives you a checkpoint of a network with batch normalization. Its training loss was low,
# they say, but in evaluation it is useless. We import it, find out which layers are to blame,
# repair their statistics, fold each normalization into the convolution before it, and export a
# program that needs neither jbn nor Flax.
#
# torch is not required. A checkpoint is a mapping from names to arrays. Here it contains NumPy
# arrays under torch's names, like the result of `safetensors.numpy.load_file`. If torch is
# installed, the same arrays are also loaded into a torch module, and the outputs are compared.

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
import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import jbn
from jbn import diagnostics
from jbn.models import ResNet

QUICK = "JBN_NOTEBOOKS_QUICK" in os.environ  # For the test suite: fewer steps.
HAS_TORCH = importlib.util.find_spec("torch") is not None

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = jnp.asarray(digits.images[order, ..., None] / 16, jnp.float32)
labels = jnp.asarray(digits.target[order])
train_x, train_y, test_x, test_y = images[:1400], labels[:1400], images[1400:], labels[1400:]

# %% [markdown]
# ## The checkpoint
#
# We have no such file, so we make one with the 1,797 small digits that come with scikit-learn and a
# common mistake: the training loop throws the new running statistics away. Training itself never
# reads them, so the loss falls as it should. But the file still has the statistics that every layer
# started with, mean 0 and variance 1.

# %%
model = ResNet(blocks=(1, 1), widths=(8, 16), norm="batch", shortcut="project")
fresh = jax.jit(lambda key: model.init(key, images[:1], training=False))(jax.random.key(0))
optimizer = optax.adam(1e-2)
rows = np.random.default_rng(1).integers(0, 1400, (40 if QUICK else 80, 32))


@jax.jit
def train(params):
    def loss(params, rows):
        variables = {**fresh, "params": params}
        # The mistake: `_` gets the new running statistics, and they are lost.
        logits, _ = model.apply(variables, train_x[rows], training=True, mutable=["batch_stats"])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, train_y[rows]))

    def step(carry, rows):
        params, opt_state = carry
        value, gradient = jax.value_and_grad(loss)(params, rows)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), rows)
    return params, losses


params, losses = train(fresh["params"])
print(f"training loss {losses[0]:.2f} -> {losses[-1]:.2f}")
# tensors=False: NumPy arrays instead of torch's tensors.
checkpoint = jbn.convert.network_to_torch(model, {**fresh, "params": params}, tensors=False)
for name in sorted(checkpoint)[:7]:
    print(f"{name:26} {checkpoint[name].shape}")

# %% [markdown]
# ## Import
#
# `network_from_torch` needs a model with the same blocks and widths. If anything does not fit, the
# error message lists all of it. The names and the layout of the kernels change, but the numbers do
# not.

# %%
variables = jbn.convert.network_from_torch(model, checkpoint)


@jax.jit
def evaluate(variables, x):
    return model.apply(variables, x, training=False)


def accuracy(logits):
    return float(np.mean(np.asarray(logits).argmax(-1) == np.asarray(test_y)))


before = accuracy(evaluate(variables, test_x))
print(f"test accuracy in evaluation: {before:.3f}")

# %% [markdown]
# Is the import to blame? A torch network with the same layers and the same arrays gives the same
# outputs:

# %%
if HAS_TORCH:
    import torch

    class Block(torch.nn.Module):
        def __init__(self, fan_in, width, stride):
            super().__init__()
            conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
            self.conv1 = conv(fan_in, width, 3, stride, padding=1, bias=False)
            self.bn1 = norm(width)
            self.conv2 = conv(width, width, 3, padding=1, bias=False)
            self.bn2 = norm(width)
            self.downsample = None
            if fan_in != width:
                shortcut = conv(fan_in, width, 1, stride, bias=False)
                self.downsample = torch.nn.Sequential(shortcut, norm(width))

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(1, 8, 3, padding=1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(8)
            self.layer1 = torch.nn.Sequential(Block(8, 8, 1))
            self.layer2 = torch.nn.Sequential(Block(8, 16, 2))
            self.fc = torch.nn.Linear(16, 10)

        def forward(self, x):
            x = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))
            return self.fc(x.mean((2, 3)))


def difference_from_torch(state_dict, logits):
    """Return the largest difference from torch's outputs; None without torch."""
    if not HAS_TORCH:
        return None
    net = Net()
    net.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in state_dict.items()})
    with torch.no_grad():
        theirs = net.eval()(torch.from_numpy(np.array(test_x)).permute(0, 3, 1, 2)).numpy()
    return float(np.abs(theirs - np.asarray(logits)).max())


of_import = difference_from_torch(checkpoint, evaluate(variables, test_x))
if of_import is None:
    print("torch is not installed: nothing to compare with")
else:
    print("the outputs are torch's, to 1e-3:", of_import < 1e-3)

# %% [markdown]
# ## Diagnosis
#
# What should the running statistics be? `jbn.linen.population` measures them: it averages the
# statistics of many batches while the weights stay fixed. We call the result the truth.
# `train_eval_gap` says how far each layer of the file is from it, in terms of its worst feature:
#
# - `mean`: by how many standard deviations the mean is off.
# - `std`: by how many factors of two the standard deviation is off. A value of 1 means twice or
#   half of what it should be.
# - `noise`: the same for the statistics of a single batch, the larger of the two. This noise is not
#   a mistake, so only gaps well above it matter.

# %%
batches = train_x[:1280].reshape(20, 64, 8, 8, 1)


@jax.jit
def absorb(batch_stats, x):  # Update the statistics with one batch.
    held = {**variables, "batch_stats": batch_stats}
    return model.apply(held, x, training=True, mutable=["batch_stats"])[1]["batch_stats"]


truth = jbn.linen.population(absorb, variables["batch_stats"], batches)
of_one_batch = jbn.linen.population(absorb, variables["batch_stats"], batches[:1])
SHOWN = ("mean", "std", "noise")
gaps = diagnostics.train_eval_gap(variables["batch_stats"], of_one_batch, truth)
columns = {field: {name: getattr(gap, field) for name, gap in gaps.items()} for field in SHOWN}
diagnostics.summarize(**columns)
repaired = {**variables, "batch_stats": truth}
after = accuracy(evaluate(repaired, test_x))
gaps_after = diagnostics.train_eval_gap(truth, of_one_batch, truth)
print(f"test accuracy with recomputed statistics: {after:.3f}, before {before:.3f}")

figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
place = np.arange(len(gaps))
mean, std, noise = ([float(value) for value in columns[field].values()] for field in SHOWN)
axes.bar(place - 0.2, mean, 0.4, label="mean, in standard deviations")
axes.bar(place + 0.2, std, 0.4, hatch="//", label="standard deviation, in factors of 2")
axes.plot(place, noise, "k_", markersize=24, label="noise of one batch of 64")
short = [name.removesuffix("_norm") for name in gaps]
axes.set_xticks(place, [re.sub(r"(block_\d_\d)_", r"\1\n", name) for name in short])
axes.set(ylabel="gap", title="The file's statistics against the truth, worst feature of each layer")
figure.legend(loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# In every layer, the statistics are off by far more than the noise of a batch: they were never
# updated. The weights are not to blame, so the statistics of twenty batches repair the network,
# without a single training step.
#
# ## Folding
#
# In evaluation, each norm is an affine map of its input, with a factor and a shift per feature. The
# convolution before it is affine, too, so the two can be merged: `fold_model` returns the weights
# of the same network without norms, where the convolutions have a bias instead.

# %%
folded = jbn.fold_model(model, test_x[:1], variables=repaired, training=False)
plain = model.copy(norm=None, use_bias=True)
want = evaluate(repaired, test_x)


@jax.jit
def predict(x):
    return plain.apply(folded, x, training=False)


of_folding = float(jnp.abs(predict(test_x) - want).max())
sizes = [len(jax.tree.leaves(tree)) for tree in (repaired, folded)]
print(f"{sizes[0]} arrays become {sizes[1]}; the outputs are the same, to 1e-3:", of_folding < 1e-3)

# %% [markdown]
# ## Export
#
# `jax.export` produces a program that accepts any number of images and needs only jax to run.
# `network_to_torch` converts the repaired network back to torch, as a state_dict. Its statistics
# are new, and all other arrays are those of the checkpoint, bit for bit.

# %%
shape = jax.export.symbolic_shape("images, 8, 8, 1")
exported = jax.export.export(predict)(jax.ShapeDtypeStruct(shape, jnp.float32))
written = exported.serialize()
read = jax.export.deserialize(written)
of_export = max(float(jnp.abs(read.call(test_x[:n]) - want[:n]).max()) for n in (1, 50))
print(f"{len(written) // 1000} kB, for 1 image or 50")

returned = jbn.convert.network_to_torch(model, repaired, tensors=False)
unchanged = all(
    np.array_equal(returned[name], array)
    for name, array in checkpoint.items()
    if "running" not in name
)
of_return = difference_from_torch(returned, want)
print("all but the running statistics came back unchanged:", unchanged)

# %% [markdown]
# ## Exercises
#
# 1. Fold the network before its statistics are repaired. What is its accuracy, and can it be
#    repaired afterwards?
# 2. How many batches of 64 does it take to repair the network? Try 1, 2, 5 and 20.
#
# ## Answers
#
# <details>
# <summary>Open</summary>
#
# 1. The accuracy is the same as before the repair: folding preserves what evaluation computes,
#    mistakes included, and leaves no statistics to estimate again. So fold last.
# 2. One is enough here. A batch has 64 images with 64 positions each (16 in the second block), so
#    even one batch gives each feature a thousand values or more. More batches make the statistics
#    more precise, but no longer change the accuracy by more than a point or so.
#
# The next cell computes both.
#
# </details>

# %%
too_early = jbn.fold_model(model, test_x[:1], variables=variables, training=False)
folded_early = accuracy(jax.jit(lambda x: plain.apply(too_early, x, training=False))(test_x))
print(f"folded before the repair: {folded_early:.3f}, evaluated then: {before:.3f}")

by_batches = {}
for n in (1, 2, 5, 20):
    batch_stats = jbn.linen.population(absorb, variables["batch_stats"], batches[:n])
    by_batches[n] = accuracy(evaluate({**variables, "batch_stats": batch_stats}, test_x))
print("test accuracy by batches:", {n: round(value, 3) for n, value in by_batches.items()})

# %% [markdown]
# ## Answer
#
# Its weights are healthy. Its statistics were not, as `train_eval_gap` shows for every layer. It
# can be exported as a program without normalization, or as a state_dict with the same names as the
# original.

# %%
assert losses[-1] < 0.3 * losses[0]
assert before < 0.7
assert after > 0.9
assert after > before + 0.2
assert all(max(gap.mean, gap.std) > 3 * gap.noise for gap in gaps.values())
assert all(max(gap.mean, gap.std) < 1e-3 for gap in gaps_after.values())
assert of_folding < 1e-3
assert of_export < 1e-3
assert unchanged
assert not HAS_TORCH or max(of_import, of_return) < 1e-3
assert folded_early == before
assert by_batches[1] > before + 0.2
assert max(by_batches.values()) - min(by_batches.values()) < 0.05
