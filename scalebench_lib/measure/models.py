"""Build models from a published configuration, a folder or hub id, or the user's own code.

Weights are drawn at random or loaded from safetensors. To add a model: enter the name that
transformers has for it in `KNOWN`, and give it a title in `model_names.MODELS`.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any
from unittest import mock

import torch
from huggingface_hub import constants, get_session
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig
from transformers.models.bert import BertModel  # noqa: F401 - before a warm kernel is forked
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging
from transformers.utils.generic import ModelOutput
from transformers.utils.hub import has_file

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError, reason_of
from scalebench_lib.machine import Machine
from scalebench_lib.measure import generation, own
from scalebench_lib.measure.inputs import Inputs, Kind, Tokens, combined_maker, random_float_maker
from scalebench_lib.model_names import TASKS, is_own, own_files, resolved_task, task_of_class
from scalebench_lib.processes import OUT_OF_MEMORY, exception_reason
from scalebench_lib.record import model_files_digest

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Known:
    """A published model: transformers' name for it, its hub id, and settings that differ."""

    kind: str
    hub_id: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)


BERT_TINY: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}

KNOWN = {
    "bert": Known("bert", "google-bert/bert-base-uncased"),
    "bert-tiny": Known("bert", architecture=BERT_TINY),
    "distilbert": Known("distilbert", "distilbert/distilbert-base-uncased"),
    "gpt2": Known("gpt2", "openai-community/gpt2"),
    "resnet50": Known("resnet", "microsoft/resnet-50"),
}
"""The models by name: transformers' default configurations are the published ones."""

_UNCASED_VOCABULARY, _CLS, _SEP = 30_522, 101, 102
"""The size of BERT's uncased vocabulary, and its ids for start and end of a text, which its
configuration lacks."""

_UNSUPPORTED = {
    "auto_map": "code of its own",
    "quantization_config": "quantized weights",
    "compression_config": "quantized weights",
    "adapter_config.json": "an adapter",
}
"""Entries of a configuration, and files, of models that are not supported."""

_SAFELY = {"trust_remote_code": False}

_POSITIONS = ("position_embeddings", "embed_positions", "wpe")
"""Endings of the names of layers with a row for each position."""

HUB_ANSWERS_S = 5.0
"""The hub's own client tries for half a minute."""

_MIN_OUTPUT = 1e-6
"""Smaller outputs of a layer fade to denormals in the layers after it."""

_TILE = 1_000_003
"""Weights are tiled from that many random numbers; prime, so that no two rows are equal."""

MAX_TENSORS = 20_000
"""Weights and biases of a model: 1,250 layers of BERT have as many, and take seconds to build."""

_AUDIO_S, _SAMPLES_PER_S = 10, 16_000
_CODE_POINTS = 0x110000
"""The vocabulary of models that read characters."""

Keys = tuple[str | int, ...]
"""The keys and indices that lead to a tensor in what a model returns."""


@dataclass(frozen=True)
class Model:
    """A module in evaluation mode that maps inputs of its kind to a tuple of tensors.

    `str(model.kind)` describes an item: ``16 tokens``; `note` says which outputs are left out;
    `source` is a hash of the user's code that it runs, if any.
    """

    module: nn.Module
    kind: Kind | generation.CachedTokens
    note: str = ""
    source: str | None = None

    @property
    def reference(self) -> Callable[..., tuple[Tensor, ...]]:
        """The same function, of a model with a cache computed without it."""
        found: Callable[..., tuple[Tensor, ...]] = getattr(self.module, "reference", self.module)
        return found

    def inputs(self, batch_size: int, seed: int, padded: bool = False) -> Inputs:
        """Make a seeded batch; `padded` gives texts lengths of their own, as real batches have."""
        return self.kind.make(batch_size, seed, padded)


class Plain(nn.Module):
    """A model that maps positional tensors to a tuple of tensors, as tracing needs.

    The model takes its inputs by `names`, if any; `outputs` lead to the tensors in its answer.
    """

    outputs: tuple[Keys, ...] = ()

    def __init__(self, model: Callable[..., Any], names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def answer(self, *inputs: Tensor) -> Any:
        named = dict(zip(self.names, inputs, strict=True)) if self.names else {}
        return self.model(**named) if named else self.model(*inputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors: of BERT (batch, tokens, hidden), and the pooled output."""
        answer = self.answer(*inputs)
        return tuple(_part(answer, place) for place in self.outputs)


def _part(answer: Any, place: Keys) -> Any:
    for key in place:
        answer = getattr(answer, str(key)) if isinstance(answer, ModelOutput) else answer[key]
    return answer


def build(config: Config, shapes_only: bool = False) -> Model:
    """Build the model of `config` with its weights, in evaluation mode, in fp32, and run it once.

    With `shapes_only` its tensors have no values and take no memory, but for the user's own models.
    Raises `MeasurementError` if the model or its weights cannot be loaded, or do not take items of
    the config's size.
    """
    kind: Kind
    if is_own(config.model):
        with _in_one_line(f"model: {config.model!r} cannot be built", own_files(config.model)):
            module, kind, names = own.load(config)
        return _run(config, Plain(module, names).requires_grad_(False).eval(), kind, "cpu")
    known = KNOWN.get(config.model)
    architecture = _architecture(config, known)
    with _in_one_line(f"model: {config.model!r} cannot be built"):
        model_class = _model_class(config, architecture)
        kind, names = _kind(config, architecture, model_class)
        weights = _weights(config, known, model_class, architecture, shapes_only)
    # Without gradients: the counter of FLOPs would look for them.
    plain = Plain(weights.requires_grad_(False), names).eval()
    _require_positions(config, plain)
    model = _run(config, plain, kind, "meta" if shapes_only else "cpu")
    if config.phase != "forward":
        tokens = _tokens(config, architecture.get_text_config(), takes_types=False)
        return Model(*generation.with_static_cache(config, weights, tokens))
    return model


def digest(model: Model) -> str:
    """Return 12 hex digits that change with the model's structure or any of its weights."""
    found = hashlib.sha256(f"{model.module} {_settings(model)} {model.source}".encode())
    for name, part in model.module.state_dict().items():
        weights = part.detach().contiguous().flatten().view(torch.uint8).numpy()
        # The fastest checksum of the standard library; SHA-256 would take twice as long.
        found.update(f"{name} {part.dtype} {tuple(part.shape)} {zlib.crc32(weights)}".encode())
    return found.hexdigest()[:12]


def _settings(model: Model) -> dict[str, Any]:
    """Return the settings of its configuration that differ from transformers' defaults."""
    config = getattr(getattr(model.module, "model", None), "config", None)
    settings = config.to_diff_dict() if config else {}
    elsewhere = ("_name_or_path", "transformers_version")  # where it came from, and by what
    return {name: settings[name] for name in sorted(settings) if name not in elsewhere}


def _architecture(config: Config, known: Known | None) -> Any:
    if known:
        architecture = CONFIG_MAPPING[known.kind](**known.architecture)
    else:
        with _in_one_line(f"model: cannot load {config.model!r}"):
            architecture = _cached_first(
                AutoConfig.from_pretrained, "model", config.model, **_SAFELY
            )
        _require_plain("model", config.model, vars(architecture))
    architecture.use_cache = False
    architecture.return_dict = True
    return architecture


def _require_plain(what: str, source: str, configuration: Mapping[str, Any]) -> None:
    """Raise `MeasurementError` where `source` needs more than transformers' own classes in fp32."""
    for key, brings in _UNSUPPORTED.items():
        if configuration.get(key) or Path(source, key).is_file():
            raise MeasurementError(
                f"{what}: {source!r} has {brings} ({key}), which is left out: transformers' own "
                f"{configuration['model_type']!r} in fp32 would be measured instead; to ask for "
                f"that, take {key!r} out of a copy"
            )


def _cached_first(load: Callable[..., Any], what: str, source: str, **how: Any) -> Any:
    """Call `load` with local files; ask the hub only for what was never downloaded."""
    if not Path(source).is_dir():
        with suppress(OSError):
            return load(source, local_files_only=True, **how)
        _require_hub(what, source)
    return load(source, **how)


def _require_hub(what: str, source: str) -> None:
    """Raise `MeasurementError` unless the hub answers within `HUB_ANSWERS_S`."""
    failures = [f"no answer in {HUB_ANSWERS_S:.0f} s"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=HUB_ANSWERS_S)
            failures.clear()
        except Exception as error:  # of its library for HTTP, which is another with each version
            failures[:] = [reason_of(error)]

    asking = Thread(target=ask, daemon=True)  # looking up a name knows no time limit
    asking.start()
    asking.join(HUB_ANSWERS_S)
    if failures:
        raise MeasurementError(
            f"{what}: {source!r} was never downloaded, and {constants.ENDPOINT} cannot be reached "
            f"({failures[0]}): name a folder, or try again with a network"
        )


def _model_class(config: Config, architecture: Any) -> Any:
    """Return transformers' class for the config's task, preferably the one that its folder names.

    Raises `MeasurementError` where transformers has none.
    """
    if config.phase != "forward":
        return generation.model_class(config, architecture)
    named = (getattr(architecture, "architectures", None) or [None])[0]
    task = resolved_task(config.model, config.task)
    found = _classes(architecture, task)
    if named and task_of_class(named) == task:
        found = {name: one for name, one in found.items() if name == named}
    if not found:
        has = ", ".join(one for one in ("none", *TASKS) if _classes(architecture, one))
        raise MeasurementError(
            f"task: {config.model!r} is {named or architecture.model_type!r}, which transformers "
            f"does not build for task {task!r}; of its kind there are: {has or 'none'}"
        )
    return next(iter(found.values()))


def _classes(architecture: Any, task: str) -> dict[str, Any]:
    """Return the classes that transformers has for `task`, by name."""
    wanted = "automodel" + f"for{task}".replace("-", "") * (task != "none")
    autos = [one for name, one in vars(modeling_auto).items() if name.lower() == wanted]
    found = autos[0]._model_mapping.get(type(architecture), ()) if autos else ()
    return {one.__name__: one for one in (found if isinstance(found, tuple) else (found,))}


def _kind(config: Config, architecture: Any, model_class: Any) -> tuple[Kind, tuple[str, ...]]:
    """Return the kind of inputs, and the names of the arguments that take them."""
    takes = inspect.signature(model_class.forward).parameters.keys()
    found: dict[str, Kind | None] = {}
    if {"input_ids", "attention_mask"} <= takes:
        tokens = _tokens(config, architecture.get_text_config(), "token_type_ids" in takes)
        found |= {"input_ids": tokens, "attention_mask": None}
        found |= {"token_type_ids": None} if tokens.types else {}
    if "pixel_values" in takes:
        vision = getattr(architecture, "vision_config", architecture)
        shape = getattr(vision, "num_channels", 3), config.image_size, config.image_size
        item, frames = f"{shape[1]} × {shape[2]} pixels", getattr(vision, "num_frames", 0)
        videos = (f"{frames} frames of {item}", frames, *shape)
        found["pixel_values"] = (
            random_float_maker(*videos) if frames else random_float_maker(item, *shape)
        )
    if "input_values" in takes:
        found["input_values"] = random_float_maker(
            f"{_AUDIO_S} s of audio", _AUDIO_S * _SAMPLES_PER_S
        )
    if "input_features" in takes and hasattr(architecture, "max_source_positions"):
        frames = 2 * architecture.max_source_positions  # of 10 ms
        item = f"{frames / 100:g} s of audio"
        found["input_features"] = random_float_maker(item, architecture.num_mel_bins, frames)
    if "decoder_input_ids" in takes:
        start = getattr(architecture, "decoder_start_token_id", None)
        tokens = Tokens(config.seq_len, architecture.vocab_size, start=start, decoder=True)
        found["decoder_input_ids"] = tokens
    if (main := model_class.main_input_name) not in found:
        raise MeasurementError(
            f"model: {config.model!r} takes no text, images or audio that can be made, but {main}"
        )
    return combined_maker(list(filter(None, found.values()))), tuple(found)


def _tokens(config: Config, architecture: Any, takes_types: bool) -> Tokens:
    characters = hasattr(architecture, "num_hash_buckets")
    vocabulary: int = _CODE_POINTS if characters else architecture.vocab_size

    def special(name: str) -> int | None:
        value = getattr(architecture, f"{name}_token_id", None)
        return value if isinstance(value, int) and value in range(vocabulary) else None

    uncased = vocabulary == _UNCASED_VOCABULARY
    windows = getattr(architecture, "attention_window", 1)
    return Tokens(
        seq_len=config.seq_len,
        vocabulary=vocabulary,
        pad=special("pad") or 0,
        start=_CLS if uncased else special("bos"),
        end=_SEP if uncased else special("eos"),
        types=takes_types and getattr(architecture, "type_vocab_size", 0) > 0,
        window=max(windows) if isinstance(windows, list | tuple) else windows,
    )


def _weights(
    config: Config, known: Known | None, model_class: Any, architecture: Any, shapes_only: bool
) -> Any:
    own = known.hub_id if known else config.model
    source = own if config.weights == "pretrained" else config.weights
    if source is None:
        raise MeasurementError(
            f"weights: {config.model} has no published ones: use 'random' or a folder"
        )
    if source not in ("random", own):
        with suppress(OSError):  # weights may lie alone
            values, _ = _cached_first(PretrainedConfig.get_config_dict, "weights", source)
            _require_plain("weights", source, {"model_type": model_class.__name__, **values})
    if source != "random":
        if not shapes_only:
            return _pretrained(model_class, source, architecture)
        _require_safetensors(source)
    with _within_memory(config.model) if shapes_only else _tiled_random(config.seed):
        return model_class._from_config(architecture, dtype=torch.float32)


@contextmanager
def _within_memory(model: str) -> Iterator[None]:
    """Make weights without values; `MeasurementError` once they are more than this machine holds.

    Building all of a model that is far too large would take as long as if it were not.
    """
    memory, tensors, size = Machine.here().memory_bytes, 0, 0

    def count(module: nn.Module, name: str, weight: nn.Parameter) -> None:
        nonlocal tensors, size
        tensors, size = tensors + 1, size + 4 * weight.numel()
        if size > memory or tensors > MAX_TENSORS:
            raise MeasurementError(
                f"model: {model!r} has more than {size / 2**30:.1f} GiB of weights in fp32, in "
                f"{tensors:,} tensors; this machine has {memory / 2**30:.1f} GiB of memory, and "
                f"{MAX_TENSORS:,} tensors are the most that are built"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            yield
    finally:
        hook.remove()


@contextmanager
def _tiled_random(seed: int) -> Iterator[None]:
    """Draw weights by tiling seeded random numbers: BERT-base takes 0.15 s instead of 0.5 s."""
    generator, drawn = torch.Generator().manual_seed(seed), 0
    normal = torch.randn(_TILE, generator=generator).repeat(2)
    uniform = torch.rand(_TILE, generator=generator).repeat(2)

    def fill(target: Tensor, tile: Tensor, shift: float, scale: float) -> Tensor:
        nonlocal drawn
        start = drawn % _TILE  # no two layers begin alike
        drawn += target.numel()
        for part in target.view(-1).split(_TILE):
            torch.mul(tile[start : start + part.numel()], scale, out=part)
        return target.add_(shift) if shift else target

    def normal_(target: Tensor, mean: float = 0, std: float = 1, generator: Any = None) -> Tensor:
        return fill(target, normal, mean, std)

    def uniform_(target: Tensor, low: float = 0, high: float = 1, generator: Any = None) -> Tensor:
        return fill(target, uniform, low, high - low)

    with (
        torch.random.fork_rng(devices=[]),
        mock.patch.multiple(Tensor, normal_=normal_, uniform_=uniform_),
    ):
        torch.manual_seed(seed)
        yield


def _pretrained(model_class: Any, source: str, architecture: Any) -> Any:
    """Load the weights of `source`, a hub id or a folder: only safetensors, and no code."""
    with _in_one_line(f"weights: cannot load {source!r}"):
        model, report = _cached_first(
            model_class.from_pretrained,
            "weights",
            source,
            **_SAFELY,
            config=architecture,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below
        )
    own = tuple(f"{name}." for name, _ in model.named_children())
    wrong = {
        "lacks {} of the model's": {
            name for name in report["missing_keys"] if "pooler" not in name
        },
        "has {} of other shapes than the model's": {one for one, *_ in report["mismatched_keys"]},
        "has {} that the model has no place for": {
            found
            for name in report["unexpected_keys"]
            if (found := name.removeprefix(f"{model.base_model_prefix}.")).startswith(own)
            and name.endswith(".weight")  # not buffers of older versions; heads are left out
        },
    }
    for what, names in wrong.items():
        if names:
            raise MeasurementError(
                f"weights: {source!r} {what.format(len(names))}, {min(names)!r} among them"
            )
    return model


def _require_safetensors(source: str) -> None:
    """Raise `MeasurementError` where there are none; looks, and downloads nothing."""

    def there(source: str, **where: Any) -> bool:
        if any(has_file(source, n, **where) for n in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
            return True
        raise OSError("no safetensors")

    with _in_one_line(f"weights: cannot load {source!r}"):
        _cached_first(there, "weights", source)


def _require_positions(config: Config, plain: Plain) -> None:
    """Raise `MeasurementError` if the model takes no such size, or fewer positions than tokens."""
    for size, name in {"seq_len": "input_ids", "image_size": "pixel_values"}.items():
        given = getattr(config, size) != Config.model_fields[size].default
        if given and name not in " ".join(plain.names):  # no axis to measure along
            raise MeasurementError(
                f"{size}: {config.model!r} takes {plain.names[0]}: leave {size} out"
            )
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Embedding) and name.endswith(_POSITIONS):
            # RoBERTa's positions begin after the padding id, OPT's at an offset.
            after = 0 if layer.padding_idx is None else layer.padding_idx + 1
            longest = layer.num_embeddings - int(getattr(layer, "offset", after))
            takes_text = "input_ids" in plain.names or "decoder" in name
            if takes_text and config.seq_len > longest:
                raise MeasurementError(
                    f"seq_len: {config.seq_len} tokens are more than the {longest} that this "
                    "model takes"
                )


def _run(config: Config, plain: Plain, kind: Kind, device: str) -> Model:
    """Run batches of one and two items, to find the outputs of each item; return the model."""
    batches = ([part.to(device) for part in kind.make(n, config.seed, False)] for n in (1, 2))
    sizes = {"input_ids": "seq_len", "pixel_values": "image_size"}
    size = sizes.get(next(iter(plain.names), ""), "model")
    files = own_files(config.model) if is_own(config.model) else []
    drawn = config.weights == "random" and device == "cpu" and not files
    left_out = ""
    # Many models read values, which "meta" tensors lack, and raise RuntimeError.
    with (
        _in_one_line(f"{size}: {config.model!r} takes no {kind}", files),
        suppress(RuntimeError) if device == "meta" else nullcontext(),
        torch.inference_mode(),
        _scaled(plain) if drawn else nullcontext(),
    ):
        one, two = (dict(_parts(plain.answer(*batch), bool(files))) for batch in batches)
        plain.outputs, left_out = _outputs(one, two)
        if not plain.outputs:
            raise MeasurementError(f"model: {config.model!r} returns no floats; {left_out}")
    return Model(plain, kind, left_out, model_files_digest(config) if files else None)


def _parts(answer: Any, deep: bool, place: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Yield the parts of an answer with the keys to them; without `deep` its own tensors alone."""
    parts = dict(enumerate(answer)) if isinstance(answer, list | tuple) else answer
    if isinstance(parts, Mapping) and (deep or not place):
        for key, part in parts.items():
            yield from _parts(part, deep, (*place, key))
    elif isinstance(answer, Tensor) or (deep and answer is not None):
        yield place, answer


def _outputs(one: dict[Keys, Any], two: dict[Keys, Any]) -> tuple[tuple[Keys, ...], str]:
    """Return the keys to floats of which each item has its own, and a note on all other parts."""
    left_out = {}
    for place, part in one.items():
        if not isinstance(part, Tensor) or not part.is_floating_point():
            left_out[place] = str(getattr(part, "dtype", type(part).__name__))
        elif not part.dim() or two[place].shape != (2, *part.shape[1:]):
            left_out[place] = "not of single items"
    named = (f"{'.'.join(map(str, place)) or 'it'} ({why})" for place, why in left_out.items())
    note = f"left out of the outputs: {', '.join(named)}" if left_out else ""
    return tuple(place for place in one if place not in left_out), note


@contextmanager
def _scaled(module: nn.Module) -> Iterator[None]:
    """Scale the weights of layers whose outputs are below 1e-6 or above 1e6.

    In networks that rely on trained normalization, random weights let signals fade to denormals,
    which slow CPUs down, and to zeros.
    """

    def scale(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        largest = float(output.abs().max()) if output.numel() else 0
        if not largest or not math.isfinite(largest) or _MIN_OUTPUT <= largest <= 1 / _MIN_OUTPUT:
            return output
        factor = 2.0 ** -round(math.log2(largest))  # exact, and the same everywhere
        for part in layer.parameters(recurse=False):
            part.mul_(factor)
        return output * factor

    layers = (one for one in module.modules() if isinstance(one, nn.Linear | nn.Conv1d | nn.Conv2d))
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _in_one_line(what: str, files: Sequence[Path] = ()) -> Iterator[None]:
    """Turn any exception into a `MeasurementError`, with the line of `files` that raised it."""
    try:
        yield
    except MeasurementError:
        raise
    except (Exception, SystemExit) as error:
        if exception_reason(type(error).__name__, str(error)).startswith(OUT_OF_MEMORY):
            raise
        name, line = type(error).__name__, reason_of(error)
        said = line if " " in line or line == name else f"{name}: {line}"
        ours = {str(path.absolute()) for path in files}
        calls = [c for c in traceback.extract_tb(error.__traceback__) if c.filename in ours]
        where = [f" ({Path(call.filename).name}, line {call.lineno})" for call in calls[-1:]]
        raise MeasurementError("".join([f"{what}: {said}", *where])) from None
