"""The report: the behavior of its pages in a real browser."""

import importlib.util
import re
import shutil

import pytest
from report_pages import HOSTILE, write_pages

from experiments.ledger import page as report
from experiments.ledger.claims import CLAIMS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
QUIET = (  # Keep the browser from using the network for its own purposes.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
in_browser = pytest.mark.skipif(
    not CHROMIUM or importlib.util.find_spec("playwright") is None,
    reason="needs Chromium and playwright",
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return write_pages(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield opened
        opened.close()


@pytest.fixture
def show(browser, pages):
    """Open pages; afterwards, check that there were no errors and that nothing was fetched."""
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
    page.go_back()  # Undoes all letters at once.
    page.wait_for_url("**#experiment=titanic&sort=-claim")
    assert page.input_value("#search") == ""
    page.go_back()
    page.go_back()
    page.wait_for_url(shared)
    assert page.locator("tbody.claim:visible").evaluate_all("r => r.map(x => x.id)") == seen
    # Invalid and missing values in the address fall back to the defaults.
    page.evaluate("location.hash = 'verdict=true&source=007&sort=constructor&lang=la&x=%zz'")
    page.wait_for_function("document.querySelectorAll('tbody.claim[hidden]').length === 0")
    assert page.input_value("#verdict") == ""
    assert page.evaluate("document.body.dataset.language") == "en"
    assert page.locator("th[aria-sort=none]").count() == len(report.COLUMNS)
    # A requested claim is visible whatever the filters; the title of a note keeps the view.
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
    assert page.locator(".wide:visible").count() == 0  # Shown once, in the open row.
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
    # In both languages, since there is no language switch.
    assert page.locator(".opener .en:visible").count() == len(CLAIMS)
    assert page.locator(".opener .ko:visible").count() == len(CLAIMS)
    assert page.locator(".control:visible").count() == 0
