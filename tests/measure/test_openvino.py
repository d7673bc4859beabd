"""OpenVINO, on the tiny model."""

import copy
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import Model, build
from scalebench_lib.measure.optimizations import openvino
from scalebench_lib.measure.optimizations.base import Target
from scalebench_lib.measure.optimizations.openvino import _require_effect, calibration, engine
from scalebench_lib.measure.verify import Verifier
from scalebench_lib.record import Verification
from tests.measure.sabotage import WithoutMask, heavy_layers

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="an extra")

needs_nncf = pytest.mark.skipif(find_spec("nncf") is None, reason="an extra")

TINY = Config(model="bert-tiny")
MODEL = build(TINY)
TARGET = Target(MODEL, MODEL.inputs(3, seed=0), TINY)


def optimizing(name: str) -> Target:
    """The target, by the optimization `name`."""
    return replace(TARGET, config=TINY.model_copy(update={"optimization": name}))


def test_it_computes_the_same_and_converts_once(monkeypatch) -> None:
    """Padding included."""
    first = engine(TARGET).runner(1)
    monkeypatch.setattr("openvino.convert_model", None)
    again = engine(TARGET).runner(1)
    inputs = MODEL.inputs(3, seed=3, padded=True)
    with torch.inference_mode():
        expected = MODEL.module(*inputs)
    for got in (first(*inputs), again(*inputs)):
        assert torch.allclose(got[1], expected[1], atol=1e-5)


def test_answers_are_not_overwritten_by_the_next_pass() -> None:
    """An engine may give out its own memory."""
    runner = engine(TARGET).runner(1)
    kept = runner(*TARGET.inputs)[0]
    before = kept.clone()
    runner(*MODEL.inputs(3, seed=9))
    assert torch.equal(kept, before)


def fake(threads: int, precision: str) -> SimpleNamespace:
    """A compiled model with one layer."""
    text = SimpleNamespace
    info = {
        "layerType": text(astype=lambda _: "FullyConnected"),
        "runtimePrecision": text(astype=lambda _: precision),
    }
    graph = SimpleNamespace(get_ops=lambda: [SimpleNamespace(get_rt_info=lambda: info)])
    return SimpleNamespace(get_property=lambda _: threads, get_runtime_model=lambda: graph)


def test_what_it_made_of_the_wishes_is_read_back() -> None:
    """Threads, and the types in which it really multiplies."""
    _require_effect(fake(2, "f32"), 2, "fp32")
    with pytest.raises(MeasurementError, match="asked for 2 threads, openvino uses 1"):
        _require_effect(fake(1, "f32"), 2, "fp32")
    with pytest.raises(MeasurementError, match=r"asked for bf16, openvino computes in \['f32'\]"):
        _require_effect(fake(2, "f32"), 2, "bf16")
    _require_effect(fake(2, "u8"), 2, "int8")
    with pytest.raises(MeasurementError, match=r"asked for int8, openvino computes in \['f32'\]"):
        _require_effect(fake(2, "f32"), 2, "int8")


def test_bf16_where_the_cpu_has_none_is_refused() -> None:
    """OpenVINO would compute in fp32 without a word."""
    import openvino

    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has bfloat16")
    with pytest.raises(MeasurementError, match="'openvino-bf16' does not apply"):
        engine(optimizing("openvino-bf16"))


def verified(model: Model, quantized: nn.Module) -> Verification:
    """What verification finds of `quantized`, in int8, as an optimization of `model`."""
    inputs = model.inputs(3, seed=0)
    with torch.inference_mode():
        config = TINY.model_copy(update={"optimization": "openvino-int8"})
        runner = engine(Target(Model(quantized, model.kind), inputs, config)).runner(1)
        return Verifier(model, inputs, "int8", seed=4).check(runner)


@pytest.mark.slow
@needs_nncf
def test_int8_quantizes_once_without_a_word(monkeypatch, capfd, tmp_path) -> None:
    """With an empty cache, then with a full one; its bars of progress stay off the console."""
    monkeypatch.setenv("SCALEBENCH_CACHE", str(tmp_path))
    assert 25 < verified(MODEL, MODEL.module).sqnr_db < 60
    monkeypatch.setattr("nncf.quantize", None)
    assert 25 < verified(MODEL, MODEL.module).sqnr_db < 60
    assert capfd.readouterr() == ("", "")


@needs_nncf
def test_int8_is_calibrated_on_other_items_than_those_that_are_verified() -> None:
    """Whatever the seed of the config."""
    calibrating = {tuple(one[0][0, :3].tolist()) for one in calibration(TARGET)}
    calibrating.discard((101, 102, 0))  # the item without a word
    assert len(calibrating) > 20
    for seed in (0, 1, 2**31 - 1):
        batches = [MODEL.inputs(8, seed + k, padded=k == 5)[0] for k in range(6)]
        assert calibrating.isdisjoint(map(tuple, torch.cat(batches)[:, :3].tolist()))


def test_int8_without_its_quantizer_names_the_extra(monkeypatch) -> None:
    """Which has it."""
    monkeypatch.setitem(sys.modules, "nncf", None)
    told = r"^nncf cannot be imported: pip install -e '.\[openvino\]'"
    with pytest.raises(MeasurementError, match=told):
        engine(optimizing("openvino-int8"))


@needs_nncf
@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["nothing", "layer", "mask", "zeros"])
def test_int8_of_another_function_is_refused(monkeypatch, tmp_path, wrong: str) -> None:
    """A layer dropped, the mask ignored, or calibrated on zeros, of a model with heavy layers."""
    monkeypatch.setenv("SCALEBENCH_CACHE", str(tmp_path))
    model = heavy_layers()
    module = copy.deepcopy(model.module)
    if wrong == "layer":
        del module.model.encoder.layer[1]
    if wrong == "mask":
        module = WithoutMask(module)
    if wrong == "zeros":
        zeros = [(torch.zeros_like(ids), *rest) for ids, *rest in calibration(TARGET)]
        monkeypatch.setattr(openvino, "calibration", lambda _: zeros)
    refused = pytest.raises(MeasurementError, match=r"failed: error .*int8 must have")
    with nullcontext() if wrong == "nothing" else refused:
        verified(model, module)


@pytest.mark.slow
def test_nothing_is_reported_to_anyone() -> None:
    """Its telemetry cannot be imported, so its stub is used."""
    code = (
        "from scalebench_lib.config import Config\n"
        "from scalebench_lib.measure.models import build\n"
        "from scalebench_lib.measure.optimizations.openvino import engine\n"
        "from scalebench_lib.measure.optimizations.base import Target\n"
        "config = Config(model='bert-tiny')\n"
        "model = build(config)\n"
        "engine(Target(model, model.inputs(3, seed=0), config))\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "assert telemetry_utils.tm.__name__.endswith('telemetry_stub')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
