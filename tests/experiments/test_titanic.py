"""Titanic: the test fold does not leak into training, and only the official file is accepted."""

import jax.numpy as jnp
import numpy as np
import pooch
import pytest

from experiments.studies.titanic import measure as titanic
from experiments.studies.titanic.config import Config
from experiments.tasks import titanic as titanic_data


def test_a_fold_is_imputed_and_scaled_by_its_training_rows_alone():
    rng = np.random.default_rng(0)
    features = rng.normal(5, 3, (40, 3))
    features[[1, 7, 30], 2] = np.nan
    train = np.arange(20)
    raw, standardized = titanic_data.raw_and_standardized(features, train)

    median = np.median(features[train, 2][~np.isnan(features[train, 2])])
    assert raw[1, 2] == raw[30, 2] == median
    np.testing.assert_array_equal(raw[:, :2], features[:, :2])
    np.testing.assert_allclose(standardized[train].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(standardized[train].std(0), 1, rtol=1e-12)
    features[20:] = 1e6
    np.testing.assert_array_equal(
        titanic_data.raw_and_standardized(features, train)[:, train],
        [raw[train], standardized[train]],
    )


def test_every_seed_tests_everyone_once_with_as_many_survivors_in_each_fold():
    survived = titanic_data.sample_passengers().survived
    splits = titanic_data.sample_folds(survived, seeds=2, folds=5)
    for seed in range(2):
        parts = splits[5 * seed : 5 * seed + 5]
        assert sorted(np.concatenate([test for _, test in parts])) == list(range(len(survived)))
        assert all(not set(train) & set(test) for train, test in parts)
        assert np.ptp([survived[test].sum() for _, test in parts]) <= 1
    assert not np.array_equal(splits[0][1], splits[5][1])


def test_padding_has_no_weight():
    made = titanic_data.sample_passengers(53)
    splits = titanic_data.sample_folds(made.survived, seeds=1, folds=5)
    split = titanic_data.stack_folds(made, splits)
    assert split.test.shape == split.weight.shape == (5, 11)
    assert split.weight.sum() == 53


def test_a_network_that_diverged_foretells_death():
    outputs = jnp.array([[jnp.nan], [jnp.nan], [3.0], [-3.0]])
    seen = titanic.correct(outputs, jnp.array([0, 1, 1, 1]))
    np.testing.assert_array_equal(seen, [True, False, True, False])


def test_numbers_are_of_the_final_epoch_and_paired_by_seed():
    config = Config(seeds=2, folds=2, epochs=3, more=6, watched=2)
    rng = np.random.default_rng(0)
    found = {name: rng.random((2, 2, 2, 6)) for name in titanic.METHODS}
    results = titanic.summarize(config, found, 1)
    one = found["batch"][1, :, 1]  # Second seed, standardized: (folds, epochs).
    np.testing.assert_allclose(results.accuracy["batch"][1], one[:, 2].mean())
    np.testing.assert_allclose(results.later["batch"][1], one[:, 5].mean())
    np.testing.assert_allclose(results.deviation["batch"][1], one[:, 1:3].std(1).mean())


def test_another_file_is_refused_before_it_is_parsed(tmp_path):
    (tmp_path / "titanic").mkdir()
    with pytest.raises(FileNotFoundError, match="--data-dir"):
        titanic_data.load(data_dir=tmp_path)
    (tmp_path / "titanic" / "titanic.csv").write_text("Survived,Pclass,Fare,Age\n1,1,7.5,\n")
    with pytest.raises(ValueError, match="sha256"):
        titanic_data.load(data_dir=tmp_path)


def test_an_empty_cell_is_missing(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('Survived,Pclass,Name,Age,Fare\n1,3,"Doe, Jane",,7.5\n0,1,"Roe",40,80\n')
    features, survived = titanic_data.parse(path)
    np.testing.assert_array_equal(features, [[3, 7.5, np.nan], [1, 80, 40]])
    np.testing.assert_array_equal(survived, [1, 0])


def test_without_a_network_the_error_says_what_to_do(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.delenv("JBN_DATA", raising=False)
    monkeypatch.setattr(pooch, "retrieve", unreachable)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path)
    with pytest.raises(FileNotFoundError, match="--source synthetic"):
        titanic_data.load()
