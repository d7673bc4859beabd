"""Models of which a wrong one can be told from the right one, and what makes them wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scalebench_lib.config import Config
from scalebench_lib.measure.models import Model, build


def heavy_layers() -> Model:
    """A model whose layers weigh as much as BERT-base's do beside what passes them by."""
    model = build(Config(model="bert-tiny"))
    with torch.no_grad():
        for name, value in model.module.named_parameters():
            if "encoder" in name and value.dim() == 2:
                value *= 5
    return model


class WithoutMask(nn.Module):
    """Attends to padding."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, ...]:
        """As the model, of a mask of ones."""
        outputs: tuple[Tensor, ...] = self.module(ids, mask | 1, types)
        return outputs
