"""The optimizations: each makes a model ready to run the same function, faster.

An optimization is a function of a `Target` that returns an `OptimizedModel`, and raises
`MeasurementError` if it does not apply or did not take effect. To add one: write it in a module
here, enter it in `REGISTRY`, and say in `config.OPTIMIZATIONS` what it is. Int8 in torch itself is
left out: what torch has is on its way out.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from scalebench_lib.config import Config
from scalebench_lib.measure import models
from scalebench_lib.measure.optimizations import native, onnx_runtime, openvino
from scalebench_lib.measure.optimizations.base import Optimization, OptimizedModel, Target


def torch_compile(target: Target) -> OptimizedModel:
    """Inductor with static shapes, compiled anew for each number of threads."""
    from scalebench_lib.measure.optimizations.inductor import compiled  # takes seconds to import

    return compiled(target)


REGISTRY = {
    "none": Optimization(native.none),
    "script": Optimization(native.script),
    "compile": Optimization(torch_compile, any_batch=False),
    "bf16": Optimization(native.bf16, "bf16"),
    "onnxruntime": Optimization(onnx_runtime.fp32),
    "onnxruntime-int8": Optimization(onnx_runtime.int8, "int8"),
    "openvino": Optimization(partial(openvino.engine, precision="fp32"), any_batch=False),
    "openvino-bf16": Optimization(
        partial(openvino.engine, precision="bf16"), "bf16", any_batch=False
    ),
}
"""Optimizations by name."""


def engine_files(config: Config) -> Path | None:
    """Return the folder of the files that the engine of `config` reads, if there are any."""
    model = models.build(config)
    target = Target(model, model.inputs(config.batch_size, config.seed), config)
    return REGISTRY[config.optimization].apply(target).files
