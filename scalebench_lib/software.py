"""The software that a measurement ran with, and what of it decides speed."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Self

from pydantic import Field

from scalebench_lib import __version__
from scalebench_lib.words import Words

_COMPARED = ("numpy", "torch", "transformers")
_DECIDING = re.compile(
    "(OMP|KMP|GOMP|MKL|OPENBLAS|ONEDNN|DNNL|TORCH|TORCHINDUCTOR|TORCHDYNAMO|ATEN|MALLOC|TCMALLOC"
    "|THP|ORT|OV)_|(LD_PRELOAD|GLIBC_TUNABLES)$"
)
_A_PLACE = re.compile("(_DIR|_PATH|_HOME|CACHE|LOGS)$")
"""Environment variables that decide what is computed, or how fast; names of places do not."""

RUNNERS = "SCALEBENCH_ENVIRONMENT"
"""The variable in which a runner tells its kernels, as JSON, the `deciding` ones as it had them:
a kernel's own also hold what it was started with."""


def deciding(environment: Mapping[str, str]) -> dict[str, str]:
    """What of `environment` decides; of preloaded libraries the file names alone."""
    found = {
        name: value
        for name, value in sorted(environment.items())
        if value and _DECIDING.match(name) and not _A_PLACE.search(name)
    }
    if libraries := found.get("LD_PRELOAD"):
        found["LD_PRELOAD"] = ":".join(Path(one).name for one in re.split("[: ]+", libraries))
    return found


_ALLOCATORS_OWN = ("LD_PRELOAD", "MALLOC_")


class Software(Words):
    """Versions, and what else of the process decides speed: libraries, thread environment."""

    python: str
    scalebench: str
    versions: dict[str, str]
    libraries: dict[str, str] = Field(default={})
    environment: dict[str, str] = Field(default={})

    @classmethod
    def here(cls, libraries: dict[str, str] | None = None) -> Self:
        """This process's software; `libraries` are what computes inside torch, where known."""
        return cls(
            python=platform.python_version(),
            scalebench=__version__,
            versions={name: version(name) for name in _COMPARED},
            libraries=libraries or {},
            environment=(
                json.loads(os.environ[RUNNERS]) if RUNNERS in os.environ else deciding(os.environ)
            ),
        )

    def differs_from(self, other: Software, allocator: str = "default") -> str | None:
        """The first difference that makes two sweeps incomparable, or None.

        How an `allocator` is loaded does not count: every trial asks which one it has.
        """
        mine, theirs = (s._deciding(allocator) for s in (self, other))
        for name in sorted(mine | theirs):
            if mine.get(name) != theirs.get(name):
                return f"{name} {mine.get(name)} against {theirs.get(name)}"
        return None

    def _deciding(self, allocator: str) -> dict[str, str]:
        found = {"python": self.python, **self.versions, **self.environment}
        loaded = ("LD_PRELOAD",) if allocator == "default" else _ALLOCATORS_OWN
        return {name: value for name, value in found.items() if not name.startswith(loaded)}
