"""The report: the content of its pages."""

import re
from collections import Counter

import pytest
from markupsafe import escape
from report_pages import outside, write_pages

from experiments.__main__ import main
from experiments.docstrings import docstring, summary_line
from experiments.ledger import collect as ledger
from experiments.ledger import korean, sources
from experiments.ledger import page as report
from experiments.ledger.claims import CLAIMS
from experiments.ledger.interval_plot import interval_plot
from experiments.ledger.verdict_chart import verdict_chart
from experiments.stats import estimates, rules


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return write_pages(tmp_path_factory.mktemp("report"))


def test_every_claim_has_its_row_and_every_experiment_its_page(pages):
    index = (pages / "index.html").read_text()
    for claim in CLAIMS:
        assert f'id="{claim.id}"' in index
        assert escape(claim.text) in index
        page = (pages / f"{claim.experiment}.html").read_text()
        assert f'id="{claim.id}"' in page


def test_rows_carry_value_rule_outcome_and_command(pages):
    index = (pages / "index.html").read_text()
    claim = next(claim for claim in CLAIMS if claim.id == "titanic-accuracy")
    row = index[index.index(f'id="{claim.id}"') :]
    row = row.partition("Link to this claim")[0]
    for check in claim.checks:
        assert escape(check.label) in row
        assert escape(check.rule) in row
        assert estimates.format_estimate(outside(check)) in row
    assert row.count(">refuted<") == len(claim.checks)
    assert "python -m experiments titanic --preset quick" in row
    assert "expected 0.063, differs by" in row


def test_what_was_not_run_says_so(pages):
    page = (pages / "gradients.html").read_text()
    assert "Not run yet." in page
    assert "not measured" in page


def test_text_from_results_is_escaped(pages):
    for page in pages.glob("*.html"):
        assert '<script>alert("x")' not in page.read_text()
    assert "&lt;script&gt;alert" in (pages / "titanic.html").read_text()


def test_pages_need_nothing_from_outside(pages):
    """Pages link to the sources of claims, but fetch nothing."""
    known = {found.source.address for claim in CLAIMS for found in sources.citations(claim)}
    known |= {source.address for source in sources.SOURCES.values()}
    for page in pages.glob("*.html"):
        text = page.read_text()
        for tag, source in re.findall(r'<(\w+)[^>]*? (?:src|href)="([^"]*)"', text):
            local = source.startswith(("data:", "#")) or (pages / source.partition("#")[0]).exists()
            assert local or (tag == "a" and source in known), source
        assert not re.search(r"@import|url\((?!#)", text)


def test_sources_lead_where_a_claim_comes_from(pages):
    index = (pages / "index.html").read_text()

    def cell(id):
        row = index[index.index(f'<tbody class="claim" id="{id}"') :]
        return row[row.index('<td data-label="source">') :].partition("</td>")[0]

    assert 'href="#source-000" title="note 000: Gradient Vanishing' in cell("bias-redundant")
    assert 'href="https://arxiv.org/html/1502.03167v3#S3.SS2"' in cell("bias-redundant")
    assert "Yang et al., 2019</a>" in cell("bn-relu-growth")
    for key, source in sources.SOURCES.items():
        legend = index[index.index(f'id="source-{key}"') :].partition("</li>")[0]
        assert escape(source.title) in legend
    assert 'lang="ko">Gradient Vanishing / Exploding 문제</cite>' in index


def test_sections_and_later_works_are_those_that_the_studies_name():
    assert set(sources.SECTION_OF_CLAIM) | set(sources.LATER_OF_CLAIM) <= {c.id for c in CLAIMS}
    for claim in CLAIMS:
        assert claim.sources
        text = " ".join(docstring(claim.experiment).split()).replace("3.1 to 3.3", "3.1, 3.2, 3.3")
        for key, source in sources.citations(claim):
            if key == "paper":
                section = source.label.removeprefix("paper, section ")
                assert re.search(rf"\b{re.escape(section)}\b", text), claim.id
            if source in sources.LATER.values():
                assert claim.sources.count("later") == 1
                author, year = re.split(r" et al\., | & .*, |, ", source.label)
                assert author in text, claim.id
                assert year in text, claim.id


def test_names_stand_beside_words(pages):
    index = (pages / "index.html").read_text()
    page = (pages / "titanic.html").read_text()
    summary = escape(summary_line("titanic").rstrip("."))
    row = index[index.index('<tbody class="claim" id="titanic-accuracy"') :]
    assert f'>titanic</a><br><small class="wide about">{summary}</small>' in row
    assert f'<option value="titanic">titanic: {summary}</option>' in index
    assert f"<h1>{summary} <code>titanic</code></h1>" in page
    assert "<code>folds</code> number of folds of the cross-validation<" in page
    label = next(claim for claim in CLAIMS if claim.id == "titanic-accuracy").checks[0].label
    assert f"<tr><td>{label} <code>gain_raw_relu</code></td>" in page


def test_a_number_says_what_it_rests_on(pages):
    index = (pages / "index.html").read_text()
    number = index[index.index('<tbody class="claim" id="titanic-accuracy"') :]
    number = number[number.index('data-label="measured"') :].partition("</td>")[0]
    assert re.search(r'; 3 runs<span class="wide">; preset quick</span></small>', number)


def test_chart_counts_every_source_and_tells_it_in_words():
    rows = ledger.rows(ledger.collect([ledger.KEPT / "no runs"]))
    drawn = str(verdict_chart(rows, report.MARKS))
    for key, source in sources.SOURCES.items():
        mine = [row.verdict for row in rows if key in row.claim.sources]
        told = [f"{mine.count(verdict)} {verdict}" for verdict in report.MARKS if verdict in mine]
        assert f"{source.label}: {', '.join(told)}" in drawn
    # The longest bar is as wide as the page, and no verdict is shown by color alone.
    bars = re.findall(r'<rect class="bar [\w-]+" x="([\d.]+)%".*?width="([\d.]+)%"', drawn)
    assert max(float(x) + float(width) for x, width in bars) == pytest.approx(100, abs=0.05)
    textures = re.findall(r'<pattern id="bar-[\w-]+".*?>(.*?)</pattern>', drawn)
    assert len(set(textures)) == len(report.MARKS)


def test_chart_of_nothing_says_so():
    drawn = verdict_chart([], report.MARKS, {"x": sources.Source("<b>", "title")})
    assert "&lt;b&gt;: no claims" in drawn


def test_markdown_has_every_claim_and_its_verdict(pages):
    results = ledger.collect([pages.parent / "runs"], kept=pages.parent / "none")
    text = report.as_markdown(results)
    rows = [
        line for line in text.splitlines() if (line.startswith("| ") and "✓" in line) or "✗" in line
    ]
    assert len(rows) == sum(claim.experiment in ("identities", "titanic") for claim in CLAIMS)
    assert all(re.search(r"(?<!\\)\|.*" * 5, row) for row in rows)


def test_without_runs_the_kept_results_are_shown(tmp_path, monkeypatch, capsys):
    assert ledger.KEPT.is_dir()
    assert main(["report", "--runs", str(tmp_path / "none"), "--to", str(tmp_path / "out")]) == 0
    assert "report:" in capsys.readouterr().out
    monkeypatch.setattr(ledger.collect, "__defaults__", (tmp_path / "nothing",))
    assert main(["report", "--runs", str(tmp_path / "none"), "--to", str(tmp_path / "out")]) == 2
    assert "Make them with: python -m experiments all" in capsys.readouterr().err


def test_kept_ledger_is_that_of_the_kept_results():
    """LEDGER.md, the stored summaries and the registry agree."""
    results = ledger.collect([ledger.KEPT / "no runs"])
    assert set(results) == {claim.experiment for claim in CLAIMS}
    assert (ledger.KEPT.parent / "LEDGER.md").read_text() == report.as_markdown(results)
    for name, result in results.items():
        assert result.preset == "quick", name
    assert all(row.verdict != "not measured" for row in ledger.rows(results))
    names = {claim.figure for claim in CLAIMS if claim.figure}
    kept = {path.stem for path in ledger.KEPT.glob("*/*.png")}
    assert names <= kept


def test_readme_says_what_the_kept_ledger_says():
    results = ledger.collect([ledger.KEPT / "no runs"])
    verdicts = Counter(row.verdict for row in ledger.rows(results))
    readme = " ".join((ledger.KEPT.parents[2] / "README.md").read_text().split())
    assert (
        f"{verdicts['holds']} hold, {verdicts['holds partly']} hold partly, "
        f"{verdicts['does not hold']} do not, {verdicts['not shown']} are not shown" in readme
    )
    seconds = sum(sum(result.summary["seconds"].values()) for result in results.values())
    assert f"measure all of it again: {seconds / 60:.0f} minutes" in readme


@pytest.mark.parametrize(
    ("estimate", "inside"),
    [
        (estimates.mean([0.5, 0.6, 0.7]), True),
        (estimates.mean([1.5, 1.6, 1.7]), False),
        (estimates.exact(0.0), True),
        (estimates.Estimate(1e-9, 1e-10, 1e-8, 5, "ratio"), True),
    ],
)
def test_interval_plot_draws_the_value_where_the_rule_says(estimate, inside):
    check = rules.below("x", 1, 'so-called "x" {0}')
    drawn = str(interval_plot(ledger.Finding(check, estimate, rules.outcome(check, estimate))))
    left, width = map(float, re.search(r'<rect.* x="(.+?)".* width="(.+?)"', drawn).groups())
    x = float(re.search(r'<circle cx="([^"]+)"', drawn)[1])
    assert (left <= x <= left + width) == inside
    assert 0 <= x <= 320
    assert "so-called &#34;x&#34; {0}" in drawn


def test_korean_stands_beside_english(pages):
    index = (pages / "index.html").read_text()
    for claim in CLAIMS:
        for text in korean.CLAIMS[claim.id]:
            assert not text or f'<span class="ko" lang="ko">{escape(text)}</span>' in index
    for verdict in ("holds", "does not hold"):
        pair = f'{verdict} </span><wbr><span class="ko" lang="ko">{korean.VERDICTS[verdict]}</span>'
        assert pair in index


def test_the_numbers_of_a_claim_stand_by_its_figure(tmp_path):
    """The experiment's page shows value and interval of every number in the claim's rule."""
    results = ledger.collect([ledger.KEPT / "no runs"])
    report.write(results, tmp_path)
    for claim in CLAIMS:
        page = (tmp_path / f"{claim.experiment}.html").read_text()
        result = results[claim.experiment]
        for figure in result.summary["figures"]:
            by_figure = page[page.index(f"<figcaption>{escape(figure['title'])} <small>") :]
            by_figure = by_figure.partition("</figure>")[0]
            told = f'<dt><a href="#{claim.id}">' in by_figure
            assert told == (figure["file"] == f"{claim.figure}.png"), claim.id
            for finding in ledger.judge(claim, result.estimates).findings if told else ():
                number = f"<dd>{escape(finding.check.label)}: <b>{finding.number}</b></dd>"
                assert number in by_figure, claim.id
