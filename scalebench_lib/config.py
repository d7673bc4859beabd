"""What can be measured (`Config`), how long (`Trial`), and many of them at once (`Sweep`).

The names come first: models, optimizations, and values that refuse to be built wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

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

TAKES_IMAGES = ("resnet50",)
DECODERS = ("gpt2",)
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

Phase = Literal["forward", "prefill", "decode"]
"""``forward`` is a pass without a cache, ``prefill`` one that fills a static cache with `seq_len`
tokens, ``decode`` one token a sequence after `seq_len` tokens in that cache."""

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
    if Path(name, "config.json").is_file():
        folder = os.path.normpath(name)
        return folder if "/" in folder else f"./{folder}"
    if "/" in name:
        return name
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


def _listed(value: Any) -> Any:
    """A list as people write it: ``1,2,4``, ``[1, 2, 4]``, or a value by itself."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return value if isinstance(value, list | tuple) else [value]


def _on_or_off(value: Any) -> Any:
    """YAML takes a bare ``off`` for False."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _thread_rule(value: Any) -> Any:
    if value in ("auto", "all"):
        return value
    try:
        return tuple(sorted({_whole(count) for count in _listed(value)}))
    except (TypeError, ValueError):
        raise ValueError(
            f"must be 'auto', 'all' or whole numbers of at least 1, not {reprlib.repr(value)}"
        ) from None


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"holds characters that cannot be printed: {reprlib.repr(text)}")
    return text


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values of an axis, each once; ValueError where there is none."""
    if not values:
        raise ValueError("name at least one")
    return tuple(dict.fromkeys(values))


PositiveInt = Annotated[int, BeforeValidator(_whole)]
ModelName = Annotated[str, AfterValidator(model_name)]
OptimizationName = Annotated[str, _one_of(OPTIMIZATIONS, "optimization")]
ThreadRule = Annotated[Any, BeforeValidator(_thread_rule)]
"""``auto``, ``all``, or a tuple of thread counts."""
BatchSize = Annotated[PositiveInt, Field(le=2**20)]
T = TypeVar("T")
Several = Annotated[tuple[T, ...], BeforeValidator(_listed), AfterValidator(distinct)]
"""The values of an axis: at least one, each once."""
Weights = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_printable)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class StrictModel(BaseModel):
    """A value that refuses to be built wrong, and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_input(cls, values: Mapping[str, Any]) -> Self:
        """Build from outside input; a `RequestError` of one line says what is wrong."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise RequestError(one_line(error, cls.model_fields)) from None


@dataclass(frozen=True)
class Axis:
    """How a field of `Config` is varied, named and shown: an annotation of the field.

    `title` is what controls and tables call it, `several` the field of `Sweep` that lists its
    values. An axis `within` groups tells apart what is compared; the others make groups. Points
    that differ in an axis that `splits` never share a figure; `suffix` begins its value in the
    names of figures. `label` says a value in texts. `kind` is the only kind of model that knows
    the axis, ``text`` or ``images``.
    """

    title: str
    several: str | None = None
    within: bool = False
    splits: bool = True
    suffix: str = ""
    label: str = "{}"
    kind: str | None = None


class Config(StrictModel):
    """One thing to measure: `batch_size` items of `seq_len` tokens, or of `image_size`² pixels.

    `model` is a name in `MODELS`, a folder or a hub id that transformers can load.
    `weights` is ``random`` (seeded by `seed`), ``pretrained`` (the model's own on the hub), or
    a hub id or local folder; only safetensors files are ever read.
    """

    model: ModelName = "bert"
    weights: Weights = "random"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seq_len: Annotated[
        PositiveInt,
        Field(ge=2, le=131_072),
        Axis("Tokens", several="seq_lens", suffix="seq", label="{} tokens", kind="text"),
    ] = 16
    image_size: Annotated[
        PositiveInt,
        Field(ge=32, le=4096),
        Axis("Image size", several="image_sizes", suffix="px", label="{} pixels", kind="images"),
    ] = DEFAULT_IMAGE_SIZE
    phase: Annotated[Phase, Axis("Phase", several="phases")] = "forward"
    batch_size: Annotated[
        BatchSize, Axis("Batch size", several="batch_sizes", splits=False, label="batch {}")
    ] = 1
    optimization: Annotated[
        OptimizationName, Axis("Optimization", several="optimizations", within=True, splits=False)
    ] = "none"
    smt: Annotated[bool, Axis("SMT", within=True, splits=False, label="SMT {}")] = False
    placement: Annotated[
        Literal["sequential", "interleave"], Axis("Placement", label="{} placement")
    ] = "sequential"
    allocator: Annotated[
        Allocator, Axis("Allocator", several="allocators", within=True, label="allocator {}")
    ] = "default"
    device: Annotated[Literal["cpu"], Axis("Device")] = "cpu"

    @model_validator(mode="after")
    def _one_kind_of_size(self) -> Self:
        """A size that a model does not know would measure the same thing twice."""
        kind = "images" if self.model in TAKES_IMAGES else "text"
        for name, axis in AXES.items() if self.model in MODELS else ():
            if axis.kind not in (None, kind) and getattr(self, name) != DEFAULTS[name]:
                raise ValueError(f"{name}: {self.model} takes {kind}: leave {name} out")
        if self.phase != "forward" and self.model in MODELS and self.model not in DECODERS:
            raise ValueError(f"phase: {self.model} generates no tokens: leave phase out")
        if self.positions > (longest := LONGEST.get(self.model, self.positions)):
            raise ValueError(f"seq_len: {self.model} takes {longest} tokens at most")
        return self

    @property
    def id(self) -> str:
        """Readable and stable: ``bert-none-smt_off-bs8-1a2b3c``, a hash of the rest at its end."""
        return _id(self)

    def __str__(self) -> str:
        title = MODELS.get(self.model, slug(self.model))
        others = [name for name in AXES if AXES[name].kind is None and name != "batch_size"]
        how = self.label(others, always=("optimization", "smt"))
        return f"{title}, batch {self.batch_size} of {self.item}, {how}"

    def label(self, names: Iterable[str], always: Collection[str] = ()) -> str:
        """Return the values of these axes, but for defaults of those that are not `always` said."""
        values = {name: getattr(self, name) for name in names}
        said = {n: value for n, value in values.items() if n in always or value != DEFAULTS[n]}
        return ", ".join(axis_label(name, value) for name, value in said.items())

    @property
    def group(self) -> Config:
        """What it is compared within: the config with the axes that lie within groups at rest."""
        within = {name: DEFAULTS[name] for name, axis in AXES.items() if axis.within}
        return self.model_copy(update=within)

    @property
    def positions(self) -> int:
        """How many tokens a sequence has, with the one that is decoded."""
        return self.seq_len + (self.phase == "decode")

    @property
    def item(self) -> str:
        """What an item of the batch is, as far as the config tells: ``16 tokens``."""
        if self.phase == "decode":
            return f"1 token after {self.seq_len}"
        if self.model in TAKES_IMAGES or self.image_size != DEFAULT_IMAGE_SIZE:
            return f"{self.image_size} × {self.image_size} pixels"
        return f"{self.seq_len} tokens"


AXES: dict[str, Axis] = {
    name: axis
    for name, field in Config.model_fields.items()
    for axis in field.metadata
    if isinstance(axis, Axis)
}
"""The axes of a sweep by the name of their field in `Config`, which is that of their column in
the results table and of their parameter in the notebooks."""

DEFAULTS: dict[str, Any] = {name: Config.model_fields[name].default for name in AXES}
"""The value of each axis where nobody asks for another; within a group, that of its base."""


def axis_label(name: str, value: object) -> str:
    """``128 tokens``, ``batch 8``, ``SMT on``: the value of an axis, as texts say it."""
    return AXES[name].label.format({"True": "on", "False": "off"}.get(str(value), value))


def base_of(configs: Iterable[Config]) -> Config:
    """What the speed-ups of a group refer to: eager, default allocator, SMT off.

    Where the group lacks one of these, the first known value that it has. Raises ValueError
    where there is no config.
    """
    order = {name: place for place, name in enumerate((*OPTIMIZATIONS, *get_args(Allocator)))}

    def place(config: Config) -> tuple[int, int, bool]:
        last = len(order)  # words of published files may be unknown
        return order.get(config.optimization, last), order.get(config.allocator, last), config.smt

    return min(configs, key=place)


def trial_name(config_id: str, host: str | None, number: int) -> str:
    """The stem of a trial's files; the host is part of it where a sweep is of several."""
    return f"{config_id}{f'-{host}' if host else ''}-t{number}"


@cache
def _id(config: Config) -> str:
    shown = {"optimization", "smt", "batch_size"}
    if config.model in MODELS:
        shown.add("model")
    hidden = json.dumps(config.model_dump(exclude=shown, exclude_defaults=True), sort_keys=True)
    digest = hashlib.sha256(hidden.encode()).hexdigest()[:6]
    smt = "smt_on" if config.smt else "smt_off"
    return f"{slug(config.model)}-{config.optimization}-{smt}-bs{config.batch_size}-{digest}"


class Trial(StrictModel):
    """One run of a config in a process of its own, at each of `threads` (counts).

    `number` counts the trials of this config in its folder, `round` those of the sweep;
    `block` is what trials that take turns have in common. `max_seconds` is the computing time of
    a point in this trial. A `thorough` one also measures what does not change from trial to
    trial: the machine's peak, FLOPs, and the error against fp64.
    """

    config: Config
    threads: tuple[PositiveInt, ...]
    target_ci: Fraction = 0.02
    max_seconds: Seconds = 10.0
    number: PositiveInt = 1
    round: PositiveInt = 1
    block: Annotated[str, Field(pattern=r"^([0-9a-f]{8})?$")] = ""
    thorough: bool = True

    @property
    def name(self) -> str:
        """The stem of the trial's files: ``bert-none-smt_off-bs8-1a2b3c-t1``."""
        return trial_name(self.config.id, None, self.number)

    def __str__(self) -> str:
        return str(self.config)

    def parameters(self) -> dict[str, Any]:
        """The trial as papermill parameters of ``measure.ipynb``."""
        return {
            **self.config.model_dump(),
            **self.model_dump(include=_SAME_NAMES),
            "threads": list(self.threads),
            "trial": self.number,
        }

    @staticmethod
    def parameter_names() -> set[str]:
        """The names that `parameters` gives and `from_parameters` takes."""
        return {*Config.model_fields, *_SAME_NAMES, "threads", "trial"}

    @classmethod
    def from_parameters(cls, values: Mapping[str, Any], machine: Machine) -> Self:
        """Check a notebook's parameters against the words and against `machine`.

        Raises `RequestError` for an unknown name, a wrong value, or more threads than CPUs.
        """
        known = cls.parameter_names()
        for name in values:
            if name not in known:
                raise RequestError(f"unknown parameter {name!r}: {nearest(name, known)}")
        config = Config.from_input({k: v for k, v in values.items() if k in Config.model_fields})
        require_model(config.model)
        rule = _Threads.from_input({"threads": values.get("threads", "auto")}).threads
        return cls.from_input(
            {
                "config": config,
                "threads": machine.thread_counts(rule, config.smt),
                "number": values.get("trial", 1),
                **{k: v for k, v in values.items() if k in _SAME_NAMES},
            }
        )


_SAME_NAMES = {"target_ci", "max_seconds", "round", "block", "thorough"}
"""The fields of a trial that are parameters of the notebook by the same name."""


class _Threads(StrictModel):
    threads: ThreadRule


class Sweep(StrictModel):
    """A set of configs measured into one folder: every combination of the axes.

    Every config has a trial in each of `rounds`; a group's turns end when its points are within
    `target_ci`, or have had their share of `max_seconds`, a point's computing time over all
    rounds. `hosts` says whether ``each`` of several
    hosts measures every config, or ``any`` of them, all alike; ``one`` is this machine.
    """

    model: Annotated[ModelName, Field(description="A name, a folder or a hub id.")] = "bert"
    weights: Annotated[Weights, Field(description="random, pretrained, a hub id or a folder.")] = (
        "random"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    batch_sizes: Annotated[Several[BatchSize], Field(description="Such as 1,2,4.")] = (
        PAGE_BATCH_SIZES
    )
    optimizations: Annotated[
        Several[OptimizationName], Field(description="Such as none,script; 'doctor' lists them.")
    ] = ("none", "script")
    threads: Annotated[ThreadRule, Field(description="auto, all, or such as 1,2,4.")] = "auto"
    smt: Annotated[
        Literal["auto", "off", "on", "both"],
        BeforeValidator(_on_or_off),
        Field(description="Hyper-threading: auto, off, on or both."),
    ] = "auto"
    seq_lens: Annotated[Several[PositiveInt], Field(description="Tokens, such as 16,128.")] = (16,)
    image_sizes: Annotated[Several[PositiveInt], Field(description="Pixels, such as 224.")] = (
        DEFAULT_IMAGE_SIZE,
    )
    phases: Annotated[Several[Phase], Field(description="Such as prefill,decode.")] = ("forward",)
    allocators: Annotated[Several[Allocator], Field(description="Such as default,tcmalloc.")] = (
        "default",
    )
    placement: Annotated[
        Literal["sequential", "interleave"], Field(description="sequential or interleave.")
    ] = "sequential"
    target_ci: Annotated[Fraction, Field(description="Half-width of an interval to stop at.")] = (
        0.02
    )
    max_seconds: Annotated[Seconds, Field(description="Most computing time of a point.")] = 10.0
    rounds: Annotated[
        PositiveInt, Field(le=100, description="Fresh processes for each config.")
    ] = 2
    hosts: Literal["one", "each", "any"] = "one"

    def trials(self, machine: Machine) -> list[Trial]:
        """The first trial of every config on `machine`, smaller batches first.

        Raises `RequestError` where the machine lacks what is asked (SMT, CPUs), or the model's
        folder is not there.
        """
        require_model(self.model)
        return [
            Trial(
                config=config,
                threads=machine.thread_counts(self.threads, config.smt),
                target_ci=self.target_ci,
                max_seconds=self.max_seconds / self.rounds,
            )
            for config in self.configs(machine)
        ]

    def configs(self, machine: Machine) -> Iterator[Config]:
        """Every config, smaller batches first; `RequestError` where SMT is asked for in vain."""
        fixed = self.model_dump(include={"model", "weights", "seed", "placement"})
        values = {name: getattr(self, axis.several) for name, axis in AXES.items() if axis.several}
        values["batch_size"] = sorted(self.batch_sizes)
        values["smt"] = machine.smt_values(self.smt)
        # Smaller batches first, and what is compared together.
        names = sorted(values, key=lambda name: (name != "batch_size", AXES[name].within))
        for combination in product(*(values[name] for name in names)):
            yield Config.from_input({**fixed, **dict(zip(names, combination, strict=True))})

    def merged(self, other: Sweep) -> Sweep:
        """This sweep with the axes of `other` added; the limits are `other`'s."""
        lists = [axis.several for axis in AXES.values() if axis.several]
        axes: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in lists}
        axes["threads"] = _merged_rule(self.threads, other.threads)
        if self.smt != other.smt:
            axes["smt"] = "auto" if "auto" in (self.smt, other.smt) else "both"
        return Sweep.from_input({**other.model_dump(), **axes})

    @classmethod
    def load(cls, path: Path) -> Sweep:
        """Read a YAML file whose keys are the fields of `Sweep`; `RequestError` if it is wrong."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"cannot read {path}: {error}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as of the 32nd of May
            raise RequestError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise RequestError(f"{path} holds no parameters: write lines like 'model: bert'")
        try:
            return cls.from_input(values)
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


SPEC = "sweep.yaml"
"""The file of a sweep's folder that says what it was asked for."""

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"batch_sizes": (1, 4, 16, 64), "max_seconds": 4.0},
    "page": {},
}
"""What each preset changes of a `Sweep`'s defaults."""
