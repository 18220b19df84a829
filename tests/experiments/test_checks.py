"""Options: every study refuses invalid ones in one line."""

import dataclasses
import importlib
import json
from typing import Literal

import pytest

from experiments.__main__ import EXPERIMENTS
from experiments.checks import check, check_divides, check_types, did_you_mean

CONFIGS = {
    name: importlib.import_module(f"experiments.studies.{name}.config") for name in EXPERIMENTS
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of all types."""

    steps: int = 10
    rate: float = 0.1
    hidden: tuple[int, ...] = (3, 4)
    strengths: tuple[float, float] = (0.1, 0.2)
    dataset: Literal["mnist", "digits"] = "mnist"
    methods: tuple[str, ...] = ("none",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "`steps` to be at least 1, got 0"),
        ({"rate": 0.0}, "`rate` to be positive and finite, got 0.0"),
        ({"rate": float("nan")}, "`rate` to be positive and finite, got nan"),
        ({"rate": float("inf")}, "`rate` to be positive and finite, got inf"),
        ({"hidden": ()}, "at least one value in `hidden`"),
        ({"hidden": (3, 0)}, "`hidden` to be at least 1, got 0"),
        ({"strengths": (1.0, -0.5)}, "`strengths` to be positive and finite, got -0.5"),
        ({"steps": True}, "`steps` of type int, got True"),
        ({"steps": 2.5}, "`steps` of type int, got 2.5"),
        ({"rate": "fast"}, "`rate` of type float, got 'fast'"),
        ({"hidden": 3}, "`hidden` of type .*, got 3"),
        ({"strengths": (0.1,)}, "`strengths` of type"),
        ({"dataset": "mnits"}, "`dataset` of type"),
        ({"methods": (1,)}, "`methods` of type"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check(Config(**options))


def test_bounds_of_a_field():
    check(Config())
    check_types(Config(rate=1))  # JSON may store it as an int.
    check(Config(rate=0.0), rate="[0, 1)")
    for value, bounds in ((1.0, "[0, 1)"), (-0.1, "[0, 1)"), (0.0, "(0, 1]")):
        with pytest.raises(ValueError, match=r"`rate` in [\[(]0, 1"):
            check(Config(rate=value), rate=bounds)
    check(Config(rate=-5.0), rate="(-inf, inf)")
    with pytest.raises(ValueError, match="`rate` to be finite, got inf"):
        check(Config(rate=float("inf")), rate="(-inf, inf)")
    with pytest.raises(ValueError, match="`steps` to be at least 20, got 10"):
        check(Config(), steps="[20, inf)")
    with pytest.raises(ValueError, match="`steps` to divide 25"):
        check_divides("steps", "rate", Config(rate=25))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_study_refuses_numbers_that_cannot_be(name):
    config = CONFIGS[name].PRESETS["quick"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        wrong = [] if isinstance(value, str) else [-1e9, float("nan"), "x"]
        for one in wrong:
            given = (one,) * len(value) if isinstance(value, tuple) else one
            if (name, field.name, one) in ALLOWED:
                continue
            with pytest.raises(ValueError, match=field.name):
                dataclasses.replace(config, **{field.name: given})


ALLOWED = {
    ("inference", "brightness", -1e9),
    ("inference", "degrees", -1e9),
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mnist_mlp", {"momentum": 1.5}),
        ("titanic", {"momentum": 1.0}),
        ("titanic", {"folds": 1}),
        ("inception", {"dropout": 1.0}),
        ("regularization", {"flips": (0.4, 1.5)}),
        ("batch_size", {"small": (1, 8)}),
        ("batch_size", {"small_methods": ("none", "batch")}),
        ("batch_size", {"huge_methods": ("none", "batch", "ghost", "instance")}),
        ("batch_size", {"huge": (64,)}),
        ("batches", {"sizes": (2, 2)}),
        ("transfer", {"goal": 1.1}),
        ("learning_rate", {"plateau_every": 300}),
        ("recurrent", {"looks": 3}),
    ],
)
def test_shares_and_divisors(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        dataclasses.replace(CONFIGS[name].PRESETS["quick"], **options)


def test_every_preset_is_of_the_types_that_it_says():
    """Also when read from a file, as `--resume` does."""
    from experiments import run_dir

    for study in CONFIGS.values():
        for config in study.PRESETS.values():
            again = run_dir.to_config(
                study.Config, json.loads(json.dumps(dataclasses.asdict(config)))
            )
            check_types(again)
            assert again == config


def test_near_names_are_asked_for():
    assert did_you_mean("MNIST_mpl", EXPERIMENTS) == " Did you mean mnist_mlp?"
    assert did_you_mean("zzz", EXPERIMENTS) == ""
