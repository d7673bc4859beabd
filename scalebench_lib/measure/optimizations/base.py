"""What an optimization is: a function of a `Target` that returns an `OptimizedModel`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import Inputs, Model

Runner = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Target:
    """What is to be optimized: a model, inputs like those it will be timed with, its config."""

    model: Model
    inputs: Inputs
    config: Config


class OptimizedModel:
    """A model made ready to run; `engine` tells what runs it.

    Torch's threads compute it and any number of them can, unless `own_threads` or
    `per_thread_count` say otherwise; `pins_itself` says that it binds its threads, whenever they
    compute, to the CPUs that it was allowed when it was made.
    """

    own_threads = False
    per_thread_count = False
    pins_itself = False

    def __init__(self, run: Runner | None = None, **engine: str) -> None:
        self._run = run
        self.engine = {"name": "torch", "version": torch.__version__, **engine}

    def runner(self, threads: int) -> Runner:
        """What to time with `threads` threads; torch is set to that many already."""
        assert self._run is not None  # noqa: S101 - engines have no other
        return self._run

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around timing: `MeasurementError` where something else was timed than was prepared."""
        yield


class Engine(OptimizedModel):
    """An inference engine: the number of threads is part of what `open_runner` makes."""

    own_threads = per_thread_count = True

    def __init__(self, open_runner: Callable[[int], Runner], **engine: str) -> None:
        super().__init__(None, **engine)
        self._open = open_runner

    def runner(self, threads: int) -> Runner:
        """The engine opened for `threads` threads; costly, so ask once."""
        return self._open(threads)


@dataclass(frozen=True)
class Optimization:
    """How to `apply` it, and the `precision` that decides how exact it must be.

    `any_batch` says that what it makes takes batches of any size, not the measured one's alone.
    """

    apply: Callable[[Target], OptimizedModel]
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    any_batch: bool = True


def import_extra(name: str, *modules: str) -> ModuleType:
    """Import `modules` of the package's extra `name`; returns the first.

    They are imported late: they start threads, which a process that forks must not have.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        first, *_ = map(importlib.import_module, modules)
        return first
    except ImportError as error:
        raise MeasurementError(
            f"optimization {name!r} needs {error.name or name}: pip install 'scalebench[{name}]'"
        ) from None
