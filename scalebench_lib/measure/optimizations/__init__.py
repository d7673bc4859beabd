"""The optimizations: each makes a model ready to run the same function, faster.

An optimization is a function of a `Target` that returns an `OptimizedModel`, and raises
`MeasurementError` where it does not apply or did not take effect. To add one: write it in a module
here, enter it in `REGISTRY`, and say in `config.OPTIMIZATIONS` what it is. Int8 in torch itself is
left out: what torch has is on its way out.
"""

from __future__ import annotations

from scalebench_lib.measure.optimizations.base import Optimization, OptimizedModel, Target
from scalebench_lib.measure.optimizations.native import bf16, none, script


def compile(subject: Target) -> OptimizedModel:  # noqa: A001 - the name that people know
    """Inductor with static shapes, compiled anew for each number of threads."""
    from scalebench_lib.measure.optimizations.inductor import Compiled

    return Compiled(subject)


def onnxruntime(subject: Target) -> OptimizedModel:
    """ONNX Runtime in fp32."""
    from scalebench_lib.measure.optimizations import onnx_runtime

    return onnx_runtime.fp32(subject)


def onnxruntime_int8(subject: Target) -> OptimizedModel:
    """ONNX Runtime with weights in int8, and activations quantized as they come."""
    from scalebench_lib.measure.optimizations import onnx_runtime

    return onnx_runtime.int8(subject)


def openvino(subject: Target) -> OptimizedModel:
    """OpenVINO in fp32."""
    from scalebench_lib.measure.optimizations.openvino import engine

    return engine(subject, "fp32")


def openvino_bf16(subject: Target) -> OptimizedModel:
    """OpenVINO computing in bfloat16."""
    from scalebench_lib.measure.optimizations.openvino import engine

    return engine(subject, "bf16")


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
