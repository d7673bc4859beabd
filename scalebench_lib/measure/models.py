"""The models: each built from its published configuration, or from a folder or hub id.

Weights are drawn at random or loaded from safetensors. To add a model: enter the name that
transformers has for it in `KNOWN`, and give it a title in `config.MODELS`.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any
from unittest import mock

import torch
from huggingface_hub import constants, get_session
from torch import Tensor, nn
from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.bert import BertModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import has_file

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError, first_line
from scalebench_lib.measure import generation
from scalebench_lib.measure.inputs import Inputs, Pixels, Tokens
from scalebench_lib.processes import OUT_OF_MEMORY, error_reason

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

IMPORTED = BertModel
"""Imported with this module, and so before a warm kernel is forked; other kinds when built."""


@dataclass(frozen=True)
class Known:
    """A published model: its kind in transformers, where its weights lie, what is not default."""

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
"""The models by name: the defaults of their configurations are the published ones."""

_UNCASED_VOCABULARY, _CLS, _SEP = 30_522, 101, 102
"""BERT's uncased vocabulary, and its ids for start and end, which configurations do not hold."""

_LEFT_OUT = {"auto_map": "code of its own", "quantization_config": "quantized weights"}
"""What a configuration may say of its model that is never done here."""

_SAFELY = {"trust_remote_code": False}

_POSITIONS = ("position_embeddings", "embed_positions", "wpe")
"""How the names of the layers end that have a row for each position."""

HUB_ANSWERS_S = 5.0
"""Its own client tries for half a minute."""

_LEAST = 1e-6
"""Outputs of layers that are smaller fade further on."""

_TILE = 1_000_003
"""How many random numbers weights are tiled from; prime, so that no two rows are alike."""


@dataclass(frozen=True)
class Model:
    """A module in evaluation mode that maps inputs of its kind to a tuple of tensors.

    `str(model.kind)` describes an item: ``16 tokens``.
    """

    module: nn.Module
    kind: Tokens | Pixels | generation.Sequences

    @property
    def reference(self) -> Any:
        """What computes the same as `module`: itself, or, with a cache, a pass without one."""
        return getattr(self.module, "reference", self.module)

    def inputs(self, batch_size: int, seed: int, padded: bool = False) -> Inputs:
        """Make a seeded batch; `padded` gives texts lengths of their own, as real batches have."""
        return self.kind.make(batch_size, seed, padded)


class Plain(nn.Module):
    """A transformers model with positional inputs and plain tensors out, as tracing needs."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the last hidden state (batch, tokens, hidden), and the pooled output if any."""
        output = self.model(**dict(zip(self.names, inputs, strict=True)))
        if "logits" in output:
            return (output.logits,)
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state,) if pooled is None else (output.last_hidden_state, pooled)


def build(config: Config, shapes_only: bool = False) -> Model:
    """Build the model of `config` with its weights, in evaluation mode, fp32, and run one item.

    With `shapes_only` its tensors have no values, and take no memory. Raises `MeasurementError` if
    the model or its weights cannot be had, or do not take an item of the config's size.
    """
    known = KNOWN.get(config.model)
    architecture = _architecture(config, known)
    with _in_one_line(f"model: {config.model!r} cannot be built"):
        model_class = _model_class(config, architecture)
        kind, names = _kind(config, architecture, model_class)
        weights = _weights(config, known, model_class, architecture, shapes_only)
    # Nothing is trained: what counts operations would look for gradients that there are not.
    model = Model(Plain(weights.requires_grad_(False), names).eval(), kind)
    _require_positions(config, model)
    _run_once(config, model, "meta" if shapes_only else "cpu")
    if config.phase != "forward" and isinstance(kind, Tokens):
        return Model(*generation.generating(config, weights, kind))
    return model


def digest(model: Model) -> str:
    """Return 12 hex digits that change with the model's structure or any of its weights."""
    found = hashlib.sha256(f"{model.module} {_settings(model)}".encode())
    for name, part in model.module.state_dict().items():
        weights = part.detach().contiguous().flatten().view(torch.uint8).numpy()
        # By far the fastest that the standard library has; SHA-256 would take twice as long.
        found.update(f"{name} {part.dtype} {tuple(part.shape)} {zlib.crc32(weights)}".encode())
    return found.hexdigest()[:12]


def _settings(model: Model) -> dict[str, Any]:
    """What of its configuration is not as usual; some of it shows in no module's description."""
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
    """Raise `MeasurementError` where something else would be measured than `source` says."""
    for key, brings in _LEFT_OUT.items():
        if configuration.get(key):
            raise MeasurementError(
                f"{what}: {source!r} has {brings} ({key}), which is left out: transformers' own "
                f"{configuration['model_type']!r} in fp32 would be measured instead; to ask for "
                f"that, take {key!r} out of the config.json of a copy"
            )


def _cached_first(load: Callable[..., Any], what: str, source: str, **how: Any) -> Any:
    """Call `load` with what is here; ask the hub only for what was never downloaded."""
    if not Path(source).is_dir():
        with suppress(OSError):
            return load(source, local_files_only=True, **how)
        _require_hub(what, source)
    return load(source, **how)


def _require_hub(what: str, source: str) -> None:
    """Raise `MeasurementError` where the hub does not answer soon."""
    failures = [f"no answer in {HUB_ANSWERS_S:.0f} s"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=HUB_ANSWERS_S)
            failures.clear()
        except Exception as error:  # of its library for HTTP, which is another with each version
            failures[:] = [first_line(error)]

    asking = Thread(target=ask, daemon=True)  # looking up a name knows no time limit
    asking.start()
    asking.join(HUB_ANSWERS_S)
    if failures:
        raise MeasurementError(
            f"{what}: {source!r} was never downloaded, and {constants.ENDPOINT} cannot be reached "
            f"({failures[0]}): name a folder, or try again with a network"
        )


def _model_class(config: Config, architecture: Any) -> Any:
    if config.phase != "forward":
        return generation.model_class(config, architecture)
    found = MODEL_MAPPING.get(type(architecture), None)
    if found is None or architecture.is_encoder_decoder:
        raise MeasurementError(
            f"model: {config.model!r} is {architecture.model_type!r}, which is no encoder, "
            "decoder or vision model that transformers builds alone"
        )
    return found[0] if isinstance(found, tuple) else found


def _kind(
    config: Config, architecture: Any, model_class: Any
) -> tuple[Tokens | Pixels, tuple[str, ...]]:
    """The kind of inputs, and the names of the arguments that take them."""
    arguments = set(inspect.signature(model_class.forward).parameters)
    if {"input_ids", "attention_mask"} <= arguments and "pixel_values" not in arguments:
        _require_default(config, "image_size", "text")
        kind = _tokens(config, architecture, "token_type_ids" in arguments)
        return kind, ("input_ids", "attention_mask", "token_type_ids")[: 2 + kind.types]
    if "pixel_values" in arguments and "input_ids" not in arguments:
        _require_default(config, "seq_len", "images")
        channels = getattr(architecture, "num_channels", 3)
        return Pixels(config.image_size, channels), ("pixel_values",)
    raise MeasurementError(
        f"model: {config.model!r} takes neither text nor images alone, but "
        f"{model_class.main_input_name}"
    )


def _require_default(config: Config, size: str, taken: str) -> None:
    """A size that means nothing to a model is not an axis to measure it along."""
    if getattr(config, size) != Config.model_fields[size].default:
        raise MeasurementError(f"{size}: {config.model!r} takes {taken}: leave {size} out")


def _tokens(config: Config, architecture: Any, takes_types: bool) -> Tokens:
    vocabulary: int | None = getattr(architecture, "vocab_size", None)
    if vocabulary is None:
        raise MeasurementError(
            f"model: {config.model!r} is {architecture.model_type!r}, which has no vocabulary to "
            "make a text of"
        )

    def special(name: str) -> int | None:
        value = getattr(architecture, f"{name}_token_id", None)
        return value if isinstance(value, int) and value in range(vocabulary) else None

    uncased = vocabulary == _UNCASED_VOCABULARY
    return Tokens(
        seq_len=config.seq_len,
        vocabulary=vocabulary,
        pad=special("pad") or 0,
        start=_CLS if uncased else special("bos"),
        end=_SEP if uncased else special("eos"),
        types=takes_types and getattr(architecture, "type_vocab_size", 0) > 0,
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
    with torch.device("meta") if shapes_only else _tiled_random(config.seed):
        return model_class._from_config(architecture, dtype=torch.float32)


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
        )
    missing = [name for name in sorted(report["missing_keys"]) if "pooler" not in name]
    if missing:
        raise MeasurementError(
            f"weights: {source!r} lacks {len(missing)} of the model's, {missing[0]!r} among them"
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


def _require_positions(config: Config, model: Model) -> None:
    """Raise `MeasurementError` if the model has fewer positions than the config's tokens."""
    for name, layer in model.module.named_modules():
        if isinstance(layer, nn.Embedding) and name.endswith(_POSITIONS):
            # Positions of RoBERTa's kind begin behind the padding id, of OPT's at an offset.
            behind = 0 if layer.padding_idx is None else layer.padding_idx + 1
            longest = layer.num_embeddings - int(getattr(layer, "offset", behind))
            if isinstance(model.kind, Tokens) and config.seq_len > longest:
                raise MeasurementError(
                    f"seq_len: {config.seq_len} tokens are more than the {longest} that this "
                    "model takes"
                )


def _run_once(config: Config, model: Model, device: str) -> None:
    """Run one item: some models take items of one size alone, and only they know which."""
    inputs = (part.to(device) for part in model.inputs(1, config.seed))
    what = "image_size" if isinstance(model.kind, Pixels) else "seq_len"
    # Many models look at values, which "meta" has not, and end with a RuntimeError there.
    with (
        _in_one_line(f"{what}: {config.model!r} takes no {model.kind}"),
        suppress(RuntimeError) if device == "meta" else nullcontext(),
        torch.inference_mode(),
        _scaled(model.module) if config.weights == "random" and device == "cpu" else nullcontext(),
    ):
        model.module(*inputs)


@contextmanager
def _scaled(module: nn.Module) -> Iterator[None]:
    """Scale the weights of layers whose outputs are far too small, or too large.

    In networks that rely on trained normalization, random weights let signals fade to denormals,
    with which CPUs are slow, and to zeros.
    """

    def scale(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        largest = float(output.abs().max())
        if not largest or not math.isfinite(largest) or _LEAST <= largest <= 1 / _LEAST:
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
def _in_one_line(what: str) -> Iterator[None]:
    """Turn whatever libraries raise over a strange model into a `MeasurementError`."""
    try:
        yield
    except MeasurementError:
        raise
    except Exception as error:
        if error_reason(type(error).__name__, str(error)).startswith(OUT_OF_MEMORY):
            raise
        name, line = type(error).__name__, first_line(error)
        said = line if " " in line or line == name else f"{name}: {line}"
        raise MeasurementError(f"{what}: {said}") from None
