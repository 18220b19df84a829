"""What the Sphinx extensions produce, without a build: names, signatures, links and numbers."""

import re
from pathlib import Path

import docstrings
import outside_links
import public_names
import pytest
import results
import signatures

import jbn
import jbn.linen
import jbn.models
import jbn.nnx

DOCS = Path(__file__).parents[2] / "docs"


def test_every_public_name_has_an_entry_and_no_other_has():
    entries = []
    for page in (DOCS / "api").glob("*.rst"):
        entries += re.findall(r"^\.\. auto\w+:: (\S+)$", page.read_text(), re.MULTILINE)
    named = [name for module in public_names.MODULES for name in public_names.public_names(module)]
    assert len(named) > 80
    assert sorted(set(entries) - {"jbn.diagnostics", "jbn.models.units.unit"}) == sorted(named)
    assert len(entries) == len(set(entries))


def test_signatures_are_as_they_are_written_without_shapes():
    node = signatures.definition(jbn.batch_norm)
    arguments, returns = signatures.of_function(node, bound=False)
    assert arguments.startswith("(x: ArrayLike, params: jbn.BatchNormParams, state: ")
    assert "momentum: ArrayLike | Schedule=0.99" in arguments
    assert returns == "tuple[Array, jbn.BatchNormState | None]"
    fields = signatures.of_class(jbn.BatchNormState)
    assert fields == "(mean: Array, var: Array, count: Array)"


@pytest.mark.parametrize("kind", [jbn.linen.BatchNorm, jbn.nnx.BatchNorm, jbn.models.MLP])
def test_a_layer_is_shown_by_what_makes_it(kind):
    shown = signatures.of_class(kind)
    assert "self" not in shown
    assert "parent" not in shown
    assert "param_dtype: Any" in shown


def test_formulas_in_docstrings_are_no_markup():
    assert docstrings.escaped("sum |w x|, 2 * x") == r"sum \|w x\|, 2 \* x"
    assert docstrings.escaped("*biased* `a | b`") == "*biased* `a | b`"
    lines = ["Sum |x|.", "", "Example:", "  >>> f(**options) | 1"]
    docstrings.process(None, "function", "f", None, None, lines)
    assert lines == [r"Sum \|x\|.", "", "Example:", "  >>> f(**options) | 1"]


def test_arguments_on_one_line_are_entries_of_their_own():
    lines = ["Do it.", "", "Args:", "  count: how many. momentum: the weight, etc. so: no."]
    docstrings.process(None, "function", "f", lambda count, momentum: None, None, lines)
    assert lines[-2:] == ["  count: how many.", "  momentum: the weight, etc. so: no."]


def test_links_out_of_the_pages_are_written_out(monkeypatch):
    text = "[notes](../benchmarks/NOTES.md), [here](devices.md#hosts), ![x](../y.png)"
    monkeypatch.setattr(outside_links, "ADDRESS", {})
    written = outside_links.rewritten(text, DOCS)
    assert written == "notes (`benchmarks/NOTES.md`), [here](devices.md#hosts), ![x](../y.png)"
    monkeypatch.setattr(outside_links, "ADDRESS", {"repository": "https://example.org/jbn"})
    assert "(https://example.org/jbn/blob/main/benchmarks/NOTES.md)" in outside_links.rewritten(
        text, DOCS
    )


def test_numbers_and_settings_are_read_from_results():
    assert re.fullmatch(r"−0\.\d+ \(−0\.\d+ … −0\.\d+\)", results.number("batch_size/bn_2"))
    assert re.fullmatch(r"MNIST, preset \w+, \d+ seeds", results.setting("batch_size", "en"))
    assert re.fullmatch(r"MNIST, \w+ 프리셋, 시드 \d+개", results.setting("batch_size", "ko"))
    with pytest.raises(ValueError, match="Expected a number"):
        results.number("batch_size/no_such")
    with pytest.raises(ValueError, match="Expected a study"):
        results.number("no_such/number")


def test_the_gallery_has_every_figure():
    written = results.gallery()
    figures = sorted((DOCS / "results" / "ledger").glob("*/*.png"))
    assert figures
    for figure in figures:
        assert f"results/ledger/{figure.parent.name}/{figure.name}" in written
    assert written.count(":alt:") == len(figures)
