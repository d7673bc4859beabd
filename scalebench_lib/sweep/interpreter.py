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
from scalebench_lib.errors import RequestError, reason_in
from scalebench_lib.notebook import PROJECT
from scalebench_lib.optimizations import OPTIMIZATIONS
from scalebench_lib.record import Software


class Interpreter(StrictModel):
    """A Python: its path, `environment` and `software`, and the packages that it lacks.

    `missing` has those that each optimization needs.
    """

    executable: str
    environment: dict[str, str]
    software: Software
    missing: dict[str, list[str]]

    @classmethod
    def here(cls) -> Self:
        """Return this process's Python."""
        return cls(
            executable=sys.executable,
            environment=dict(os.environ),
            software=Software.here(),
            missing={name: one.missing for name, one in OPTIMIZATIONS.items()},
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
            found = run_module(shlex.split(command), __name__, {**os.environ, "PYTHONPATH": path})
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise RequestError(
                f"against: cannot start {command!r} ({error}): name a Python"
            ) from None
        if found.returncode:
            why = reason_in(found.stderr) or f"exit code {found.returncode}"
            raise RequestError(
                f"against: {command} cannot run this checkout ({why}): install it there, by its "
                "pip install -e ."
            )
        return cls.model_validate_json(found.stdout.splitlines()[-1])

    def require(self, optimizations: tuple[str, ...]) -> None:
        """Raise `RequestError` where a package that one of `optimizations` needs is missing."""
        for name in optimizations:
            if packages := " ".join(self.missing[name]):
                raise RequestError(
                    f"against: {self.executable} lacks {packages}, which {name} needs: "
                    f"{self.executable} -m pip install {packages}"
                )


def run_module(
    python: list[str], module: str, env: dict[str, str], given: str = "", limit_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run `module` by a Python, with `given` as its input; raise `subprocess.TimeoutExpired`."""
    return subprocess.run(  # noqa: S603 - our own modules, by a Python that the user names
        [*python, "-P", "-m", module],
        input=given,
        env=env,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


if __name__ == "__main__":
    from scalebench_lib.sweep.forkserver import IMPORTS  # or it could not run kernels

    for name in IMPORTS:
        import_module(name)
    print(Interpreter.here().model_dump_json())
