"""Check that a pass is a pure function of its inputs: otherwise it is no reference."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from threading import Thread
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import Inputs


def require_no_side_effects(module: nn.Module, inputs: Inputs) -> None:
    """Raise `MeasurementError` where a pass has side effects, or returns memory of another."""
    parts = (*inputs, *module.buffers())
    before, printed = [part.clone() for part in parts], StringIO()
    with redirect_stdout(printed), mock.patch.object(Thread, "start", _refuse):
        passes = [module(*inputs) for _ in range(2)]
    places = [{part.untyped_storage().data_ptr() for part in each} for each in (inputs, *passes)]
    changed = [not torch.equal(*both) for both in zip(parts, before, strict=True)]
    found = {
        f"prints {printed.getvalue()[:40]!r}, which takes time": bool(printed.getvalue()),
        "changes its inputs": any(changed[: len(inputs)]),
        "keeps state in buffers of the model": any(changed[len(inputs) :]),
        "returns memory of its inputs: return a copy": bool(places[0] & places[1]),
        "returns the same memory as the pass before: return a copy": bool(places[1] & places[2]),
    }
    for what in (what for what, holds in found.items() if holds):
        raise MeasurementError(f"model: a pass {what}")


def _refuse(thread: Thread) -> None:
    raise MeasurementError(f"model: a pass starts a thread, {thread.name!r}, which nobody counts")


def first_varying_layer(module: nn.Module, inputs: Inputs) -> str:
    """Return the layer whose outputs are the first to differ between equal passes."""
    seen: list[tuple[nn.Module, list[Tensor]]] = []

    def keep(layer: nn.Module, _: object, outputs: object) -> None:
        seen.append((layer, [part for part in tree_leaves(outputs) if isinstance(part, Tensor)]))

    with register_module_forward_hook(keep):
        module(*inputs)
        layers = len(seen)
        module(*inputs)
    names = {layer: name.removeprefix("model.") for name, layer in module.named_modules()}
    for (layer, one), (_, other) in zip(seen[:layers], seen[layers:], strict=False):
        if not all(map(torch.equal, one, other)):
            return f"{names.get(layer, 'a layer')!r} ({type(layer).__name__})"
    return "no layer"
