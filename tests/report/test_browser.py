"""The page in headless Chromium: no errors, no requests, no overflow on a phone, tables that open, paper."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxalign.run.report import report
from tests.report import runs

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SIZES = {"desk": (1280, 900), "tablet": (768, 1024), "phone": (375, 812)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser, where there is one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield instance
        instance.close()


@pytest.fixture(scope="module")
def page_path(full_run: Path, plain_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    names = (runs.MARKUP, '"><img src=x onerror=alert(1)>', "x" * 80)
    marked = runs.write_run(
        folder / "marked", names=names, system_prompt="<script>alert(2)</script>" + "y" * 200
    )
    report([full_run, plain_run, marked], folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def opened(browser: Any, page_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page at a size, with everything that went wrong."""
    width, height = SIZES[request.param]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.wrong = []
    page.on("console", lambda message: page.wrong.append(message.text))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("dialog", lambda dialog: (page.wrong.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda sent: page.wrong.append(sent.url) if not _local(sent.url) else None)
    page.goto(page_path.as_uri())
    yield page
    page.close()


def _local(url: str) -> bool:
    return url.startswith(("file:", "data:"))


every_size = pytest.mark.parametrize("opened", SIZES, indirect=True)


@every_size
def test_page_opens_without_a_complaint_a_request_or_a_dialog(opened):
    assert opened.wrong == []
    assert opened.locator("h1").inner_text() == "3 runs"


@every_size
def test_page_does_not_scroll_sideways(opened):
    for details in opened.locator("details").all():
        details.evaluate("element => element.open = true")
    width = opened.evaluate("document.documentElement.scrollWidth")
    assert width <= opened.viewport_size["width"]


@every_size
def test_each_figure_is_seen_once(opened):
    kinds = {kind: opened.locator(f".drawing.{kind}:visible").count() for kind in ("wide", "narrow")}
    assert sorted(kinds.values())[0] == 0
    assert sum(kinds.values()) > 40


@every_size
def test_smallest_text_of_a_figure_can_be_read(opened):
    sizes = opened.evaluate(
        """() => [...document.querySelectorAll("svg text")].filter(t => t.getClientRects().length)
        .map(t => parseFloat(t.getAttribute("font-size")) * t.ownerSVGElement.getBoundingClientRect().width
             / t.ownerSVGElement.viewBox.baseVal.width)"""
    )
    assert len(sizes) > 500
    assert min(sizes) >= 9.5


@pytest.mark.parametrize("opened", ["desk"], indirect=True)
def test_texts_of_a_figure_do_not_lie_on_each_other(opened):
    overlaps = opened.evaluate(
        """() => {
          const bad = [];
          for (const svg of document.querySelectorAll(".wide svg")) {
            const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
            for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
              const [a, b] = [boxes[i][1], boxes[j][1]];
              const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
              const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
              if (x > 2 && y > 5) bad.push([svg.getAttribute("aria-label"), boxes[i][0], boxes[j][0]]);
            }
          }
          return bad;
        }"""
    )
    assert overlaps == []


@pytest.mark.parametrize("opened", ["phone"], indirect=True)
def test_table_of_a_figure_opens(opened):
    details = opened.locator("details").first
    assert details.locator("table").is_hidden()
    details.locator("summary").click()
    assert details.locator("table").is_visible()


@pytest.mark.parametrize("opened", ["desk"], indirect=True)
def test_paper_has_wide_figures_and_no_closed_tables(opened):
    opened.emulate_media(media="print")
    assert opened.locator(".drawing.wide:visible").count() > 40
    assert opened.locator("nav").is_hidden()
    assert opened.locator("details").first.is_hidden()


@pytest.mark.parametrize("opened", ["desk"], indirect=True)
def test_dark_page_has_dark_paper(opened):
    opened.emulate_media(color_scheme="dark")
    assert opened.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(21, 24, 27)"
    opened.emulate_media(color_scheme="dark", media="print")
    assert (
        opened.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    )
