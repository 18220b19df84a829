"""Selection of settings, and steps to a goal, on cases worked by hand."""

import numpy as np
import pytest

from experiments.stats import selection


def test_best_is_the_best_mean_over_seeds():
    scores = np.array([[0.9, 0.5], [0.8, 0.8], [0.1, 0.2]])
    assert selection.best(scores, "highest") == 1
    assert selection.best(scores, "lowest") == 2
    assert selection.best([scores, scores[::-1]], "highest").tolist() == [1, 1]
    assert selection.best(np.ones((3, 2)), "lowest") == 0  # The first of equal ones.


@pytest.mark.parametrize("which", ["highest", "lowest"])
@pytest.mark.parametrize("diverged", [np.nan, np.inf, -np.inf])
def test_a_setting_with_a_run_that_diverged_is_never_the_best(which, diverged):
    scores = np.array([[0.5, 0.5], [diverged, 0.5], [0.5, diverged]])
    assert selection.best(scores, which) == 0
    assert selection.best(scores[::-1], which) == 2


def test_at_best_chooses_by_validation_alone():
    validation = np.array([[[0.0, 0.6], [0.0, 0.6]], [[0.9, 0.9], [0.0, 0.4]]])  # Means .6, .65.
    test = np.array([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.1], [0.0, 0.2]]])
    best = selection.at_best({"validation": validation, "test": test})
    assert best["test"][:, -1].tolist() == [0.1, 0.2]


def test_steps_to_is_the_step_of_the_first_evaluation_at_the_goal():
    accuracy = [[0.1, 0.9, 0.5, 0.95], [0.95, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.89]]
    after = [50, 100, 150, 200]
    assert selection.steps_to(0.9, accuracy, after).tolist() == [100, 50, 200]
    before, steps = [[0.9, *row] for row in accuracy], [0, *after]
    assert selection.steps_to(0.9, before, steps).tolist() == [0, 0, 0]
    assert selection.steps_to([0.9, 0.99, 0.3], accuracy, after).tolist() == [100, 200, 150]


def test_steps_to_of_a_loss_falls_and_nan_reaches_nothing():
    losses = [[3.0, 2.0, 1.0], [3.0, np.nan, np.nan]]
    found = selection.steps_to(2.0, losses, [0, 10, 20], falling=True)
    assert found.tolist() == [10, 20]
    assert selection.steps_to(2.0, [[1.0, np.nan, 3.0]], [0, 10, 20]).tolist() == [20]
