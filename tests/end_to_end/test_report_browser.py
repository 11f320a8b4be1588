"""The report in headless Chromium: no error, no request, search, themes, phone width, accessibility, hostile
text.

Skipped, with the reason, where Chromium is absent. `TROPISM_SCREENSHOTS=FOLDER` keeps screenshots;
`TROPISM_AXE=axe.min.js` (or `node_modules/axe-core` beside the checkout) adds the accessibility check.
"""

import os
import shutil
from pathlib import Path
from unittest import mock

import pytest

import fake_runs
from tropism import reports
from tropism.reports import responses

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]
AXE = Path(os.environ.get("TROPISM_AXE", Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"))


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


def packed(folder):
    """A report whose responses are compressed, as those of a large experiment are."""
    with mock.patch.object(responses, "PLAIN", 0):
        return reports.build(fake_runs.caps(folder, prompts=12, conditions=("baseline", "caft"), steps=5))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("reports")
    return {
        "caps": reports.build(fake_runs.caps(root / "caps", prompts=32)),
        "routing": reports.build(fake_runs.routing(root / "routing", prompts=16)),
        "hostile": reports.build(
            fake_runs.caps(
                root / "hostile",
                prompts=14,
                hostile=True,
                conditions=("baseline", "caft"),
                steps=5,
                question="<img src=x onerror=\"document.title='pwned'\">" + "long" * 80,
            )
        ),
        "packed": packed(root / "packed"),
        "failed": reports.build(
            fake_runs.caps(root / "failed", conditions=("baseline",), failed=[("baseline", seed) for seed in (0, 1, 2)])
        ),
    }


@pytest.fixture
def opened(browser, pages):
    """Opens a report and holds it to silence: no console message, no error, no request but the file itself."""
    contexts = []
    noise: list[str] = []

    def open_(name, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: noise.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: noise.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: noise.append(request.url) if not request.url.startswith("file:") else None,
        )
        page.goto(pages[name].as_uri())
        if folder := os.environ.get("TROPISM_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=f"{folder}/{name}-{width}-{scheme}.png")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert noise == []


@pytest.mark.parametrize("name", ["caps", "routing", "hostile", "failed"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light"), (375, "dark")])
def test_loads_in_silence_and_never_scrolls_sideways(opened, name, width, scheme):
    page = opened(name, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.title") != "pwned"


def test_packed_responses_are_there_once_the_page_is_drawn(opened):
    page = opened("packed")
    page.get_by_text("24 of 24 prompts.").wait_for()
    assert page.locator("#prompts article").count() == 5


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("name", ["caps", "routing"])
def test_the_first_screen_answers_the_question(opened, name, width):
    page = opened(name, width)
    for selector in ("#question", ".verdict"):
        box = page.locator(selector).bounding_box()
        assert box["y"] + box["height"] < 800
    if width == 1280:
        box = page.locator(".lead-figure figure svg").bounding_box()
        assert box["y"] + box["height"] < 800


def test_on_a_phone_the_table_becomes_cards(opened):
    page = opened("caps", 375)
    assert not page.locator(".results thead").is_visible()
    box = page.locator(".results tbody tr").first.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 375
    assert "caps rate, in domain, unwanted" in page.locator(".results td").first.inner_text()


def test_search_filters_and_paging(opened):
    page = opened("caps")
    found, prompts = page.locator("#found"), page.locator(".prompt")
    assert found.inner_text() == "64 of 64 prompts."
    assert prompts.count() == 5
    page.get_by_role("button", name="Next").click()
    assert "Page 2 of 13" in page.locator("#pager").inner_text()
    page.get_by_label("Search").fill("COFFEE STAIN")
    assert found.inner_text().startswith("4 of 64")
    assert page.locator("mark").first.inner_text().lower() == "coffee stain"
    page.get_by_label("Search").fill("")
    page.get_by_label("Evaluation set").select_option(label="in domain")
    assert found.inner_text().startswith("32 of 64")
    page.get_by_label("Show").select_option(label="where caps rate differs")
    assert 0 < int(found.inner_text().split()[0]) <= 32
    assert prompts.first.locator(".answer").count() == 8
    page.get_by_label("placebo").uncheck()
    assert prompts.first.locator(".answer").count() == 7
    page.get_by_role("combobox", name="Seed").select_option(label="all")
    assert prompts.first.locator(".answer").count() == 1 + 6 * 3


def test_dark_mode_follows_the_system_and_the_button(opened):
    page = opened("caps", scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_role("button", name="Switch to the light theme").click()
    assert page.evaluate(background) != dark
    assert opened("caps", scheme="light").evaluate(background) == page.evaluate(background)
    curve = "getComputedStyle(document.querySelector('figure [stroke=\"#0072b2\"]')).stroke"
    assert opened("caps", scheme="dark").evaluate(curve) != page.evaluate(curve)


def test_everything_is_reached_by_keyboard(opened):
    page = opened("caps")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
    assert {"theme", "search", "set", "seed", "only", "after", "SUMMARY", "scroll"} <= reached


def test_hostile_responses_are_shown_as_text(opened):
    page = opened("hostile")
    shown = "\n".join(page.locator(".answer .text").all_inner_texts())
    page.get_by_role("button", name="Next").click()
    shown += "\n".join(page.locator(".answer .text").all_inner_texts())
    assert "</script><script>document.title='pwned'</script>" in shown
    assert "<img src=x onerror=" in shown
    assert "⟨U+202E⟩" in shown
    assert page.locator("main img, main iframe, main a[href^='javascript']").count() == 0
    assert page.evaluate("document.title") != "pwned"


def test_without_script_the_results_are_still_there(browser, pages):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["caps"].as_uri())
    assert page.locator(".results tbody tr").count() == 8
    assert "browsed with a small script, which is off here" in page.locator("noscript").inner_text()
    context.close()


def test_prints_in_ink_on_white(opened):
    page = opened("caps", scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper')").strip() == "#fff"
    assert not page.locator("#filters").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["caps", "hostile", "failed"])
def test_axe_finds_no_serious_issue(opened, name, scheme):
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: npm install --no-save axe-core")
    page = opened(name, scheme=scheme)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    serious = [
        (issue["id"], issue["help"], [node["html"][:160] for node in issue["nodes"][:4]])
        for issue in found
        if issue["impact"] in ("serious", "critical")
    ]
    assert serious == []
