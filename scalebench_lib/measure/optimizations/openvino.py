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
from scalebench_lib.measure.optimizations.base import Engine, Runner, Target, import_extra
from scalebench_lib.measure.optimizations.export_cache import Metadata, cache_key, export

_MODEL = "model.xml"
_TYPES = {"fp32": "f32", "bf16": "bf16"}
_LAYERS = {"FullyConnected", "Convolution", "MatMul"}


class _OpenVINO(Engine):
    pins_itself = True


def engine(subject: Target, precision: str) -> Engine:
    """OpenVINO computing in `precision`: ``fp32`` or ``bf16``."""
    # Its Python package tells a server of conversions; without this module it does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    ov = import_extra("openvino", "openvino")
    core = ov.Core()
    capable = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capable:
        raise MeasurementError(
            "optimization 'openvino-bf16' does not apply: this CPU has no bfloat16 arithmetic, "
            "and OpenVINO would compute in fp32"
        )
    folder, _ = export(
        cache_key(subject, "openvino", ("openvino",)), partial(_convert, ov, subject)
    )
    shapes = [list(part.shape) for part in subject.inputs]
    opened = partial(_compile, core, folder / _MODEL, shapes, precision)
    return _OpenVINO(opened, name="openvino", version=ov.get_version())


def _convert(ov: Any, subject: Target, draft: Path) -> Metadata:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ov.convert_model(subject.model.module, example_input=subject.inputs)
    ov.save_model(model, draft / _MODEL, compress_to_fp16=False)
    return {}


def _compile(
    core: Any, path: Path, shapes: list[list[int]], precision: str, threads: int
) -> Runner:
    model = core.read_model(path)
    model.reshape(dict(zip(model.inputs, shapes, strict=False)))
    asked = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": _TYPES[precision],
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": True,  # it undoes what others do
        "ENABLE_HYPER_THREADING": True,  # else it counts cores, not threads
    }
    compiled = core.compile_model(model, "CPU", asked)
    _require_effect(compiled, threads, precision)
    request, count = compiled.create_infer_request(), len(compiled.inputs)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        parts = [part.numpy() for part in inputs[:count]]
        found = request.infer(parts, share_inputs=True, share_outputs=False)
        return tuple(map(torch.from_numpy, found.values()))

    return run


def _require_effect(compiled: Any, threads: int, precision: str) -> None:
    """Read back what OpenVINO made of our wishes, down to the types of its matrix products."""
    if (got := compiled.get_property("INFERENCE_NUM_THREADS")) != threads:
        raise MeasurementError(f"asked for {threads} threads, openvino uses {got}")
    wanted = _TYPES[precision]
    layers = [dict(node.get_rt_info()) for node in compiled.get_runtime_model().get_ops()]
    types = {
        str(layer["runtimePrecision"].astype(str))
        for layer in layers
        if layer["layerType"].astype(str) in _LAYERS
    }
    if types != {wanted}:
        raise MeasurementError(f"asked for {wanted}, openvino computes in {sorted(types)}")
