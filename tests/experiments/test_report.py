"""The report: what its pages say, and how they behave in a real browser."""

import importlib.util
import re
import shutil
from collections import Counter

import pytest
from markupsafe import escape

from experiments import environment, plotting, run_dir
from experiments.__main__ import main
from experiments.docstrings import docstring, summary_line
from experiments.ledger import collect as ledger
from experiments.ledger import korean, sources
from experiments.ledger import page as report
from experiments.ledger.claims import CLAIMS
from experiments.ledger.interval_plot import interval_plot
from experiments.ledger.verdict_chart import verdict_chart
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
    """Links lead out, to what claims cite; nothing is fetched."""
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
    assert "<code>folds</code> of the cross-validation<" in page
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
    # The longest bar is as wide as the page; no verdict is told by its color alone.
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


def test_korean_stands_beside_english(pages):
    index = (pages / "index.html").read_text()
    for claim in CLAIMS:
        for text in korean.CLAIMS[claim.id]:
            assert not text or f'<span class="ko" lang="ko">{escape(text)}</span>' in index
    for verdict in ("holds", "does not hold"):
        pair = f'{verdict}</span> <span class="ko" lang="ko">{korean.VERDICTS[verdict]}</span>'
        assert pair in index


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
    page.select_option("#source", "003")
    assert visible(page) == sum("003" in claim.sources for claim in CLAIMS)
    page.select_option("#experiment", "identities")
    page.fill("#search", "glorot different")
    assert visible(page) == 1
    page.click("button[type=reset]")
    page.fill("#search", "Overfitting on a few images")  # The title of a study, not of a claim.
    assert visible(page) == 0
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
    assert page.inner_text("h1 code") == "titanic"
    page.locator("#titanic-epochs h3 a").click()
    assert page.locator("#detail-titanic-epochs").is_visible()


@in_browser
def test_address_holds_the_view_and_back_undoes_it(show):
    everything = len(CLAIMS)
    page = show("index.html#verdict=does+not+hold&source=001&sort=-claim&search=accuracy")
    shared, seen = (
        page.url,
        page.locator("tbody.claim:visible").evaluate_all("r => r.map(x => x.id)"),
    )
    assert 1 < len(seen) < everything
    assert seen == [claim.id for claim in reversed(CLAIMS) if claim.id in seen]
    page.click("button[type=reset]")
    page.wait_for_url("**/index.html#sort=-claim")
    page.select_option("#experiment", "titanic")
    page.fill("#search", "steadie")
    page.press("#search", "r")
    assert visible(page) == 1
    page.reload()
    assert visible(page) == 1
    assert page.input_value("#search") == "steadier"
    page.go_back()  # All letters at once.
    page.wait_for_url("**#experiment=titanic&sort=-claim")
    assert page.input_value("#search") == ""
    page.go_back()
    page.go_back()
    page.wait_for_url(shared)
    assert page.locator("tbody.claim:visible").evaluate_all("r => r.map(x => x.id)") == seen
    # What is named wrongly is as at first; so is what is not there.
    page.evaluate("location.hash = 'verdict=true&source=007&sort=constructor&lang=la&x=%zz'")
    page.wait_for_function("document.querySelectorAll('tbody.claim[hidden]').length === 0")
    assert page.input_value("#verdict") == ""
    assert page.evaluate("document.body.dataset.language") == "en"
    assert page.locator("th[aria-sort=none]").count() == len(report.COLUMNS)
    # A claim that is asked for is seen, whatever else is asked for; a note's title keeps the view.
    page.evaluate("location.hash = 'titanic-epochs&verdict=holds'")
    page.wait_for_selector("#detail-titanic-epochs", state="visible")
    page.select_option("#source", "001")
    count = visible(page)
    page.locator("tbody.claim:visible a[href='#source-001']").first.click()
    page.wait_for_url("**#source-001")
    assert visible(page) == count < everything


@in_browser
def test_language_is_chosen_and_kept_in_the_address(show):
    page = show()
    claim = page.locator("#titanic-accuracy .opener")
    english, korean_ = claim.locator(".en"), claim.locator(".ko")

    def seen():
        return english.is_visible(), korean_.is_visible()

    assert seen() == (True, False)
    page.get_by_label("한국어").focus()
    page.keyboard.press("Space")
    page.wait_for_url("**#lang=ko")
    assert seen() == (False, True)
    assert page.locator("#titanic-accuracy .verdict .ko").inner_text() == "성립하지 않음"
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**#lang=both")
    assert seen() == (True, True)
    page.go_back()
    page.wait_for_url("**#lang=ko")
    assert seen() == (False, True)
    page.locator("#titanic-accuracy").get_by_role("link", name="titanic", exact=True).click()
    page.wait_for_url("**/titanic.html#lang=ko")
    page.locator("#titanic-accuracy h3 a").click()
    page.wait_for_url("**/index.html#titanic-accuracy&lang=ko")
    assert page.locator("#detail-titanic-accuracy").is_visible()
    assert seen() == (False, True)


@in_browser
def test_paper_has_every_row_open_and_nothing_to_press(show):
    page = show("index.html#experiment=titanic", color_scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    titanic = sum(claim.experiment == "titanic" for claim in CLAIMS)
    assert page.locator("tr.detail:visible").count() == titanic
    assert page.locator("tr.detail:visible img[src^='data:']").count() == titanic
    assert page.locator(".control:visible").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    link = "document.querySelector('.sources a'), '::after'"
    assert "arxiv.org" in page.evaluate(f"getComputedStyle({link}).content")


@in_browser
@pytest.mark.parametrize("name", ["index.html#bessel", "titanic.html", "gradients.html"])
def test_phone_needs_no_scrolling_sideways(show, name):
    page = show(name, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator(".wide:visible").count() == 0  # Said once, where a row is open.
    page.set_viewport_size({"width": 800, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 800


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
    # In both languages, for there is no switch.
    assert page.locator(".opener .en:visible").count() == len(CLAIMS)
    assert page.locator(".opener .ko:visible").count() == len(CLAIMS)
    assert page.locator(".control:visible").count() == 0
