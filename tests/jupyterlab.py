"""The analysis notebook in a JupyterLab of its own, as a real browser shows it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scalebench_lib.notebook import NOTEBOOKS
from tests.waiting import wait_until

PATIENCE_S = 120
EXPLORER = ".scalebench-explorer"
QUIET = {
    "@jupyterlab/apputils-extension:announcements": True,
    "@jupyterlab/extensionmanager-extension:plugin": True,
}
"""What JupyterLab would ask a network for."""

SETTINGS = {
    # What a control tells the kernel is answered before what is asked after it.
    "apputils-extension/kernels-settings": {"commsOverSubshells": "disabled"},
    # Cells stay in the page when they cannot be seen.
    "notebook-extension/tracker": {"windowingMode": "none"},
}
"""A test can wait for an answer then, and need not scroll."""

_RUN_ALL = """async () => {
  const panel = jupyterapp.shell.currentWidget;
  await Promise.all([panel.context.ready, panel.revealed, panel.sessionContext.ready]);
  return jupyterapp.commands.execute('notebook:run-all-cells');
}"""
_COMMAND = "([name, what]) => jupyterapp.commands.execute(name, what)"
_SETTLED = """async () => {
  const {kernel} = jupyterapp.shell.currentWidget.sessionContext.session;
  for (const _ of [1, 2]) {
    await kernel.requestExecute({code: '', silent: true, store_history: false}).done;
    await new Promise(done => setTimeout(done, 50));
  }
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""
"""After what the kernel was told has been answered, and painted; a widget holds a message back
until the one before it has been answered."""

_SHOWN = """async () => {
  const images = [...document.querySelectorAll('img.widget-image')].filter(i => i.offsetParent);
  const digest = async image => {
    const bytes = await (await fetch(image.src)).arrayBuffer();
    return [...new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))].join();
  };
  return Promise.all(images.map(digest));
}"""


@contextmanager
def jupyterlab(folder: Path, out: Path) -> Iterator[str]:
    """The address of the notebook on sweep `out`, others beside it; with a token, to itself.

    `folder` takes its files; no settings of the user count.
    """
    _copy(folder / "root", out)
    (folder / "config" / "labconfig").mkdir(parents=True)
    page_config = json.dumps({"disabledExtensions": QUIET})
    (folder / "config" / "labconfig" / "page_config.json").write_text(page_config)
    for name, chosen in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(chosen))
    server = _started(folder)
    try:
        yield _address(folder / "runtime" / f"jpserver-{server.pid}.json", server)
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def _copy(root: Path, out: Path) -> None:
    """The notebook with `out` for its parameter; what lies beside `out` is all that it offers."""
    source = (NOTEBOOKS / "analysis.ipynb").read_text(encoding="utf-8")
    given = {
        'out = \\"\\"': f'out = \\"{out}\\"',
        "Explorer(folder)": "Explorer(folder, folder.parent)",
    }
    for old, new in given.items():
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    root.mkdir()
    (root / "analysis.ipynb").write_text(source, encoding="utf-8")


def _started(folder: Path) -> subprocess.Popen[bytes]:
    kinds = ("config", "data", "runtime")
    own = {f"JUPYTER_{kind.upper()}_DIR": str(folder / kind) for kind in kinds}
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={folder / 'root'}"),
        f"--LabApp.user_settings_dir={folder / 'settings'}",
        f"--LabApp.workspaces_dir={folder / 'workspaces'}",
        "--LabApp.expose_app_in_browser=True",
    ]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log)


def _address(told: Path, server: subprocess.Popen[bytes]) -> str:
    """The notebook's address, with the token that the server gave itself."""
    end = time.monotonic() + PATIENCE_S
    while not told.exists() and server.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    found = json.loads(told.read_text(encoding="utf-8"))
    assert found["token"]
    wait_until(lambda: _listens(found["port"]), PATIENCE_S)  # it says so a moment before
    return f"{found['url']}lab/tree/analysis.ipynb?token={found['token']}"


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Lab:
    """The notebook in the browser's `page`, all its cells run; `complaints` are the browser's."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.set_default_timeout(1000 * PATIENCE_S)
        page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        page.on("pageerror", lambda error: self.complaints.append(error.stack))
        page.goto(address)
        page.wait_for_selector(".jp-NotebookPanel .jp-Toolbar-kernelName >> text=Python")
        assert page.evaluate(_RUN_ALL), page.locator(".jp-OutputArea-output").all_inner_texts()
        page.wait_for_selector("img.widget-image")
        self.settle()

    def command(self, name: str, what: object = None) -> None:
        """Let JupyterLab do what its menus can."""
        self.page.evaluate(_COMMAND, [name, what])

    def choose_theme(self, name: str) -> None:
        """``JupyterLab Light`` or ``JupyterLab Dark``."""
        self.command("apputils:change-theme", {"theme": name})
        self.page.wait_for_selector(f"body[data-jp-theme-name='{name}']", state="attached")
        # JupyterLab removes its splash screen 200 ms later, and twice, which is an error, if it
        # changed its theme twice before that.
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def settle(self) -> None:
        """Wait until what was chosen is seen."""
        self.page.evaluate(_SETTLED)

    @property
    def pictures(self) -> list[str]:
        """A digest of each picture that is seen."""
        self.settle()
        return list(self.page.evaluate(_SHOWN))

    def controls(self, kind: str) -> list[Any]:
        """The explorer's controls of a `kind`, a class of ipywidgets, that can be seen."""
        return list(self.page.locator(f"{EXPLORER} .{kind}:visible").all())

    def control(self, kind: str, name: str) -> Any:
        """The one with `name` before it."""
        (found,) = [control for control in self.controls(kind) if label(control) == name]
        return found


def label(control: Any) -> str:
    """What stands before a control, or behind a box."""
    words = control.locator("label, .widget-label").all_inner_texts()
    return " ".join(word.strip("\u200b \n") for word in words).strip()
