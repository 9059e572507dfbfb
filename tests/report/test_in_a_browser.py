"""The report in a headless browser: it asks for nothing, complains of nothing, fits every width."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser, chromium

from mhim.maps.study import read_test_predictions
from mhim.report import ReportConfig, write_report
from mhim.training.runs import Run

WIDTHS_PX = (380, 820, 1400)


@pytest.fixture(scope="module")
def tab(runs: list[Run], maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        reason = "no Chromium on this machine (install the package chromium)"
        if os.environ.get("MHIM_BROWSER") == "required":  # a gate that must not pass without it
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("browser")
    write_report(runs, folder / "report.html", ReportConfig.model_validate({"resamples": 100, "slides": 3}), maps)
    with browser(program, folder / "profile") as opened:
        opened.open(folder / "report.html")
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS_PX)
def test_no_width_scrolls_sideways(tab: Browser, width: int, scheme: str):
    """Wide tables scroll by themselves, the page never does; text and ground differ in both schemes."""
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.value("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert tab.value("document.documentElement.scrollWidth") <= width
    ground, ink = (tab.value(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    light = [sum(map(int, colour[4:-1].split(","))) / 765 for colour in (ground, ink)]
    assert abs(light[0] - light[1]) > 0.6
    assert (light[0] > light[1]) == (scheme == "light")


def test_every_picture_is_there(tab: Browser):
    tab.value("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager'; })")
    state = "Promise.all(Array.from(document.images, (image) => image.decode().then(() => image.naturalWidth)))"
    answer = tab.call("Runtime.evaluate", expression=state, returnByValue=True, awaitPromise=True)
    assert len(answer["result"]["value"]) >= 3
    assert min(answer["result"]["value"]) > 0


def test_the_table_is_sorted_and_searched(tab: Browser, runs: list[Run]):
    said = read_test_predictions(runs[-1])
    rows = "Array.from(document.querySelectorAll('#predictions tbody tr:not([hidden]) th'), (cell) => cell.textContent)"
    heading = "document.querySelectorAll('#predictions thead button')[0].click()"
    tab.value(heading)
    assert tab.value(rows) == sorted(one.slide_id for one in said)
    tab.value(heading)
    assert tab.value(rows) == sorted((one.slide_id for one in said), reverse=True)
    tab.value("document.getElementById('only-wrong').click()")
    assert sorted(tab.value(rows)) == sorted(one.slide_id for one in said if one.is_wrong)
    tab.value("document.getElementById('only-wrong').click()")
    search = "document.getElementById('search')"
    tab.value(f"{search}.value = '{said[0].slide_id}'; {search}.dispatchEvent(new Event('input'))")
    assert said[0].slide_id in tab.value(rows)
    assert len(tab.value(rows)) < len(said)
    tab.value(f"{search}.value = ''; {search}.dispatchEvent(new Event('input'))")


def test_it_prints_with_every_part_open(tab: Browser):
    tab.value("document.querySelectorAll('details').forEach((part) => { part.open = false; })")
    answer = tab.call("Page.printToPDF", printBackground=True)
    assert answer["data"].startswith("JVBERi0")  # %PDF-
    assert tab.value("Array.from(document.querySelectorAll('details'), (part) => part.open).every(Boolean)")


def test_nothing_was_asked_for_and_nothing_complained(tab: Browser):
    """After all of the above."""
    assert tab.requests() == [tab.value("document.location.href")]
    assert tab.complaints() == []


def test_a_page_that_asks_and_complains_is_noticed(tab: Browser, tmp_path: Path):
    """The last test of this tab: what the one above would have seen."""
    page = tmp_path / "page.html"
    page.write_text('<body style="width: 3000px"><img src="missing.png"><script>console.error("x")</script>')
    tab.open(page)
    assert (tmp_path / "missing.png").as_uri() in tab.requests()
    assert len(tab.complaints()) >= 1
    assert tab.value("document.documentElement.scrollWidth") > max(WIDTHS_PX)
