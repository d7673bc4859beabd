"""ONNX Runtime: export once with a free batch axis, open a session for each thread count."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import Inputs
from scalebench_lib.measure.optimizations import base
from scalebench_lib.measure.optimizations.export_cache import Metadata, cache_key, export
from scalebench_lib.text import pluralize

_FLOATS = ("MatMul", "Gemm", "Conv", "FusedMatMul")
_MODEL = "model.onnx"


def fp32(target: base.Target) -> base.OptimizedModel:
    """ONNX Runtime, computing in fp32."""
    return _engine(_runtime(), _exported(target), {})


def int8(target: base.Target) -> base.OptimizedModel:
    """ONNX Runtime with dynamic quantization, of matrix products alone."""
    runtime = _runtime()
    key = cache_key(target, "onnx-int8", "onnx", "onnxruntime", "onnxscript")
    folder, metadata = export(key, lambda draft: _quantize(_exported(target), draft))
    base.require_quantized(target, float(metadata["quantized_flops"]), of="FLOPs")
    return _engine(runtime, folder, metadata)


def _runtime() -> Any:
    runtime = base.import_extra("onnxruntime", "onnxruntime")
    runtime.disable_telemetry_events()
    return runtime


def _exported(target: base.Target) -> Path:
    base.import_extra("onnxruntime", "onnx", "onnxscript")
    key = cache_key(target, "onnx", "onnx", "onnxscript")
    folder, _ = export(key, partial(_export, target))
    return folder


def _export(target: base.Target, draft: Path) -> Metadata:
    # A batch of one would become part of the graph.
    inputs = tuple(torch.cat([part[:1], part[:1]]) for part in target.inputs)
    axes = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    passes = base.import_extra("onnxruntime", "onnx_ir.passes.common")
    with base.quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            target.model.module,
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
    quantization = base.import_extra("onnxruntime", "onnxruntime.quantization")
    with base.quiet():
        quantization.quantize_dynamic(
            source / _MODEL, draft / _MODEL, op_types_to_quantize=["MatMul"]
        )
    share = quantized_share(source / _MODEL, draft / _MODEL)
    return {"quantized_flops": f"{share:.4f}"}


def quantized_share(before: Path, after: Path) -> float:
    """Return the share of the FLOPs in graph `before` in layers that `after` computes in int8."""
    graph = _graph(before)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(size.dim_value or 1 for size in sizes)  # a batch of one
    flops = {_stem(node): _flops(node, shapes) for node in graph.node if node.op_type in _FLOATS}
    left = {_stem(node) for node in _graph(after).node if node.op_type in _FLOATS}
    return 1 - sum(flops[layer] for layer in left & flops.keys()) / sum(flops.values())


def _graph(path: Path) -> Any:
    return base.import_extra("onnxruntime", "onnx").load(path, load_external_data=False).graph


def _stem(node: Any) -> str:
    """Return a layer's name, by its output; the quantizer adds a suffix to a Gemm's."""
    return str(node.output[0]).removesuffix("_MatMul")


def _flops(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """Return twice the elements of the output times the length of each sum."""
    output, left, right = (shapes.get(name, (0, 0)) for name in (node.output[0], *node.input[:2]))
    flipped = any(part.name == "transA" and part.i for part in node.attribute)
    length = math.prod(right[1:]) if node.op_type == "Conv" else left[-2 if flipped else -1]
    return 2 * math.prod(output) * length


def _engine(runtime: Any, folder: Path, metadata: Metadata) -> base.OptimizedModel:
    engine = {"name": "onnxruntime", "version": runtime.__version__, "spinning": "within a pass"}
    open_ = partial(_open, runtime, folder / _MODEL)
    return base.OptimizedModel(
        lambda threads: _runner(open_(threads, runtime.SessionOptions())),
        {**engine, **metadata},
        own_threads=True,
        per_thread_count=True,
        profile=partial(_profile, runtime, open_),
        files=folder,
    )


def _open(runtime: Any, path: Path, threads: int, options: Any) -> Any:
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Threads that spin after a pass would disturb the turns of other thread counts.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if (got := session.get_session_options().intra_op_num_threads) != threads:
        raise MeasurementError(f"asked for {pluralize(threads, 'thread')}, onnxruntime uses {got}")
    return session


def _runner(session: Any) -> base.Runner:
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> base.Outputs:
        feeds = {name: part.numpy() for name, part in zip(names, inputs, strict=False)}
        return tuple(map(torch.from_numpy, session.run(None, feeds)))

    return run


def _profile(runtime: Any, open_: Any, threads: int, batch: Inputs, passes: int) -> base.Profile:
    options, times = runtime.SessionOptions(), base.Times()
    with TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        session = open_(threads, options)
        run = _runner(session)
        for _ in range(1 + passes):
            run(*batch)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    runs = [event for event in events if event["name"] == "model_run"][1:]
    for event in events:
        if event["name"].endswith("_kernel_time") and event["ts"] >= runs[0]["ts"]:
            times[_operator(event["args"])] += 1000 * event["dur"]
    return 1000 * sum(event["dur"] for event in runs), times


def _operator(node: Any) -> str:
    """Return the operator's type; inputs of three axes and more are activations, not weights."""
    shapes = [shape for each in node["input_type_shape"] for shape in each.values()]
    of_activations = "MatMul" in node["op_name"] and any(len(shape) > 2 for shape in shapes[1:2])
    return f"{node['op_name']}{' of activations' * of_activations}"
