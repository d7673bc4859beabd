"""What tests of sweeps share."""

import pytest

from scalebench_lib.machine import Machine
from scalebench_lib.sweep import runner
from tests.fake_workers import SMALL, FakeTrials


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> FakeTrials:
    """On a machine with 2 cores, with a clock and a memory of its own."""
    trials = FakeTrials()
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: SMALL))
    monkeypatch.setattr(runner, "available_bytes", trials.available_bytes)
    monkeypatch.setattr(runner, "time", trials.clock)
    return trials
