"""Notebooks: their parameters, checked; their folders; and executed ones made fit to share.

Shared notebooks hold no paths of this machine, and no widgets that are dead.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.getipython import get_ipython
from IPython.display import HTML, display
from nbformat import NotebookNode

from scalebench_lib.config import SPEC, Config, Trial
from scalebench_lib.errors import RequestError, unknown_message
from scalebench_lib.files import write_atomically
from scalebench_lib.machine import Machine
from scalebench_lib.record import next_trial_number

PROJECT = Path(__file__).resolve().parent.parent
"""The folder of the checkout, or where the package was installed."""

NOTEBOOKS = (Path(__file__).parent / "notebooks").resolve()
"""Part of the package: in a checkout a link to the folder next to it."""

OUTPUTS = (PROJECT if (PROJECT / "pyproject.toml").exists() else Path.cwd()) / "outputs"

WIDGET = "application/vnd.jupyter.widget-view+json"

_TITLE = "# How fast is this config on this machine?"
"""Of ``measure.ipynb``; executed, it names the config."""

_KERNELS_FILE = re.compile(r"(?:/[\w.-]+)+/ipykernel_\d+/\d+\.py")
# nbconvert's page without what it loads from a network; our notebooks hold no formulas.
_OFFLINE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
"""


def sweeps(outputs: Path = OUTPUTS) -> list[Path]:
    """Return the folders of `outputs` that hold records or an import, the newest first."""
    from scalebench_lib.results import FILE  # pandas takes a second

    written = {path.parent for path in outputs.glob("*/records/*.json")}
    written |= set(outputs.glob(f"*/{FILE}"))
    newest_first = sorted(written, key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent for path in newest_first]


def find_sweep(out: str = "", outputs: Path = OUTPUTS) -> Path:
    """Return the sweep in folder `out`, or the newest of `outputs` where `out` is empty.

    `out` is looked for here, in the checkout, and in `outputs`. Trials by hand are no sweep. Raises
    `RequestError` where there is none.
    """
    if out:
        places = (Path(out), outputs.parent / out, outputs / out)
        return next((path for path in places if path.exists()), Path(out))
    for newest in sweeps(outputs):
        if (newest / SPEC).exists() or not (newest / "records").exists():
            return newest
    raise RequestError(
        f"no sweep in {outputs.name}/ yet: measure one with 'make sweep' or 'scalebench sweep'"
    )


def is_interactive() -> bool:
    """Return whether a person runs the notebook: papermill forbids cells to ask for input."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is None or bool(kernel.get_parent()["content"].get("allow_stdin", True))


def say(*lines: object) -> None:
    """Show a paragraph a line, or code where it is indented: JupyterLab breaks printed words."""
    texts = [str(line) for line in lines if line]
    tags = ["pre" if text.startswith(" ") else "p" for text in texts]
    paragraphs = "".join(f"<{t}>{escape(text)}</{t}>" for t, text in zip(tags, texts, strict=True))
    display({"text/html": paragraphs, "text/plain": "\n".join(texts)}, raw=True)


@contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """Show what is being done, and which share of it is done, while it lasts; only to people."""
    line = display(HTML(""), display_id=True) if is_interactive() else None

    def show(doing: str, share: float | None = None) -> None:
        value = "" if share is None else f' value="{share:.3f}"'
        if line:
            line.update(HTML(f"<progress{value}></progress> <span>{escape(doing)}</span>"))

    try:
        yield show
    finally:
        if line:
            line.update(HTML(""))


@contextmanager
def errors_as_warnings() -> Iterator[None]:
    """Make an error a warning: what was measured is kept, even where it cannot be drawn."""
    try:
        yield
    except Exception as error:
        message = f"cannot draw this: {type(error).__name__}: {error}"
        warnings.warn(message, stacklevel=3)


def measurement_request(namespace: Mapping[str, Any]) -> tuple[Trial, Machine, Path]:
    """Check what ``measure.ipynb`` is asked to do: the trial, the machine, the sweep's folder.

    An empty `out` means ``outputs/by-hand``; `trial` 0 means the config's next one there.
    Raises `RequestError` for an unknown parameter or a wrong value.
    """
    values = check_parameters(namespace, {*Trial.parameter_names(), "out"})
    out = values.pop("out", "")
    if not isinstance(out, str) or not out.isprintable():
        raise RequestError(f"out: must be a folder's name, not {out!r}")
    machine, folder = Machine.here(), Path(out) if out else OUTPUTS / "by-hand"
    is_next = str(values.get("trial", 0)) == "0"
    trial = Trial.from_parameters({**values, **({"trial": 1} if is_next else {})}, machine)
    if is_next:
        trial = trial.model_copy(update={"number": next_trial_number(folder, trial.config)})
    return trial, machine, folder


def check_parameters(namespace: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the `known` parameters in a notebook's `namespace`.

    Raises `RequestError` for any other plain value, since papermill only warns of a misspelt
    parameter. A person may set names of their own: then only one that is like a known name.
    """
    plain = (str, int, float, bool, list, tuple, dict)
    ipythons_own = re.compile("_|In$|Out$")
    for name, value in namespace.items():
        other = name not in known and isinstance(value, plain) and not ipythons_own.match(name)
        if other and (get_close_matches(name, known, cutoff=0.8) or not is_interactive()):
            raise RequestError(unknown_message("parameter", name, known))
    return {name: namespace[name] for name in known if name in namespace}


def scrub(notebook: NotebookNode, *folders: Path) -> NotebookNode:
    """Return `notebook` without the paths of this machine; those in `folders` become relative.

    Widgets lose their views where their state was not saved: they would be shown as errors. The
    title of a measurement names its config.
    """
    _name_config(notebook)
    for name in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(name, None)
    text = nbformat.writes(notebook)
    roots = {str(folder.resolve()): "" for folder in (*folders, PROJECT)}
    roots[sys.prefix] = ""
    if (home := Path.home()).name:  # some containers have it at "/"
        roots[str(home)] = "~/"
    for root in sorted(roots, key=len, reverse=True):
        text = text.replace(json.dumps(f"{root}/", ensure_ascii=False)[1:-1], roots[root])
    scrubbed: NotebookNode = nbformat.reads(_KERNELS_FILE.sub("<cell>", text), as_version=4)
    if "widgets" not in scrubbed.metadata:
        for cell in scrubbed.cells:
            for output in cell.get("outputs", []):
                output.get("data", {}).pop(WIDGET, None)
    return scrubbed


def _name_config(notebook: NotebookNode) -> None:
    given = notebook.metadata.get("papermill", {}).get("parameters", {})
    fields = {name: value for name, value in given.items() if name in Config.model_fields}
    for cell in notebook.cells[:1]:
        if cell.source.startswith(_TITLE):
            with suppress(RequestError):  # a wrong parameter is told by the notebook's own error
                title = f"# How fast is {Config.from_input(fields)}, on this machine?"
                cell.source = cell.source.replace(_TITLE, title)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write `notebook` to `path` whole or not at all."""
    write_atomically(path, nbformat.writes(notebook) + "\n")


def render(path: Path) -> Path:
    """Scrub the executed notebook at `path`, and write it as a page next to it; return the page.

    The page needs no network. Raises `RequestError` where there is no notebook, or it never ran.
    """
    from nbconvert import HTMLExporter  # takes most of a second

    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path} as a notebook: {error}") from None
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if code and not any(cell.execution_count or cell.outputs for cell in code):
        raise RequestError(f"{path}: no cell of it was executed: run it first")
    scrubbed = scrub(notebook, path.resolve().parent)
    exporter = HTMLExporter(raw_template=_OFFLINE, embed_images=True)
    title = scrubbed.cells[0].source.partition("\n")[0].lstrip("# ") if scrubbed.cells else ""
    page, _ = exporter.from_notebook_node(scrubbed, {"metadata": {"name": title or path.stem}})
    write(scrubbed, path)
    write_atomically(path.with_suffix(".html"), page)
    return path.with_suffix(".html")
