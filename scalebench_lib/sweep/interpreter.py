"""The Python that runs kernels: this one, or another that ``--against`` names.

Both run this checkout. The other one tells about itself as ``python -m`` this module.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from scalebench_lib.config import StrictModel
from scalebench_lib.errors import RequestError
from scalebench_lib.record import Software

_CHECKOUT = Path(__file__).resolve().parents[2]

_PACKAGES = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
"""What an optimization needs beside torch, by the first word of its name."""

_ANSWER_S = 120.0


class _Description(StrictModel):
    """An interpreter, as it describes itself."""

    executable: str
    environment: dict[str, str]
    software: Software
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Interpreter:
    """A Python, and how its environment differs from that of this process.

    `command` starts it; `executable` is its path. `changes` are variables that it has otherwise,
    `removed` those that it lacks; what decides of all of them is in `software`. `packages` are
    those of `_PACKAGES` that it can import.
    """

    command: tuple[str, ...]
    executable: str
    software: Software
    packages: tuple[str, ...] = ()
    changes: Mapping[str, str] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    @classmethod
    def here(cls) -> Self:
        """This one."""
        return cls((sys.executable,), sys.executable, Software.here())

    @classmethod
    def of(cls, command: str) -> Self:
        """The one that `command` starts: a path, or ``env X=1 PATH``.

        Raises `RequestError` where it cannot run this checkout's kernels.
        """
        words, told = _asked(command)
        changes = {k: v for k, v in told.environment.items() if os.environ.get(k) != v}
        removed = frozenset(os.environ.keys() - told.environment.keys())
        return cls(words, told.executable, told.software, told.packages, changes, removed)

    def environment(self) -> dict[str, str]:
        """The environment of this process as the interpreter has it."""
        kept = {k: v for k, v in os.environ.items() if k not in self.removed}
        return {**kept, **self.changes}

    def require(self, optimizations: tuple[str, ...]) -> None:
        """Raise `RequestError` where a package that one of `optimizations` needs is missing."""
        for name in optimizations:
            for package in _PACKAGES.get(name.partition("-")[0], ()):
                if package not in self.packages:
                    raise RequestError(
                        f"against: {self.executable} lacks {package}, which {name} needs: "
                        f"{self.executable} -m pip install {package}"
                    )


def _asked(command: str) -> tuple[tuple[str, ...], _Description]:
    """The words of `command`, and what the Python that it starts tells of itself."""
    path = os.pathsep.join(filter(None, (str(_CHECKOUT), os.environ.get("PYTHONPATH"))))
    try:
        words = shlex.split(command)
        found = subprocess.run(  # noqa: S603 - what the user asks for
            [*words, "-P", "-m", __name__],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise RequestError(f"against: cannot start {command!r} ({error}): name a Python") from None
    if found.returncode:
        last = (found.stderr.strip().splitlines() or [f"exit code {found.returncode}"])[-1]
        raise RequestError(f"against: {_lacking(last, command)}")
    return tuple(words), _Description.model_validate_json(found.stdout.splitlines()[-1])


def _lacking(last: str, command: str) -> str:
    """Say in one line what the `last` line of a traceback means."""
    if (missing := last.partition("No module named ")[2]) and "scalebench_lib" not in missing:
        name = missing.strip("'").partition(".")[0]
        return f"{command} lacks {name}: install this checkout there, by its pip install -e ."
    return f"{command} cannot run this checkout: {last}"


def main() -> None:
    """Import all that a kernel does, and print what there is to tell, as JSON."""
    from scalebench_lib.sweep.forkserver import IMPORTS

    for name in IMPORTS:
        import_module(name)
    packages = {name for names in _PACKAGES.values() for name in names}
    told = _Description(
        executable=sys.executable,
        environment=dict(os.environ),
        software=Software.here(),
        packages=tuple(sorted(name for name in packages if find_spec(name))),
    )
    print(told.model_dump_json())


if __name__ == "__main__":
    main()
