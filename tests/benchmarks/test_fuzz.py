"""Test the oracle of the fuzzer against finite differences, and run a fixed number of cases."""

import functools
import json

import numpy as np
import pytest
from oracles import Problem, assert_close

from benchmarks import exact, exact_parts, fuzz, fuzz_cases

# Central differences with a step of 1e-5 in float64: truncation 1e-10, and rounding 1e-16 / 1e-5
# times sums of size 10.
STEP, DIFFERENCE_ERROR = 1e-5, 3e-8

# A program takes a second to compile, so only a few are tested, of every function.
CASES = 150
CHOSEN = tuple(
    fuzz.Signature(*args, **more)
    for *args, more in (
        ("batch_norm", "float32", {}),
        ("batch_norm", "bfloat16", {"layout": "images", "mask": "bool"}),
        ("batch_norm", "complex64", {"layout": "channels first", "mask": "weights"}),
        ("batch_norm", "float32", {"layout": "few rows", "mask": "weights", "names": "vmap"}),
        ("moments", "float32", {"layout": "images", "mask": "weights"}),
        ("ghost_batch_norm", "float32", {"parts": 20}),
        ("batch_renorm", "float16", {}),
        ("layer_norm", "float32", {"layout": "two axes"}),
        ("group_norm", "bfloat16", {"layout": "images", "parts": 2}),
        ("normalize", "float32", {"layout": "images"}),
        ("weight_norm", "float32", {}),
        ("whiten", "float32", {"parts": 2, "method": "zca"}),
    )
)

SHAPE, FEATURES, GROUPS = (4, 5, 3), 3, 2
SCALARS = ("epsilon", "momentum")


def arrays(dtype, seed=0):
    """Draw the arguments of training: devices in two groups, five examples each, three features."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        values = rng.normal(0.3, 1, shape)
        return values + 1j * rng.normal(size=shape) if dtype == "complex" else values

    return {
        "x": normal(*SHAPE),
        "mask": rng.uniform(0.2, 2, SHAPE),
        "scale": normal(FEATURES),
        "bias": normal(FEATURES),
        "mean": normal(FEATURES),
        "var": rng.uniform(0.5, 2, FEATURES),
        "epsilon": np.array(0.1),
        "momentum": np.array(0.7),
        "dy": normal(*SHAPE),
        "dmean": normal(GROUPS * FEATURES),
        "dvar": rng.normal(size=GROUPS * FEATURES),
    }


def pooled():
    """Number each value's statistic and feature."""
    feature = exact.numbered(SHAPE, (2,))
    return exact.numbered(SHAPE, (0,)) // 2 * FEATURES + feature, feature


def train(array):
    """Compute values and gradients with one ghost batch per device, the most labels possible."""
    labels, feature = pooled()
    own = exact.numbered(SHAPE, (0, 2))
    batch, whole = (
        exact_parts.Batch(array["x"], each, array["mask"], False) for each in (own, labels)
    )
    return exact.train(batch, whole, feature, np.arange(GROUPS * FEATURES) % FEATURES, array)


def moments(array):
    """Compute values and gradients of moments."""
    batch = exact_parts.Batch(array["x"], pooled()[0], array["mask"], False)
    return exact.moments(batch, array["dmean"], array["dvar"])


def weight_norm(array):
    """Compute values and gradients of weight norm."""
    return exact.weight_norm(array["x"], pooled()[1], array["scale"], array["dy"])


def layer_norm(array):
    """Compute values and gradients of layer norm."""
    batch = exact_parts.Batch(array["x"], exact.numbered(SHAPE, (0, 1)), np.ones(SHAPE))
    return exact.standardize(batch, pooled()[1], array)


def differences(function, array, name):
    """Differentiate sum(cotangent * value) with respect to one argument."""

    def loss(value):
        found = function({**array, name: value}).values
        terms = [
            array[f"d{key}"] * found[key].value for key in ("y", "mean", "var") if key in found
        ]
        return sum(term.sum().real for term in terms)

    value = array[name]
    out = np.zeros(value.shape, value.dtype)
    for index in np.ndindex(value.shape):
        for unit in (1, 1j) if np.iscomplexobj(value) else (1,):
            step = np.zeros(value.shape, value.dtype)
            step[index] = STEP * unit
            slope = (loss(value + step) - loss(value - step)) / (2 * STEP)
            out[index] += slope * np.conj(unit)  # Re(g dz)
    return out


@pytest.mark.parametrize("dtype", ["float", "complex"])
@pytest.mark.parametrize("function", [train, moments, weight_norm, layer_norm])
def test_gradient_is_finite_differences(function, dtype):
    array = arrays(dtype)
    found = function(array)
    assert found.gradients
    for name, known in found.gradients.items():
        if name not in ("mask", *array) or (name == "mask" and function is layer_norm):
            continue
        want = differences(function, array, name)
        assert_close(known.value.reshape(want.shape), want, DIFFERENCE_ERROR, name)
        # The size that errors are relative to is not excessive next to the largest entry.
        assert np.all(known.size <= 100 * np.abs(want).max())


def test_oracle_is_that_of_the_suite():
    array = arrays("float")
    mask = array["mask"] > 0.8
    labels = exact.numbered(SHAPE, (2,))
    array |= {"dmean": array["dmean"][:FEATURES], "dvar": array["dvar"][:FEATURES]}
    batch = exact_parts.Batch(array["x"], labels, mask.astype(float))
    found = exact.train(batch, batch, labels, np.arange(FEATURES), array)
    problem = Problem(
        **{name: array[name] for name in ("x", "scale", "bias", "mean", "var")},
        mask=mask,
        epsilon=float(array["epsilon"]),
        momentum=float(array["momentum"]),
    )
    y, (mean, var, _) = problem.forward()
    exactly = 1e-12
    for name, want in {"y": y, "mean": mean, "var": var}.items():
        assert_close(found.values[name].value, want, exactly, name)
    gradient = problem.gradient(array["dy"], array["dmean"], array["dvar"])
    for name in ("x", "scale", "bias", "mean", "var"):
        assert_close(found.gradients[name].value, gradient[name], exactly, name)
    for name in SCALARS:
        assert_close(found.gradients[name].value.sum(), gradient[name], exactly, name)


def test_renorm_without_a_limit_normalizes_by_the_running_statistics():
    array = arrays("float") | {"r_max": 1e9, "d_max": 1e9}
    labels, feature = pooled()
    batch = exact_parts.Batch(array["x"], labels, array["mask"], False)
    state_features = np.arange(GROUPS * FEATURES) % FEATURES
    found = exact.train(batch, batch, feature, state_features, array)
    xhat = (array["x"] - array["mean"]) / np.sqrt(array["var"] + array["epsilon"])
    assert_close(found.values["y"].value, xhat * array["scale"] + array["bias"], 1e-12)


def test_whitening_is_white():
    x = np.random.default_rng(0).normal(size=(50, 6)) @ np.random.default_rng(1).normal(size=(6, 6))
    for method in ("zca", "cholesky"):
        y = exact.whiten(x, 2, 1e-12, method).values["y"].value
        for part in (y[:, :3], y[:, 3:]):
            np.testing.assert_allclose(part.T @ part / 50, np.eye(3), atol=1e-8)


def seeds(count):
    """Return the first seeds that draw a chosen signature."""
    indices = {fuzz.SIGNATURES.index(signature) for signature in CHOSEN}
    chosen = (seed for seed in range(10**6) if seed % len(fuzz.SIGNATURES) in indices)
    return [next(chosen) for _ in range(count)]


def test_drawn_cases_are_within_their_bounds():
    findings = list(fuzz.search(seeds(CASES)))
    assert {finding.case for finding in findings} == set(seeds(CASES))
    if failed := fuzz.failures(findings):
        pytest.fail("\n".join(map(str, failed)), pytrace=False)


def test_a_case_is_drawn_again():
    for seed in seeds(20):
        first, second = fuzz.draw(seed), fuzz.draw(seed)
        assert first.signature == second.signature
        for name, value in first.arrays.items():
            assert value.tobytes() == second.arrays[name].tobytes()  # Bytes, because of NaN.


def test_a_wrong_number_is_found():
    case = fuzz.draw(seeds(1)[0])
    known = exact_parts.Known(np.ones(4), np.ones(4))
    right = np.ones(4, np.float32)
    wrong = np.array([1, 1, 1 + 1e-5, 1], np.float32)
    compare = functools.partial(fuzz.compare, case, ratio=1.0, constant=False)
    assert not compare("y", right, known).fails
    assert compare("y", wrong, known).fails
    assert compare("y", right * np.nan, known).fails
    # No bound applies.
    assert not compare("y", right * np.nan, known, ratio=1e7).fails
    assert not compare("y", right * np.nan, known, constant=True).fails
    assert compare("var", right * np.nan, known, constant=True).fails
    assert fuzz.failures([compare("y", wrong, known)])
    overflowing = exact_parts.Known(np.full(4, 1e39), np.full(4, 1e39))
    largest = np.full(4, 3e38, np.float32)
    assert not compare("var", largest, overflowing, must_be_finite=True).fails
    assert compare("var", largest * np.inf, overflowing, must_be_finite=True).fails


def test_fuzz_reports(tmp_path, monkeypatch):
    signature = fuzz.Signature("weight_norm", "float32")
    monkeypatch.setattr(fuzz_cases, "SIGNATURES", (signature,))
    fuzz.main(fuzz.Options(cases=20, output=tmp_path))
    assert json.loads((tmp_path / "fuzz.json").read_text())["failures"] == []
    assert "weight_norm float32" in (tmp_path / "fuzz.md").read_text()
    with pytest.raises(SystemExit) as ended:
        fuzz.main(fuzz.Options(case=3))
    assert not ended.value.code
    monkeypatch.setitem(fuzz.BOUNDS, "y", 0.0)
    with pytest.raises(SystemExit, match="exceed the bounds"):
        fuzz.main(fuzz.Options(cases=20, output=tmp_path))
    assert "--case" in json.loads((tmp_path / "fuzz.json").read_text())["failures"][0]
