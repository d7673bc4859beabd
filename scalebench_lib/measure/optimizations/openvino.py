"""OpenVINO: converted once, compiled for each number of threads and for the batch at hand."""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import Inputs
from scalebench_lib.measure.optimizations.base import (
    OptimizedModel,
    Outputs,
    Precision,
    Runner,
    Target,
    has_bfloat16,
    import_extra,
)
from scalebench_lib.measure.optimizations.export_cache import Metadata, cache_key, export
from scalebench_lib.text import pluralize

_MODEL = "model.xml"
_TYPES = {"fp32": "f32", "bf16": "bf16"}
_LAYERS = {"FullyConnected", "Convolution", "MatMul"}


def engine(target: Target, precision: Precision) -> OptimizedModel:
    """OpenVINO computing in `precision`: ``fp32`` or ``bf16``."""
    # Its Python package reports conversions to a server; without this module it does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    ov = import_extra("openvino", "openvino")
    core = ov.Core()
    capable = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not (capable and has_bfloat16()):
        raise MeasurementError(
            "optimization 'openvino-bf16' does not apply: this CPU has no bfloat16 arithmetic, "
            "and OpenVINO would compute in fp32, or emulate it"
        )
    folder, _ = export(cache_key(target, "openvino", "openvino"), partial(_convert, ov, target))
    return OptimizedModel(
        partial(_open, core, folder / _MODEL, target.inputs, precision),
        {"name": "openvino", "version": ov.get_version()},
        own_threads=True,
        per_thread_count=True,
        pins_itself=True,
        files=folder,
    )


def _convert(ov: Any, target: Target, draft: Path) -> Metadata:
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        model = ov.convert_model(target.model.module, example_input=target.inputs)
    ov.save_model(model, draft / _MODEL, compress_to_fp16=False)
    return {}


def _open(core: Any, path: Path, batch: Inputs, precision: Precision, threads: int) -> Runner:
    model = core.read_model(path)
    shapes = (list(part.shape) for part in batch)
    model.reshape(dict(zip(model.inputs, shapes, strict=False)))
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": _TYPES[precision],
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": True,  # without it, OpenVINO undoes the pinning of others
        "ENABLE_HYPER_THREADING": True,  # without it, it counts cores, not threads
    }
    compiled = core.compile_model(model, "CPU", options)
    _require_effect(compiled, threads, precision)
    request, count = compiled.create_infer_request(), len(compiled.inputs)

    def run(*inputs: Tensor) -> Outputs:
        parts = [part.numpy() for part in inputs[:count]]
        found = request.infer(parts, share_inputs=True, share_outputs=False)
        return tuple(map(torch.from_numpy, found.values()))

    run(*batch)  # in its first pass OpenVINO reads the CPUs that it may use
    return run


def _require_effect(compiled: Any, threads: int, precision: Precision) -> None:
    """Read back the number of threads, and the types of the matrix products."""
    if (got := compiled.get_property("INFERENCE_NUM_THREADS")) != threads:
        raise MeasurementError(f"asked for {pluralize(threads, 'thread')}, openvino uses {got}")
    wanted = _TYPES[precision]
    layers = [dict(node.get_rt_info()) for node in compiled.get_runtime_model().get_ops()]
    types = {
        str(layer["runtimePrecision"].astype(str))
        for layer in layers
        if layer["layerType"].astype(str) in _LAYERS
    }
    if types != {wanted}:
        raise MeasurementError(f"asked for {wanted}, openvino computes in {sorted(types)}")
