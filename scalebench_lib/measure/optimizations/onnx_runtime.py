"""ONNX Runtime: exported once with a free batch axis, a session for each number of threads."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.optimizations.base import Engine, Runner, Target, import_extra
from scalebench_lib.measure.optimizations.export_cache import Metadata, cache_key, export

ENOUGH_QUANTIZED = 0.8
"""A model with less of its arithmetic in quantized layers is not what people mean by int8."""

_FLOAT_LAYERS = ("MatMul", "Gemm", "Conv", "FusedMatMul")
_MODEL = "model.onnx"


def fp32(subject: Target) -> Engine:
    """ONNX Runtime, computing in fp32."""
    runtime, folder = _runtime(), _exported(subject)
    return _engine(runtime, folder, {})


def int8(subject: Target) -> Engine:
    """ONNX Runtime with dynamic quantization, of matrix products alone."""
    runtime = _runtime()
    key = cache_key(subject, "onnx-int8", ("onnx", "onnxruntime", "onnxscript"))
    folder, facts = export(key, lambda draft: _quantize(_exported(subject), draft))
    share = float(facts["quantized_flops"])
    if share < ENOUGH_QUANTIZED:
        raise MeasurementError(
            f"optimization 'onnxruntime-int8' does not apply to {subject.config.model}: "
            f"{share:.0%} of its FLOPs are in layers that it quantizes, less than "
            f"{ENOUGH_QUANTIZED:.0%}"
        )
    return _engine(runtime, folder, facts)


def _runtime() -> Any:
    runtime = import_extra("onnxruntime", "onnxruntime")
    runtime.disable_telemetry_events()
    return runtime


def _exported(subject: Target) -> Path:
    import_extra("onnxruntime", "onnx", "onnxscript")
    key = cache_key(subject, "onnx", ("onnx", "onnxscript"))
    folder, _ = export(key, partial(_export, subject))
    return folder


def _export(subject: Target, draft: Path) -> Metadata:
    # A batch of one would become part of the graph.
    inputs = tuple(torch.cat([part[:1], part[:1]]) for part in subject.inputs)
    axes = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    passes = import_extra("onnxruntime", "onnx_ir.passes.common")
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            subject.model.module,
            inputs,
            dynamo=True,
            dynamic_shapes=(axes,),  # the module takes them as *inputs
            verbose=False,
        )
        # Weights that layers share, as ALBERT's do, are transposed ahead only where that is one
        # node; otherwise the quantizer does not see that they are weights.
        passes.CommonSubexpressionEliminationPass()(program.model)
        program.optimize()
        program.save(draft / _MODEL, external_data=True)
    return {}


def _quantize(source: Path, draft: Path) -> Metadata:
    quantization = import_extra("onnxruntime", "onnxruntime.quantization")
    with _quiet():
        quantization.quantize_dynamic(
            source / _MODEL, draft / _MODEL, op_types_to_quantize=["MatMul"]
        )
    share = quantized_share(source / _MODEL, draft / _MODEL)
    return {"quantized_flops": f"{share:.4f}"}


def quantized_share(before: Path, after: Path) -> float:
    """Share of the FLOPs in graph `before` whose layers are no longer floats in graph `after`."""
    flops = _flops_by_output(before)
    left = set(_flops_by_output(after))
    kept = sum(count for output, count in flops.items() if output in left)
    return 1 - kept / sum(flops.values())


def _flops_by_output(path: Path) -> dict[str, int]:
    """FLOPs of an item in each floating-point layer of the graph, by the name of its output."""
    onnx = import_extra("onnxruntime", "onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False)).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(size.dim_value or 1 for size in sizes)
    return {
        _stem(node.output[0]): 2 * _multiplications(node, shapes)
        for node in graph.node
        if node.op_type in _FLOAT_LAYERS
    }


def _stem(output: str) -> str:
    """The quantizer splits a Gemm, and gives its product the output's name with a suffix."""
    return output.removesuffix("_MatMul")


def _multiplications(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """Elements of the output times the length of each sum; 0 where shapes are not known."""
    output, left, right = (shapes.get(name, ()) for name in (node.output[0], *node.input[:2]))
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(right[1:]) if output and right else 0
    flipped = any(part.name == "transA" and part.i for part in node.attribute)
    if len(left) >= 2 and right:
        rows = math.prod(left) // left[-2 if flipped else -1]
        columns = right[-2 if _flipped(node) else -1]
        return rows * columns * left[-2 if flipped else -1]
    return 0


def _flipped(node: Any) -> bool:
    return any(part.name == "transB" and part.i for part in node.attribute)


def _engine(runtime: Any, folder: Path, facts: Metadata) -> Engine:
    return Engine(
        lambda threads: _session(runtime, folder / _MODEL, threads),
        name="onnxruntime",
        version=runtime.__version__,
        spinning="within a pass",
        **facts,
    )


def _session(runtime: Any, path: Path, threads: int) -> Runner:
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Threads that spin after a pass would disturb the probe, and the other thread counts.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if (got := session.get_session_options().intra_op_num_threads) != threads:
        raise MeasurementError(f"asked for {threads} threads, onnxruntime uses {got}")
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        feeds = {name: part.numpy() for name, part in zip(names, inputs, strict=False)}
        return tuple(map(torch.from_numpy, session.run(None, feeds)))

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and the quantizer tell much that nobody asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
