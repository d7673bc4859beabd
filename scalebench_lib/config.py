"""Requests: one thing to measure (`Config`), for how long (`Trial`), and many of them (`Sweep`)."""

from __future__ import annotations

import hashlib
import json
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
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from scalebench_lib.errors import RequestError, unknown_message, validation_message
from scalebench_lib.machine import Machine
from scalebench_lib.model_names import (
    DECODERS,
    LONGEST,
    MODELS,
    TAKES_IMAGES,
    TASKS,
    is_own,
    model_title,
    normalized_model_name,
    require_model,
    resolved_task,
    slug,
)
from scalebench_lib.optimizations import NAME, OPTIMIZATIONS, optimization_title

Phase = Literal["forward", "prefill", "decode"]
"""``forward`` is a pass without a cache, ``prefill`` one that fills a static cache with `seq_len`
tokens, ``decode`` one token a sequence after `seq_len` tokens in that cache."""

Placement = Literal["sequential", "interleave"]
Allocator = Literal["default", "glibc-keep", "thp", "tcmalloc", "jemalloc"]
"""Implementations and settings of malloc (`allocators`)."""

PAGE_BATCH_SIZES = tuple(2**k for k in range(11))
"""1, 2, 4 … 1024: the batch sizes of the published scalebench page."""


def _known_optimization(name: str, info: ValidationInfo) -> str:
    """Refuse unknown names in requests alone: a record may be of a plugin that is missing here."""
    if info.context == "input" and name not in OPTIMIZATIONS:
        raise ValueError(unknown_message("optimization", name, OPTIMIZATIONS))
    return name


def _known_task(name: str) -> str:
    if name not in (known := ("auto", "none", *TASKS)):
        raise ValueError(unknown_message("task", name, known))
    return name


def _listed(value: Any) -> Any:
    """Return the parts of ``1,2,4``, of ``[1, 2, 4]``, or of a single value."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return value if isinstance(value, list | tuple) else [value]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _thread_rule(value: Any) -> Any:
    if value in ("auto", "all"):
        return value
    try:
        return tuple(sorted(_COUNTS.validate_python(value)))
    except ValidationError:
        raise ValueError(
            f"must be 'auto', 'all' or whole numbers of at least 1, not {reprlib.repr(value)}"
        ) from None


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"holds characters that cannot be printed: {reprlib.repr(text)}")
    return text


T = TypeVar("T")
Several = Annotated[
    tuple[T, ...], BeforeValidator(_listed), Field(min_length=1), AfterValidator(_distinct)
]
"""The values of an axis: at least one, each once."""
PositiveInt = Annotated[int, Field(ge=1)]
_COUNTS: TypeAdapter[tuple[int, ...]] = TypeAdapter(Several[PositiveInt])
ModelName = Annotated[str, AfterValidator(normalized_model_name)]
TaskName = Annotated[str, AfterValidator(_known_task)]
OptimizationName = Annotated[str, AfterValidator(_known_optimization), Field(pattern=NAME)]
ThreadRule = Annotated[Any, BeforeValidator(_thread_rule)]
"""``auto``, ``all``, or a tuple of thread counts."""
BatchSize = Annotated[PositiveInt, Field(le=2**20)]
Weights = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_printable)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class StrictModel(BaseModel):
    """An immutable value without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_input(cls, values: Mapping[str, Any], context: str | None = "input") -> Self:
        """Build from outside input; raise a `RequestError` of one line for wrong values."""
        try:
            return cls.model_validate(dict(values), context=context)
        except ValidationError as error:
            raise RequestError(validation_message(error, cls.model_fields)) from None


@dataclass(frozen=True)
class Axis:
    """How a field of `Config` is varied, named and shown: an annotation of the field.

    Controls and tables call it `title`; the field `several` of `Sweep` lists its values. Points
    that differ only in axes `within` groups are compared. Points that differ in an axis that
    `splits` never share a figure; `suffix` precedes its value in the names of figures. `label`
    formats a value for texts. Only models of `kind` have the axis, ``text`` or ``images``.
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

    `model` is a name in `MODELS`, a folder or a hub id that transformers can load, or the user's
    function, ``file.py:function`` or ``package.module:function``. `task` is its head.
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
    ] = 224
    task: Annotated[TaskName, Axis("Task")] = "none"
    phase: Annotated[Phase, Axis("Phase", several="phases")] = "forward"
    batch_size: Annotated[
        BatchSize, Axis("Batch size", several="batch_sizes", splits=False, label="batch {}")
    ] = 1
    optimization: Annotated[
        OptimizationName, Axis("Optimization", several="optimizations", within=True, splits=False)
    ] = "none"
    smt: Annotated[bool, Axis("SMT", within=True, splits=False, label="SMT {}")] = False
    placement: Annotated[Placement, Axis("Placement", label="{} placement")] = "sequential"
    allocator: Annotated[
        Allocator, Axis("Allocator", several="allocators", within=True, label="allocator {}")
    ] = "default"
    device: Annotated[Literal["cpu"], Axis("Device")] = "cpu"

    @model_validator(mode="before")
    @classmethod
    def _generating_takes_a_head(cls, values: Any) -> Any:
        generates = isinstance(values, dict) and values.get("phase", "forward") != "forward"
        return {"task": "causal-lm"} | values if generates else values

    @model_validator(mode="after")
    def _one_kind_of_size(self) -> Self:
        """Refuse a size that the model does not take: it would be measured twice."""
        own = is_own(self.model)
        if own and (self.task not in ("none", "auto") or self.weights != "random"):
            raise ValueError(f"{self.model} is what it makes: leave task and weights out")
        kind = "images" if self.model in TAKES_IMAGES else "its own inputs" if own else "text"
        for name, axis in AXES.items() if own or self.model in MODELS else ():
            if axis.kind not in (None, kind) and getattr(self, name) != DEFAULTS[name]:
                raise ValueError(f"{name}: {self.model} takes {kind}: leave it out")
        if self.phase != "forward" and self.model in MODELS and self.model not in DECODERS:
            raise ValueError(f"phase: {self.model} generates no tokens: leave it out")
        if self.phase != "forward" and self.task not in ("auto", "causal-lm"):
            raise ValueError(f"phase: tokens are generated by the task causal-lm, not {self.task}")
        if self.positions > (longest := LONGEST.get(self.model, self.positions)):
            raise ValueError(f"seq_len: {self.model} takes {longest} tokens at most")
        return self

    @property
    def id(self) -> str:
        """Readable and stable: ``bert-none-smt_off-bs8-1a2b3c``, which ends with a hash."""
        return _id(self)

    def __str__(self) -> str:
        title, unsaid = model_title(self.model, self.task), ("batch_size", "task")
        others = [n for n, axis in AXES.items() if axis.kind is None and n not in unsaid]
        how = self.label(others, always=("optimization", "smt"))
        return f"{title}, batch {self.batch_size} of {self.item}, {how}"

    def label(self, names: Iterable[str], always: Collection[str] = ()) -> str:
        """Return the values of these axes; defaults only of those `always` shown."""
        values = {name: getattr(self, name) for name in names}
        said = {n: value for n, value in values.items() if n in always or value != DEFAULTS[n]}
        return ", ".join(axis_value_label(name, value) for name, value in said.items())

    @property
    def group(self) -> Config:
        """The config with the axes within groups at their defaults."""
        return self.model_copy(update={name: DEFAULTS[name] for name in WITHIN})

    @property
    def positions(self) -> int:
        """The number of tokens of a sequence, with the one that is decoded."""
        return self.seq_len + (self.phase == "decode")

    @property
    def item(self) -> str:
        """An item of the batch: ``16 tokens``."""
        if is_own(self.model):
            return "its own inputs"
        if self.model in TAKES_IMAGES or self.image_size != DEFAULTS["image_size"]:
            return f"{self.image_size} × {self.image_size} pixels"
        return (
            f"1 token after {self.seq_len}" if self.phase == "decode" else f"{self.seq_len} tokens"
        )


AXES: dict[str, Axis] = {
    name: axis
    for name, field in Config.model_fields.items()
    for axis in field.metadata
    if isinstance(axis, Axis)
}
"""The axes of a sweep by their field in `Config`, column in the results table, and parameter in
the notebooks."""

DEFAULTS: dict[str, Any] = {name: Config.model_fields[name].default for name in AXES}
"""The value of each axis where nobody asks for another; within a group, that of its base."""

WITHIN = tuple(name for name, axis in AXES.items() if axis.within)
"""The axes in which points of a group differ, but for their threads."""


def axis_value_label(name: str, value: object) -> str:
    """``128 tokens``, ``TorchScript``, ``SMT on``: the value of an axis for texts."""
    if name == "optimization":
        return optimization_title(str(value))
    return AXES[name].label.format({"True": "on", "False": "off"}.get(str(value), value))


def base_of(configs: Iterable[Config]) -> Config:
    """Return the config to which a group's speed-ups refer: eager, default allocator, SMT off.

    Where the group lacks a default, the first known value that it has. Raises ValueError where
    there is no config.
    """
    order = {name: place for place, name in enumerate((*OPTIMIZATIONS, *get_args(Allocator)))}

    def place(config: Config) -> list[tuple[bool, int]]:
        values = {name: getattr(config, name) for name in WITHIN}
        # Published files may have values that are not known here: they come last.
        return [(v != DEFAULTS[n], order.get(v, len(order))) for n, v in values.items()]

    return min(configs, key=place)


def trial_name(config_id: str, host: str | None, number: int) -> str:
    """Return the stem of a trial's files, with the host where a sweep has several."""
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

    `number` (``trial`` in notebooks) counts those of this config in its folder, `round` those of
    the sweep; trials that take turns have the same `block`. `max_seconds` is the computing time of
    a point in this trial. A `thorough` trial also measures the machine's peak, FLOPs, and the error
    against fp64, which later trials would only repeat.
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
        found = {**self.config.model_dump(), **self.model_dump(mode="json", exclude={"config"})}
        found["trial"] = found.pop("number")
        return found

    @staticmethod
    def parameter_names() -> set[str]:
        """Return the names that `parameters` gives and `from_parameters` takes."""
        return {*Config.model_fields, *Trial.model_fields, "trial"} - {"config", "number"}

    @classmethod
    def from_parameters(cls, values: Mapping[str, Any], machine: Machine) -> Self:
        """Check a notebook's parameters against `machine`, and build the trial.

        Raises `RequestError` for an unknown name, a wrong value, or more threads than CPUs.
        """
        known = cls.parameter_names()
        for name in values:
            if name not in known:
                raise RequestError(unknown_message("parameter", name, known))
        others = {"threads": "auto", "trial": 1, **values}
        given = {name: others.pop(name) for name in values if name in Config.model_fields}
        config = Config.from_input({"task": "auto", **given})
        require_model(config.model)
        task = resolved_task(config.model, config.task, config.phase)
        config = config.model_copy(update={"task": task})
        rule = Sweep.from_input({"threads": others.pop("threads")}).threads
        found = {"config": config, "threads": machine.thread_counts(rule, config.smt)}
        return cls.from_input({**found, "number": others.pop("trial"), **others})


class _AsWritten(yaml.BaseLoader):
    """Read each value as text, as the command does: ``010`` is ten; refuse repeated keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [str(key.value) for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"{twice!r} stands there twice")
        return super().construct_mapping(node, deep)


class Sweep(StrictModel):
    """A set of configs measured into one folder: every combination of the axes.

    Every config has a trial in each of `rounds`; a group's turns end when its points are within
    `target_ci`, or have had their share of `max_seconds`, a point's computing time over all rounds.
    `hosts` is ``one``, this machine, or several, of which ``each`` measures every config, or
    ``any``, where all are alike.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)  # which the command's options show

    model: ModelName = "bert"
    """A name like gpt2, a folder, a hub id, or file.py:function."""
    weights: Weights = "random"
    """Its weights: random, pretrained, a hub id or a folder."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    task: TaskName = "auto"
    """Its head: auto, none, or such as masked-lm."""
    batch_sizes: Several[BatchSize] = PAGE_BATCH_SIZES
    """Items in a pass, such as 1,8,64."""
    optimizations: Several[OptimizationName] = ("none", "script")
    """Optimizations, such as none,script; 'doctor' lists all."""
    threads: ThreadRule = "auto"
    """Numbers of threads: auto (some from 1 to all), all, or such as 1,2,4."""
    smt: Literal["auto", "off", "on", "both"] = "auto"
    """Hyper-threading: auto (both, if there is any), off, on or both."""
    seq_lens: Several[PositiveInt] = (16,)
    """Tokens in an item, such as 16,128."""
    image_sizes: Several[PositiveInt] = (224,)
    """Pixels a side, such as 160,224."""
    phases: Several[Phase] = ("forward",)
    """Phases of a decoder: forward, or such as prefill,decode."""
    allocators: Several[Allocator] = ("default",)
    """Implementations of malloc, such as default,glibc-keep."""
    placement: Placement = "sequential"
    """How cores are filled: sequential, or interleave over NUMA nodes."""
    target_ci: Fraction = 0.02
    """Stop when every 95 % interval is within ± this share, such as 0.01."""
    max_seconds: Seconds = 10.0
    """Computing time of each point, over all rounds, such as 4."""
    rounds: Annotated[PositiveInt, Field(le=100)] = 2
    """Fresh processes for each config, such as 3."""
    hosts: Literal["one", "each", "any"] = "one"

    def trials(self, machine: Machine) -> list[Trial]:
        """Return the first trial of every config on `machine`, smaller batches first.

        Raises `RequestError` where the machine lacks SMT or CPUs, or the model's folder is missing.
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
        """Yield every config, smaller batches first; raise `RequestError` for missing SMT."""
        fixed = self.model_dump(include={"model", "weights", "seed", "placement"})
        tasks = {phase: resolved_task(self.model, self.task, phase) for phase in self.phases}
        values = {name: getattr(self, axis.several) for name, axis in AXES.items() if axis.several}
        values["batch_size"] = sorted(self.batch_sizes)
        values["smt"] = machine.smt_values(self.smt)
        # Smaller batches first, and each group together.
        names = sorted(values, key=lambda name: (name != "batch_size", AXES[name].within))
        for combination in product(*(values[name] for name in names)):
            varied = dict(zip(names, combination, strict=True))
            task = {"task": tasks[varied["phase"]]}
            yield Config.from_input(fixed | task | varied, context=None)

    def merged(self, other: Sweep) -> Sweep:
        """Return this sweep with the axes of `other` added; the limits are `other`'s."""
        lists = [axis.several for axis in AXES.values() if axis.several]
        axes: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in lists}
        rules = (self.threads, other.threads)
        axes["threads"] = next((r for r in ("all", "auto") if r in rules), None) or sum(rules, ())
        if self.smt != other.smt:
            axes["smt"] = "auto" if "auto" in (self.smt, other.smt) else "both"
        return Sweep.from_input({**other.model_dump(), **axes})

    @classmethod
    def load(cls, path: Path) -> Sweep:
        """Read a YAML file with fields of `Sweep` as keys; raise `RequestError` if it is wrong."""
        try:
            values = _AsWritten(path.read_text(encoding="utf-8")).get_single_data()
            if not isinstance(values, dict):
                raise RequestError("it holds no parameters: write lines like 'model: bert'")
            return cls.from_input(values, context=None)
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"cannot read {path}: {error}") from None
        except (yaml.YAMLError, RecursionError) as error:
            raise RequestError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from None

    def dump(self) -> str:
        """Return the sweep as YAML that `load` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


SPEC = "sweep.yaml"
"""The file with the request of the sweep in a folder."""

PRESETS = {
    "quick": "batch 1 to 64, the fastest engines installed, 2 s a point",
    "page": "the paper's: batch 1 to 1024, eager and TorchScript, 10 s a point",
}
"""The presets by name, each with what it measures."""


def preset(name: str) -> dict[str, Any]:
    """Return a preset's changes to the defaults of `Sweep`.

    ``quick`` has the fastest engines that are installed. Raises `RequestError` if unknown.
    """
    if name not in PRESETS:
        raise RequestError(unknown_message("preset", name, PRESETS))
    if name == "page":
        return {}
    openvino = ("openvino", "openvino-bf16", "openvino-int8")
    fast = ("none", "script", "bf16", "onnxruntime-int8", *openvino)
    usable = [one for one in fast if not OPTIMIZATIONS[one].lacking]
    sizes = (1, 4, 16, 64)
    return {"batch_sizes": sizes, "optimizations": usable, "max_seconds": 2.0, "rounds": 1}
