"""The page in a real browser, from a file and without a network: its controls work."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalebench_lib.analysis.figures import VIEWS
from scalebench_lib.analysis.page import write_page
from tests import factories

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

HOSTILE = "<script>document.title = 'run'</script>"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of 2 cores with SMT, one config failed with a reason that is a script."""
    out, on = tmp_path_factory.mktemp("page"), factories.machine(cores=2)
    none, *others = factories.configs(on, [1, 8])
    records = [factories.measured(config, on) for config in others]
    records.append(factories.missing(none, on, "failed", HOSTILE))
    peaks = {threads: {"fp32": 100.0 * threads} for threads in range(1, 5)}
    records = [record.model_copy(update={"peak_gflops": peaks}) for record in records]
    return write_page(factories.save_sweep(out, records)).as_uri()


@pytest.fixture(params=["light", "dark"])
def page(browser: sync_api.Browser, address: str, request) -> Iterator[sync_api.Page]:
    """The page in one colour scheme, offline; any complaint of the browser fails the test."""
    context = browser.new_context(color_scheme=request.param, offline=True)
    opened, complaints = context.new_page(), []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(address)
    yield opened
    context.close()
    assert complaints == []


def picture(page: sync_api.Page) -> str:
    """What the chosen picture shows; Plot numbers its parts anew each time."""
    return re.sub(r"plot-\w+-\d+", "", page.locator("#explore-picture").inner_html())


def test_every_control_changes_the_picture(page: sync_api.Page) -> None:
    """Each view, and in it each control that is offered, draws another picture at once."""
    options = page.locator("#controls [name=view] option")
    views = options.evaluate_all("all => all.map(o => o.value)")
    assert views == list(VIEWS)
    for view in views:
        page.select_option("#controls [name=view]", view)
        assert page.locator("#explore-picture svg[role=img]").count() == 1, view
        for select in page.locator("#controls select:visible").all()[1:]:
            name, before = select.get_attribute("name"), picture(page)
            kept = select.input_value()
            values = select.locator("option").evaluate_all("all => all.map(o => o.value)")
            changed = set()
            for value in values:
                select.select_option(value)
                changed.add(picture(page))
            assert len(changed) > 1 or view in ("samples", "heat"), (view, name)
            select.select_option(kept)
            assert picture(page) == before


def test_the_picture_has_its_words(page: sync_api.Page) -> None:
    """An alternative text with values, and what failed under it, as text."""
    page.select_option("#controls [name=view]", "batch")
    page.select_option("#controls [name=batch_size]", "1")
    assert "ms" in picture(page)
    label = page.locator("#explore-picture svg").get_attribute("aria-label")
    assert "none, SMT on" in label
    assert HOSTILE in page.locator("#explore-picture figcaption").inner_text()
    assert page.title() != "run"


def test_a_points_interval_and_samples_are_seen_under_the_pointer(page: sync_api.Page) -> None:
    """Where the mouse is near a point, a tip tells them; the table under it tells all."""
    page.locator("#explore-picture svg").scroll_into_view_if_needed()
    box = page.locator("#explore-picture svg g[data-mark=dot] path").first.bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + 3)
    tip = page.locator("#explore-picture g[aria-hidden=true]", has_text="95 % interval")
    assert "8 samples" in str(tip.text_content())


def test_the_table_is_sorted_and_filtered(page: sync_api.Page) -> None:
    """By a button at each column's head, and by selects and words."""
    head = page.locator("#results th", has_text="Latency, ms")
    place = 1 + head.evaluate("head => head.cellIndex")
    cells = page.locator(f"#results tbody tr td:nth-child({place})")
    values = "all => all.map(c => c.dataset.value).filter(v => v !== '').map(Number)"
    head.locator("button").click()
    up = cells.evaluate_all(values)
    head.locator("button").press("Enter")
    assert up == sorted(up)
    assert cells.evaluate_all(values) == up[::-1]
    assert head.get_attribute("aria-sort") == "descending"
    page.select_option("#filters [name=status]", "failed")
    assert page.locator("#results tbody tr:visible").count() == 1
    page.fill("#filters [name=words]", "nothing like this")
    assert page.locator("#count").inner_text().startswith("0 of ")


def test_the_gallery_is_drawn_when_it_is_reached(page: sync_api.Page) -> None:
    """Every figure of the page, in its place."""
    for figure in page.locator("figure[data-chart]").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".picture").wait_for()
    assert page.locator("figure[data-chart] svg[role=img]").count() > 8


def test_each_setting_has_pictures_of_its_own(browser: sync_api.Browser, tmp_path: Path) -> None:
    """Two image sizes, and an image size and no tokens in the captions."""
    sizes = [
        factories.small_records([1, 8], model="resnet50", image_size=size) for size in (64, 224)
    ]
    address = write_page(factories.save_sweep(tmp_path, [*sizes[0], *sizes[1]])).as_uri()
    opened = browser.new_page()
    opened.goto(address)
    drawn = []
    for figure in opened.locator("figure[data-chart]").all():
        figure.scroll_into_view_if_needed()
        drawn.append((figure.locator(".picture svg").inner_html(), figure.inner_text()))
    assert len(drawn) == len({re.sub(r"plot-\w+-\d+", "", svg) for svg, _ in drawn}) == 12
    assert sum("64 × 64 pixels" in text for _, text in drawn) == 6
    assert not any("tokens" in text for _, text in drawn)
    opened.close()


def test_the_page_passes_an_accessibility_check(page: sync_api.Page) -> None:
    """No violation that axe calls serious or critical."""
    found = axe.Axe().run(page).response["violations"]
    assert [v for v in found if v["impact"] in ("serious", "critical")] == []


def test_without_scripts_pictures_and_tables_are_there(
    browser: sync_api.Browser, address: str
) -> None:
    """The PNG files beside the page, and every point."""
    context = browser.new_context(java_script_enabled=False, offline=True)
    opened = context.new_page()
    opened.goto(address)
    shown = opened.locator("img").evaluate_all("all => all.map(i => i.complete && i.naturalWidth)")
    assert shown
    assert opened.locator("#results tbody tr").count() > 10
    assert not opened.locator("#controls").is_visible()
    assert opened.locator("img").first.bounding_box()["width"] > 100
    context.close()
