"""The optimizations: each makes a model ready to run the same function, faster.

An optimization is a function of a `Subject` that returns an `Optimized`, and raises
`MeasurementError` where it does not apply or did not take effect. To add one: write it, enter it
in `REGISTRY`, and say in `words.OPTIMIZATIONS` what it is. Int8 in torch itself is left out: what
torch has is on its way out, and its successor is no faster than bf16 (design, section 6).
"""

from __future__ import annotations

import copy
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor
from torch.jit._trace import TracerWarning

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import Inputs, Model

Runner = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Subject:
    """What is to be optimized: a model, inputs like those it will be timed with, its config."""

    model: Model
    inputs: Inputs
    config: Config


class Optimized:
    """A model made ready to run; `engine` tells what runs it.

    Torch's threads compute it and any number of them can, unless `own_threads` or
    `per_thread_count` say otherwise.
    """

    own_threads = False
    per_thread_count = False

    def __init__(self, run: Runner | None = None, **engine: str) -> None:
        self._run = run
        self.engine = {"name": "torch", "version": torch.__version__, **engine}

    def runner(self, threads: int) -> Runner:
        """What to time with `threads` threads; torch is set to that many already."""
        assert self._run is not None  # noqa: S101 - engines have no other
        return self._run

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around timing: `MeasurementError` where something else was timed than was prepared."""
        yield


class Engine(Optimized):
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

    apply: Callable[[Subject], Optimized]
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    any_batch: bool = True


def none(subject: Subject) -> Optimized:
    """Eager PyTorch, as it comes."""
    return Optimized(subject.model.module)


def script(subject: Subject) -> Optimized:
    """TorchScript: traced on the inputs, frozen, optimized for inference."""
    with torch.no_grad(), warnings.catch_warnings():
        for noise in (TracerWarning, DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", noise)
        traced = torch.jit.trace(subject.model.module, subject.inputs, check_trace=False)
        runner = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    if not isinstance(runner, torch.jit.ScriptModule):
        raise MeasurementError(
            f"optimization 'script' did not take effect: got {type(runner).__name__}, "
            "not a ScriptModule"
        )
    return Optimized(runner)


def bf16(subject: Subject) -> Optimized:
    """Weights, computation and outputs in bfloat16; inputs that are floats are cast in the pass."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise MeasurementError(
            "optimization 'bf16' does not apply: this CPU has no bfloat16 arithmetic, "
            "and torch would emulate it"
        )
    module = copy.deepcopy(subject.model.module).to(torch.bfloat16)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        cast = (part.bfloat16() if part.is_floating_point() else part for part in inputs)
        outputs: tuple[Tensor, ...] = module(*cast)
        return outputs

    kinds = {part.dtype for part in (*module.parameters(), *run(*subject.inputs))}
    if kinds != {torch.bfloat16}:
        raise MeasurementError(f"optimization 'bf16' did not take effect: found {kinds}")
    return Optimized(run)


def compile(subject: Subject) -> Optimized:  # noqa: A001 - the name that people know
    """Inductor with static shapes, compiled anew for each number of threads."""
    from scalebench_lib.measure.inductor import Compiled

    return Compiled(subject)


def onnxruntime(subject: Subject) -> Optimized:
    """ONNX Runtime in fp32."""
    from scalebench_lib.measure import onnx_runtime

    return onnx_runtime.fp32(subject)


def onnxruntime_int8(subject: Subject) -> Optimized:
    """ONNX Runtime with weights in int8, and activations quantized as they come."""
    from scalebench_lib.measure import onnx_runtime

    return onnx_runtime.int8(subject)


def openvino(subject: Subject) -> Optimized:
    """OpenVINO in fp32."""
    from scalebench_lib.measure.openvino_engine import engine

    return engine(subject, "fp32")


def openvino_bf16(subject: Subject) -> Optimized:
    """OpenVINO computing in bfloat16."""
    from scalebench_lib.measure.openvino_engine import engine

    return engine(subject, "bf16")


def extra(name: str, *modules: str) -> ModuleType:
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


REGISTRY = {
    "none": Optimization(none),
    "script": Optimization(script),
    "compile": Optimization(compile, any_batch=False),
    "bf16": Optimization(bf16, "bf16"),
    "onnxruntime": Optimization(onnxruntime),
    "onnxruntime-int8": Optimization(onnxruntime_int8, "int8"),
    "openvino": Optimization(openvino, any_batch=False),
    "openvino-bf16": Optimization(openvino_bf16, "bf16", any_batch=False),
}
"""Optimizations by name."""
