"""The analysis notebook in JupyterLab, in a real browser: its picture follows every control."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from tests import factories
from tests.jupyterlab import EXPLORER, Lab, jupyterlab, label

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = pytest.mark.slow
SIZE = {"width": 1300, "height": 1400}
COUNT = """() => {
  window.drawn = 0;
  window.watch?.disconnect();
  window.watch = new MutationObserver(all => window.drawn += all.length);
  window.watch.observe(document.querySelector('img.widget-image'), {attributeFilter: ['src']});
}"""
STOPS = """explorer => {
  const every = document.querySelector(explorer)
    .querySelectorAll('select, button, input, [tabindex="0"]');
  const seen = [...every].filter(e => e.offsetParent && !e.disabled);
  seen.forEach((e, i) => { e.dataset.stop = i; });
  return seen.length;
}"""
STOP = "() => document.activeElement.dataset.stop"


@pytest.fixture(scope="module")
def lab(browser: sync_api.Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """On two sweeps, of which one has every axis; each test leaves the controls as they were."""
    folder, on = tmp_path_factory.mktemp("lab"), factories.machine(cores=2)
    axes = product((16, 128), ("default", "tcmalloc"))
    others = [{"seq_len": seq_len, "allocator": allocator} for seq_len, allocator in axes]
    configs = [config for fixed in others for config in factories.configs(on, [1, 8], **fixed)]
    peaks = {threads: {"fp32": 100.0 * threads} for threads in range(1, 5)}
    records = [factories.measured(config, on) for config in configs]
    records = [record.model_copy(update={"peak_gflops": peaks}) for record in records]
    factories.save_sweep(folder / "sweeps" / "other", factories.small_records([1, 8]))
    many = factories.save_sweep(folder / "sweeps" / "many", records)
    page = browser.new_page(viewport=SIZE)
    with jupyterlab(folder, many) as address:
        yield Lab(page, address)
        page.close()


@pytest.fixture(params=["JupyterLab Light", "JupyterLab Dark"])
def themed(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """In a light and in a dark JupyterLab; any complaint of the browser fails the test."""
    lab.choose_theme(request.param)
    yield lab
    assert lab.complaints == []


def options(control: sync_api.Locator) -> Iterator[None]:
    """Choose each option, and what it was; JupyterLab keeps the arrow keys to itself."""
    select = control.locator("select")
    kept, count = select.evaluate("s => [s.selectedIndex, s.options.length]")
    for index in (other for other in range(count) if other != kept):
        select.select_option(index=index)
        yield
    select.select_option(index=kept)


def buttons(control: sync_api.Locator) -> Iterator[None]:
    """Press each button that is not chosen, and then the one that was."""
    chosen = "all => all.findIndex(b => b.classList.contains('mod-active'))"
    kept = control.locator("button").evaluate_all(chosen)
    every = control.locator("button").all()
    for other in [*every[:kept], *every[kept + 1 :]]:
        other.press("Enter")
        yield
    every[kept].press("Enter")


def handles(control: sync_api.Locator) -> Iterator[None]:
    """Move each handle of a slider by one, whither it can move, and back."""
    for handle in control.locator(".noUi-handle").all():
        for key, back in (("ArrowRight", "ArrowLeft"), ("ArrowLeft", "ArrowRight")):
            before = handle.get_attribute("aria-valuetext")
            handle.press(key)
            if handle.get_attribute("aria-valuetext") != before:
                yield
                handle.press(back)
                yield
                break


def lists(control: sync_api.Locator) -> Iterator[None]:
    """Leave one out, or choose one where none is; and back."""
    select = control.locator("select")
    kept = select.evaluate("s => [...s.selectedOptions].map(o => o.index)")
    select.select_option(index=kept[1:] or [0])
    yield
    select.select_option(index=kept)
    yield


MOVES = {
    "widget-dropdown": options,
    "widget-toggle-buttons": buttons,
    "widget-hslider": handles,
    "widget-select-multiple": lists,
}


def follows(lab: Lab, kind: str, control: sync_api.Locator) -> None:
    """Assert that the picture follows `control`, drawn once a change, and comes back with it."""
    name, before, seen = label(control), lab.pictures, []
    lab.page.evaluate(COUNT)
    for count, _ in enumerate(MOVES[kind](control), start=1):
        seen.append(lab.pictures)
        assert lab.page.evaluate("window.drawn") <= count, name
    assert any(one != before for one in seen), name
    assert lab.pictures == before, name


def test_the_picture_follows_every_control(themed: Lab) -> None:
    """In each view those that were not there before."""
    view = themed.control("widget-dropdown", "View").locator("select")
    names, done = view.locator("option").all_inner_texts(), {"Sweep", "View"}
    assert len(names) == 11
    for name in names:
        view.select_option(label=name)
        themed.settle()
        for kind in MOVES:
            new = {label(control): control for control in themed.controls(kind)}
            for control in (new[name] for name in new.keys() - done):
                follows(themed, kind, control)
            done |= new.keys()
    view.select_option(index=0)


@pytest.mark.parametrize("name", ["Sweep", "View"])
def test_another_sweep_or_view_is_another_picture(themed: Lab, name: str) -> None:
    """These bring their own controls with them."""
    before = themed.pictures
    for _ in options(themed.control("widget-dropdown", name)):
        assert themed.pictures != before


def test_controls_and_the_whole_picture_are_seen_at_once(lab: Lab) -> None:
    """In a window of 1280 × 1000 pixels, beside each other, in every view."""
    lab.page.set_viewport_size({"width": 1280, "height": 1000})
    view = lab.control("widget-dropdown", "View").locator("select")
    for index in range(view.locator("option").count()):
        view.select_option(index=index)
        lab.settle()
        lab.page.locator(EXPLORER).evaluate("e => e.scrollIntoView({block: 'start'})")
        controls = [control.bounding_box() for kind in MOVES for control in lab.controls(kind)]
        picture = lab.page.locator("img.widget-image:visible").bounding_box()
        assert picture["x"] >= max(box["x"] + box["width"] for box in controls)
        assert min(box["y"] for box in controls) >= 0
        assert max(box["y"] + box["height"] for box in [*controls, picture]) <= 1000
        assert picture["width"] > 480
    view.select_option(index=0)
    lab.page.set_viewport_size(SIZE)


def test_every_control_is_reached_with_the_tab_key(themed: Lab) -> None:
    """In the order in which they stand."""
    count = themed.page.evaluate(STOPS, EXPLORER)
    themed.page.locator("[data-stop='0']").focus()
    reached = [themed.page.evaluate(STOP)]
    for _ in range(count - 1):
        themed.page.keyboard.press("Tab")
        reached.append(themed.page.evaluate(STOP))
    assert reached == [str(i) for i in range(count)]
    assert count > 12


def test_what_is_seen_is_saved(themed: Lab) -> None:
    """By both buttons, which say where."""
    for name in ("Save picture (PNG)", "Save data (CSV)"):
        themed.page.get_by_role("button", name=name).click()
        themed.settle()
        saved = themed.page.locator("[role=status]", has_text="Saved: many/explored/")
        saved.wait_for()


def test_the_explorer_passes_an_accessibility_check(themed: Lab) -> None:
    """No violation that axe calls serious or critical, contrast included."""
    found = axe.Axe().run(themed.page, context=EXPLORER).response["violations"]
    assert [v for v in found if v["impact"] in ("serious", "critical")] == []


def test_no_cell_of_the_notebook_failed(lab: Lab) -> None:
    """Nor wrote to the error stream."""
    outputs = lab.page.locator(".jp-OutputArea-output")
    assert outputs.count() > 12
    kinds = outputs.evaluate_all("all => all.map(o => o.dataset.mimeType)")
    assert not [kind for kind in kinds if kind and ("error" in kind or "stderr" in kind)]
