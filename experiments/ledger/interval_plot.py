"""A small picture of a check: the measured interval and the bounds of its rule."""

import math

import markupsafe

from experiments.ledger.collect import Finding

WIDTH, HEIGHT, MARGIN = 320, 46, 0.12
FAR = 100  # Positive numbers that differ by more than this factor get a logarithmic scale.


def interval_plot(finding: Finding) -> markupsafe.Markup:
    """Draw a finding as SVG: shaded where the rule holds, dot and bar for value and interval."""
    check, estimate = finding.check, finding.estimate
    if estimate is None:
        return markupsafe.Markup("")
    bounds = [bound for bound in (check.low, check.high) if math.isfinite(bound)]
    numbers = [estimate.low, estimate.value, estimate.high, *bounds]
    logarithmic = min(numbers) > 0 and max(numbers) > FAR * min(numbers)
    scale = math.log10 if logarithmic else float
    first, last = scale(min(numbers)), scale(max(numbers))
    margin = MARGIN * (last - first) or 1

    def at(number: float) -> float:
        if math.isinf(number):
            return 0.0 if number < 0 else float(WIDTH)
        return (scale(number) - first + margin) / (last - first + 2 * margin) * WIDTH

    left, right = at(check.low), at(check.high)
    marks = "".join(
        f'<line class="bound" x1="{at(b):.1f}" x2="{at(b):.1f}" y1="4" y2="30"/>'
        f'<text x="{at(b):.1f}" y="43" text-anchor="{_anchor(at(b))}">{b:.4g}</text>'
        for b in bounds
    )
    label = f"{check.label}: {estimate.value:.4g}, rule {check.rule}, {finding.outcome}"
    svg = (
        f'<svg class="interval-plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="{label}">'
        f'<rect class="allowed" x="{left:.1f}" y="4" width="{right - left:.1f}" height="26"/>'
        f"{marks}"
        f'<line class="interval" x1="{at(estimate.low):.1f}" x2="{at(estimate.high):.1f}" y1="17" '
        f'y2="17"/><circle cx="{at(estimate.value):.1f}" cy="17" r="5"/></svg>'
    )
    return markupsafe.Markup(svg).format(label=label)


def _anchor(x: float) -> str:
    """Return the text anchor that keeps a number within the picture."""
    return "start" if x < WIDTH / 8 else "end" if x > WIDTH * 7 / 8 else "middle"
