"""OpenVINO, on the tiny model."""

import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import build
from scalebench_lib.measure.optimizations.base import Target
from scalebench_lib.measure.optimizations.openvino import _require_effect, bf16, fp32

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="an extra")

TINY = Config(model="bert-tiny")
MODEL = build(TINY)
TARGET = Target(MODEL, MODEL.inputs(3, seed=0), TINY)


def test_it_computes_the_same_and_converts_once(monkeypatch) -> None:
    """Padding included."""
    first = fp32(TARGET).runner(1)
    monkeypatch.setattr("openvino.convert_model", None)
    again = fp32(TARGET).runner(1)
    inputs = MODEL.inputs(3, seed=3, padded=True)
    with torch.inference_mode():
        expected = MODEL.module(*inputs)
    for got in (first(*inputs), again(*inputs)):
        assert torch.allclose(got[1], expected[1], atol=1e-5)


def test_answers_are_not_overwritten_by_the_next_pass() -> None:
    """An engine may give out its own memory."""
    runner = fp32(TARGET).runner(1)
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


def test_bf16_where_the_cpu_has_none_is_refused() -> None:
    """OpenVINO would compute in fp32 without a word."""
    import openvino

    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has bfloat16")
    with pytest.raises(MeasurementError, match="'openvino-bf16' does not apply"):
        bf16(TARGET)


@pytest.mark.slow
def test_nothing_is_reported_to_anyone() -> None:
    """Its telemetry cannot be imported, so its stub is used."""
    code = (
        "from scalebench_lib.config import Config\n"
        "from scalebench_lib.measure.models import build\n"
        "from scalebench_lib.measure.optimizations.openvino import fp32\n"
        "from scalebench_lib.measure.optimizations.base import Target\n"
        "config = Config(model='bert-tiny')\n"
        "model = build(config)\n"
        "fp32(Target(model, model.inputs(3, seed=0), config))\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "assert telemetry_utils.tm.__name__.endswith('telemetry_stub')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
