"""A model of one's own: a function that returns it, and a function that makes its inputs.

It runs people's own code, because they asked for it by its name.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError, nearest
from scalebench_lib.measure.inputs import Inputs, Made


def load(config: Config) -> tuple[Callable[..., Any], Made, tuple[str, ...]]:
    """Return the model that `config` names, its inputs, and their names where they have any.

    Weights that it draws at random are of the config's seed.

    Raises `MeasurementError` where it is not there, or another thing; and what its code raises.
    """
    name, before = config.model, set(threading.enumerate())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        made = _function(name)()
    match made:
        case (model, inputs) if callable(model) and callable(inputs):
            kind, names = _kind(name, inputs, config.seed)
        case _:
            raise MeasurementError(
                f"model: {name!r} returns {_form(made)}, not (model, inputs): a callable on "
                "tensors, and a function inputs(batch_size, seed)"
            )
    if started := [thread.name for thread in threading.enumerate() if thread not in before]:
        raise MeasurementError(
            f"model: {name!r} starts threads ({', '.join(started)}), which would compute beside "
            "those that are pinned and counted: leave them out"
        )
    return model, kind, names


def _function(name: str) -> Any:
    source, _, function = name.rpartition(":")
    is_file = source.endswith(".py")
    module = _of_file(Path(source).absolute()) if is_file else importlib.import_module(source)
    if not callable(found := getattr(module, function, None)):
        known = [one for one, value in vars(module).items() if callable(value)]
        hint = nearest(function, known) if known else "it has none"
        raise MeasurementError(f"model: {source!r} has no function {function!r}: {hint}")
    return found


def _of_file(path: Path) -> ModuleType:
    if (folder := str(path.parent)) not in sys.path:
        sys.path.append(folder)  # behind all that is installed
    loader = SourceFileLoader(f"own_{path.stem}", str(path))
    module = sys.modules[loader.name] = ModuleType(loader.name)
    module.__file__ = str(path)
    loader.exec_module(module)
    return module


def _kind(name: str, inputs: Callable[[int, int], Any], seed: int) -> tuple[Made, tuple[str, ...]]:
    def make(batch_size: int, seed: int, padded: bool = False) -> Inputs:
        return tuple(_checked(name, inputs(batch_size, seed), batch_size).values())

    parts = _checked(name, inputs(1, seed), 1)
    shapes = ("×".join(map(str, part.shape[1:])) or "1" for part in parts.values())
    types = (str(part.dtype).removeprefix("torch.") for part in parts.values())
    names = () if 0 in parts else tuple(parts)
    return Made(", ".join(map("{} {}".format, shapes, types)), make), names


def _checked(name: str, made: Any, size: int) -> dict[Any, Tensor]:
    """The tensors of a batch by name, or by number; `MeasurementError` where they are not."""
    parts = dict(enumerate(made)) if isinstance(made, tuple) else made
    values = list(parts.values()) if isinstance(parts, Mapping) else []
    wrong = [f"{_form(part)} among them" for part in values if not isinstance(part, Tensor)]
    shapes = [getattr(part, "shape", None) for part in values]
    wrong += [f"shape {tuple(s)} for a batch of {size}" for s in shapes if s and s[0] != size]
    if wrong or not values:
        raise MeasurementError(
            f"model: inputs(batch_size, seed) of {name!r} returns {[*wrong, _form(made)][0]}, not "
            "a tuple or dict of tensors with an item a row"
        )
    return dict(parts)


def _form(made: Any) -> str:
    return "nothing" if made is None else f"a {type(made).__name__}"
