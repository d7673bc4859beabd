"""OpenVINO: converted or quantized once, compiled for each number of threads and the batch."""

from __future__ import annotations

import re
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import Inputs
from scalebench_lib.measure.optimizations import base
from scalebench_lib.measure.optimizations.export_cache import Metadata, cache_key, export
from scalebench_lib.optimizations import OPTIMIZATIONS, Precision
from scalebench_lib.text import pluralize

_MODEL = "model.xml"
_TYPES = {"fp32": {"f32"}, "bf16": {"bf16"}, "int8": {"i8", "u8"}}
_WEIGHTED = {"FullyConnected", "Convolution"}

_CALIBRATION_SEEDS = range(3 * 2**30, 3 * 2**30 + 32)
"""Larger than the seeds of any config, of which timed and verified batches are made."""


def engine(target: base.Target) -> base.OptimizedModel:
    """OpenVINO in the precision of the optimization; int8 leaves floats in bfloat16 if it can."""
    precision = OPTIMIZATIONS[target.config.optimization].precision
    # Its Python package reports conversions to a server; without this module it does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    ov = base.import_extra("openvino", "openvino")
    core = ov.Core()
    capable = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    floats = "bf16" if precision != "fp32" and capable and base.has_native_matmul("bf16") else "f32"
    if precision == "bf16" and floats != "bf16":
        why = f"{base.no_arithmetic_message('bfloat16')}, and OpenVINO would emulate it"
        raise MeasurementError(f"optimization 'openvino-bf16' does not apply: {why}")
    folder = (_quantized if precision == "int8" else _converted)(ov, target)
    open_ = partial(_open, core, folder / _MODEL, target.inputs, precision, floats)
    return base.OptimizedModel(
        lambda threads: _runner(open_(threads), target.inputs),
        {"name": "openvino", "version": ov.get_version(), "floats": floats},
        own_threads=True,
        per_thread_count=True,
        pins_itself=True,
        profile=lambda threads, *rest: _profile(open_(threads, PERF_COUNT=True), *rest),
        files=folder,
    )


def _converted(ov: Any, target: base.Target) -> Path:
    return export(cache_key(target, "openvino", "openvino"), partial(_convert, ov, target))[0]


def _convert(ov: Any, target: base.Target, draft: Path) -> Metadata:
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        model = ov.convert_model(target.model.module, example_input=target.inputs)
    ov.save_model(model, draft / _MODEL, compress_to_fp16=False)
    return {}


def _quantized(ov: Any, target: base.Target) -> Path:
    base.import_extra("openvino", "nncf")
    key = cache_key(target, "openvino-int8", "openvino", "nncf")
    return export(key, partial(_quantize, ov, target))[0]


def _quantize(ov: Any, target: base.Target, draft: Path) -> Metadata:
    """Quantize weights and activations after training, calibrated on seeded items."""
    nncf = base.import_extra("openvino", "nncf")
    model = ov.Core().read_model(_converted(ov, target) / _MODEL)
    batches = [[part.numpy() for part in one[: len(model.inputs)]] for one in calibration(target)]
    attends = any("Attention" in type(part).__name__ for part in target.model.module.modules())
    # Products of 8-bit weights saturate on CPUs without VNNI: 21 dB of BERT tiny, with 7 bits 34.
    weights = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    with base.quiet():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
            advanced_parameters=weights,
        )
    ov.save_model(quantized, draft / _MODEL, compress_to_fp16=False)
    return {}


def calibration(target: base.Target) -> list[Inputs]:
    """Return batches of one item, every other one with padding."""
    return [target.model.inputs(1, seed, padded=seed % 2 == 1) for seed in _CALIBRATION_SEEDS]


def _open(
    core: Any,
    path: Path,
    batch: Inputs,
    precision: Precision,
    floats: str,
    threads: int,
    **more: bool,
) -> Any:
    model = core.read_model(path)
    shapes = (list(part.shape) for part in batch)
    model.reshape(dict(zip(model.inputs, shapes, strict=False)))
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": floats,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": True,  # without it, OpenVINO undoes the pinning of others
        "ENABLE_HYPER_THREADING": True,  # without it, it counts cores, not threads
        **more,
    }
    compiled = core.compile_model(model, "CPU", options)
    _require_effect(compiled, threads, precision)
    return compiled.create_infer_request()


def _runner(request: Any, batch: Inputs) -> base.Runner:
    count = len(request.model_inputs)

    def run(*inputs: Tensor) -> base.Outputs:
        parts = [part.numpy() for part in inputs[:count]]
        found = request.infer(parts, share_inputs=True, share_outputs=False)
        return tuple(map(torch.from_numpy, found.values()))

    run(*batch)  # in its first pass OpenVINO reads the CPUs that it may use
    return run


def _profile(request: Any, batch: Inputs, passes: int) -> base.Profile:
    run = _runner(request, batch)
    before, start = _times(request, 1), time.perf_counter_ns()
    for _ in range(passes):
        run(*batch)
    wall_ns = time.perf_counter_ns() - start
    return wall_ns, _times(request, 1 + passes) - before


def _times(request: Any, passes: int) -> base.Times:
    """Return the times of all passes so far by type of node, from OpenVINO's means."""
    graph = request.get_compiled_model().get_runtime_model().get_ops()
    layers = {node.get_friendly_name(): dict(node.get_rt_info()) for node in graph}
    times = base.Times()
    for node in request.profiling_info:
        parts = layers.get(node.node_name, {}).get("originalLayersNames")
        attends = parts and re.search("dot_product_attention|softmax", parts.astype(str), re.I)
        # Products with weights are FullyConnected.
        what = {"MatMul": " of activations", "Subgraph": " of attention" * bool(attends)}
        name = node.node_type + what.get(node.node_type, "")
        times[name] += round(passes * 1e9 * node.real_time.total_seconds())
    return times


def _require_effect(compiled: Any, threads: int, precision: Precision) -> None:
    """Raise `MeasurementError` for another number of threads, or type of the matrix products."""
    if (got := compiled.get_property("INFERENCE_NUM_THREADS")) != threads:
        raise MeasurementError(f"asked for {pluralize(threads, 'thread')}, openvino uses {got}")
    # In int8 some products of activations stay floats: attention's, after the softmax.
    checked = _WEIGHTED if precision == "int8" else _WEIGHTED | {"MatMul"}
    layers = [dict(node.get_rt_info()) for node in compiled.get_runtime_model().get_ops()]
    types = {
        str(layer["runtimePrecision"].astype(str))
        for layer in layers
        if layer["layerType"].astype(str) in checked
    }
    if not types or types - _TYPES[precision]:
        raise MeasurementError(f"asked for {precision}, openvino computes in {sorted(types)}")
