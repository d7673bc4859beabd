"""The Python that runs kernels: this one, or another that ``--against`` names.

Both run this checkout. The other one describes itself as ``python -m`` this module.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib import import_module
from typing import Self

from scalebench_lib.config import StrictModel
from scalebench_lib.errors import RequestError
from scalebench_lib.notebook import PROJECT
from scalebench_lib.optimizations import OPTIMIZATIONS, is_installed
from scalebench_lib.record import Software

IMPORTS = (
    "IPython.core.completerlib",
    "IPython.extensions.storemagic",
    "ipykernel.debugger",
    "ipykernel.kernelapp",
    "matplotlib_inline.backend_inline",
    "scalebench_lib.analysis.draw",
    "scalebench_lib.analysis.figures",
    "scalebench_lib.measure.trial",
    "scalebench_lib.notebook",
    "scalebench_lib.results",
    "sqlite3",
    "tornado.platform.asyncio",
)
"""Modules that ``measure.ipynb`` and its kernel import; by name, since a sweep imports no torch."""

_ANSWER_S = 120.0


class Interpreter(StrictModel):
    """A Python: its path, `environment` and `software`, and its `packages` for optimizations."""

    executable: str
    environment: dict[str, str]
    software: Software
    packages: frozenset[str]

    @classmethod
    def here(cls) -> Self:
        """Return this process's Python."""
        wanted = {name for one in OPTIMIZATIONS.values() for name in one.needs}
        return cls(
            executable=sys.executable,
            environment=dict(os.environ),
            software=Software.here(),
            packages=frozenset(filter(is_installed, wanted)),
        )

    @classmethod
    def of(cls, command: str) -> Self:
        """Return the Python that `command` starts: a path, or ``env X=1 PATH``.

        Raises `RequestError` where it cannot run this checkout's kernels.
        """
        # With a wheel, PYTHONPATH would add all packages that are installed next to it.
        if not (PROJECT / "pyproject.toml").exists():
            raise RequestError("against: needs a checkout of scalebench, not an installed wheel")
        path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        try:
            found = subprocess.run(  # noqa: S603 - what the user asks for
                [*shlex.split(command), "-P", "-m", __name__],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_ANSWER_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise RequestError(
                f"against: cannot start {command!r} ({error}): name a Python"
            ) from None
        if found.returncode:
            last = (found.stderr.strip().splitlines() or [f"exit code {found.returncode}"])[-1]
            raise RequestError(f"against: {_complaint(last, command)}")
        return cls.model_validate_json(found.stdout.splitlines()[-1])

    def require(self, optimizations: tuple[str, ...]) -> None:
        """Raise `RequestError` where a package that one of `optimizations` needs is missing."""
        for name in optimizations:
            for package in OPTIMIZATIONS[name].needs:
                if package not in self.packages:
                    raise RequestError(
                        f"against: {self.executable} lacks {package}, which {name} needs: "
                        f"{self.executable} -m pip install {package}"
                    )


def _complaint(last: str, command: str) -> str:
    """Return the `last` line of a traceback as a message."""
    if (missing := last.partition("No module named ")[2]) and "scalebench_lib" not in missing:
        name = missing.strip("'").partition(".")[0]
        return f"{command} lacks {name}: install this checkout there, by its pip install -e ."
    return f"{command} cannot run this checkout: {last}"


if __name__ == "__main__":
    for name in IMPORTS:  # or it could not run them
        import_module(name)
    print(Interpreter.here().model_dump_json())
