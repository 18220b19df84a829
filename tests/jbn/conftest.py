"""Fixtures for 64 bits and for the frameworks to compare with; tests skip missing ones."""

import os

import jax
import pytest


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs jbn[peers]")


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    # Keras writes its configuration here when imported.
    os.environ.setdefault("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
    return pytest.importorskip("keras", reason="needs keras")


@pytest.fixture(scope="module")
def hk():
    return pytest.importorskip("haiku", reason="needs jbn[peers]")


@pytest.fixture(scope="module")
def eqx():
    return pytest.importorskip("equinox", reason="needs jbn[peers]")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
