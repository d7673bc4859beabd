"""A whole visit in this process, on the tiny model."""

import os
from itertools import pairwise

import pytest
import torch

from scalebench_lib.config import Config, Visit
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.measure import optimizations
from scalebench_lib.measure.optimizations import Optimization, Optimized, Subject
from scalebench_lib.measure.visit import measure

MACHINE = Machine.here()
COUNTS = MACHINE.thread_counts("auto")[:2]


def visit(**config: object) -> Visit:
    """A short visit of the tiny model."""
    return Visit(
        config=Config(**{"model": "bert-tiny", "batch_size": 2, **config}),
        threads=COUNTS,
        max_seconds=0.5,
        target_ci=0.1,
    )


@pytest.fixture(scope="module")
def record():
    """The record of a visit of TorchScript."""
    return measure(visit(optimization="script"), MACHINE)


def test_a_visit_tells_all_that_a_record_holds(record) -> None:
    """Points, set-up, verification, memory, software."""
    assert record.status == "ok", record.reason
    assert [point.threads for point in record.points] == list(COUNTS)
    assert all(len(point.samples_ns) >= 3 for point in record.points)
    assert record.setup.optimize_s > 0
    assert record.verification.sqnr_db > 90
    assert record.verification.reference == "fp64"
    assert record.item == "16 tokens"
    assert record.peak_memory_bytes > 50e6
    assert record.flops > 0
    assert all(0 < point.cpus_utilized < point.threads + 0.5 for point in record.points)
    assert record.software.versions["torch"] == torch.__version__


def test_points_tell_their_cpus(record) -> None:
    """CPU numbers in the order in which they are filled."""
    for point in record.points:
        assert point.cpus == MACHINE.cpus_for(point.threads, False, "sequential")
        assert point.pinned == MACHINE.pinnable


def test_the_process_is_given_its_cpus_back(record) -> None:
    """In JupyterLab the kernel lives on."""
    if MACHINE.pinnable:
        assert os.sched_getaffinity(0) == {cpu for core in MACHINE.cores for cpu in core.cpus}


def test_an_optimization_that_computes_something_else_fails_the_config(monkeypatch) -> None:
    """No points, and the figure in the reason."""

    def halved(subject: Subject) -> Optimized:
        module = subject.model.module
        return Optimized(lambda *batch: tuple(output / 2 for output in module(*batch)))

    monkeypatch.setitem(optimizations.REGISTRY, "script", Optimization(halved))
    record = measure(visit(optimization="script"), MACHINE)
    assert record.status == "failed"
    assert "verification failed: SQNR 6 dB against fp64" in record.reason
    assert record.points == ()
    assert record.setup is not None, "what came before is kept"


def test_a_model_that_cannot_be_built_fails_the_config() -> None:
    """With the builder's own words."""
    record = measure(visit(weights="pretrained"), MACHINE)
    assert record.status == "failed"
    assert record.reason.startswith("weights: bert-tiny has no published ones")
    with pytest.raises(MeasurementError):
        record.require_ok()


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-int8", "openvino"])
def test_an_engine_is_measured_at_each_thread_count_and_named(name: str) -> None:
    """Its own threads, each on its CPU; and what it is is in the record."""
    pytest.importorskip(name.partition("-")[0])
    record = measure(visit(optimization=name), MACHINE)
    assert record.status == "ok", record.reason
    assert [point.threads for point in record.points] == list(COUNTS)
    assert record.engine["name"] == name.partition("-")[0]
    assert record.engine["version"]
    assert record.engine["precision"] == record.verification.precision


def test_each_thread_of_openvino_has_a_cpu_to_itself() -> None:
    """It looks at its CPUs in its first pass, of which this one is large enough to be shared."""
    pytest.importorskip("openvino")
    record = measure(visit(optimization="openvino", batch_size=256), MACHINE)
    assert record.status == "ok", record.reason


def test_compiled_by_inductor_is_measured() -> None:
    """Compiled, verified, timed without compiling anew."""
    record = measure(visit(optimization="compile").model_copy(update={"threads": (1,)}), MACHINE)
    assert record.status == "ok", record.reason
    assert record.engine["backend"] == "inductor"
    assert record.setup.optimize_s > record.setup.first_pass_s


def test_passes_rotate_over_inputs(monkeypatch) -> None:
    """No two in a row are alike, so nothing is gained by remembering an answer."""
    asked: list[int] = []

    def watched(subject: Subject) -> Optimized:
        def run(*batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
            asked.append(hash(tuple(batch[0].flatten().tolist())))
            return subject.model.module(*batch)

        return Optimized(run)

    monkeypatch.setitem(optimizations.REGISTRY, "script", Optimization(watched))
    assert measure(visit(optimization="script"), MACHINE).status == "ok"
    timed = asked[-20:-2]
    assert len(set(timed)) == 4
    assert all(one != other for one, other in pairwise(timed))


def test_a_visit_that_is_not_thorough_measures_no_peak() -> None:
    """Nor FLOPs, nor float64: its config's first visit has."""
    found = measure(visit().model_copy(update={"thorough": False}), MACHINE)
    assert (found.flops, found.peak_gflops) == (None, {})
    assert found.verification.reference == "eager"
