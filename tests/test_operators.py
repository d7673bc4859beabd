"""Operators by kind, as the engines name them."""

import re

import pytest

from scalebench_lib.operators import BETWEEN, KINDS, OperatorTimes


def times(wall_ns: int, **self_ns: int) -> OperatorTimes:
    """A profile of one pass at one thread."""
    return OperatorTimes(threads=1, passes=1, wall_ns=wall_ns, self_ns=self_ns)


NAMED = {
    "matrix products": (
        *("aten::addmm", "aten::mm", "aten::linear", "aten::mkldnn_convolution", "aten::_int_mm"),
        *("mkldnn::_linear_pointwise", "onednn::qlinear_pointwise", "quantized::linear_dynamic"),
        *("MatMul", "FusedGemm", "Conv", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
        *("FullyConnected", "Convolution"),
    ),
    "attention": (
        *("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::bmm", "aten::_softmax"),
        *("FusedMatMul of activations", "Subgraph of attention", "MHA", "Softmax"),
    ),
    "normalization": (
        *("aten::native_layer_norm", "aten::native_batch_norm", "SkipLayerNormalization", "MVN"),
    ),
    "embedding": ("aten::index_select", "aten::embedding", "Gather"),
    "quantizing, converting": (
        *("aten::_to_copy", "aten::to", "aten::quantize_per_tensor", "aten::to_mkldnn"),
        *("DynamicQuantizeLinear", "DequantizeLinear", "Cast", "Convert", "Reorder"),
        *("FakeQuantize", "torchao::choose_qparams_affine"),
    ),
    "fused kernels": ("CompiledFxGraph", "forward", "Subgraph", "prim::TensorExprGroup"),
    "other operators": ("aten::gelu", "Transpose", "aten::broadcast_to", "GatherND", "Add"),
}


@pytest.mark.parametrize(("kind", "names"), NAMED.items())
def test_operators_of_every_engine_are_of_the_right_kind(kind: str, names: tuple[str, ...]) -> None:
    for name in names:
        assert times(1, **{name: 1}).shares[kind] == 1, name


def test_what_is_in_no_operator_is_spent_between_them() -> None:
    shares = times(100, **{"aten::mm": 60, "aten::gelu": 15}).shares
    assert list(shares) == list(KINDS)
    assert shares["matrix products"] == 0.6
    assert shares[BETWEEN] == 0.25
    assert sum(shares.values()) == pytest.approx(1)


def test_shares_stay_shares_where_clocks_differ() -> None:
    """OpenVINO tells whole microseconds of each node."""
    shares = times(100, MatMul=90, Add=20).shares
    assert shares[BETWEEN] == 0
    assert sum(shares.values()) == pytest.approx(1)


def test_patterns_are_valid() -> None:
    assert all(re.compile(pattern) for pattern in KINDS.values())
