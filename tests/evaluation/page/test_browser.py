"""The page in a real browser, which `$LRPILOT_CHROMIUM` or the PATH names; else all is skipped."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from lrpilot.evaluation.page import write_page
from lrpilot.evaluation.palette import POLICY_COLOR, POLICY_DARK_COLOR
from tests.evaluation.page.made_up_runs import make_rows, write_runs

NAMES = ("policy", "constant", "a_scheduler_with_a_rather_long_name", "</script><b>bold")
CHROMIUM = os.environ.get("LRPILOT_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in $LRPILOT_CHROMIUM or the PATH"),
]
SHOWN = "plot => plot.data.map(trace => trace.meta)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    rows = make_rows(NAMES, tasks=["digits", "nmf"], factors=(0.1, 0.3, 1, 3, 10))
    write_page(write_runs(rows, folder), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the page writes to the console or asks of others."""
    return []


@pytest.fixture(scope="module", params=[1280, 400])
def width(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def seen(browser: Browser, path: Path, width: int, said: list[str]) -> Iterator[Page]:
    """The page after a reader has seen all of it."""
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme="light", offline=True
    )
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto(path.as_uri())
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()
    yield page
    page.close()


@pytest.fixture
def page(seen: Page) -> Iterator[Page]:
    """The page, which is then as it was."""
    yield seen
    seen.emulate_media(color_scheme="light")
    seen.evaluate("filter.reset(); root.style.colorScheme = ''; applyFilter()")


def test_all_plots_are_drawn_with_a_line_per_scheduler(page: Page) -> None:
    plots = page.locator(".plot")

    assert plots.count() == 2 * 4 + 2
    for plot in plots.all():
        assert set(plot.evaluate(SHOWN)) == set(NAMES)
        assert plot.locator(".scatterlayer path.js-line").count() >= len(NAMES)


def test_all_tables_are_seen_with_a_line_per_scheduler(page: Page) -> None:
    tables = page.locator("table")

    assert tables.count() == 2 * 3
    for table in tables.all():
        assert table.locator("tbody th").all_inner_texts() == list(NAMES)


def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("width", [1280], indirect=True)
def test_a_scheduler_that_is_unchecked_leaves_all_plots_and_tables(page: Page) -> None:
    page.get_by_label("constant").uncheck()

    for plot in page.locator(".plot").all():
        assert "constant" not in plot.evaluate(SHOWN)
    rows = page.locator("tr[data-scheduler='constant']")
    assert rows.count() == 6
    assert not any(row.is_visible() for row in rows.all())


@pytest.mark.parametrize("width", [1280], indirect=True)
def test_none_and_all_choose_schedulers(page: Page) -> None:
    plot = page.locator(".plot").first
    page.get_by_role("button", name="None").click()
    assert plot.evaluate(SHOWN) == []

    page.get_by_role("button", name="All").click()
    assert set(plot.evaluate(SHOWN)) == set(NAMES)


@pytest.mark.parametrize("width", [1280], indirect=True)
def test_a_task_that_is_unchecked_is_hidden(page: Page) -> None:
    page.get_by_label("nmf", exact=True).uncheck()

    assert page.get_by_role("heading", name="digits").is_visible()
    assert page.get_by_role("heading", name="nmf").count() == 0


@pytest.mark.parametrize("width", [1280], indirect=True)
def test_the_page_is_light_or_dark_as_the_system_is_and_as_the_button_says(page: Page) -> None:
    def look() -> tuple[str, str]:
        color = page.locator(".plot").first.evaluate(
            "plot => plot.data.find(trace => trace.meta === 'policy').line.color"
        )
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return str(background), str(color)

    light, dark = ("rgb(255, 255, 255)", POLICY_COLOR), ("rgb(20, 23, 28)", POLICY_DARK_COLOR)
    assert look() == light
    page.emulate_media(color_scheme="dark")
    assert look() == dark
    button = page.get_by_role("button", name="Light or dark")
    button.click()
    assert look() == light
    button.click()
    assert look() == dark


def test_the_page_says_nothing_to_the_console_and_asks_for_nothing_but_itself(
    page: Page, path: Path, said: list[str]
) -> None:
    assert {text for text in said if not text.startswith(("data:", "blob:"))} == {path.as_uri()}


def test_the_plots_of_a_page_with_its_library_beside_it_are_drawn(
    browser: Browser, tmp_path: Path
) -> None:
    runs = write_runs(make_rows(NAMES), tmp_path / "runs")
    path = tmp_path / "runs" / "report.html"
    write_page(runs, path, library=tmp_path / "plotly.min.js")
    page = browser.new_page(offline=True)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    page.locator(".plot .main-svg").first.wait_for()
    page.close()
    assert said == []
