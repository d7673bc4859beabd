"""The models: each built from its published configuration, or from a folder or hub id.

Weights are drawn at random, quickly, or loaded from safetensors. To add a model: enter the name
that transformers has for it in `KNOWN`, and give it a title in `config.MODELS`.
"""

from __future__ import annotations

import hashlib
import inspect
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.bert import BertModel
from transformers.utils import logging as transformers_logging

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import Inputs, Pixels, Tokens

_UNIT = (0.0, 1.0)
"""What is drawn from when nothing is said: mean and deviation, or bounds."""

_TILE = 1_000_003
"""How many random numbers weights are tiled from; prime, so that no two rows are alike."""


class _TiledRandom(TorchDispatchMode):
    """Weights are drawn by tiling one seeded tile: their distribution, without their cost.

    `unwritten` are the addresses of tensors that were created empty and not filled since.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.normal = torch.randn(_TILE, generator=random).repeat(2)
        self.uniform = torch.rand(_TILE, generator=random).repeat(2)
        self.drawn = 0
        self.unwritten: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.empty.memory_format:
            result = func(*args, **(kwargs or {}))
            self.unwritten.add(result.data_ptr())
            return result
        if func._schema.is_mutable and args and isinstance(args[0], Tensor):
            self.unwritten.discard(args[0].data_ptr())
        if func is torch.ops.aten.normal_.default:
            return self._fill(self.normal, args[0], *_two(args[1:]))
        if func is torch.ops.aten.uniform_.default:
            low, high = _two(args[1:])
            return self._fill(self.uniform, args[0], low, high - low)
        return func(*args, **(kwargs or {}))

    def _fill(self, tile: Tensor, target: Tensor, shift: float, scale: float) -> Tensor:
        start = self.drawn % _TILE  # no two layers begin alike
        self.drawn += target.numel()
        for part in target.view(-1).split(_TILE):
            torch.mul(tile[start : start + part.numel()], scale, out=part)
        return target.add_(shift) if shift else target


def _two(given: tuple[float, ...]) -> tuple[float, float]:
    """Both parameters of a distribution, of which torch hands on those that are not 0 and 1."""
    first, second = (*given, *(0.0, 1.0)[len(given) :])
    return first, second


def random_weights(model_class: Any, config: Any, seed: int) -> Any:
    """A `model_class` of `config`, fp32, initialized as its authors say, from `seed`.

    Each weight is written once: what torch draws by default, and transformers would draw anew,
    is left out. Raises `MeasurementError` where a weight would be left uninitialized.
    """
    drawing = _TiledRandom(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with drawing:
            with no_init_weights():
                model = model_class._from_config(config, dtype=torch.float32)
            model.init_weights()
            _reset_unwritten(model, drawing.unwritten)
    for name, value in model.state_dict().items():
        if value.data_ptr() in drawing.unwritten and value.numel():
            raise MeasurementError(f"weights: {name} has no initialization: load pretrained ones")
    return model


def _reset_unwritten(model: nn.Module, unwritten: set[int]) -> None:
    """What transformers leaves alone gets torch's own initialization."""
    for layer in model.modules():
        reset: Any = getattr(layer, "reset_parameters", None)
        own = layer.parameters(recurse=False)
        if reset and any(weight.data_ptr() in unwritten for weight in own):
            with torch.no_grad():
                reset()


def pretrained_weights(model_class: Any, source: str, config: Any) -> Any:
    """A `model_class` with the weights of `source`, a hub id or a local folder, as fp32.

    Only safetensors files are read, and no code. Raises `MeasurementError` where they cannot be
    had, or do not fit the model.
    """
    try:
        model, report = model_class.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise MeasurementError(f"weights: cannot load {source!r}: {first_line(error)}") from None
    missing = [name for name in sorted(report["missing_keys"]) if "pooler" not in name]
    if missing:
        raise MeasurementError(
            f"weights: {source!r} lacks {len(missing)} of the model's, {missing[0]!r} among them"
        )
    return model


def first_line(error: Exception) -> str:
    """The first line of what `error` says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


__all__ = ["Inputs", "Model", "build"]

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
"""BERT's uncased vocabulary, and its ids for start and end; configurations do not tell them."""


@dataclass(frozen=True)
class Model:
    """A module in evaluation mode that maps inputs of its kind to a tuple of tensors.

    `str(model.kind)` says what an item is: ``16 tokens``.
    """

    module: nn.Module
    kind: Tokens | Pixels

    def inputs(self, batch_size: int, seed: int, padded: bool = False) -> Inputs:
        """A seeded batch; `padded` gives texts lengths of their own, as real batches have."""
        return self.kind.make(batch_size, seed, padded)

    def mask(self, inputs: Inputs) -> Tensor | None:
        """Which positions of outputs (batch, tokens, hidden) count; None where all do."""
        return self.kind.mask(inputs)


class Plain(nn.Module):
    """A transformers model with positional inputs and plain tensors out, as tracing needs."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Last hidden state (batch, tokens, hidden), then the pooled output if there is one."""
        output = self.model(**dict(zip(self.names, inputs, strict=True)))
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state,) if pooled is None else (output.last_hidden_state, pooled)


def build(config: Config) -> Model:
    """Build the model of `config` with its weights, in evaluation mode, fp32.

    Raises `MeasurementError` where it or its weights cannot be had or do not fit the config.
    """
    known = KNOWN.get(config.model)
    architecture = _architecture(config, known)
    model_class = _model_class(config, architecture)
    kind = _kind(config, architecture, model_class)
    model = _with_weights(config, known, model_class, architecture)
    if isinstance(kind, Tokens):
        _check_length(config, model)
        names = ("input_ids", "attention_mask", "token_type_ids")[: 2 + kind.types]
    else:
        names = ("pixel_values",)
    built = Model(Plain(model, names).eval(), kind)
    if isinstance(kind, Pixels) and getattr(architecture, "image_size", None):
        _check_image(config, built)
    return built


def digest(model: Model) -> str:
    """12 hex digits that change with the model's structure or any of its weights."""
    found = hashlib.sha256(str(model.module).encode())
    for name, part in model.module.state_dict().items():
        weights = part.detach().contiguous().flatten().view(torch.uint8).numpy()
        # By far the fastest that the standard library has; SHA-256 would take twice as long.
        found.update(f"{name} {part.dtype} {tuple(part.shape)} {zlib.crc32(weights)}".encode())
    return found.hexdigest()[:12]


def _architecture(config: Config, known: Known | None) -> Any:
    if known:
        architecture = CONFIG_MAPPING[known.kind](**known.architecture)
    else:
        try:
            architecture = AutoConfig.from_pretrained(config.model, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise MeasurementError(
                f"model: cannot load {config.model!r}: {first_line(error)}"
            ) from None
    architecture.use_cache = False
    return architecture


def _model_class(config: Config, architecture: Any) -> Any:
    if type(architecture) not in MODEL_MAPPING or architecture.is_encoder_decoder:
        raise MeasurementError(
            f"model: {config.model!r} is {architecture.model_type!r}, which is no encoder, "
            "decoder or vision model that transformers builds alone"
        )
    return MODEL_MAPPING[type(architecture)]


def _kind(config: Config, architecture: Any, model_class: Any) -> Tokens | Pixels:
    taken = set(inspect.signature(model_class.forward).parameters)
    if {"input_ids", "attention_mask"} <= taken and "pixel_values" not in taken:
        _must_be_default(config, "image_size", "text")
        return _tokens(config, architecture, "token_type_ids" in taken)
    if "pixel_values" in taken and "input_ids" not in taken:
        _must_be_default(config, "seq_len", "images")
        return Pixels(config.image_size, getattr(architecture, "num_channels", 3))
    raise MeasurementError(
        f"model: {config.model!r} takes neither text nor images alone, but "
        f"{model_class.main_input_name}"
    )


def _must_be_default(config: Config, size: str, taken: str) -> None:
    """A size that means nothing to a model is not an axis to measure it along."""
    if getattr(config, size) != Config.model_fields[size].default:
        raise MeasurementError(f"{size}: {config.model!r} takes {taken}: leave {size} out")


def _tokens(config: Config, architecture: Any, takes_types: bool) -> Tokens:
    vocabulary = architecture.vocab_size
    start, end = architecture_id(architecture, "bos"), architecture_id(architecture, "eos")
    if vocabulary == _UNCASED_VOCABULARY:
        start, end = _CLS, _SEP
    return Tokens(
        seq_len=config.seq_len,
        vocabulary=vocabulary,
        pad=architecture_id(architecture, "pad") or 0,
        start=start,
        end=end,
        types=takes_types and getattr(architecture, "type_vocab_size", 0) > 0,
    )


def architecture_id(architecture: Any, which: str) -> int | None:
    """The id of a special token (``bos``, ``eos``, ``pad``), where the vocabulary has it."""
    value = getattr(architecture, f"{which}_token_id", None)
    return value if isinstance(value, int) and 0 <= value < architecture.vocab_size else None


def _with_weights(config: Config, known: Known | None, model_class: Any, architecture: Any) -> Any:
    if config.weights == "random":
        return random_weights(model_class, architecture, config.seed)
    own = known.hub_id if known else config.model
    source = own if config.weights == "pretrained" else config.weights
    if source is None:
        raise MeasurementError(
            f"weights: {config.model} has no published ones: use 'random' or a folder"
        )
    return pretrained_weights(model_class, source, architecture)


def _check_length(config: Config, model: nn.Module) -> None:
    """Learned positions end somewhere; those of RoBERTa's kind begin behind the padding id."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding) and name.endswith(("position_embeddings", "wpe")):
            longest = layer.num_embeddings - (
                0 if layer.padding_idx is None else layer.padding_idx + 1
            )
            if config.seq_len > longest:
                raise MeasurementError(
                    f"seq_len: {config.seq_len} tokens are more than the {longest} that this "
                    "model takes"
                )


def _check_image(config: Config, model: Model) -> None:
    """Some models take images of one size alone; only they know which."""
    try:
        with torch.inference_mode():
            model.module(*model.inputs(1, config.seed))
    except (ValueError, RuntimeError) as error:
        raise MeasurementError(
            f"image_size: {config.model!r} takes no {config.image_size}: {first_line(error)}"
        ) from None
