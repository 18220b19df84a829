"""How a verdict follows from the measurements, by a rule written down beforehand.

A claim has one or more checks. A check compares one measured number with a bound: it is *shown* if
the whole interval lies on the claim's side of the bound, *refuted* if the whole interval lies on
the other side, and *unclear* otherwise. The claim holds if all its checks are shown, and holds
partly if some are. If none is shown, it does not hold if at least one is refuted, and is not shown
if all are unclear. Fewer than three runs give no verdict.
"""

import math
from typing import Literal, NamedTuple

from experiments.stats.estimates import Estimate

MINIMUM_RUNS = 3

HOLDS, PARTLY, UNSHOWN = "holds", "holds partly", "not shown"
FAILS, UNMEASURED = "does not hold", "not measured"
Verdict = Literal["holds", "holds partly", "not shown", "does not hold", "not measured"]
Outcome = Literal["shown", "refuted", "unclear", "not measured"]


class Check(NamedTuple):
    """One comparison: the number `metric` lies strictly between `low` and `high`.

    - metric: name of the number in the experiment's results.
    - label: what the number is, with its unit.
    - low, high: the bounds, infinite if there is none.
    - expected: result of an earlier reference run or of exact arithmetic; None if unknown.
    """

    metric: str
    label: str
    low: float = -math.inf
    high: float = math.inf
    expected: float | None = None

    @property
    def bounds(self) -> tuple[float, ...]:
        """Return the finite bounds."""
        return tuple(bound for bound in (self.low, self.high) if math.isfinite(bound))

    @property
    def rule(self) -> str:
        """Write the comparison."""
        if self.low == -math.inf:
            return f"< {self.high:.5g}"
        if self.high == math.inf:
            return f"> {self.low:.5g}"
        return f"between {self.low:.5g} and {self.high:.5g}"


def above(metric: str, bound: float, label: str, *, expected: float | None = None) -> Check:
    """Check that a number is larger than a bound."""
    return Check(metric, label, low=bound, expected=expected)


def below(metric: str, bound: float, label: str, *, expected: float | None = None) -> Check:
    """Check that a number is smaller than a bound."""
    return Check(metric, label, high=bound, expected=expected)


def within(
    metric: str, low: float, high: float, label: str, *, expected: float | None = None
) -> Check:
    """Check that a number lies between two bounds."""
    return Check(metric, label, low=low, high=high, expected=expected)


class Claim(NamedTuple):
    """A row of the ledger.

    - id: short and unique, with hyphens.
    - sources: who makes it: notes by number, such as "000", "paper" or "later".
    - text: the claim as its authors make it, in English.
    - experiment: name of the experiment that measures it.
    - checks: the rule; the claim holds if all checks are shown.
    - correction: what to say instead or in addition, known beforehand from the paper or from
      arithmetic.
    - figure: name of the figure that shows it; empty if only numbers do.
    """

    id: str
    sources: tuple[str, ...]
    text: str
    experiment: str
    checks: tuple[Check, ...]
    correction: str = ""
    figure: str = ""


def outcome(check: Check, estimate: Estimate | None) -> Outcome:
    """Compare one number with its bounds.

    Example:
      >>> from experiments.stats import estimates
      >>> from experiments.stats import rules
      >>> rules.outcome(rules.above("gain", 0, "points"), estimates.mean([0.9, 1.0, 1.1]))
      'shown'
      >>> rules.outcome(rules.above("gain", 0, "points"), estimates.mean([-1.0, 1.0, 1.1]))
      'unclear'
    """
    if estimate is None or 0 < estimate.runs < MINIMUM_RUNS:
        return "not measured"
    if check.low < estimate.low and estimate.high < check.high:
        return "shown"
    if estimate.high <= check.low or check.high <= estimate.low:
        return "refuted"
    return "unclear"


def verdict(outcomes: list[Outcome]) -> Verdict:
    """Draw the verdict on a claim from the outcomes of its checks.

    Example:
      >>> from experiments.stats import rules
      >>> rules.verdict(["shown", "refuted"]), rules.verdict(["refuted", "unclear"])
      ('holds partly', 'does not hold')
      >>> rules.verdict(["unclear", "unclear"])
      'not shown'
    """
    if "not measured" in outcomes:
        return UNMEASURED
    shown = outcomes.count("shown")
    if shown == len(outcomes):
        return HOLDS
    if shown:
        return PARTLY
    return FAILS if "refuted" in outcomes else UNSHOWN
