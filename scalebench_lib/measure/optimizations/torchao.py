"""torchao: weights in int8, activations quantized as they come, compiled by Inductor."""

from __future__ import annotations

import copy
import sys

from torch import Tensor, nn

from scalebench_lib.measure.optimizations import base
from scalebench_lib.measure.optimizations.inductor import compile_module


def int8(target: base.Target) -> base.OptimizedModel:
    """Linear layers in int8, compiled with the weights as constants."""
    if sys.modules.get("torchao") is None:
        sys.modules.pop("torchao", None)  # `measure` hides it from transformers
    with base.quiet():
        quantization = base.import_extra("torchao", "torchao.quantization")
        module = copy.deepcopy(target.model.module)
        quantization.quantize_(module, quantization.Int8DynamicActivationInt8WeightConfig())
    base.require_quantized(target, quantized_share(module), of="weights")
    return compile_module(target, module, ("freezing",))


def quantized_share(module: nn.Module) -> float:
    """Return the quantized share of the weights of layers, embeddings left out."""
    layers = (part for part in module.modules() if not isinstance(part, nn.Embedding))
    found = (getattr(layer, "weight", None) for layer in layers)
    weights = [part for part in found if isinstance(part, Tensor) and part.dim() > 1]
    plain = sum(part.numel() for part in weights if type(part) is nn.Parameter)
    return 1 - plain / max(1, sum(part.numel() for part in weights))
