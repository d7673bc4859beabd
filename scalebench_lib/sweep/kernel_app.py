"""ipykernel without the user's configuration and startup files, which measurements leave out."""

from __future__ import annotations

import sys
from typing import Any

from ipykernel.kernelapp import IPKernelApp

from scalebench_lib.processes import die_with_parent

_OPTIONS = ["--HistoryManager.enabled=False", "--IPKernelApp.ignore_cwd=True"]
"""No history of a notebook that runs once; a ``statistics.py`` in the working directory is not
imported."""


class KernelApp(IPKernelApp):
    """A kernel without configuration and start-up files: the user's, and those of the system."""

    def load_config_file(self, *_: Any, **__: Any) -> None:
        """Load none."""

    def _run_startup_files(self) -> None:
        """Run none, and no PYTHONSTARTUP."""


def launch(arguments: list[str]) -> None:
    """Run a kernel until the runner ends it."""
    KernelApp.launch_instance(argv=[*arguments, *_OPTIONS])


if __name__ == "__main__":
    die_with_parent()
    launch(sys.argv[1:])
