"""Executed notebooks as others may see them: no paths of this machine, no widgets that are dead."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from scalebench_lib.errors import RequestError
from scalebench_lib.files import write_atomically
from scalebench_lib.notebook import PROJECT

WIDGET = "application/vnd.jupyter.widget-view+json"

_KERNELS_FILE = re.compile(r"(?:/[\w.-]+)+/ipykernel_\d+/\d+\.py")
_OFFLINE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
"""
"""nbconvert's page without what it loads from a network; our notebooks hold no formulas."""


def scrub(notebook: NotebookNode, *folders: Path) -> NotebookNode:
    """`notebook` without the paths of this machine; those in `folders` become relative to them.

    Widgets lose their views where their state was not saved: they would be shown as errors.
    """
    for name in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(name, None)
    roots = list(_roots(folders))
    scrubbed: NotebookNode = nbformat.from_dict(_without(notebook, roots))
    if "widgets" not in scrubbed.metadata:
        for cell in scrubbed.cells:
            for output in cell.get("outputs", []):
                output.get("data", {}).pop(WIDGET, None)
    return scrubbed


def write(notebook: NotebookNode, path: Path) -> None:
    """Write `notebook` to `path` whole or not at all."""
    write_atomically(path, nbformat.writes(notebook) + "\n")


def _roots(folders: tuple[Path, ...]) -> Iterator[tuple[str, str]]:
    """What begins a path of this machine, and what stands for it; the longest first."""
    roots = {str(folder.resolve()): "" for folder in (*folders, PROJECT)}
    if not Path(sys.prefix).is_relative_to(PROJECT):
        roots[sys.prefix] = ""
    roots[str(Path.home())] = "~/"
    for root in sorted(roots, key=len, reverse=True):
        yield f"{root}/", roots[root]


def _without(value: Any, roots: list[tuple[str, str]]) -> Any:
    if isinstance(value, dict):
        return {
            key: inside if key.startswith("image/") else _without(inside, roots)
            for key, inside in value.items()
        }
    if isinstance(value, list):
        return [_without(inside, roots) for inside in value]
    if not isinstance(value, str):
        return value
    for root, instead in roots:
        value = value.replace(root, instead)
    return _KERNELS_FILE.sub("<cell>", value)


def render(path: Path) -> Path:
    """Scrub the executed notebook at `path`, and write it as a page beside it; return the page.

    The page needs no network. Raises `RequestError` where there is no notebook.
    """
    from nbconvert import HTMLExporter  # takes most of a second

    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path} as a notebook: {error}") from None
    scrubbed = scrub(notebook, path.resolve().parent)
    exporter = HTMLExporter(raw_template=_OFFLINE, embed_images=True)
    page, _ = exporter.from_notebook_node(scrubbed, {"metadata": {"name": path.stem}})
    write(scrubbed, path)
    write_atomically(path.with_suffix(".html"), page)
    return path.with_suffix(".html")
