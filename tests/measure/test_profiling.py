"""A few passes under the profiler of what computes, on the tiny model."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.measure.models import build
from scalebench_lib.measure.optimizations.base import OptimizedModel, Target, Times, by_torch
from scalebench_lib.measure.pinned_executor import PinnedExecutor
from scalebench_lib.measure.profiling import MIN_PASSES, operator_times
from scalebench_lib.optimizations import OPTIMIZATIONS

MACHINE = Machine.here()
TINY = Config(model="bert-tiny", batch_size=2)
MODEL = build(TINY)
BATCH = MODEL.inputs(2, seed=0)


def loaded(make: Callable[[], OptimizedModel]) -> PinnedExecutor:
    """An executor of what `make` returns, at one thread."""
    executor = PinnedExecutor(
        [1], lambda n: MACHINE.cpus_for(n, False, "sequential"), MACHINE.pinnable
    )
    executor.set_num_threads(1)
    executor.load(make, [BATCH])
    return executor


def test_only_the_own_time_of_nested_operators_counts() -> None:
    """A linear layer calls addmm, and that copies: together no more than the passes took."""
    layer = torch.nn.Linear(512, 512)
    left = torch.ones(512, 512)

    def run(*_: Tensor) -> tuple[Tensor, ...]:
        return (layer(left).bfloat16(),)

    with torch.inference_mode():
        found = operator_times(loaded(lambda: by_torch(run)), 1, 1.0)
    assert (found.threads, found.passes) == (1, MIN_PASSES)
    assert found.self_ns["aten::addmm"] > 10 * found.self_ns["aten::linear"]
    assert "aten::copy_" not in found.self_ns, "it is part of what asked for it"
    assert found.self_ns["aten::_to_copy"] > 0
    assert sum(found.self_ns.values()) <= found.wall_ns


def test_what_would_take_long_is_left_out() -> None:
    executor = loaded(lambda: by_torch(lambda *_: (torch.ones(1),)))
    with pytest.raises(MeasurementError, match=r"^it would take 12 s, more than 10$"):
        operator_times(executor, 1, 2.0)


def test_an_engine_that_takes_long_to_open_is_left_out() -> None:
    def profile(*_: object) -> tuple[int, Times]:
        raise AssertionError

    executor = loaded(lambda: OptimizedModel(lambda _: MODEL.module, {}, profile=profile))
    executor.open_s = 60.0
    with pytest.raises(MeasurementError, match=r"^it would take 60 s, more than 10$"):
        operator_times(executor, 1, 0.001)


def test_an_engine_without_a_profiler_is_told() -> None:
    """Torch's sees nothing of it."""
    executor = loaded(lambda: OptimizedModel(lambda _: lambda *_: BATCH, {}))
    with pytest.raises(MeasurementError, match="its engine tells no times of operators"):
        operator_times(executor, 1, 0.01)


def test_sessions_that_were_timed_are_freed_before_another_is_opened() -> None:
    """There may be no memory for both."""

    class Session:
        def __call__(self, *_: Tensor) -> tuple[Tensor, ...]:
            return BATCH

    opened = list[weakref.ref[Session]]()

    def runner(_: int) -> Session:
        session = Session()
        opened.append(weakref.ref(session))
        return session

    def profile(threads: int, batch: object, passes: int) -> tuple[int, Times]:
        gc.collect()
        assert [one() for one in opened] == [None]
        assert (threads, batch, passes) == (1, BATCH, MIN_PASSES)
        return 10, Times(Add=7)

    executor = loaded(lambda: OptimizedModel(runner, {}, per_thread_count=True, profile=profile))
    assert operator_times(executor, 1, 1.0).self_ns == {"Add": 7}


@pytest.mark.parametrize(
    ("name", "package", "operators"),
    [
        ("onnxruntime", "onnxruntime", {"MatMul", "SkipLayerNormalization", "Softmax", "Gather"}),
        ("onnxruntime-int8", "onnxruntime", {"DynamicQuantizeMatMul", "MatMul of activations"}),
        ("openvino", "openvino", {"FullyConnected", "MVN", "Subgraph of attention", "Gather"}),
    ],
)
def test_engines_tell_the_times_of_their_own_operators(
    name: str, package: str, operators: set[str]
) -> None:
    """Of the passes that count: a first one, which is slow, does not."""
    pytest.importorskip(package)
    config = TINY.model_copy(update={"optimization": name})
    optimized = OPTIMIZATIONS[name].apply(Target(MODEL, BATCH, config))
    wall_ns, times = optimized.profile(1, BATCH, 3)
    assert operators <= times.keys()
    assert 0 < sum(times.values()) < 1.1 * wall_ns
