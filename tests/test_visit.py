"""A whole visit in this process, on the tiny model."""

import os

import pytest
import torch

from scalebench_lib.config import Config, Visit
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.measure import optimizations
from scalebench_lib.measure.visit import measure

MACHINE = Machine.here()
COUNTS = MACHINE.thread_counts("auto")[:2]


def visit(**config: object) -> Visit:
    """A short visit of the tiny model."""
    return Visit(
        config=Config(model="bert-tiny", batch_size=2, **config),
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

    def halved(module, inputs):
        return lambda *batch: tuple(output / 2 for output in module(*batch))

    monkeypatch.setitem(optimizations.APPLY, "script", halved)
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
