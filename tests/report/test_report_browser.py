"""The page in a real browser, light and dark, on a phone and on a desk: what people see of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from test_report_write import SECTIONS

from w4afp8 import report
from w4afp8.validate.findings import ValidationReport

CHROMIUM = browser.find()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page is looked at where there is one")

WIDTHS = (390, 1440)
SHOWN = """(() => {
  const seen = e => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0; };
  return {
    text: document.body.innerText,
    sections: [...document.querySelectorAll("section")].filter(seen).map(e => e.id),
    drawings: [...document.querySelectorAll("svg")].filter(seen).length,
    empty: [...document.querySelectorAll("svg")].filter(e => ![...e.querySelectorAll("path:not(.grid)")].some(
      p => p.getBBox().width > 0 || p.getBBox().height > 0)).map(e => e.getAttribute("aria-label")),
    width: document.documentElement.scrollWidth, window: window.innerWidth,
    wide: [...document.querySelectorAll("body *")].filter(e => seen(e) && !e.closest(".scroll, svg")
      && e.getBoundingClientRect().right > window.innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80)),
    small: [...document.querySelectorAll("p, td, dd, dt, span")].filter(e => seen(e) && e.innerText
      && parseFloat(getComputedStyle(e).fontSize) < 11).map(e => e.outerHTML.slice(0, 80)),
    page: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    scripts: document.scripts.length,
  };
})()"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    assert CHROMIUM
    with browser.start(CHROMIUM, tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture
def page(directory: Path, validation: ValidationReport, evaluation: dict[str, Any]) -> Path:
    return report.write(directory, validation=validation, evaluation=evaluation).html


def luminance(colour: str) -> float:
    """WCAG's relative luminance of an rgb() colour."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_shows_its_figures_and_nothing_else_happens(
    chromium: browser.Browser, page: Path, width: int, dark: bool
) -> None:
    chromium.open(page, width, dark)
    shown = chromium.ask(SHOWN)
    assert set(shown["sections"]) == SECTIONS and shown["drawings"] == 9 and shown["empty"] == []
    for number in ("1.5 MB", "4.25", "0.0127", "20.91", "25 %", "93.2 %", "65,536"):
        assert number in shown["text"], number
    for why in ("nearly all of the bytes", "FP8 already"):
        assert why in shown["text"], "why a class is quantized or not is read on a phone too"
    assert (shown["width"], shown["window"], shown["wide"]) == (width, width, []), "wider than the window"
    assert shown["small"] == [] and shown["scripts"] == 0
    paper, ink = luminance(shown["page"]), luminance(shown["ink"])
    assert (paper < ink) == dark and (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) > 7
    asked = [e["request"]["url"] for e in chromium.methods("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [page.resolve().as_uri()]
    complaints = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")
    assert chromium.methods(*complaints) == []


def test_these_checks_can_fail(chromium: browser.Browser, tmp_path: Path) -> None:
    """A page that does everything wrong is seen to."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><meta name='viewport' content='width=device-width, minimum-scale=1'>"
        "<div style='width:900px;font-size:5px'><p>x</p></div><svg></svg><script src='none.js'></script>"
        "<script>console.error('no')</script>"
    )
    chromium.open(bad, 390, False)
    shown = chromium.ask(SHOWN)
    assert (
        shown["empty"] == [None] and shown["width"] > 390 and shown["wide"] and shown["small"] and shown["scripts"] == 2
    )
    assert len(chromium.methods("Network.requestWillBeSent")) == 2
    assert chromium.methods("Runtime.consoleAPICalled") and chromium.methods("Network.loadingFailed")
