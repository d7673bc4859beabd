"""The optimizations: each is what it says."""

import pytest
import torch

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import build
from scalebench_lib.measure.optimizations import APPLY, script
from scalebench_lib.words import OPTIMIZATIONS

MODEL = build(Config(model="bert-tiny"))


def test_every_optimization_that_may_be_asked_for_can_be_applied() -> None:
    """The words and the functions are in step."""
    assert set(APPLY) == set(OPTIMIZATIONS)


def test_script_is_torchscript() -> None:
    """Traced and frozen: its weights are constants of a graph, not parameters of a module."""
    runner = script(MODEL.module, MODEL.inputs(2, seed=0))
    assert isinstance(runner, torch.jit.ScriptModule)
    assert not list(runner.parameters())
    assert "prim::Constant" in str(runner.graph)


def test_script_holds_for_other_batches_and_padding() -> None:
    """A trace that had baked in its example would give the example's answer."""
    runner = script(MODEL.module, MODEL.inputs(2, seed=0))
    padded = MODEL.inputs(5, seed=9, padded=True)
    with torch.inference_mode():
        assert torch.allclose(runner(*padded)[1], MODEL.module(*padded)[1], atol=1e-5)


def test_script_that_is_no_torchscript_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published "script" figures were never TorchScript."""
    monkeypatch.setattr(torch.jit, "optimize_for_inference", lambda _: MODEL.module)
    with pytest.raises(MeasurementError, match="did not take effect"):
        script(MODEL.module, MODEL.inputs(2, seed=0))
