"""The analysis notebook in JupyterLab, in a real browser: its pictures follow its controls."""

import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalebench_lib.notebook import NOTEBOOKS
from tests import madeup

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH"),
    pytest.mark.slow,
]
PATIENCE_S = 120
PICTURE = "img.widget-image"
RUN = "window.jupyterapp.commands.execute('runmenu:run-all')"
THEME = "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab on a copy of the notebook and two made-up sweeps, with its token, to itself."""
    folder = tmp_path_factory.mktemp("lab")
    on = madeup.machine(cores=2)
    records = [madeup.measured(config, on) for config in madeup.configs(on, [1, 8])]
    madeup.save_sweep(folder / "sweeps" / "smt", records)
    source = (NOTEBOOKS / "analysis.ipynb").read_text()
    out = f'out = \\"{folder / "sweeps" / "smt"}\\"'
    assert 'out = \\"\\"' in source
    (folder / "analysis.ipynb").write_text(source.replace('out = \\"\\"', out, 1))
    token, port = secrets.token_hex(16), _free_port()
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={token}"),
        *(f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"),
        f"--LabApp.workspaces_dir={folder / 'workspaces'}",
        f"--LabApp.user_settings_dir={folder / 'settings'}",
        "--LabApp.news_url=None",
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api?token={token}", server)
            yield f"http://127.0.0.1:{port}/lab/tree/analysis.ipynb?token={token}"
        finally:
            server.terminate()
            server.wait(PATIENCE_S)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(url: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own server
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("JupyterLab did not start")


@pytest.fixture(scope="module")
def lab(address: str) -> Iterator[tuple[sync_api.Page, list[str]]]:
    """The notebook with all its cells run, and what the browser complained of."""
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 1300, "height": 1500})
        page.set_default_timeout(1000 * PATIENCE_S)
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        page.wait_for_selector(".jp-NotebookPanel .jp-Toolbar-kernelName >> text=Python")
        page.evaluate(RUN)
        page.wait_for_selector(PICTURE)
        yield page, complaints
        browser.close()


def source(page: sync_api.Page) -> str:
    """The picture, by the address that its bytes have in the browser."""
    return str(page.locator(PICTURE).first.get_attribute("src"))


def choose(page: sync_api.Page, label: str, option: str) -> None:
    """Choose `option` in the dropdown, and wait for another picture."""
    before = source(page)
    row = page.locator(".widget-dropdown:visible", has_text=label).first
    row.locator("select").select_option(label=option)
    changes(page, before)


def changes(page: sync_api.Page, before: str) -> None:
    """Wait until the picture is another one than `before`."""
    page.wait_for_function(
        "([css, old]) => document.querySelector(css).src !== old", arg=[PICTURE, before]
    )


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_the_picture_follows_each_control(
    lab: tuple[sync_api.Page, list[str]], theme: str, tmp_path: Path
) -> None:
    """Dropdowns, buttons and boxes; nothing on the console, one picture in either theme."""
    page, complaints = lab
    page.evaluate(THEME, theme)
    page.locator(PICTURE).first.scroll_into_view_if_needed()
    choose(page, "View", "By batch size")
    for name in ("throughput", "log"):
        before = source(page)
        page.locator(".widget-toggle-buttons:visible button", has_text=name).first.click()
        changes(page, before)
    before = source(page)
    page.locator(".widget-checkbox:visible", has_text="script").locator("input").uncheck()
    changes(page, before)
    before = source(page)
    page.locator(".widget-checkbox:visible", has_text="script").locator("input").press("Space")
    changes(page, before)
    choose(page, "Threads", "1")
    for name in ("latency", "auto"):
        before = source(page)
        page.locator(".widget-toggle-buttons:visible button", has_text=name).first.click()
        changes(page, before)
    for view in ("Heat map: batch size × threads", "Speed-up over one thread"):
        choose(page, "View", view)
    choose(page, "View", "Speed-up over eager")
    choose(page, "Threads", "each at its best thread count")
    assert page.locator(PICTURE).count() == 1
    page.screenshot(path=tmp_path / f"{theme}.png")
    assert complaints == []
