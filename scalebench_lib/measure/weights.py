"""Where a model's weights come from: drawn at random, quickly, or loaded from safetensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.initialization import no_init_weights

from scalebench_lib.errors import MeasurementError

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
