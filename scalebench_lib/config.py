"""What can be measured (`Config`), how long (`Visit`), and many of them at once (`Sweep`)."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from scalebench_lib.errors import RequestError, nearest, one_line
from scalebench_lib.machine import Machine

MODELS = {
    "bert": "BERT",
    "bert-tiny": "BERT tiny",
    "distilbert": "DistilBERT",
    "gpt2": "GPT-2",
    "resnet50": "ResNet-50",
}
"""Model names and their titles; `measure.models` builds them, and any folder or hub id."""

_TAKES_IMAGES = ("resnet50",)
_LONGEST = {"bert": 512, "bert-tiny": 512, "distilbert": 512, "gpt2": 1024}
"""Most tokens of the models known by name; others tell when they are built."""

DEFAULT_IMAGE_SIZE = 224

OPTIMIZATIONS = {
    "none": "eager PyTorch",
    "script": "TorchScript: traced, frozen",
    "compile": "torch.compile: inductor, static shapes",
    "bf16": "eager PyTorch in bfloat16",
    "onnxruntime": "ONNX Runtime in fp32",
    "onnxruntime-int8": "ONNX Runtime, dynamically quantized to int8",
    "openvino": "OpenVINO in fp32",
    "openvino-bf16": "OpenVINO in bfloat16",
}
"""Optimization names and what they are; `measure.optimizations` applies them."""

Allocator = Literal["default", "tcmalloc", "jemalloc"]
"""What serves malloc; all but the system's own are preloaded (`sweep.allocators`)."""

PAGE_BATCH_SIZES = tuple(2**k for k in range(11))
"""1, 2, 4 … 1024: the batch sizes of the published scalebench page."""


def _one_of(known: Mapping[str, str], what: str) -> AfterValidator:
    def check(name: str) -> str:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}: {nearest(name, known)}")
        return name

    return AfterValidator(check)


def _model(name: str) -> str:
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


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("name at least one")
    return tuple(dict.fromkeys(values))


Whole = Annotated[int, BeforeValidator(_whole)]
ModelName = Annotated[str, AfterValidator(_model)]
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
            return cls(**values)
        except ValidationError as error:
            raise RequestError(one_line(error, cls.model_fields)) from None


class Config(Words):
    """One thing to measure: `batch_size` items of `seq_len` tokens, or of `image_size`² pixels.

    `model` is a name in `MODELS`, a folder or a hub id that transformers can load.
    `weights` is ``random`` (seeded by `seed`), ``pretrained`` (the model's own on the hub), or
    a hub id or local folder; only safetensors files are ever read.
    """

    model: ModelName = "bert"
    weights: Weights = "random"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seq_len: Annotated[Whole, Field(ge=2, le=131_072)] = 16
    image_size: Annotated[Whole, Field(ge=32, le=4096)] = DEFAULT_IMAGE_SIZE
    batch_size: BatchSize = 1
    optimization: OptimizationName = "none"
    smt: bool = False
    placement: Literal["sequential", "interleave"] = "sequential"
    allocator: Allocator = "default"
    device: Literal["cpu"] = "cpu"

    @model_validator(mode="after")
    def _one_kind_of_size(self) -> Self:
        """A size that a model does not know would measure the same thing twice."""
        if self.model in MODELS:
            foreign = "seq_len" if self.model in _TAKES_IMAGES else "image_size"
            if getattr(self, foreign) != type(self).model_fields[foreign].default:
                kind = "images" if foreign == "seq_len" else "text"
                raise ValueError(f"{foreign}: {self.model} takes {kind}: leave {foreign} out")
        if self.seq_len > (longest := _LONGEST.get(self.model, self.seq_len)):
            raise ValueError(f"seq_len: {self.model} takes {longest} tokens at most")
        return self

    @property
    def id(self) -> str:
        """Readable and stable: ``bert-none-smt_off-bs8-1a2b3c``, a hash of the rest at its end."""
        shown = {"optimization", "smt", "batch_size"}
        if self.model in MODELS:
            shown.add("model")
        hidden = json.dumps(self.model_dump(exclude=shown, exclude_defaults=True), sort_keys=True)
        digest = hashlib.sha256(hidden.encode()).hexdigest()[:6]
        smt = "smt_on" if self.smt else "smt_off"
        return f"{slug(self.model)}-{self.optimization}-{smt}-bs{self.batch_size}-{digest}"

    def __str__(self) -> str:
        smt = "on" if self.smt else "off"
        return (
            f"{MODELS.get(self.model, slug(self.model))}, batch {self.batch_size} of {self.item}, "
            f"{self.optimization}, SMT {smt}"
            f"{'' if self.allocator == 'default' else f', {self.allocator}'}"
        )

    @property
    def item(self) -> str:
        """What an item of the batch is, as far as the config tells: ``16 tokens``."""
        if self.model in _TAKES_IMAGES or self.image_size != DEFAULT_IMAGE_SIZE:
            return f"{self.image_size} × {self.image_size} pixels"
        return f"{self.seq_len} tokens"


def visit_name(config_id: str, host: str | None, number: int) -> str:
    """The stem of a visit's files; the host is part of it where a sweep is of several."""
    return f"{config_id}{f'-{host}' if host else ''}-v{number}"


class Visit(Words):
    """One run of a config in a process of its own, at each of `threads` (counts).

    `max_seconds` is the time of a point in this visit. A `thorough` one also measures what does
    not change from visit to visit: the machine's peak, FLOPs, and the error against fp64.
    `host` is where it is made, in a sweep of several.
    """

    config: Config
    threads: tuple[Whole, ...]
    target_ci: Fraction = 0.02
    max_seconds: Seconds = 10.0
    number: Whole = 1
    thorough: bool = True
    host: str | None = None

    @property
    def name(self) -> str:
        """The stem of the visit's files: ``bert-none-smt_off-bs8-1a2b3c-v1``."""
        return visit_name(self.config.id, self.host, self.number)

    def __str__(self) -> str:
        return f"{self.config}{f' on {self.host}' if self.host else ''}"

    def parameters(self) -> dict[str, Any]:
        """The visit as papermill parameters of ``measure.ipynb``."""
        return {
            **self.config.model_dump(),
            **self.model_dump(include=_LIMITS),
            "threads": list(self.threads),
            "visit": self.number,
        }

    @staticmethod
    def parameter_names() -> set[str]:
        """The names that `parameters` gives and `from_parameters` takes."""
        return {*Config.model_fields, *_LIMITS, "threads", "visit"}

    @classmethod
    def from_parameters(cls, values: Mapping[str, Any], machine: Machine) -> Self:
        """Check a notebook's parameters against the words and against `machine`.

        Raises `RequestError` for an unknown name, a wrong value, or more threads than CPUs.
        """
        known = cls.parameter_names()
        for name in values:
            if name not in known:
                raise RequestError(f"unknown parameter {name!r}: {nearest(name, known)}")
        config = Config.checked({k: v for k, v in values.items() if k in Config.model_fields})
        require_model(config.model)
        rule = _Threads.checked({"threads": values.get("threads", "auto")}).threads
        return cls.checked(
            {
                "config": config,
                "threads": machine.thread_counts(rule, config.smt),
                "number": values.get("visit", 1),
                **{k: v for k, v in values.items() if k in _LIMITS},
            }
        )


_LIMITS = {"target_ci", "max_seconds", "thorough"}
"""The fields of a visit that are parameters of the notebook by the same name."""


class _Threads(Words):
    threads: ThreadRule


class Sweep(Words):
    """A set of configs measured into one folder: every combination of the axes.

    Every config is visited up to `rounds` times, until its points are within `target_ci`;
    `max_seconds` is a point's time over all its visits. `hosts` says whether ``each`` of several
    hosts measures every config, or ``any`` of them, all alike; ``one`` is this machine.
    """

    model: ModelName = "bert"
    weights: Weights = "random"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seq_lens: Annotated[tuple[Whole, ...], AfterValidator(_unique)] = (16,)
    image_sizes: Annotated[tuple[Whole, ...], AfterValidator(_unique)] = (DEFAULT_IMAGE_SIZE,)
    batch_sizes: Annotated[tuple[BatchSize, ...], AfterValidator(_unique)] = PAGE_BATCH_SIZES
    optimizations: Annotated[tuple[OptimizationName, ...], AfterValidator(_unique)] = (
        "none",
        "script",
    )
    allocators: Annotated[tuple[Allocator, ...], AfterValidator(_unique)] = ("default",)
    threads: ThreadRule = "auto"
    smt: Literal["auto", "off", "on", "both"] = "auto"
    placement: Literal["sequential", "interleave"] = "sequential"
    target_ci: Fraction = 0.02
    max_seconds: Seconds = 10.0
    rounds: Annotated[Whole, Field(le=100)] = 5
    hosts: Literal["one", "each", "any"] = "one"

    def visits(self, machine: Machine) -> list[Visit]:
        """The first visit of every config on `machine`, smaller batches first.

        Raises `RequestError` where the machine lacks what is asked (SMT, CPUs), or the model's
        folder is not there.
        """
        require_model(self.model)
        return [
            Visit(
                config=config,
                threads=machine.thread_counts(self.threads, config.smt),
                target_ci=self.target_ci,
                max_seconds=self.max_seconds,
            )
            for config in self._configs(machine)
        ]

    def _configs(self, machine: Machine) -> Iterator[Config]:
        fixed = self.model_dump(include={"model", "weights", "seed", "placement"})
        for batch_size in sorted(self.batch_sizes):
            for seq_len, image_size in product(self.seq_lens, self.image_sizes):
                for smt in machine.smt_values(self.smt):
                    for optimization, allocator in product(self.optimizations, self.allocators):
                        yield Config.checked(
                            {
                                **fixed,
                                "seq_len": seq_len,
                                "image_size": image_size,
                                "batch_size": batch_size,
                                "optimization": optimization,
                                "smt": smt,
                                "allocator": allocator,
                            }
                        )

    def merged(self, other: Sweep) -> Sweep:
        """This sweep with the axes of `other` added; the limits are `other`'s."""
        lists = ("seq_lens", "image_sizes", "batch_sizes", "optimizations", "allocators")
        axes: dict[str, Any] = {axis: getattr(self, axis) + getattr(other, axis) for axis in lists}
        axes["threads"] = _merged_rule(self.threads, other.threads)
        if self.smt != other.smt:
            axes["smt"] = "auto" if "auto" in (self.smt, other.smt) else "both"
        return Sweep.checked({**other.model_dump(), **axes})

    @classmethod
    def load(cls, path: Path) -> Sweep:
        """Read a YAML file whose keys are the fields of `Sweep`; `RequestError` if it is wrong."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"cannot read {path}: {error}") from None
        except yaml.YAMLError as error:
            raise RequestError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise RequestError(f"{path} holds no parameters: write lines like 'model: bert'")
        try:
            return cls.checked(values)
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from None

    def dump(self) -> str:
        """The sweep as YAML that `load` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _merged_rule(one: Any, other: Any) -> Any:
    for rule in ("all", "auto"):
        if rule in (one, other):
            return rule
    return (*one, *other)


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"batch_sizes": (1, 4, 16, 64), "max_seconds": 4.0, "rounds": 2},
    "page": {},
}
"""What each preset changes of a `Sweep`'s defaults."""
