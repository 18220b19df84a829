"""Small networks of `jbn.models` and images for them, for the tests of whole networks' weights."""

import functools

import jax
import numpy as np
import pytest

from jbn import models

CLASSES = 5
SMALL = {"blocks": (2, 1), "widths": (8, 12)}


def resnet(**attributes):
    """Make a ResNet of two stages that has all that torchvision's have."""
    defaults = {"stem": "imagenet", "shortcut": "project", "outputs": CLASSES, "norm": "batch"}
    return models.ResNet(**SMALL | defaults | attributes)


def inception(**attributes):
    """Make an eighth of BN-Inception, padded as its port to torch is."""
    return models.BNInception(
        **{"width": 8, "outputs": CLASSES, "padding": "symmetric"} | attributes
    )


def needs(model, attribute):
    """Skip a test of an attribute that the model has not."""
    there = attribute in model.__dataclass_fields__
    return pytest.mark.skipif(not there, reason=f"{model.__name__} has no {attribute}=")


def images(n=2, size=32, colors=3):
    return np.random.default_rng(0).normal(size=(n, size, size, colors)).astype(np.float32)


def evaluate(model, variables, x):
    return np.asarray(jax.jit(functools.partial(model.apply, training=False))(variables, x))


def assert_same_logits(got, want):
    # Two float32 implementations of the same sums, in another order.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    # Logits that say something: neither equal for all images, nor for all classes.
    assert min(want.std(0).min(), want.std(1).min()) > 1e-3
