"""The examples under docs/ run, each in a separate process, on a few small images."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import own_environment
from PIL import Image

import jbn
from jbn.models import resnet18

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
LINES = {"finetune.py": 120, "nnx_cifar.py": 80}
# The processes share a cache, so each program is compiled once per run of the suite. If one process
# reads an entry while another writes it, JAX warns and compiles the program again.
WARNINGS = ",".join(
    ["error"]
    + [f"ignore:Error {verb} persistent compilation cache entry" for verb in ("reading", "writing")]
)
# Optimizing the programs of a ResNet-18 takes longer than running them here.
FAST = "--xla_backend_optimization_level=0"


def run(*command):
    own = own_environment(PYTHONPATH=str(ROOT), PYTHONWARNINGS=WARNINGS)
    own["XLA_FLAGS"] += f" {FAST}"
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, env=own, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def accuracies(output):
    """Parse the last line that an example prints."""
    found = ast.literal_eval(output.splitlines()[-1])
    assert all(0 <= accuracy <= 1 for accuracy in found.values())
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Write training and test images: six of 32 x 32 pixels for each of three classes."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(3):
            one = folder / part / f"class_{label}"
            one.mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(40 * label, 40 * label + 150, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(one / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Write a state_dict of ResNet-18 for 1000 classes as safetensors, with random values."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    model, rng = resnet18(norm="batch"), np.random.default_rng(0)
    init = functools.partial(model.init, training=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return 0.05 * rng.standard_normal(leaf.shape, np.float32)

    variables = jax.tree.map_with_path(draw, shapes)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    safetensors.save_file(jbn.convert.network_to_torch(model, variables, tensors=False), path)
    return path


@pytest.mark.parametrize("name", LINES)
def test_an_example_is_a_page(name):
    assert len((EXAMPLES / name).read_text().splitlines()) <= LINES[name]


def test_nnx_cifar(images):
    command = ["--data", images, "--steps", 3, "--batch-size", 8, "--width", 8]
    found = accuracies(run(EXAMPLES / "nnx_cifar.py", *command, "--dtype", "float32"))
    assert found.keys() == {"last", "averaged", "folded"}
    assert found["folded"] == found["averaged"]


def finetune(out, *options, data):
    command = ["--data", data, "--steps", 2, "--batch-size", 8, "--size", 32, "--out", out]
    found = accuracies(run(EXAMPLES / "finetune.py", *command, "--dtype", "float32", *options))
    assert found.keys() == {"last", "averaged", "exported"}
    assert found["exported"] == found["averaged"]
    return found, np.load(out / "logits.npy")


def test_finetune_and_predict_without_libraries(images, weights, tmp_path):
    _, logits = finetune(tmp_path, "--statistics", "train", "--weights", weights, data=images)
    files = [str(tmp_path / name) for name in ("model.jax", "images.npy", "again.npy")]
    code = f"""
import runpy, sys
sys.argv[1:] = {files}
runpy.run_path({str(EXAMPLES / "predict.py")!r})
loaded = {{"jbn", "flax", "optax", "orbax", "experiments"}} & set(sys.modules)
assert not loaded, loaded
"""
    run("-c", code)
    np.testing.assert_array_equal(np.load(files[2]), logits)


def test_finetune_goes_on_at_the_checkpoint(images, weights, tmp_path):
    """Neither run changes the statistics, so the results can differ only in where they start."""
    frozen = finetune(tmp_path, "--statistics", "frozen", "--weights", weights, data=images)
    assert list((tmp_path / "checkpoints").iterdir())
    resumed = finetune(tmp_path, "--statistics", "population", data=images)
    assert resumed[0] == frozen[0]
    np.testing.assert_array_equal(resumed[1], frozen[1])
