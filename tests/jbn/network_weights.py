"""Small networks of `jbn.models` and images, for the tests of converting whole networks."""

import functools

import jax
import numpy as np
import pytest

from jbn import models

CLASSES = 5
SMALL = {"blocks": (2, 1), "widths": (8, 12)}


def resnet(**attributes):
    """Make a two-stage ResNet with every kind of layer that torchvision's have."""
    defaults = {"stem": "imagenet", "shortcut": "project", "outputs": CLASSES, "norm": "batch"}
    return models.ResNet(**SMALL | defaults | attributes)


def inception(**attributes):
    """Make BN-Inception with an eighth of the features, padded like its torch port."""
    return models.BNInception(
        **{"width": 8, "outputs": CLASSES, "padding": "symmetric"} | attributes
    )


def needs(model, attribute):
    """Skip the test if the model lacks the attribute."""
    there = attribute in model.__dataclass_fields__
    return pytest.mark.skipif(not there, reason=f"{model.__name__} has no {attribute}=")


def images(n=2, size=32, colors=3):
    return np.random.default_rng(0).normal(size=(n, size, size, colors)).astype(np.float32)


def evaluate(model, variables, x):
    return np.asarray(jax.jit(functools.partial(model.apply, training=False))(variables, x))


def assert_same_logits(got, want):
    # Two float32 implementations of the same sums, in different orders.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    # The logits must be informative: equal neither for all images nor for all classes.
    assert min(want.std(0).min(), want.std(1).min()) > 1e-3
