"""The page in a real browser, from a file and without a network: its controls work."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalebench_lib.analysis.figures import VIEWS
from scalebench_lib.analysis.page import write_page
from tests import factories

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

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
    assert "eager, SMT on" in label
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
    for figure in opened.locator("figure[id*=latency], figure[id*=throughput]").all():
        figure.scroll_into_view_if_needed()
        drawn.append((figure.locator(".picture svg").inner_html(), figure.inner_text()))
    assert len(drawn) == len({re.sub(r"plot-\w+-\d+", "", svg) for svg, _ in drawn}) == 12
    # Of small multiples the first says it, the other batch size and the other metric's not.
    assert sum("64 × 64 pixels" in text for _, text in drawn) == 4
    assert not any("tokens" in text for _, text in drawn)
    opened.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of two lengths, long names, a failure and coarse points, on 2 cores."""
    on = factories.machine(cores=2)
    names = ("none", "script", "onnxruntime-int8", "openvino-bf16")
    asked = [
        config
        for length in (16, 128)
        for config in factories.configs(on, [1, 4, 1024], names, seq_len=length)
    ]
    records = [factories.measured(config, on) for config in asked]
    records[-1] = factories.missing(asked[-1], on, "failed", "needs 70 GiB [of memory]" * 3)
    return write_page(factories.save_sweep(tmp_path_factory.mktemp("many"), records)).as_uri()


OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('svg') || !e.checkVisibility()) return false;
  if (/auto|scroll/.test(getComputedStyle(e).overflowX)) return false;
  return e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline';
}).map(e => e.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
def test_nothing_is_wider_than_its_box(browser: sync_api.Browser, many: str, width: int) -> None:
    """But what can be scrolled; and there the names stay in sight, and the first tables fit."""
    opened = browser.new_page(viewport={"width": width, "height": 900})
    opened.goto(many)
    for figure in opened.locator("figure[data-chart]").all():
        figure.scroll_into_view_if_needed()
    assert opened.evaluate(OVERFLOWING) == []
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    wide = "all => all.filter(e => e.scrollWidth > e.clientWidth).length"
    if width >= 1280:
        assert opened.locator(".wide").evaluate_all(wide) == 0
    table = opened.locator("[data-size]:visible .wide")
    table.evaluate("e => { e.scrollLeft = 200; }")
    left = (
        "e => e.querySelector('tbody th').getBoundingClientRect().x - e.getBoundingClientRect().x"
    )
    assert table.evaluate(left) > -1
    opened.close()


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_first_screen_says_what_to_run(
    browser: sync_api.Browser, many: str, width: int, height: int
) -> None:
    """Facts, a sentence, and the latency and speed-up of the fastest; on a desk the picture too."""
    opened = browser.new_page(viewport={"width": width, "height": height})
    opened.goto(many)
    answer = opened.locator("[data-answer]:visible")
    first = answer.locator("[data-size]:visible tbody tr").first
    seen = [answer.locator("dt").nth(2), answer.locator(".advice:visible strong"), first]
    seen += [first.locator("th, td").nth(place) for place in range(3)]
    for part in seen:
        box = part.bounding_box()
        assert box["y"] + box["height"] <= height
    assert seen[-1].bounding_box()["x"] + seen[-1].bounding_box()["width"] <= width
    assert "× as fast as eager" in answer.locator(".advice:visible").inner_text()
    if width == 1280:
        assert opened.locator("#explore-picture svg").bounding_box()["y"] < 0.8 * height
    opened.close()


def test_a_link_keeps_the_view(browser: sync_api.Browser, many: str) -> None:
    """The address holds what was chosen; a page that opens with it shows the same."""
    opened = browser.new_page()
    opened.goto(many)
    opened.select_option("#which [name=answer]", index=1)
    opened.select_option("#answer-2 [name=size]", "4")
    opened.select_option("#controls [name=view]", "batch")
    opened.select_option("#controls [name=seq_len]", "128")
    opened.select_option("#controls [name=batch_size]", "4")
    opened.fill("#filters [name=words]", "int8")
    other = browser.new_page()
    other.goto(opened.url)
    for where in ("#explore-picture .picture-title", "#count", ".advice:visible"):
        assert other.locator(where).inner_text() == opened.locator(where).inner_text()
    assert "at batch 4" in other.locator(".advice:visible").inner_text()
    for page in (opened, other):
        page.close()


def test_a_search_without_a_hit_has_a_way_back(browser: sync_api.Browser, many: str) -> None:
    """A row that says so, with a button."""
    opened = browser.new_page()
    opened.goto(many)
    opened.fill("#filters [name=words]", "nothing like this")
    row = opened.locator("#results tbody tr:visible")
    assert "No point matches." in row.inner_text()
    row.locator("button").click()
    opened.locator("#results tbody tr:visible").nth(10).wait_for(timeout=5000)
    assert "filters" not in opened.url
    opened.close()


def test_picture_and_data_can_be_saved(browser: sync_api.Browser, many: str) -> None:
    """As SVG and PNG with title and caption, and as CSV of its points."""
    opened = browser.new_page(viewport={"width": 390, "height": 844})
    opened.goto(many)
    saved = {}
    for kind in ("svg", "png", "csv"):
        with opened.expect_download() as download:
            opened.locator(f"[data-save={kind}]").click()
        assert download.value.suggested_filename.endswith(
            f"by-batch-size-each-at-its-best-thread-count.{kind}"
        )
        saved[kind] = Path(download.value.path()).read_bytes()
    text = saved["svg"].decode()
    assert "var(--" not in text
    assert "ONNX Runtime int8" in text
    assert "Madeup 9000" in text
    assert saved["png"].startswith(b"\x89PNG")
    assert len(saved["png"]) > 20_000
    assert (
        saved["csv"].decode().splitlines()[0] == '"point","x","value","low","high","unit","details"'
    )
    opened.close()


def test_a_tip_is_whole_on_a_phone(browser: sync_api.Browser, many: str) -> None:
    """At every point: within the picture, which is within the window."""
    opened = browser.new_page(viewport={"width": 390, "height": 844})
    opened.goto(many)
    picture = opened.locator("#explore-picture svg[role=img]")
    picture.evaluate("e => e.scrollIntoView({block: 'center'})")
    seen, box = 0, picture.bounding_box()
    for point in picture.locator("g[data-mark=dot] path").all():
        place = point.bounding_box()
        opened.mouse.move(box["x"] + 1, box["y"] + 1)
        opened.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
        tip = opened.locator("#explore-picture g[aria-hidden=true] text").first.bounding_box()
        assert tip["x"] >= 0
        assert tip["x"] + tip["width"] <= 390
        assert tip["y"] >= box["y"] - 1
        assert tip["y"] + tip["height"] <= box["y"] + box["height"] + 1
        seen += 1
    assert seen > 3
    opened.close()


def test_a_printed_page_has_everything(browser: sync_api.Browser, many: str) -> None:
    """Nothing scrolls or is wider than the paper; heads of tables are repeated on each sheet."""
    opened = browser.new_page(viewport={"width": 720, "height": 1000})
    opened.goto(many)
    opened.emulate_media(media="print")
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 720
    heads = opened.locator("thead").evaluate_all("all => all.map(e => getComputedStyle(e).display)")
    assert set(heads) == {"table-header-group"}
    after = opened.locator("h2, h3").evaluate_all(
        "all => all.map(e => getComputedStyle(e).breakAfter)"
    )
    assert set(after) == {"avoid"}
    assert opened.locator("figure[data-chart]:not([data-drawn])").count() == 0
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
