"""ONNX Runtime, on the tiny model."""

import shutil

import pytest
import torch
from transformers.models.albert import AlbertConfig

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import build
from scalebench_lib.measure.optimizations import base, onnx_runtime
from scalebench_lib.measure.optimizations.base import Target
from scalebench_lib.measure.optimizations.export_cache import cache_key

pytest.importorskip("onnxruntime")
TINY = Config(model="bert-tiny")
MODEL = build(TINY)
TARGET = Target(MODEL, MODEL.inputs(1, seed=0), TINY)


def test_one_export_serves_every_batch_and_padding(monkeypatch) -> None:
    """Its batch axis is free; nothing is exported again."""
    runner = onnx_runtime.fp32(TARGET).runner(1)
    monkeypatch.setattr(torch.onnx, "export", None)
    again = onnx_runtime.fp32(TARGET).runner(1)
    for size in (1, 5):
        inputs = MODEL.inputs(size, seed=3, padded=True)
        with torch.inference_mode():
            expected = MODEL.module(*inputs)
        for got in (runner(*inputs), again(*inputs)):
            mask = inputs[1].bool()
            assert torch.allclose(got[0][mask], expected[0][mask], atol=1e-5)
            assert torch.allclose(got[1], expected[1], atol=1e-5)


def test_int8_is_quantized_nearly_everywhere() -> None:
    """All but the products inside attention."""
    optimized = onnx_runtime.int8(TARGET)
    assert 0.9 < float(optimized.engine["quantized_flops"]) < 1.0
    with torch.inference_mode():
        difference = optimized.runner(1)(*TARGET.inputs)[0] - MODEL.module(*TARGET.inputs)[0]
    assert 1e-4 < float(difference.abs().max()) < 0.1, "int8, and no worse than that"


@pytest.mark.slow
def test_weights_that_layers_share_are_quantized_too(tmp_path) -> None:
    """ALBERT's four layers are one."""
    small = {"hidden_size": 64, "embedding_size": 32, "intermediate_size": 128, "vocab_size": 200}
    AlbertConfig(**small, num_attention_heads=2, num_hidden_layers=4).save_pretrained(tmp_path)
    config = Config(model=str(tmp_path))
    model = build(config)
    optimized = onnx_runtime.int8(Target(model, model.inputs(1, seed=0), config))
    assert float(optimized.engine["quantized_flops"]) > base.MIN_QUANTIZED_SHARE


def test_a_quantizer_that_does_nothing_is_refused(monkeypatch, tmp_path) -> None:
    """Its output would pass every check of exactness."""

    def copied(source, target, **_) -> None:
        shutil.copytree(source.parent, target.parent, dirs_exist_ok=True)

    exported = onnx_runtime._exported(TARGET)
    monkeypatch.setenv("SCALEBENCH_CACHE", str(tmp_path))
    shutil.copytree(exported, tmp_path / exported.name)
    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", copied)
    with pytest.raises(MeasurementError, match="does not apply to bert-tiny: 0% of its FLOPs"):
        onnx_runtime.int8(TARGET)
    assert (tmp_path / cache_key(TARGET, "onnx", "onnx", "onnxscript")).exists()


def test_a_session_has_the_threads_that_were_asked_for() -> None:
    """And computes the same with one as with two."""
    engine = onnx_runtime.fp32(TARGET)
    one, two = (engine.runner(count)(*TARGET.inputs) for count in (1, 2))
    assert torch.allclose(one[0], two[0], atol=1e-5)
