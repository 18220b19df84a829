"""Intervals against scipy and simulation; verdicts from intervals."""

import numpy as np
import pytest
from scipy import stats

from experiments.stats import estimates, rules
from experiments.stats.rules import Check, Claim


def test_mean_is_scipys_t_interval():
    values = np.random.default_rng(0).normal(2, 3, 12)
    seen = estimates.mean(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose([seen.low, seen.high], expected, rtol=1e-12)
    assert seen.runs == 12
    assert seen.values == tuple(values)


def test_paired_removes_what_pairs_share():
    rng = np.random.default_rng(1)
    seed = rng.normal(0, 10, 8)
    ours, theirs = seed + 1 + rng.normal(0, 0.1, 8), seed + rng.normal(0, 0.1, 8)
    assert estimates.paired(ours, theirs).low > 0.5
    with pytest.raises(ValueError, match="in pairs"):
        estimates.paired([1.0, 2.0], [1.0])


def test_interval_covers_the_truth_in_95_percent():
    rng = np.random.default_rng(2)
    covered = [
        seen.low < 1 < seen.high
        for seen in (estimates.ratio(np.exp(rng.normal(0, 1, 6))) for _ in range(2000))
    ]
    assert 0.93 < np.mean(covered) < 0.97  # 2,000 trials: standard error .005


def test_share_is_wilsons():
    seen = estimates.share([True] * 8)
    np.testing.assert_allclose((seen.value, seen.low, seen.high), (1, 0.6756, 1), atol=1e-4)
    assert estimates.share([False] * 8).high == pytest.approx(1 - 0.6756, abs=1e-4)


@pytest.mark.parametrize("make", [estimates.mean, estimates.ratio])
@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf]])
def test_what_is_not_a_number_is_refused(make, values):
    with pytest.raises(ValueError, match="Expected"):
        make(values)


def test_equal_runs_leave_a_point():
    seen = estimates.mean([0.5, 0.5, 0.5])
    assert seen.low == seen.value == seen.high == 0.5


def test_json_and_back():
    seen = estimates.ratio([1.0, 2.0])
    assert estimates.from_json(estimates.to_json(seen)) == seen


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.1, 1.9, "shown"),
        (0.9, 1.9, "unclear"),
        (1.5, 2.5, "unclear"),
        (0.2, 0.9, "refuted"),
        (2.0, 3.0, "refuted"),
        (0.5, 3.0, "unclear"),
    ],
)
def test_outcome_looks_at_the_whole_interval(low, high, expected):
    check = rules.within("x", 1, 2, "x")
    estimate = estimates.Estimate((low + high) / 2, low, high, 5, "mean")
    assert rules.outcome(check, estimate) == expected


def test_no_verdict_from_too_few_runs():
    check = rules.above("x", 0, "x")
    assert rules.outcome(check, estimates.mean([1.0, 1.1])) == "not measured"
    assert rules.outcome(check, estimates.mean([1.0, 1.1, 1.0])) == "shown"
    assert rules.outcome(check, estimates.exact(1.0)) == "shown"
    assert rules.outcome(check, None) == "not measured"


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["shown", "shown"], "holds"),
        (["shown", "unclear"], "holds partly"),
        (["shown", "refuted"], "holds partly"),
        (["unclear", "refuted"], "does not hold"),
        (["refuted", "refuted"], "does not hold"),
        (["unclear", "unclear"], "not shown"),
        (["shown", "not measured"], "not measured"),
    ],
)
def test_verdict(outcomes, expected):
    assert rules.verdict(outcomes) == expected


@pytest.mark.parametrize(
    ("estimate", "bounds", "expected"),
    [
        (estimates.Estimate(7, 1.2, 34, 5, "ratio"), (1,), "7.0 (1.2 to 34.0)"),
        (estimates.Estimate(7, 0.96, 34, 5, "ratio"), (1,), "7.00 (0.96 to 34.00)"),
        (estimates.Estimate(7, 1.0, 34, 5, "ratio"), (1,), "7 (1 to 34)"),
        (estimates.exact(0.250004), (0.25,), "0.250004"),
        (estimates.exact(1234.6), (1232,), "1,235"),
    ],
)
def test_digits_tell_on_which_side_of_the_bound_it_lies(estimate, bounds, expected):
    assert estimates.format_estimate(estimate, bounds) == expected


def test_rules_read_as_they_are():
    assert rules.above("x", 0.5, "x").rule == "> 0.5"
    assert rules.below("x", 1e-6, "x").rule == "< 1e-06"
    assert rules.within("x", 99.9, 100.1, "x").rule == "between 99.9 and 100.1"
    assert Claim("a", ("000",), "A.", "gradients", (Check("x", "x"),)).correction == ""
