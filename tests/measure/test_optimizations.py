"""The optimizations: each is what it says."""

import os
import subprocess
import sys
from dataclasses import replace
from pkgutil import resolve_name

import pytest
import torch
from torch import nn

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import random_float_maker
from scalebench_lib.measure.models import Model, build
from scalebench_lib.measure.optimizations import base
from scalebench_lib.measure.optimizations.base import Target, by_torch
from scalebench_lib.measure.optimizations.native import low_precision, script
from scalebench_lib.measure.verify import Verifier
from scalebench_lib.optimizations import OPTIMIZATIONS

TINY = Config(model="bert-tiny", batch_size=2)
MODEL = build(TINY)
TARGET = Target(MODEL, MODEL.inputs(2, seed=0), TINY)
LOWERED = replace(TARGET, config=TINY.model_copy(update={"optimization": "bf16"}))


@pytest.fixture
def _bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that has bfloat16."""
    monkeypatch.setattr(base, "has_native_matmul", lambda _: True)


def test_every_optimization_that_may_be_asked_for_can_be_applied() -> None:
    """Its function is where its declaration says, and says what it does."""
    for optimization in OPTIMIZATIONS.values():
        assert resolve_name(optimization.function).__doc__


def test_a_name_tells_the_precision() -> None:
    """It decides what verification asks."""
    told = {name: OPTIMIZATIONS[name].precision for name in ("none", "bf16", "openvino-bf16")}
    assert told == {"none": "fp32", "bf16": "bf16", "openvino-bf16": "bf16"}
    assert OPTIMIZATIONS["onnxruntime-int8"].precision == "int8"


def test_script_is_torchscript() -> None:
    """Traced and frozen: its weights are constants of a graph, not parameters of a module."""
    runner = script(TARGET).runner(1)
    assert isinstance(runner, torch.jit.ScriptModule)
    assert not list(runner.parameters())
    assert "prim::Constant" in str(runner.graph)


def test_script_holds_for_other_batches_and_padding() -> None:
    """A trace that had baked in its example would give the example's answer."""
    runner = script(TARGET).runner(1)
    padded = MODEL.inputs(5, seed=9, padded=True)
    with torch.inference_mode():
        assert torch.allclose(runner(*padded)[1], MODEL.module(*padded)[1], atol=1e-5)


def test_script_that_is_no_torchscript_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published "script" figures were never TorchScript."""
    monkeypatch.setattr(torch.jit, "optimize_for_inference", lambda _: MODEL.module)
    with pytest.raises(MeasurementError, match="did not take effect"):
        script(TARGET)


def test_script_without_torchscript_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With PYTORCH_JIT=0 a trace is what it was."""
    monkeypatch.setattr(torch.jit, "trace", lambda module, *_, **__: module)
    with pytest.raises(MeasurementError, match="'script' did not take effect"):
        script(TARGET)


@pytest.mark.usefixtures("_bfloat16")
def test_bf16_computes_in_bfloat16_and_leaves_the_model_alone() -> None:
    """The reference is still fp32."""
    with torch.inference_mode():
        outputs = low_precision(LOWERED).runner(1)(*TARGET.inputs)
        expected = MODEL.module(*TARGET.inputs)
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    assert {output.dtype for output in expected} == {torch.float32}
    assert torch.allclose(outputs[0].float(), expected[0], atol=0.1)


@pytest.mark.usefixtures("_bfloat16")
def test_bf16_that_left_the_weights_as_they_were_is_refused(monkeypatch) -> None:
    """With the types that were found."""
    monkeypatch.setattr(nn.Module, "to", lambda self, _: self)
    with pytest.raises(MeasurementError, match=r"'bf16' did not take effect: found .*float32"):
        low_precision(LOWERED)


@pytest.mark.parametrize("name", ["bf16", "compile-bf16", "compile-max-bf16", "fp16"])
def test_a_type_needs_a_cpu_that_has_it(monkeypatch, name: str) -> None:
    """Emulated, its speed would say nothing."""
    monkeypatch.setattr(base, "has_native_matmul", lambda _: False)
    target = replace(TARGET, config=TINY.model_copy(update={"optimization": name}))
    title = "float16" if name == "fp16" else "bfloat16"
    with pytest.raises(
        MeasurementError, match=f"'{name}' does not apply: this CPU has no {title} "
    ):
        OPTIMIZATIONS[name].apply(target)


def test_a_limit_of_the_cpu_is_named(monkeypatch) -> None:
    """The CPU may have the type, and oneDNN be told to do without."""
    monkeypatch.setattr(base, "has_native_matmul", lambda _: False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(
        MeasurementError, match="no bfloat16 arithmetic with ONEDNN_MAX_CPU_ISA=AVX2, and torch"
    ):
        low_precision(LOWERED)


def test_fp16_is_verified_as_fp16(monkeypatch) -> None:
    """More exact than bfloat16, and less than fp32."""
    monkeypatch.setattr(base, "has_native_matmul", lambda _: True)
    target = replace(TARGET, config=TINY.model_copy(update={"optimization": "fp16"}))
    with torch.inference_mode():
        runner = OPTIMIZATIONS["fp16"].apply(target).runner(1)
        found = Verifier(MODEL, TARGET.inputs, OPTIMIZATIONS["fp16"].precision).check(runner)
    assert 50 < found.sqnr_db < 75
    assert found.precision == "fp16"


def test_torchao_quantizes_linear_layers_alone() -> None:
    """A model of others is refused with the share, before anything is compiled."""
    if OPTIMIZATIONS["torchao-int8"].missing:
        pytest.skip("an extra")
    config = Config(model="resnet50", optimization="torchao-int8")
    target = Target(
        Model(nn.Conv2d(3, 8, 3), random_float_maker("32 × 32 pixels", 3, 32, 32)),
        (torch.ones(1, 3, 32, 32),),
        config,
    )
    with pytest.raises(MeasurementError, match="does not apply to resnet50: 0% of its weights"):
        OPTIMIZATIONS["torchao-int8"].apply(target)


@pytest.mark.slow
def test_a_cpu_that_emulates_bfloat16_has_none() -> None:
    """Any with AVX-512 says that it is supported; a product in it is slower than in fp32."""
    module = "scalebench_lib.measure.optimizations.base"
    code = f"from {module} import has_native_matmul; print(has_native_matmul('bf16'))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "False\n"


def test_a_cpu_has_bfloat16_where_a_product_in_it_is_faster(monkeypatch) -> None:
    """Whatever the library claims."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for bf16_ns, has_it in ((5, True), (20, False)):
        times = {torch.bfloat16: bf16_ns, torch.float32: 10}
        monkeypatch.setattr(base, "_product_ns", times.__getitem__)
        assert base.has_native_matmul.__wrapped__("bf16") is has_it


@pytest.mark.parametrize(
    "name", ["onnxruntime", "onnxruntime-int8", "openvino", "openvino-bf16", "torchao-int8"]
)
def test_an_engine_that_is_not_installed_names_its_extra(monkeypatch, name: str) -> None:
    """One line, with the command."""
    package = name.partition("-")[0]
    missing = {"torchao": "torchao.quantization"}.get(package, package)
    monkeypatch.setitem(sys.modules, missing, None)
    told = rf"^{package}\S* cannot be imported: pip install -e '.\[{package}\]'"
    with pytest.raises(MeasurementError, match=told):
        OPTIMIZATIONS[name].apply(TARGET)


def test_torch_s_own_share_one_runner() -> None:
    """Any number of threads computes it."""
    optimized = by_torch(MODEL.module)
    assert optimized.runner(1) is optimized.runner(2)
    assert optimized.engine["name"] == "torch"
