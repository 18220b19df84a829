"""Fixtures: the frameworks to compare with, without which a test is skipped, and 64 bits."""

import os

import jax
import pytest


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs jbn[peers]")


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    # Where it writes its configuration when imported.
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
