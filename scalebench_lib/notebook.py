"""What the notebooks need beside the library: their parameters, checked, and their folders."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from IPython.core.getipython import get_ipython

from scalebench_lib.config import Trial
from scalebench_lib.errors import RequestError
from scalebench_lib.machine import Machine
from scalebench_lib.record import next_trial

PROJECT = Path(__file__).resolve().parent.parent
"""The project's folder: the package is installed editable, the notebooks lie beside it."""

OUTPUTS = PROJECT / "outputs"
NOTEBOOKS = PROJECT / "notebooks"

_IPYTHONS_OWN = {"In", "Out"}


def somebody_watches() -> bool:
    """Whether there is somebody before the notebook: papermill forbids cells to ask for input."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is None or bool(kernel.get_parent()["content"].get("allow_stdin", True))


def parameters(namespace: Mapping[str, Any], known: Container[str] = ()) -> dict[str, Any]:
    """A notebook's parameters in its `namespace`: plain values, and `known` names of any value."""
    plain = (str, int, float, bool, list, tuple, dict)
    return {
        name: value
        for name, value in namespace.items()
        if name in known
        or (isinstance(value, plain) and not name.startswith("_") and name not in _IPYTHONS_OWN)
    }


def measurement_request(namespace: Mapping[str, Any]) -> tuple[Trial, Machine, Path]:
    """What ``measure.ipynb`` is asked to do, checked: the trial, the machine, the sweep's folder.

    An empty `out` means ``outputs/by-hand``; `trial` 0 means the config's next one there.
    Raises `RequestError` for an unknown parameter or a wrong value.
    """
    values = parameters(namespace, {*Trial.parameter_names(), "out"})
    out = values.pop("out", "")
    if not isinstance(out, str) or not out.isprintable():
        raise RequestError(f"out: must be a folder's name, not {out!r}")
    number = values.pop("trial", 0)
    number = 0 if str(number) == "0" else number
    machine = Machine.here()
    trial = Trial.from_parameters({**values, "trial": 1 if number == 0 else number}, machine)
    folder = Path(out) if out else OUTPUTS / "by-hand"
    if number == 0:
        trial = trial.model_copy(update={"number": next_trial(folder, trial.config)})
    return trial, machine, folder
