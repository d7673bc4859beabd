"""Notebooks made by a test, and run in kernels."""

import json
from pathlib import Path
from typing import Any

import nbformat

from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.trial_process import NotebookRun


def notebook(path: Path, *cells: str) -> Path:
    """A notebook with an empty parameters cell and then `cells`."""
    first = nbformat.v4.new_code_cell("word = ''", metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
    book.metadata["kernelspec"] = {"name": "nowhere", "language": "python", "display_name": "x"}
    nbformat.write(book, path)
    return path


def run_notebook(
    kernels: Kernels, source: Path, target: Path, limit_s: float = 120, **parameters: Any
) -> str:
    """Run it; returns what its last cell prints."""
    kernel = kernels.start(parameters.get("allocator", "default"))
    NotebookRun(kernel, source, target, parameters).wait(limit_s)
    outputs = nbformat.read(target, as_version=4).cells[-1].outputs
    return "".join(output.get("text", "") for output in outputs)


def run_cells(kernels: Kernels, folder: Path, *cells: str) -> Any:
    """What the last of `cells` prints as JSON, run in a kernel."""
    source = notebook(folder / "in.ipynb", *cells)
    return json.loads(run_notebook(kernels, source, folder / "out.ipynb"))


def said(*cells: nbformat.NotebookNode) -> str:
    """All that executed cells print, or say in paragraphs."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    told = [o for o in outputs if o.output_type == "stream" or "text/html" in o.get("data", {})]
    return "\n".join(o.get("text") or o.data["text/plain"] for o in told)
