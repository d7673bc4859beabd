"""``torch.compile``: compiled before the timing, or refused."""

import os
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._inductor.cpp_builder import cpp_compiler_search

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.optimizations.base import Target
from scalebench_lib.measure.optimizations.export_cache import LOOKUPS, cache_state
from scalebench_lib.measure.optimizations.inductor import compile_module, compiled


class Small(nn.Module):
    """A layer, compiled in seconds."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Something to fuse."""
        return (torch.relu(x) * 2 + x,)


class Broken(Small):
    """Inductor cannot take it whole."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Print in the middle."""
        torch._dynamo.graph_break()
        return (x + 1,)


def target(module: nn.Module) -> Target:
    """`module` as something to compile."""
    return Target(
        SimpleNamespace(module=module.eval()), (torch.ones(4, 8),), Config(optimization="compile")
    )


@pytest.mark.slow
def test_it_computes_the_same_and_nothing_is_compiled_while_it_is_watched() -> None:
    """The other shape is what static shapes mean."""
    with torch.inference_mode():
        optimized = compiled(target(Small()))
        run = optimized.runner(torch.get_num_threads())
        with optimized.guarded():
            assert torch.equal(run(torch.ones(4, 8))[0], torch.full((4, 8), 3.0))
        with (
            pytest.raises(MeasurementError, match="compiled anew while timing"),
            optimized.guarded(),
        ):
            run(torch.ones(5, 8))


class Linear(nn.Module):
    """With weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """A product."""
        return (self.layer(x),)


def test_weights_are_frozen_where_that_is_asked_for() -> None:
    """As options of a call, freezing would be heard by half, without a word."""
    module = Linear()
    with torch.inference_mode():
        expected = module(torch.ones(4, 8))[0].clone()
        frozen = compile_module(target(module), module, ("freezing",))
        run = frozen.runner(torch.get_num_threads())
        module.layer.weight.zero_()
        assert torch.allclose(run(torch.ones(4, 8))[0], expected, atol=1e-5)
        assert frozen.engine["freezing"] == "on"
        plain = compiled(target(Linear()))
        assert not torch._inductor.config.freezing
        assert "freezing" not in plain.engine


def test_what_no_cache_keeps_is_compiled_anew() -> None:
    """Packed weights, each time: its set-up is not one from disk."""
    module = Linear()
    for _ in range(2):
        before = LOOKUPS.copy()
        with torch.inference_mode():
            compile_module(target(module), module, ("freezing",)).runner(torch.get_num_threads())
        assert cache_state(before) == "empty"


def test_a_module_that_would_be_compiled_in_pieces_is_refused() -> None:
    """Its rest would run as it is, unseen."""
    with pytest.raises(MeasurementError, match="'compile' does not apply: "):
        compiled(target(Broken())).runner(1)


def test_warnings_that_are_errors_do_not_stop_it() -> None:
    """With PYTHONWARNINGS=error torch would end at a warning of its own code."""
    with warnings.catch_warnings(action="error"):
        compiled(target(Small())).runner(1)


def test_where_compiling_is_turned_off_it_did_not_take_effect() -> None:
    """As TORCHDYNAMO_DISABLE does: the module would run as it is, unseen."""
    with (
        torch._dynamo.config.patch(disable=True),
        pytest.raises(MeasurementError, match="'compile' did not take effect: no graph"),
    ):
        compiled(target(Small())).runner(1)


def test_without_a_compiler_one_line_says_so() -> None:
    """And what to install."""
    cpp_compiler_search.cache_clear()
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(MeasurementError, match=r"needs a C\+\+ compiler.*install g\+\+"),
    ):
        compiled(target(Small()))
    cpp_compiler_search.cache_clear()


def test_a_space_in_the_path_of_its_folder_is_named(monkeypatch, tmp_path) -> None:
    """Its compiler would take the path for two."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "a cache"))
    with pytest.raises(MeasurementError, match=r"spaces or quotes in its path, '.*/a cache': set"):
        compiled(target(Small()))


def test_inductor_keeps_its_code_beside_the_exports(monkeypatch, tmp_path) -> None:
    """Unless the user has said where."""
    monkeypatch.setenv("SCALEBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "elsewhere"))
    compiled(target(Small()))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "elsewhere")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiled(target(Small()))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
