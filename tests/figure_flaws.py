"""Flaws of a figure, found in its SVG: code identifiers, missing titles, grids, legends."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"
LETTER = 0.5  # Approximate minimum width of a letter, relative to the font size.


def flaws(path: Path) -> list[str]:
    """List the flaws that no figure of a study should have.

    These are: a code identifier in its text; a panel without a title, if there are several panels;
    a grid drawn over the data; a legend over a panel or beyond the edge of the figure.
    """
    root = ET.parse(path).getroot()
    width, found = float(root.attrib["viewBox"].split()[2]), []
    panels = [g for g in _groups(root, "axes_") if _groups(g, "xtick_")]  # Not color bars.
    boxes = [_box(panel) for panel in panels]
    for text in root.iter(f"{SVG}text"):
        if "_" in "".join(text.itertext()):
            found.append(f"a name of the code: {''.join(text.itertext())}")
    for panel, (left, top, _, _) in zip(panels, boxes, strict=True):
        titles = [g for g in panel if g.get("id", "").startswith("text_") and _place(g)[1] < top]
        if len(panels) > 1 and not titles:
            found.append(f"a panel without a title, at {left:.0f}, {top:.0f}")
        # The background is drawn first, then the axes with the grid. Images have no grid.
        names = [g.get("id", "") for g in panel]
        is_image = panel.find(f".//{SVG}image") is not None
        if not is_image and not names[1].startswith("matplotlib.axis"):
            found.append(f"a grid before the data, at {left:.0f}, {top:.0f}")
    for legend in _groups(root, "legend_"):
        for g in _groups(legend, "text_"):
            x, y = _place(g)
            words = " ".join("".join(g.itertext()).split())
            if any(left < x < right and top < y < bottom for left, top, right, bottom in boxes):
                found.append(f"a legend over a panel: {words}")
            size = float(re.findall(r"font-size: ([\d.]+)px", ET.tostring(g, "unicode"))[0])
            letters = 0 if list(g.iter(f"{SVG}tspan")) else len(words)  # Unknown for a formula.
            if x < 0 or x + LETTER * size * letters > width:
                found.append(f"a legend beyond the edge: {words}")
    return found


def _groups(within: ET.Element, start: str) -> list[ET.Element]:
    return [g for g in within.iter(f"{SVG}g") if g.get("id", "").startswith(start)]


def _box(panel: ET.Element) -> tuple[float, float, float, float]:
    """Return the edges of a panel: left, top, right, bottom."""
    path = panel.find(f"{SVG}g/{SVG}path")
    assert path is not None
    x, y = zip(*re.findall(r"([\d.-]+) ([\d.-]+)", path.attrib["d"]), strict=True)
    return min(map(float, x)), min(map(float, y)), max(map(float, x)), max(map(float, y))


def _place(g: ET.Element) -> tuple[float, float]:
    """Return where a text begins: its own position, or for a formula that of its group."""
    for element in g.iter():
        if element.tag == f"{SVG}text" and "x" in element.attrib:
            return float(element.attrib["x"]), float(element.attrib["y"])
        moved = re.match(r"translate\(([\d.-]+) ([\d.-]+)\)", element.get("transform", ""))
        if moved:
            return float(moved[1]), float(moved[2])
    raise ValueError(f"Expected a text, got {ET.tostring(g, 'unicode')}.")
