"""Drift of a unit's inputs during training: which percentiles are tracked, from which step on."""

PERCENTILES = (15, 50, 85)
SETTLED = 1_000


def settled_from(last_step: int) -> int:
    """Return the step from which drift and spread are measured; before it, everything drifts."""
    return min(SETTLED, last_step // 2)
