"""The report: what its pages say, and how they behave in a real browser."""

import importlib.util
import re
import shutil

import pytest
from markupsafe import escape

from experiments import environment, plotting, run_dir
from experiments.__main__ import main
from experiments.ledger import collect as ledger
from experiments.ledger import page as report
from experiments.ledger.claims import CLAIMS
from experiments.ledger.interval_plot import interval_plot
from experiments.stats import estimates, rules
from experiments.study import Study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
QUIET = (  # Nothing here needs the network; a browser asks for it on its own account.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = """<script>alert("x")</script> & 'so' on"""

in_browser = pytest.mark.skipif(
    not CHROMIUM or importlib.util.find_spec("playwright") is None,
    reason="needs Chromium and playwright",
)


def finished(runs, name, estimate):
    """Make a finished run whose every number is `estimate(check)`."""
    config = importlib.import_module(f"experiments.studies.{name}.config").PRESETS["quick"]
    with run_dir.create(runs, name, config) as run:
        run_dir.keep_environment(run, environment.describe())
        study = Study(name, run, preset="quick")
        for claim in CLAIMS:
            for check in claim.checks if claim.experiment == name else ():
                study.report(check.metric, estimate(check))
        for figure in sorted({claim.figure for claim in CLAIMS if claim.experiment == name} - {""}):
            study.figure(figure, plotting.figure, title=HOSTILE, alt=f"Axes alone. {HOSTILE}")
        study.finish()
    return run.path


def inside(check):
    """Make an estimate that the check is shown by."""
    low, high = check.low, check.high
    value = (
        high - 1 if low == -float("inf") else low + 1 if high == float("inf") else (low + high) / 2
    )
    return estimates.exact(value)


def outside(check):
    value = check.high + 1 if check.high < float("inf") else check.low - 1
    return estimates.mean([value, value + 0.1, value + 0.2] if value > 0 else [value] * 3)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    finished(folder / "runs", "identities", inside)
    finished(folder / "runs", "titanic", outside)
    results = ledger.collect([folder / "runs"], kept=folder / "none")
    report.write(results, folder / "pages")
    return folder / "pages"


# ---- What the pages say --------------------------------------------------------------------------


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
    for page in pages.glob("*.html"):
        sources = re.findall(r'(?:src|href)="([^"]*)"', page.read_text())
        for source in sources:
            local = source.startswith(("data:", "#")) or (pages / source.partition("#")[0]).exists()
            assert local or source == "https://arxiv.org/abs/1502.03167", source


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
    """LEDGER.md, the kept summaries and the registry belong together."""
    results = ledger.collect([ledger.KEPT / "no runs"])
    assert set(results) == {claim.experiment for claim in CLAIMS}
    assert (ledger.KEPT.parent / "LEDGER.md").read_text() == report.as_markdown(results)
    for name, result in results.items():
        assert result.preset == "quick", name
    assert all(row.verdict != "not measured" for row in ledger.rows(results))
    names = {claim.figure for claim in CLAIMS if claim.figure}
    kept = {path.stem for path in ledger.KEPT.glob("*/*.png")}
    assert names <= kept


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


# ---- In a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield opened
        opened.close()


@pytest.fixture
def show(browser, pages):
    """Open a page; at the end nothing was complained of, and nothing fetched."""
    contexts, troubles = [], []

    def open_page(name="index.html", **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(dialog.message))
        page.on(
            "request",
            lambda asked: asked.url.startswith(("file:", "data:")) or troubles.append(asked.url),
        )
        page.goto((pages / name.partition("#")[0]).as_uri() + "#" + name.partition("#")[2])
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def visible(page):
    return page.locator("tbody.claim:visible").count()


@in_browser
def test_filters(show):
    from playwright.sync_api import expect

    page = show()
    assert visible(page) == len(CLAIMS)
    page.select_option("#verdict", "does not hold")
    titanic = sum(claim.experiment == "titanic" for claim in CLAIMS)
    assert visible(page) == titanic
    assert page.inner_text("#shown") == f"{titanic} of {len(CLAIMS)} claims"
    page.click("button[type=reset]")
    expect(page.locator("#shown")).to_have_text(f"{len(CLAIMS)} of {len(CLAIMS)} claims")
    page.select_option("#note", "003")
    assert visible(page) == sum("003" in claim.sources for claim in CLAIMS)
    page.select_option("#experiment", "identities")
    page.fill("#search", "glorot different")
    assert visible(page) == 1
    page.fill("#search", "no such words")
    assert visible(page) == 0
    assert page.is_visible("text=No claim fits these filters.")


@in_browser
def test_counts_filter_too(show):
    page = show()
    page.click("button.count.holds")
    assert visible(page) == sum(claim.experiment == "identities" for claim in CLAIMS)
    assert page.get_attribute("button.count.holds", "aria-pressed") == "true"
    page.click("button.count.holds")
    assert visible(page) == len(CLAIMS)


@in_browser
def test_headings_sort(show):
    page = show()

    def order(attribute):
        return page.eval_on_selector_all(
            "tbody.claim", f"claims => claims.map(claim => claim.dataset.{attribute})"
        )

    first = order("order")
    page.click("thead button[data-key=experiment]")
    assert order("experiment") == sorted(order("experiment"))
    assert page.get_attribute("th:has(button[data-key=experiment])", "aria-sort") == "ascending"
    page.click("thead button[data-key=experiment]")
    assert order("experiment") == sorted(order("experiment"), reverse=True)
    page.click("thead button[data-key=verdict]")
    assert order("verdict")[0] == "holds"
    assert order("verdict")[-1] == "not measured"
    page.click("thead button[data-key=claim]")
    assert order("order") == first


@in_browser
def test_row_opens_by_mouse_and_keyboard(show):
    page = show()
    detail = page.locator("#detail-titanic-accuracy")
    assert not detail.is_visible()
    page.locator("#titanic-accuracy .opener").click()
    assert detail.is_visible()
    image = detail.locator("img")
    assert image.evaluate("image => image.complete && image.naturalWidth > 100")
    assert HOSTILE in image.get_attribute("alt")
    page.locator("#titanic-accuracy .opener").focus()
    page.keyboard.press("Enter")
    assert not detail.is_visible()


@in_browser
def test_link_opens_its_row(show):
    page = show("index.html#titanic-epochs")
    assert page.locator("#detail-titanic-epochs").is_visible()
    page.locator("#titanic-epochs").get_by_role("link", name="titanic", exact=True).click()
    assert page.inner_text("h1") == "titanic"
    page.locator("#titanic-epochs h3 a").click()
    assert page.locator("#detail-titanic-epochs").is_visible()


@in_browser
@pytest.mark.parametrize("name", ["index.html#bessel", "titanic.html", "gradients.html"])
def test_phone_needs_no_scrolling_sideways(show, name):
    page = show(name, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@in_browser
def test_dark_and_light(show):
    def lightness(scheme):
        page = show(color_scheme=scheme)
        style = "getComputedStyle(document.body)"
        colors = page.evaluate(f"[{style}.color, {style}.backgroundColor]")
        return [sum(map(int, re.findall(r"\d+", color)[:3])) / 765 for color in colors]

    ink, paper = lightness("light")
    assert (ink < 0.3, paper > 0.9) == (True, True)
    ink, paper = lightness("dark")
    assert (ink > 0.8, paper < 0.2) == (True, True)


@in_browser
def test_every_image_has_a_text_and_every_control_a_name(show):
    for name in ("index.html", "titanic.html"):
        page = show(name)
        assert page.locator("img:not([alt])").count() == 0
        nameless = page.eval_on_selector_all(
            "button, select, input",
            "all => all.filter(one => !one.textContent.trim() && !one.labels?.length).length",
        )
        assert nameless == 0


@in_browser
def test_without_script_everything_is_open(show):
    page = show(java_script_enabled=False)
    assert page.locator("tr.detail:visible").count() == len(CLAIMS)
