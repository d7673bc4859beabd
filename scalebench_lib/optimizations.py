"""The optimizations: how each is called, what it is and needs, and the function that applies it.

A plugin's are found by the entry points of its package. Nothing here imports torch.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from scalebench_lib.errors import MeasurementError, reason_of
from scalebench_lib.machine import search_file

PLUGINS = "scalebench.optimizations"
"""The group of entry points by which other packages bring optimizations."""

NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"
Precision = Literal["fp32", "bf16", "fp16", "int8"]


_CPUINFO = Path("/proc/cpuinfo")
# What CPUs list, on x86 and on Arm, that compute in a type.
_FLAGS = {"bf16": "avx512_bf16|amx_bf16|bf16", "fp16": "avx512_fp16|asimdhp"}


@dataclass(frozen=True)
class Optimization:
    """An optimization; the end of its name tells its precision: ``bf16``, ``openvino-int8``.

    `function`, ``module:name``, returns an `OptimizedModel` for a `Target`, and raises
    `MeasurementError` where it does not apply or did not take effect. `needs` are packages,
    installed by the extra that the first one names. Without `any_batch` its runners take batches
    of the measured size alone.
    """

    name: str
    title: str
    function: str
    description: str
    needs: tuple[str, ...] = ()
    any_batch: bool = False

    @property
    def precision(self) -> Precision:
        """Decides how exact it must be."""
        last = self.name.rpartition("-")[2]
        return last if last in ("bf16", "fp16", "int8") else "fp32"  # type: ignore[return-value]

    @property
    def missing(self) -> list[str]:
        """The packages that it needs and that are not installed."""
        return [package for package in self.needs if not is_package_installed(package)]

    @property
    def lacking(self) -> str:
        """Why it cannot be measured here: a missing package or type of numbers; else empty."""
        if self.missing:
            return f"not installed: pip install -e '.[{self.needs[0]}]'"
        flags = _FLAGS.get(self.precision)
        listed = rf"^(?:flags|Features)\b.*\b({flags})\b"
        here = not flags or search_file(_CPUINFO, listed)
        return "" if here else f"this CPU has no {self.precision}"

    def apply(self, target: Any) -> Any:
        """Return the `OptimizedModel` of `target`; its module is imported only now."""
        try:
            function: Callable[[Any], Any] = resolve_name(self.function)
        except (ImportError, AttributeError, ValueError) as error:
            raise MeasurementError(
                f"optimization {self.name!r} has no function {self.function}: {reason_of(error)}"
            ) from error
        return function(target)


def is_package_installed(package: str) -> bool:
    """Return whether `package` is installed here, by its name in the package index."""
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _of_plugins() -> Iterator[Optimization]:
    for point in sorted(entry_points(group=PLUGINS), key=lambda point: point.name):
        about = point.dist.metadata.json if point.dist else {}
        package = str(about.get("name"))
        if point.name in _OWN or not re.match(NAME, point.name):
            warnings.warn(f"{package}: {point.name!r} is no free name, left out", stacklevel=2)
            continue
        description = f"{about.get('summary', 'an optimization')} (package {package})"
        yield Optimization(point.name, point.name, point.value, description, (package,))


_HERE = "scalebench_lib.measure.optimizations"
_ONNX = ("onnxruntime", "onnx", "onnxscript")
# fmt: off
_TABLE = (
    Optimization("none", "eager", "native:none", any_batch=True,
        description="eager PyTorch; any model"),
    Optimization("script", "TorchScript", "native:script", any_batch=True,
        description="TorchScript, traced and frozen; models that can be traced"),
    Optimization("compile", "torch.compile", "inductor:compiled",
        description="torch.compile, static shapes; no graph breaks; needs g++"),
    Optimization("bf16", "eager bf16", "native:low_precision", any_batch=True,
        description="eager PyTorch in bfloat16; any model, on CPUs that have it"),
    Optimization("onnxruntime", "ONNX Runtime", "onnx_runtime:fp32", needs=_ONNX, any_batch=True,
        description="ONNX Runtime in fp32; models that can be exported"),
    Optimization("onnxruntime-int8", "ONNX Runtime int8", "onnx_runtime:int8", needs=_ONNX,
        description="ONNX Runtime, dynamic int8; linear layers, no convolutions",
        any_batch=True),
    Optimization("openvino", "OpenVINO", "openvino:engine", needs=("openvino",),
        description="OpenVINO in fp32; models that can be converted"),
    Optimization("openvino-bf16", "OpenVINO bf16", "openvino:engine", needs=("openvino",),
        description="OpenVINO in bfloat16; on CPUs that have it"),
    Optimization("openvino-int8", "OpenVINO int8", "openvino:engine", needs=("openvino", "nncf"),
        description="OpenVINO, static int8 by NNCF; on any CPU"),
    Optimization("compile-bf16", "torch.compile bf16", "inductor:compiled",
        description="torch.compile in bfloat16, on CPUs that have it; needs g++"),
    Optimization("compile-max", "torch.compile max", "inductor:compiled",
        description="torch.compile, max-autotune, frozen; needs g++, minutes a trial"),
    Optimization("compile-max-bf16", "torch.compile max bf16", "inductor:compiled",
        description="compile-max in bfloat16, on CPUs that have it"),
    Optimization("torchao-int8", "torchao int8", "torchao:int8", needs=("torchao",),
        description="torchao, dynamic int8, compiled; linear layers; needs g++"),
    Optimization("fp16", "eager fp16", "native:low_precision", any_batch=True,
        description="eager PyTorch in float16; any model, on CPUs with AVX512-FP16 or ARM"),
)
# fmt: on
_OWN = {one.name: replace(one, function=f"{_HERE}.{one.function}") for one in _TABLE}
OPTIMIZATIONS = {**_OWN, **{one.name: one for one in _of_plugins()}}
"""The optimizations by name: those of plugins last."""


def optimization_title(optimization: str) -> str:
    """Return ``OpenVINO, tcmalloc`` for ``openvino, tcmalloc``; unknown names as they are."""
    name, comma, allocator = optimization.partition(", ")
    title = OPTIMIZATIONS[name].title if name in OPTIMIZATIONS else name
    return f"{title}{comma}{allocator}"
