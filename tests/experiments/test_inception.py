"""The small Inception: its variants, batches and convolution; CIFAR-10 without unpickling."""

import functools
import gzip
import hashlib
import io
import pickle
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.inception import measure as inception
from experiments.studies.inception.config import Config
from experiments.studies.inception.figures import CHANGES
from experiments.studies.inception.miniature import Miniature, convolve, distort
from experiments.tasks import cifar

ROUNDING = 1e-5  # Rounding of float32 sums of about thirty products.


# ---- CIFAR-10 ------------------------------------------------------------------------------------


def member(seed, pixels_at):
    """Make a member of the archive: a pickled list of labels, headers, pixels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, cifar.IMAGES)
    images = rng.integers(0, 3, (cifar.IMAGES, 32, 32, 3), np.uint8)
    pickled = pickle.dumps(labels.tolist(), protocol=2)[:-1]  # Without the STOP opcode.
    before = pixels_at - cifar.HEADERS_BYTES - len(pickled)
    pixels = images.transpose(0, 3, 1, 2).tobytes()
    content = bytes(before) + pickled + bytes(cifar.HEADERS_BYTES) + pixels + b"the end"
    return content, images, labels


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A folder with a small archive of the official name, its checksum registered as official."""
    made = {"data_batch_1": member(1, 20218), "test_batch": member(2, 20217)}
    monkeypatch.setattr(cifar, "ARCHIVES", dict(cifar.ARCHIVES))
    monkeypatch.setattr(cifar, "SHA256", dict(cifar.SHA256))
    path = tmp_path / "cifar10" / cifar.OFFICIAL
    path.parent.mkdir()
    with (
        gzip.open(path, "wb", compresslevel=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for name, (content, _, _) in made.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
            cifar.SHA256[name] = hashlib.sha256(content).hexdigest()
    cifar.ARCHIVES[path.name] = f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
    return tmp_path, made


def test_cifar_has_images_and_labels_as_they_were_written(archive):
    folder, made = archive
    dataset = cifar.load(train_batches=1, data_dir=folder)
    for role, name in (("train", "data_batch_1"), ("test", "test_batch")):
        _, images, labels = made[name]
        np.testing.assert_array_equal(getattr(dataset, f"{role}_images"), images)
        np.testing.assert_array_equal(getattr(dataset, f"{role}_labels"), labels)
    cifar.SHA256["test_batch"] = "0"
    with pytest.raises(ValueError, match=r"Expected test_batch of .* Remove it"):
        cifar.load(train_batches=1, data_dir=folder)


def test_cifar_refuses_what_is_not_official_and_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"found neither\. Download https"):
        cifar.load(data_dir=tmp_path)
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / cifar.OFFICIAL).write_bytes(b"not this")
    with pytest.raises(ValueError, match="checksum c58f30108f718f92721af3b95e74349a, got"):
        cifar.load(data_dir=tmp_path)
    monkeypatch.delenv("JBN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cifar, "URL", "http://127.0.0.1:9/nobody-listens")
    with pytest.raises(FileNotFoundError, match=r"DIR/cifar10/.* --data-dir DIR"):
        cifar.load()


# ---- Variants ------------------------------------------------------------------------------------


def test_each_variant_takes_back_one_change():
    config = Config()
    variants = inception.make_variants(config)
    original, all_changes = variants["baseline"], variants["x5"]
    taken_back = set()
    for name in CHANGES:
        variant = variants[name]
        fields = {
            field
            for field in inception.Settings._fields
            if getattr(variant.settings, field) != getattr(all_changes.settings, field)
        }
        for field in fields:
            assert getattr(variant.settings, field) == getattr(original.settings, field)
        if variant.shuffled != all_changes.shuffled:
            fields.add("shuffled")
        assert variant.norm
        assert len(fields) == 1
        taken_back |= fields
    assert taken_back == {"rate", "decay", "l2", "dropout", "lrn", "distortion", "shuffled"}


def test_fixed_batches_are_those_of_the_first_epoch():
    config = Config(steps=10, watch_every=1, batch_size=4, train_examples=16)
    variants = inception.make_variants(config)
    fixed, shuffled = (
        inception.sample_batches(variants[name], config, 3) for name in ("fixed_batches", "x5")
    )
    np.testing.assert_array_equal(fixed[:4], shuffled[:4])
    np.testing.assert_array_equal(fixed[4:8], fixed[:4])
    np.testing.assert_array_equal(fixed[8:], fixed[:2])
    np.testing.assert_array_equal(np.sort(shuffled[4:8].ravel()), np.arange(16))
    assert not np.array_equal(shuffled[4:8], shuffled[:4])


# ---- Network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 5])
def test_convolution_is_xlas(size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 6, 3)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 3, 4)).astype(np.float32)

    @jax.jit
    def both(x, kernel):
        expected = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return convolve(x, kernel), expected

    np.testing.assert_allclose(*both(x, kernel), atol=ROUNDING * size**2)


def test_all_variants_begin_with_the_same_weights():
    x = jnp.ones((2, 4, 4, 3))
    kernels = []
    for norm in (False, True):
        model = Miniature((1,), 2, norm, lrn=0.1, dropout=0.4, sigmoid=norm)
        init = jax.jit(functools.partial(model.init, training=False))
        params = init(jax.random.key(0, impl="rbg"), x)["params"]
        kernels.append({name: leaf["kernel"] for name, leaf in params.items() if "kernel" in leaf})
    assert len(kernels[0]) == 9
    jax.tree.map(np.testing.assert_array_equal, *kernels)


def test_distortion_changes_as_much_as_it_says():
    key = jax.random.key(0)
    images = jax.random.uniform(jax.random.key(1), (50, 4, 4, 3), minval=0.4, maxval=0.6)
    np.testing.assert_allclose(distort(key, images, 0.0), images, atol=ROUNDING)
    # On uniform gray, contrast and saturation change nothing, and brightness shifts all of it.
    moved = np.asarray(distort(key, jnp.full_like(images, 0.5), 0.4)) - 0.5
    np.testing.assert_allclose(moved, moved[:, :1, :1, :1] * np.ones_like(moved), atol=ROUNDING)
    assert 0.08 < np.abs(moved).max() <= 0.1 + ROUNDING
    # Contrast changes the spread of gray levels by at most 40 percent, differently per image.
    gray, before = (np.asarray(x).mean(-1).std((1, 2)) for x in (distort(key, images, 0.4), images))
    factor = gray / before
    assert 0.6 - 1e-3 <= factor.min() < 0.7
    assert 1.3 < factor.max() <= 1.4 + 1e-3
