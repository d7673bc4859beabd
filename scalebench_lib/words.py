"""The words: names of what can be measured, and values that refuse to be built wrong."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from scalebench_lib.errors import RequestError, nearest, one_line

MODELS = {
    "bert": "BERT",
    "bert-tiny": "BERT tiny",
    "distilbert": "DistilBERT",
    "gpt2": "GPT-2",
    "resnet50": "ResNet-50",
}
"""Model names and their titles; `measure.models` builds them, and any folder or hub id."""

TAKES_IMAGES = ("resnet50",)
LONGEST = {"bert": 512, "bert-tiny": 512, "distilbert": 512, "gpt2": 1024}
"""Most tokens of the models known by name; others tell when they are built."""

DEFAULT_IMAGE_SIZE = 224

OPTIMIZATIONS = {
    "none": "eager PyTorch; any model",
    "script": "TorchScript, traced and frozen; models that can be traced",
    "compile": "torch.compile: inductor, static shapes; models without graph breaks; needs g++",
    "bf16": "eager PyTorch in bfloat16; any model, on CPUs that have it",
    "onnxruntime": "ONNX Runtime in fp32; models that can be exported",
    "onnxruntime-int8": "ONNX Runtime, dynamic int8; models of linear layers, not convolutions",
    "openvino": "OpenVINO in fp32; models that can be converted",
    "openvino-bf16": "OpenVINO in bfloat16; models that can be converted, on CPUs that have it",
}
"""Optimizations by name: what each is, and to which models and CPUs it applies.

All are for device ``cpu``. `measure.optimizations` applies them, or says why one does not apply.
"""

Allocator = Literal["default", "tcmalloc", "jemalloc"]
"""What serves malloc; all but the system's own are preloaded (`allocators`)."""

PAGE_BATCH_SIZES = tuple(2**k for k in range(11))
"""1, 2, 4 … 1024: the batch sizes of the published scalebench page."""


def _one_of(known: Mapping[str, str], what: str) -> AfterValidator:
    def check(name: str) -> str:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}: {nearest(name, known)}")
        return name

    return AfterValidator(check)


def model_name(name: str) -> str:
    """A known name, or a folder or hub id: always with a slash, so that it is told from names."""
    if name in MODELS:
        return name
    if not name.isprintable() or not slug(name):
        raise ValueError(f"must be a name, a folder or a hub id, not {name!r}")
    if "/" in name:
        return name
    if Path(name, "config.json").is_file():
        return f"./{name}"
    raise ValueError(f"unknown model {name!r}: {nearest(name, MODELS)}, or a folder or hub id")


def slug(model: str) -> str:
    """A model's name as part of a file's: the last part of a folder or hub id."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(model).name).strip("._-")


def require_model(model: str) -> None:
    """Raise `RequestError` where `model` is a folder that holds no model."""
    is_hub_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model)
    if model in MODELS or is_hub_id or Path(model, "config.json").is_file():
        return
    raise RequestError(f"model: {model!r} is no folder with a config.json, and no hub id")


def _whole(value: Any) -> Any:
    text = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", text) or int(text) < 1:
        raise ValueError(f"must be a whole number of at least 1, not {reprlib.repr(value)}")
    return int(text)


def _thread_rule(value: Any) -> Any:
    if value in ("auto", "all"):
        return value
    counts = [value] if isinstance(value, str | int) else value
    try:
        return tuple(sorted({_whole(count) for count in counts}))
    except (TypeError, ValueError):
        raise ValueError(
            f"must be 'auto', 'all' or whole numbers of at least 1, not {reprlib.repr(value)}"
        ) from None


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"holds characters that cannot be printed: {reprlib.repr(text)}")
    return text


def unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values of an axis, each once; ValueError where there is none."""
    if not values:
        raise ValueError("name at least one")
    return tuple(dict.fromkeys(values))


Whole = Annotated[int, BeforeValidator(_whole)]
ModelName = Annotated[str, AfterValidator(model_name)]
OptimizationName = Annotated[str, _one_of(OPTIMIZATIONS, "optimization")]
ThreadRule = Annotated[Any, BeforeValidator(_thread_rule)]
"""``auto``, ``all``, or a tuple of thread counts."""
BatchSize = Annotated[Whole, Field(le=2**20)]
Weights = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_printable)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Words(BaseModel):
    """A value that refuses to be built wrong, and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """Build from outside input; a `RequestError` of one line says what is wrong."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise RequestError(one_line(error, cls.model_fields)) from None
