"""The overview chart: a bar for each source, stacked by verdict, as inline SVG."""

from collections import Counter
from collections.abc import Mapping, Sequence

import markupsafe

from experiments.ledger.collect import Row
from experiments.ledger.sources import SOURCES, Source

STEP, TEXT, BAR = 46, 15, 16  # In pixels: height per source, offset of its text, height of its bar.
# Fill patterns of the bars, in addition to colors: solid, hatched, dotted, crossed, empty.
TEXTURES = (
    '<rect width="8" height="8" fill="currentColor"/>',
    '<path d="M-2 2 2 -2 M0 8 8 0 M6 10 10 6" stroke="currentColor" stroke-width="3"/>',
    '<circle cx="4" cy="4" r="1.5" fill="currentColor"/>',
    '<path d="M0 0 8 8 M0 8 8 0" stroke="currentColor" stroke-width="2"/>',
    "",
)


def verdict_chart(
    rows: Sequence[Row], marks: Mapping[str, str], sources: Mapping[str, Source] = SOURCES
) -> markupsafe.Markup:
    """Draw the verdicts by source as SVG; bars scale with the page width, text keeps its size.

    A claim of several sources counts for each.

    Args:
      rows: the ledger.
      marks: all verdicts in order, with the sign of each.
      sources: the sources to draw bars for.
    """
    counts = {key: Counter[str]() for key in sources}
    for row in rows:
        for key in row.claim.sources:
            counts[key][row.verdict] += 1
    longest = max((count.total() for count in counts.values()), default=0) or 1
    names = {verdict: verdict.replace(" ", "-") for verdict in marks}
    patterns = "".join(
        f'<pattern id="bar-{names[verdict]}" class="{names[verdict]}" width="8" height="8" '
        f'patternUnits="userSpaceOnUse">{texture}</pattern>'
        for verdict, texture in zip(marks, TEXTURES, strict=True)
    )
    elements, summaries = [], []
    for index, (key, source) in enumerate(sources.items()):
        totals = {verdict: counts[key][verdict] for verdict in marks if counts[key][verdict]}
        top, left = index * STEP, 0.0
        title = f": {source.title}" if key.isdigit() else ""  # The paper's would not fit.
        numbers = " ".join(
            f'<tspan class="{names[verdict]}">{marks[verdict]} {number}</tspan>'
            for verdict, number in totals.items()
        )
        elements.append(
            markupsafe.Markup(
                '<text x="0" y="{y}"><tspan class="name">{label}</tspan>'
                '<tspan class="wide">{title}</tspan></text>'
                '<text x="100%" y="{y}" text-anchor="end">'
            ).format(y=top + TEXT, label=source.label, title=title)
            + markupsafe.Markup(f"{numbers}</text>")
        )
        for verdict, number in totals.items():
            width = 100 * number / longest
            elements.append(
                markupsafe.Markup(
                    f'<rect class="bar {names[verdict]}" x="{left:.2f}%" y="{top + TEXT + 6}" '
                    f'width="{width:.2f}%" height="{BAR}" fill="url(#bar-{names[verdict]})"/>'
                )
            )
            left += width
        words = ", ".join(f"{number} {verdict}" for verdict, number in totals.items())
        summaries.append(f"{source.label}: {words or 'no claims'}")
    svg = markupsafe.Markup(
        '<svg class="verdict-chart" width="100%" height="{height}" role="img" '
        'aria-labelledby="chart-title chart-text"><title id="chart-title">Verdicts by source'
        '</title><desc id="chart-text">{text}.</desc><defs>{patterns}</defs>{elements}</svg>'
    )
    return svg.format(
        height=len(sources) * STEP,
        text="; ".join(summaries),
        patterns=markupsafe.Markup(patterns),
        elements=markupsafe.Markup("").join(elements),
    )
