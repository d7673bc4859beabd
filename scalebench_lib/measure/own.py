"""Load a model of the user's own: their code, run because they named it."""

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
from scalebench_lib.errors import MeasurementError, did_you_mean
from scalebench_lib.measure.inputs import InputMaker, Inputs


def load(config: Config) -> tuple[Callable[..., Any], InputMaker, tuple[str, ...]]:
    """Return the model that `config` names, its inputs, and their names, if any.

    Its code draws random weights from the config's seed. Raises `MeasurementError` where it is
    missing or returns something else, and whatever its code raises.
    """
    name, before = config.model, set(threading.enumerate())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        made = _function(name)()
    if not (isinstance(made, tuple) and len(made) == 2 and all(map(callable, made))):
        raise MeasurementError(
            f"model: {name!r} returns a {type(made).__name__}, not (model, inputs): a callable on "
            "tensors, and a function inputs(batch_size, seed)"
        )
    if started := [thread.name for thread in threading.enumerate() if thread not in before]:
        raise MeasurementError(
            f"model: {name!r} starts threads ({', '.join(started)}), which would compute beside "
            "those that are pinned and counted: leave them out"
        )
    return made[0], *_kind(name, made[1], config.seed)


def _function(name: str) -> Any:
    source, _, function = name.rpartition(":")
    path = Path(source).absolute()
    if path.suffix == ".py":
        sys.path.append(str(path.parent))  # after all installed packages
        loader = SourceFileLoader(f"own_{path.stem}", str(path))
        module = sys.modules[loader.name] = ModuleType(loader.name)
        module.__file__ = str(path)
        loader.exec_module(module)
    else:
        module = importlib.import_module(source)
    if not callable(found := getattr(module, function, None)):
        known = [one for one, value in vars(module).items() if callable(value)]
        hint = did_you_mean(function, known) if known else "it has none"
        raise MeasurementError(f"model: {source!r} has no function {function!r}: {hint}")
    return found


def _kind(
    name: str, inputs: Callable[[int, int], Any], seed: int
) -> tuple[InputMaker, tuple[str, ...]]:
    def make(batch_size: int, seed: int, padded: bool = False) -> Inputs:
        made = _checked(name, inputs(batch_size, seed), batch_size)
        return tuple(made[key] for key in parts)

    parts = _checked(name, inputs(1, seed), 1)
    shapes = ("×".join(map(str, part.shape[1:])) or "1" for part in parts.values())
    types = (str(part.dtype).removeprefix("torch.") for part in parts.values())
    names = () if 0 in parts else tuple(parts)
    return InputMaker(", ".join(map("{} {}".format, shapes, types)), make), names


def _checked(name: str, made: Any, size: int) -> dict[Any, Tensor]:
    """Return the tensors of a batch by name or number; `MeasurementError` for anything else."""
    parts = dict(enumerate(made)) if isinstance(made, tuple) else made
    values = list(parts.values()) if isinstance(parts, Mapping) else []
    strange = [part for part in values if not isinstance(part, Tensor)] or [made] * (not values)
    wrong = [f"a {type(part).__name__}" for part in strange] or [
        f"shape {tuple(part.shape)}" for part in values if part.shape[:1] != (size,)
    ]
    if wrong:
        raise MeasurementError(
            f"model: inputs({size}, seed) of {name!r} returns {wrong[0]}, not a tuple or dict of "
            "tensors with an item a row"
        )
    return dict(parts)
